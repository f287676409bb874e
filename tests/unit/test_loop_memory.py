"""Memory of a loop before its first cycle, and the figures about it, on any machine."""

from __future__ import annotations

import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rtloop_test_waiting import wait_until

from rtloop import RTLoop

Script = Callable[..., "subprocess.CompletedProcess[str]"]

PAGE = resource.getpagesize()
FAR = "1min"  # a first release that does not come during a test


def mappings() -> Iterator[dict[str, Any]]:
    """Read /proc/self/smaps: start, end, name, and the fields in bytes; VmFlags as a set."""
    found: dict[str, Any] = {}
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, _, rest = line.partition(":")
        if " " in key:
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            found = {"start": start, "end": end, "name": " ".join(line.split()[5:]), "access": line.split()[1]}
        elif key == "VmFlags":
            yield found | {"flags": set(rest.split())}
        elif rest.endswith("kB"):
            found[key] = int(rest.split()[0]) * 1024


def mapping_of(address: int) -> dict[str, Any]:
    return next(m for m in mappings() if m["start"] <= address < m["end"])


def telemetry_of(name: str) -> dict[str, Any]:
    return next(m for m in mappings() if f"memfd:rtloop:{name}" in m["name"])


def in_enter(loop: Any) -> Any:
    """Wait until the loop's thread waits for its first release."""
    deadline = time.monotonic() + 10
    while not loop.enters and time.monotonic() < deadline:
        time.sleep(0.001)
    return loop


@pytest.mark.parametrize("record", [0, 100, 65536])
def test_all_pages_are_there_before_the_first_cycle(probes: ModuleType, ordinary: dict[str, Any], record: int) -> None:
    """Without a lock, which would make them present by itself: they are touched."""
    with probes.Probe("1ms", phase=FAR, record=record, name=f"full{record}", **ordinary) as loop:
        in_enter(loop)
        block = telemetry_of(loop.name)
        assert block["end"] - block["start"] >= 24 * record
        assert block["Rss"] == block["end"] - block["start"]
        stack = mapping_of(loop.stack_at)
        top = mapping_of(stack["end"])  # what a forked child does not find wiped is a mapping of its own
        assert top["end"] - stack["start"] >= 512 << 10
        assert stack["Rss"] + top["Rss"] == top["end"] - stack["start"]
        assert mapping_of(loop.state_at)["Rss"] > 0
        assert loop.steps == 0


