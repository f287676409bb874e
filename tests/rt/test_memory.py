"""rtloop.memory: every call, granted and refused, compared with the kernel's own accounting."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from rtloop.memory.hugepage_supply import transparent_page_size

Script = Callable[..., "subprocess.CompletedProcess[str]"]

becoming = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="dropping privileges takes root and setpriv(1); an ordinary user's own run covers it",
)
#: Without sys_resource, too, with which a process raises its own limits.
TAKEN = "-ipc_lock,-sys_nice,-sys_resource"
DROP = ("setpriv", "--bounding-set", TAKEN, "--inh-caps", TAKEN)

PROLOGUE = """
import ctypes, mmap, os, resource, threading
import numpy as np
import rtloop
from rtloop import memory
PAGE = mmap.PAGESIZE
MiB = 1 << 20
def vm(name):
    line, = [l for l in open("/proc/self/status") if l.startswith(name + ":")]
    return int(line.split()[1]) * 1024
def flags(address):
    "VmFlags of the mapping that holds an address."
    inside = False
    for line in open("/proc/self/smaps"):
        if "-" in line.split()[0]:
            start, end = (int(x, 16) for x in line.split()[0].split("-"))
            inside = start <= address < end
        elif inside and line.startswith("VmFlags:"):
            return set(line.split()[1:])
def address(array):
    return array.ctypes.data
