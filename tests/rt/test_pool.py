"""A step that uses a pool keeps the real-time contract."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import rtloop

pytestmark = pytest.mark.rt

Script = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def malloc_counter(tmp_path_factory: pytest.TempPathFactory, compiler: list[str]) -> Path:
    """A library for LD_PRELOAD that counts each thread's calls of malloc."""
    source = Path(__file__).parents[1] / "support" / "count_mallocs.c"
    library = tmp_path_factory.mktemp("mallocs") / "libcount_mallocs.so"
    subprocess.run([*compiler, "-O2", "-fPIC", "-shared", source, "-o", library], check=True)
    return library


@pytest.mark.parametrize("lock_memory", ["all", "own"])
def test_no_page_fault_in_100000_cycles(probes: ModuleType, lock_memory: str) -> None:
    pools = [rtloop.Pool(256, 64, kind=kind) for kind in ("single", "shared", "mutex")]
    buffer = rtloop.HugeBuffer("8M")
    assert buffer.is_locked and all(pool.is_locked for pool in pools)
    loop = probes.Pooled("20us", pools, buffer=buffer, lock_memory=lock_memory)
    stats = loop.run(cycles=100_000)
    assert stats.page_faults == (0, 0)
    assert stats.cycles == 100_000
    assert (loop.refused, loop.exhausted, loop.frees) == (0, 0, 3 * (100_000 - 4))
    last = buffer.array("u8")[::512]
    assert sorted(last) == list(range(100_000 - len(last), 100_000)), "every page has its last cycle's number"
    for pool in pools:
        assert (pool.in_use, pool.high_water, pool.failures) == (4, 5, 0)
        pool.check()


def test_no_call_of_malloc_in_100000_cycles(script: Script, malloc_counter: Path) -> None:
    """Of no kind of pool; and the counter counts, for it sees the one malloc and the one free that are planted."""
    done = script(
        """
        import ctypes, probes, rtloop
        counter = ctypes.cast(ctypes.CDLL(None).count_mallocs, ctypes.c_void_p).value
        for malloc_at in (-1, 500):
            pools = [rtloop.Pool(256, 64, kind=kind) for kind in ("single", "shared", "mutex")]
            loop = probes.Pooled("20us", pools, counter, rtloop.HugeBuffer("8M"))
            loop.malloc_at = malloc_at
            stats = loop.run(cycles=100_000)
            print(stats.cycles, loop.frees, loop.mallocs)
        """,
        env={"LD_PRELOAD": str(malloc_counter)},
    )
    assert done.stdout.split() == ["100000", "299988", "0", "100000", "299988", "2"], done.stderr


def mapping(address: int) -> dict[str, str]:
    """Return what the kernel says of the mapping that has this address."""
    found: dict[str, str] = {}
    start = end = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, _, value = line.partition(" ")
        if not key.endswith(":"):
            start, end = (int(x, 16) for x in key.split("-"))
        elif start <= address < end:
            found[key.removesuffix(":")] = value.strip()
    return found


@pytest.mark.parametrize("kind", ["single", "shared", "mutex"])
def test_a_new_pool_is_locked_and_present_down_to_its_last_block(probes: ModuleType, kind: str) -> None:
    pool = rtloop.Pool(4096, 300, kind=kind)
    first = last = probes.pool_alloc(pool)
    while block := probes.pool_alloc(pool):
        last = block
    seen = mapping(first)
    assert last - first == 299 * 4096 and seen == mapping(last + 4095)
    assert seen["Locked"] == seen["Rss"] == seen["Size"] and int(seen["Size"].split()[0]) >= 300 * 4
    assert {"lo", "wf"} <= set(seen["VmFlags"].split())  # locked, wiped on fork


def test_a_fork_costs_the_loop_no_fault_of_its_pools_and_the_child_cannot_harm_them(script: Script) -> None:
    done = script("""
    import os, time, probes, rtloop
    pools = [rtloop.Pool(256, 64, kind=kind) for kind in ("single", "shared", "mutex")]
    loop = probes.Pooled("100us", pools)
    loop.start()
    for _ in range(5):
        time.sleep(0.1)
        child = os.fork()
        if child == 0:
            os._exit(any(probes.pool_alloc(pool) or pool.capacity for pool in pools))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    loop.stop()
    for pool in pools:
        pool.check()
    # The probe's own fields live on Python's heap: a page or two per fork. Of each pool a step writes to two pages.
    print(loop.stats.page_faults[0] <= 2 * 5, loop.refused, loop.exhausted, [pool.in_use for pool in pools])
    """)
    assert done.stdout.strip() == "True 0 0 [4, 4, 4]", done.stderr


@pytest.mark.parametrize("mode", ["all", "onfault"])
def test_the_pool_stays_locked_when_a_lock_of_everything_ends(probes: ModuleType, mode: str) -> None:
    pool = rtloop.Pool(4096, 64)
    probes.Probe("1ms", lock_memory=mode).run(cycles=20)
    with pool.block() as array:
        flags = mapping(array.ctypes.data)["VmFlags"].split()
    assert {"lo", "wf"} <= set(flags)
