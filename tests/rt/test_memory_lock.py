"""Locks of all memory and of ranges, with several owners, beside locks of other code in the process."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from rtloop.memory.hugepage_supply import transparent_page_size

pytestmark = pytest.mark.rt

Script = Callable[..., "subprocess.CompletedProcess[str]"]

PROLOGUE = """
import ctypes, mmap, rtloop
from rtloop.memory import kernel, smaps
from rtloop.memory.process_lock import memory_lock
libc = ctypes.CDLL(None, use_errno=True)
PAGE = mmap.PAGESIZE
kept = []
def region(pages=4):
    held = mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    kept.append(held)
    return ctypes.addressof(ctypes.c_char.from_buffer(held))
def lock_of(address):
    found = next(m for m in smaps.mappings() if m.start <= address < m.start + m.size)
    return "onfault" if found.is_onfault else "locked" if found.is_locked else "not"
def mlock(address, size=4 * PAGE, flags=0):
    assert libc.mlock2(ctypes.c_void_p(address), ctypes.c_size_t(size), flags) == 0
def run(**settings):
    loop = rtloop.RTLoop("1ms", **settings)
    loop.run(cycles=3)
    return loop
"""


def run(script: Script, code: str) -> list[str]:
    lines = [line[4:] if line.startswith("    ") else line for line in code.splitlines()]
    done = script(PROLOGUE + "\n".join(lines))
    assert done.returncode == 0, done.stderr
    return str(done.stdout).split()


@pytest.mark.parametrize(
    ("flags", "old", "new"), [(0, "not", "not"), (2, "not", "locked"), (6, "not", "onfault"), (3, "locked", "locked")]
)
def test_a_lock_of_everything_by_others_is_put_back(script: Script, flags: int, old: str, new: str) -> None:
    """Memory of before the other lock, of between it and the loop, and of after the loop."""
    said = run(script, f"""
    old = region()
    if {flags}:
        assert libc.mlockall({flags}) == 0
    between = region()
    run()
    print(lock_of(old), lock_of(between), lock_of(region()))
    """)  # fmt: skip
    assert said == [old, new, new]


def test_ranges_locked_by_others_are_put_back_as_they_were(script: Script) -> None:
    said = run(script, """
    apart = [region(64) for _ in range(5)]  # the kernel joins neighbours that are alike
    whole, onfault, none = apart[0], apart[2], apart[4]
    mlock(whole)
    mlock(onfault, flags=1)
    run()
    print(lock_of(whole), lock_of(onfault), lock_of(none))
    """)  # fmt: skip
    assert said == ["locked", "onfault", "not"]


def test_a_lock_on_fault_beside_a_full_one_says_what_it_is(script: Script) -> None:
    said = run(script, """
    def granted(loop):
        return next(g for g in loop.grants if g.name == "memory_lock").granted
    with rtloop.RTLoop("1ms") as full:
        print(granted(full), granted(run(lock_memory="onfault")))
    with rtloop.RTLoop("1ms", lock_memory="onfault") as onfault:
        print(granted(onfault), granted(run()), kernel.future_lock())
    print(kernel.future_lock())
    """)  # fmt: skip
    assert said == ["all", "all", "onfault", "all", "onfault", "None"]


def test_all_memory_is_locked_again_only_if_something_was_unlocked(script: Script) -> None:
    """mlockall(2) walks through all pages, so a second loop does without it."""
    said = run(script, """
    calls = []
    lock_everything = kernel.lock_everything
    kernel.lock_everything = lambda flags, *more: calls.append(flags) or lock_everything(flags, *more)
    def acquire(mode):
        calls.clear()
        assert memory_lock.acquire(mode).ok
        return len(calls)
    print(acquire("all"), acquire("all"), acquire("onfault"))
    address = region(64)
    print(lock_of(address), acquire("all"))
    assert libc.munlock(ctypes.c_void_p(address), 64 * PAGE) == 0
    print(lock_of(address), acquire("all"), lock_of(address), acquire("all"))
    memory_lock._unlocked += 128 * PAGE  # as if so much that cannot be locked had been unmapped, such as huge pages
    assert libc.munlock(ctypes.c_void_p(address), 64 * PAGE) == 0
    print(acquire("all"), lock_of(address), acquire("all"))
    for mode in ("all", "all", "onfault", "all", "all", "all", "all", "all"):
        memory_lock.release(mode)
    print(kernel.future_lock(), acquire("all"))
    """)  # fmt: skip
    assert said == ["1", "0", "0", "locked", "0", "not", "1", "locked", "0", "1", "locked", "0", "None", "1"]


def test_a_range_stays_locked_while_any_owner_wants_it(script: Script) -> None:
    said = run(script, """
    start = region(8)
    for address, size in ((start, 4 * PAGE), (start + 2 * PAGE, 4 * PAGE), (start, 4 * PAGE)):
        assert memory_lock.acquire_range(address, size) == 0
    def locks():
        print("".join(lock_of(start + i * PAGE)[0] for i in range(8)))
    locks()
    memory_lock.release_range(start); locks()
    run(); locks()
    memory_lock.release_range(start); locks()
    memory_lock.release_range(start + 2 * PAGE); locks()
    memory_lock.release_range(start + 2 * PAGE); locks()
    """)  # fmt: skip
    assert said == ["llllllnn", "llllllnn", "llllllnn", "nnllllnn", "nnnnnnnn", "nnnnnnnn"]


def test_a_range_that_others_have_locked_stays_locked(script: Script) -> None:
    said = run(script, """
    address = region()
    mlock(address)
    assert memory_lock.acquire_range(address, 4 * PAGE, is_own=False) == 0
    memory_lock.release_range(address)
    print(lock_of(address))
    """)  # fmt: skip
    assert said == ["locked"]


@pytest.mark.parametrize("can_tell", [True, False])
def test_what_is_locked_is_told_by_the_kernel(script: Script, can_tell: bool) -> None:
    """By one quick call where the kernel has it, else by the list of mappings."""
    said = run(script, f"""
    assert kernel.is_range_locked(region(), 1) is False
    kernel._can_tell_locked = {can_tell}
    there, gone, onfault = region(64), region(64), region(64)
    mlock(there); mlock(onfault, flags=1)
    print(*(kernel.is_range_locked(address, 4 * PAGE) for address in (there, gone, onfault)))
    """)  # fmt: skip
    assert said == ["True", "False", "True"]


def test_to_lock_an_array_does_not_split_its_huge_pages(script: Script) -> None:
    if not transparent_page_size():
        pytest.skip("this kernel has no transparent huge pages, as those with PREEMPT_RT")
    said = run(script, """
    import numpy as np
    from rtloop import memory as api
    held = mmap.mmap(-1, 6 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    everything = np.frombuffer(held, np.uint8)
    begin = -everything.ctypes.data % (2 << 20)
    array = everything[begin:begin + (4 << 20)]
    api.advise(array, "hugepage")
    array[:] = 0
    before = api.status().transparent_bytes
    api.lock(array)
    print(before >= 4 << 20 or "none", api.status().transparent_bytes == before)
    """)  # fmt: skip
    if said[0] == "none":
        pytest.skip("this kernel gives no transparent huge pages to a process that asks for them")
    assert said == ["True", "True"]


def test_a_range_given_back_beside_a_lock_of_everything_stays_unlocked_after_it(script: Script) -> None:
    """What was ours when everything was locked is not taken for somebody else's when that ends."""
    said = run(script, """
    ours, theirs, edge = region(64), region(64), region(64)
    for address in (ours, theirs):
        mlock(address) if address == theirs else memory_lock.acquire_range(address, 4 * PAGE)
    mlock(edge)
    memory_lock.acquire_range(edge + PAGE, 2 * PAGE)
    for former in (False, True):
        memory_lock.acquire("all")
        if not former:
            memory_lock.release_range(ours)
            memory_lock.release_range(edge + PAGE)
        memory_lock.release("all")
        print(lock_of(ours), lock_of(theirs), "".join(lock_of(edge + i * PAGE)[0] for i in range(4)))
    """)  # fmt: skip
    assert said == ["not", "locked", "lnnl"] * 2