def faults():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_minflt + usage.ru_majflt
kept = []
def pages(count=16, value=None):
    "A fresh array of whole pages that nobody has touched, in a mapping of its own."
    held = mmap.mmap(-1, (count + 2) * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    kept.append(held)
    return np.frombuffer(held, np.uint8)[PAGE:-PAGE]
"""


@pytest.fixture
def told(script: Script) -> Callable[..., list[str]]:
    """Run code after the prologue, in a process of its own; returns the words it printed."""

    def run(code: str, **options: object) -> list[str]:
        lines = [line[4:] if line.startswith("    ") else line for line in code.splitlines()]
        done = script(PROLOGUE + "\n".join(lines), **options)
        assert done.returncode == 0, done.stderr
        return str(done.stdout).split()

    return run


Told = Callable[..., "list[str]"]


# Locks of everything.


@pytest.mark.rt
@pytest.mark.parametrize("onfault", [False, True])
@pytest.mark.parametrize(("current", "future"), [(True, True), (True, False), (False, True)])
def test_lock_all_locks_what_it_says_and_unlock_all_undoes_it(
    told: Told, current: bool, future: bool, onfault: bool
) -> None:
    words = told(f"""
    old = pages()
    grant = memory.lock_all({current}, {future}, {onfault})
    new = pages()
    assert grant.ok and grant.requested == grant.granted, grant
    for array, is_locked in ((old, {current}), (new, {future})):
        found = flags(address(array))
        assert ("lo" in found) == is_locked, (array is old, found)
        is_on_fault = bool(found & {{"lf", "??"}})  # "??": an older kernel, such as 5.10, has no name for it
        assert is_on_fault == (is_locked and {onfault}), found
    old[::PAGE] = 1
    faults()  # the code of both is present now
    before = faults()
    new[::PAGE] = 1
    touched = faults() - before
    print(touched == 0 if {future and not onfault} else touched > 0)
    memory.unlock_all()
    print(vm("VmLck"), "lo" in flags(address(pages())))
    """)
    assert words == ["True", "0", "False"]


@pytest.mark.rt
def test_every_lock_all_needs_its_own_unlock_all_and_loops_count_with_it(told: Told) -> None:
    words = told("""
    loop = rtloop.RTLoop("1ms", policy="other", dma_latency=None)
    memory.lock_all(); memory.lock_all()
    with loop:
        memory.unlock_all()
    print(vm("VmLck") > 0)
    with loop:
        memory.unlock_all()
        memory.unlock_all()
        print(vm("VmLck") > 0, "lo" in flags(address(pages())))
    print(vm("VmLck"))
    """)
    assert words == ["True", "True", "True", "0"]


def test_lock_all_of_nothing_is_refused() -> None:
    from rtloop import ConfigError, memory

    with pytest.raises(ConfigError, match="would lock nothing"):
        memory.lock_all(current=False, future=False, onfault=True)
    memory.unlock_all()  # without a lock: nothing to do


@becoming
@pytest.mark.parametrize("mode", ["True, True", "True, False", "False, True", "True, True, True"])
def test_lock_all_refuses_what_would_be_deadly(told: Told, mode: str) -> None:
    words = told(
        f"""
    try:
        memory.lock_all({mode})
    except rtloop.MemoryLockError as error:
        print(isinstance(error, PermissionError), vm("VmLck"), "RLIMIT_MEMLOCK" in str(error), "limits.d" in str(error))
    blocks = [bytearray(4 * MiB) for _ in range(16)]
    thread = threading.Thread(target=print, args=("alive",))
    thread.start(); thread.join()
    """,
        prefix=DROP,
    )
    assert words == ["True", "0", "True", "True", "alive"]


# Single ranges.


@pytest.mark.parametrize("onfault", [False, True])
def test_lock_locks_the_buffer_and_unlock_unlocks_it(told: Told, onfault: bool) -> None:
    words = told(f"""
    array = pages()
    grant = memory.lock(array, onfault={onfault})
    found = flags(address(array))
    before = faults()
    array[::PAGE] = 1
    print(grant.ok, "lo" in found, "lf" in found, faults() > before)
    memory.unlock(array)
    print("lo" in flags(address(array)), vm("VmLck"))
    """)
    assert words == ["True", "True", str(onfault), str(onfault), "False", "0"]


def test_a_locked_object_is_neither_resized_nor_freed(told: Told) -> None:
    words = told("""
    import gc, weakref
    class Array(np.ndarray): pass
    block = bytearray(8 * PAGE)
    memory.lock(block)
    try:
        block.extend(b"x" * MiB)
    except BufferError:
        print("held")
    memory.unlock(block)
    block.extend(b"x")
    array = np.zeros(8 * PAGE, np.uint8).view(Array)
    there = weakref.ref(array)
    memory.lock(array)
    again = array.ctypes.data, array.nbytes
    del array; gc.collect()
    print(there() is not None)
    memory.unlock(there()); gc.collect()
    print(there() is None)
    """)
    assert words == ["held", "True", "True"]


@pytest.mark.rt
def test_a_locked_buffer_stays_locked_when_a_loop_ends(told: Told) -> None:
    words = told("""
    array = pages()
    memory.lock(array)
    rtloop.RTLoop("1ms", dma_latency=None).run(cycles=3)
    print("lo" in flags(address(array)), vm("VmLck") == array.nbytes)
    """)
    assert words == ["True", "True"]


def test_unlock_of_what_is_not_locked_and_lock_of_what_has_no_memory_say_so() -> None:
    import numpy as np

    from rtloop import ConfigError, StateError, memory

    with pytest.raises(StateError, match="has not been locked"):
        memory.unlock(np.zeros(100))
    for thing, why in ((3, "does not export memory"), (np.zeros((8, 8))[:, ::2], "not in one piece"), (b"", "empty")):
        with pytest.raises(ConfigError, match=why):
            memory.lock(thing)  # type: ignore[arg-type]


@becoming
def test_a_lock_beyond_the_limit_is_refused_with_the_fix(told: Told) -> None:
    """RLIMIT_MEMLOCK counts all that this process locks."""
    words = told(
        """
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (8 * PAGE, 8 * PAGE))
    first, second = pages(5), pages(5)
    memory.lock(first)
    try:
        memory.lock(second)
    except PermissionError as error:
        text = str(error)
        print(isinstance(error, rtloop.MemoryLockError), str(8 * PAGE) in text, "LimitMEMLOCK" in text)
    print(vm("VmLck") == 5 * PAGE)
    second.resize  # nothing holds it
    memory.unlock(first); memory.lock(second)
    """,
        prefix=DROP,
    )
    assert words == ["True"] * 4


# Prefaulting.


def test_prefault_makes_every_page_present_and_changes_nothing(told: Told) -> None:
    words = told("""
    array = pages(64)
    array[5::PAGE] = 7
    other = np.full(10_001, 3, np.uint8)
    fresh = pages(64)
    print(memory.prefault(array).ok, memory.prefault(other).ok, memory.prefault(fresh).ok)
    before = faults()
    fresh[::PAGE] = 1
    print(faults() - before, (array[5::PAGE] == 7).all(), (other == 3).all())
    """)
    assert words == ["True", "True", "True", "0", "True", "True"]


def test_prefault_only_reads_what_is_read_only(told: Told, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc" * 100_000)
    words = told(f"""
    with open({str(path)!r}, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
        print(memory.prefault(held).detail)
        print(memory.prefault(bytes(10_000)).ok)
    """)
    assert words == ["every", "page", "read", "True"]


def test_prefault_after_a_fork_breaks_the_copy_on_write(told: Told) -> None:
    words = told("""
    array = pages(256)
    array[:] = 1
    pid = os.fork()
    if pid == 0:
        import time; time.sleep(2); os._exit(0)
    memory.prefault(array)
    before = faults()
    array[::PAGE] = 2
    print(faults() - before < 128)  # of 256 pages; the interpreter's own are copied, too
    """)
    assert words == ["True"]


def test_prefault_stack_grows_the_main_stack_by_what_was_asked(told: Told) -> None:
    words = told("""
    before = vm("VmStk")
    grant = memory.prefault_stack("2M")
    print(grant.ok, vm("VmStk") - before >= 2 * MiB - 64 * PAGE)
    before = vm("VmStk")
    try:
        memory.prefault_stack("1G")
    except rtloop.SetupError as error:
        print(error.errno == 28, "left" in str(error), vm("VmStk") == before)
    """)
    assert words == ["True"] * 5


def test_prefault_stack_never_reaches_the_end_of_a_small_stack(told: Told) -> None:
    words = told("""
    def work():
        for size in range(0, 512 * 1024, 4096):
            try:
                memory.prefault_stack(size)
                said.append(size)
            except rtloop.SetupError:
                refused.append(size)
    said, refused = [], []
    threading.stack_size(256 * 1024)
    thread = threading.Thread(target=work)
    thread.start(); thread.join()
    print(len(said) > 20, len(refused) > 64, max(said) < min(refused))
    """)
    assert words == ["True"] * 3


# Advice.


@pytest.mark.parametrize(("advice", "flag"), [("hugepage", "hg"), ("nohugepage", "nh"), ("wipeonfork", "wf"),
                                              ("dontfork", "dc"), ("dontdump", "dd"), ("random", "rr")])  # fmt: skip
def test_advice_is_seen_in_the_kernels_flags_of_the_mapping(told: Told, advice: str, flag: str) -> None:
    if advice == "hugepage" and not transparent_page_size():
        pytest.skip("this kernel has no transparent huge pages, as those with PREEMPT_RT")
    words = told(f"""
    array = pages()
    print({flag!r} in flags(address(array)), memory.advise(array, {advice!r}).ok, {flag!r} in flags(address(array)))
    """)
    assert words == ["False", "True", str(advice != "nohugepage" or bool(transparent_page_size()))]


def test_advice_never_touches_a_neighbour_on_the_same_page(told: Told) -> None:
    words = told("""
    array = pages(4)
    memory.advise(array[100:3 * PAGE + 5], "dontdump")
    print(*("dd" in flags(address(array) + i * PAGE) for i in range(4)))
    for buffer, advice in ((array[10:20], "cold"), (array, "dontneed")):
        try:
            memory.advise(buffer, advice)
        except rtloop.ConfigError as error:
            print("whole" in str(error) or "'willneed'" in str(error))
    """)
    assert words == ["False", "True", "True", "False", "True", "True"]


# Limits, core dumps, the whole.


@becoming
def test_raise_limit_raises_soft_to_hard_and_says_so(told: Told) -> None:
    words = told(
        """
    limit = resource.RLIMIT_MEMLOCK
    resource.setrlimit(limit, (64 * 1024, 128 * 1024))
    grant = memory.raise_limit()
    print(resource.getrlimit(limit) == (128 * 1024, 128 * 1024), grant.granted, grant.detail)
    rtloop.RTLoop("1ms", policy="other", dma_latency=None, lock_memory="own", stack_size="64K", record=16)
    """,
        prefix=("setpriv", "--bounding-set", "-ipc_lock,-sys_resource", "--inh-caps", "-ipc_lock,-sys_resource"),
    )
    assert words[:3] == ["True", "128", "KiB"]
    assert "64 KiB" in " ".join(words)


def test_disable_core_dumps_sets_the_limit(told: Told) -> None:
    words = told("""
    print(memory.disable_core_dumps().ok, resource.getrlimit(resource.RLIMIT_CORE)[0])
    rtloop.RTLoop("1ms", policy="other", dma_latency=None, lock_memory="off", core_dumps=False).run(cycles=2)
    print(resource.getrlimit(resource.RLIMIT_CORE)[0])
    """)
    assert words == ["True", "0", "0"]


def test_tune_malloc_keeps_what_was_freed(told: Told) -> None:
    words = told("""
    malloc, free = ctypes.CDLL(None).malloc, ctypes.CDLL(None).free
    malloc.restype, malloc.argtypes, free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
    def hundred():
        before = faults()
        blocks = [malloc(1_000_000) for _ in range(100)]
        for block in blocks:
            ctypes.memset(block, 1, 1_000_000)
        for block in blocks:
            free(block)
        return faults() - before
    every_page = 100_000_000 // PAGE
    hundred()
    print(hundred() > 0.9 * every_page)
    memory.tune_malloc()
    hundred()  # how much of this the heap still has from before depends on what lies at its end
    print(hundred() < 0.01 * every_page)
    """)
    assert words == ["True", "True"]


@pytest.mark.rt
def test_setup_does_it_all_in_order(told: Told) -> None:
    words = told("""
    print(*(grant.name for grant in memory.setup(stack="1M") if grant.ok))
    print(vm("VmLck") > 0.9 * vm("VmSize"), resource.getrlimit(resource.RLIMIT_CORE)[0], memory.status().future_lock)
    before = faults()
    for _ in range(100):
        bytearray(MiB)
    print(faults() - before < 300)
    """)
    assert words == [
        *("memlock_limit", "core_dumps", "memory_lock", "prefault_stack", "malloc"), "True", "0", "all", "True"
    ]  # fmt: skip


@becoming
def test_setup_refused_raises_and_degraded_tells(told: Told) -> None:
    words = told(
        """
    try:
        memory.setup()
    except rtloop.PrivilegeError as error:
        print("RLIMIT_MEMLOCK" in str(error) and "strict=False" in str(error))
    print(*(f"{grant.name}:{grant.ok}" for grant in memory.setup(strict=False)))
    """,
        prefix=DROP,
    )
    assert words == [
        *("True", "memlock_limit:True", "core_dumps:True", "memory_lock:False", "prefault_stack:True", "malloc:True")
    ]


@pytest.mark.rt
def test_setup_that_is_refused_late_gives_the_lock_back(told: Told) -> None:
    words = told("""
    try:
        memory.setup(stack="1G")
    except rtloop.SetupError as error:
        print(error.errno, vm("VmLck"))
    """)
    assert words == ["28", "0"]


@pytest.mark.rt
def test_status_tells_what_the_kernel_tells(told: Told) -> None:
    words = told("""
    array = pages()
    memory.lock(array)
    s = memory.status()
    print(s.locked_bytes == vm("VmLck") == array.nbytes, abs(s.resident_bytes - vm("VmRSS")) < 4 * MiB)
    print(s.page_table_bytes <= vm("VmPTE"), s.future_lock, s.has_ipc_lock, s.minor_faults <= faults())
    soft, hard = (None if v == resource.RLIM_INFINITY else v for v in resource.getrlimit(resource.RLIMIT_MEMLOCK))
    print((s.memlock_soft, s.memlock_hard) == (soft, hard), s.to_dict()["locked_bytes"] == array.nbytes)
    huge = np.zeros(16 * MiB, np.uint8)
    huge[:] = 1
    print(memory.status().transparent_bytes is not None)
    """)
    assert words == ["True", "True", "True", "None", "True", "True", "True", "True", "True"]


def test_a_forked_child_owns_no_lock(told: Told) -> None:
    words = told("""
    array = pages()
    memory.lock(array)
    pid = os.fork()
    if pid == 0:
        try:
            memory.unlock(array)
        except rtloop.StateError:
            memory.unlock_all(); memory.lock(array); memory.unlock(array)
            os._exit(7)
        os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), "lo" in flags(address(array)))
    """)
    assert words == ["7", "True"]


# The forms on addresses.


@pytest.mark.rt
def test_the_forms_on_addresses_do_the_same_without_the_gil(told: Told, regions: Path) -> None:
    words = told(
        """
    import errno, regions
    mapped = regions.Mapped(16 * PAGE)
    print(mapped.prefault(), mapped.lock(False), "lo" in flags(mapped.address), mapped.unlock(), vm("VmLck"))
    print(mapped.lock(True), "lf" in flags(mapped.address), mapped.unlock())
    print(mapped.advise(16), "dd" in flags(mapped.address), mapped.advise(999) == -errno.EINVAL)
    print(regions.everything(True, True, False), vm("VmLck") > 0, regions.nothing(), vm("VmLck"))
    print(regions.everything(False, False, True) == -errno.EINVAL)
    print(regions.stack(MiB), regions.stack(1 << 40) == -errno.ENOSPC, *regions.practice())
    """,
        env={"PYTHONPATH": str(regions)},
    )
    assert words == [
        *("0", "0", "True", "0", "0"),
        *("0", "True", "0"),
        *("0", "True", "True"),
        *("0", "True", "0", "0"),
        "True",
        *("0", "True", "0", "0", "0"),
    ]


@becoming
def test_the_form_on_addresses_refuses_the_deadly_lock(told: Told, regions: Path) -> None:
    words = told(
        """
    import errno, regions
    print(regions.everything(True, True, False) == -errno.EPERM, vm("VmLck"))
    """,
        prefix=DROP,
        env={"PYTHONPATH": str(regions)},
    )
    assert words == ["True", "0"]