def test_own_memory_is_locked_page_by_page_and_guarded(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    settings = ordinary | {"lock_memory": "own"}
    with probes.Probe("1ms", phase=FAR, record=64, name="locked", **settings) as loop:
        in_enter(loop)

        def parts() -> list[dict[str, Any]]:
            return [telemetry_of("locked"), mapping_of(loop.stack_at), mapping_of(loop.state_at)]

        # The kernel divides "Locked" by the number of processes that map a page, and other tests look at all loops.
        wait_until(lambda: all(part["Locked"] == part["end"] - part["start"] for part in parts()), "pages not locked")
        assert all("lo" in part["flags"] for part in parts())
        below = mapping_of(mapping_of(loop.stack_at)["start"] - 1)
        assert below["access"] == "---p" and below["end"] - below["start"] >= 64 << 10


def test_a_tuned_malloc_neither_maps_nor_returns_memory(script: Script) -> None:
    """A thousand blocks of 1 MB, eight at a time, allocated, written and freed: each page is faulted in only once."""
    code = """
    import ctypes, resource, rtloop
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    blocks = [0] * 8
    def work():
        for i in range(8):
            blocks[i] = libc.malloc(1 << 20)
            libc.memset(blocks[i], i, 1 << 20)
        for i in range(8):
            libc.free(blocks[i])
    def heaps():
        return sum(line.split()[-1] == "[heap]" for line in open("/proc/self/maps"))
    loop = rtloop.RTLoop("1ms", policy="other", lock_memory="off", dma_latency=None, tune_malloc=TUNED)
    loop.run(cycles=2)
    for _ in range(5):
        work()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(125):
        work()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    """
    tuned = int(script(code.replace("TUNED", "True")).stdout)
    free = int(script(code.replace("TUNED", "False")).stdout)
    assert free > 1000, "without it, the heap's top goes back to the kernel each time"
    assert tuned < 8, "with it, all is there: a page or two are Python's own"


def test_a_tuned_malloc_maps_no_block_by_itself(script: Script) -> None:
    done = script("""
    import ctypes, rtloop
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    class Info(ctypes.Structure):
        names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
        _fields_ = [(name, ctypes.c_size_t) for name in names.split()]
    libc.mallinfo2.restype = Info
    def mapped_by_one_of(size):
        before = libc.mallinfo2().hblks
        libc.malloc(ctypes.c_size_t(size))
        return libc.mallinfo2().hblks - before
    print(mapped_by_one_of(40 << 20))
    rtloop.RTLoop("1ms", policy="other", lock_memory="off", dma_latency=None, tune_malloc=True).run(cycles=2)
    print(mapped_by_one_of(40 << 20))
    """)
    if "mallinfo2" in done.stderr:
        pytest.skip("this C library has no mallinfo2() (glibc 2.33)")
    assert done.stdout.split() == ["1", "0"], done.stderr


def telemetry_mappings(name: str) -> int:
    return sum(f"memfd:rtloop:{name}" in mapping["name"] for mapping in mappings())


def test_the_telemetry_of_a_loop_that_ends_by_itself_is_unmapped_though_nobody_asks_for_it(
    probes: ModuleType, ordinary: dict[str, Any]
) -> None:
    with probes.Probe("1ms", name="by itself", **ordinary):
        assert telemetry_mappings("by itself") == 1
    loops = [probes.Probe("1ms", name=f"by itself {i}", **ordinary) for i in range(3)]
    for loop in loops:
        loop.stop_at = 50
        loop.start()
    wait_until(lambda: telemetry_mappings("by itself") == 0, "the telemetry is still mapped")
    assert [loop.state for loop in loops] == ["stopped"] * 3


def test_no_huge_page_takes_the_place_of_the_loops_memory(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("this kernel has no transparent huge pages")
    with probes.Probe("1ms", name="small pages", stack_size="4M", **ordinary) as loop:
        in_enter(loop)
        for what in (loop.stack_at, loop.state_at, telemetry_of(loop.name)["start"]):
            found = mapping_of(what)
            assert "nh" in found["flags"], found


def test_the_memlock_limit_is_raised_to_the_hard_limit_only_and_put_back(script: Script) -> None:
    """While any loop runs; the grant says what it was; nothing else is changed."""
    done = script("""
    import resource, rtloop
    hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    low = 4096 if hard == resource.RLIM_INFINITY else hard // 2
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (low, hard))
    names = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    def limits():
        return {name: resource.getrlimit(getattr(resource, name)) for name in names}
    def make():
        return rtloop.RTLoop("1ms", policy="other", lock_memory="own", dma_latency=None, record=16, strict=False)
    before, a, b = limits(), make(), make()
    a.start(); b.start()
    soft, during = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    others = {name: pair for name, pair in limits().items() if name != "RLIMIT_MEMLOCK"}
    is_higher = soft > low or soft == resource.RLIM_INFINITY
    print(is_higher, soft == during, during in (hard, resource.RLIM_INFINITY), others.items() <= before.items())
    a.stop()
    print(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == soft)
    b.stop()
    after = limits()
    # A hard limit that a privilege has raised comes down again with it.
    print(after == before)
    grant = next(g for g in b.grants if g.name == "memlock_limit")
    print("RLIMIT_MEMLOCK was" in grant.detail)
    """)
    assert done.stdout.split() == ["True"] * 7, done.stdout + done.stderr


@pytest.mark.rt
def test_nothing_of_the_system_is_written(script: Script) -> None:
    """A loop that asks for all that it can opens no file for writing but the device that is made for it."""
    done = script("""
    import os, sys, rtloop
    def watch(event, arguments):
        if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            written.add(arguments[0])
    written = set()
    sys.addaudithook(watch)
    settings = dict(tune_malloc=True, core_dumps=False, spin="auto", flush_denormals=True)
    rtloop.RTLoop("1ms", **settings).run(cycles=20)
    rtloop.RTLoop("1ms", lock_memory="own", **settings).run(cycles=20)
    print(*written)
    """)
    assert done.stdout.split() == ["/dev/cpu_dma_latency"], done.stderr


def test_a_limit_that_somebody_else_has_changed_meanwhile_stays(script: Script) -> None:
    done = script("""
    import resource, rtloop
    hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    high = 1 << 20 if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (high // 2, high))
    loop = rtloop.RTLoop("1ms", policy="other", lock_memory="own", dma_latency=None, record=16, strict=False)
    with loop:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (high // 4, high))
    print(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == high // 4)
    """)
    assert done.stdout.strip() == "True", done.stderr


def test_the_page_faults_of_the_warmup_are_not_in_the_statistics(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    for warmup, until, expected in ((20, 20, range(100)), (20, 21, range(200, 300)), (0, 5, range(1000, 1100))):
        loop = probes.Faulty("1ms", warmup=warmup, **ordinary)
        loop.pages, loop.until = 200, until
        assert loop.run(cycles=40).page_faults.minor in expected, (warmup, until)
        assert loop.failed == 0


def test_the_context_switches_of_the_warmup_are_not_in_the_statistics(ordinary: dict[str, Any]) -> None:
    """A cycle sleeps once at the most."""
    stats = RTLoop("1ms", warmup=100, **ordinary).run(cycles=120)
    assert stats.context_switches.voluntary <= 20 + 5


def test_the_page_faults_before_a_reset_are_not_in_the_statistics(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = probes.Faulty("1ms", warmup=0, **ordinary)
    loop.pages, loop.until = 200, 1 << 40
    with loop:
        while loop.stats.cycles < 10:
            time.sleep(0.002)
        assert loop.stats.page_faults.minor >= 1000
        loop.until = 0
        time.sleep(0.01)
        loop.reset_stats()
        while loop.stats.cycles < 10:
            time.sleep(0.002)
        assert loop.stats.page_faults.minor < 200
    assert loop.stats.page_faults.minor < 200
