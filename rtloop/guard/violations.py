"""Violations of a guarded step: their kind, their place in the user's code, and their likely cause."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rtloop.guard.thread_pools import pool_of
from rtloop.stats.guard_summary import KINDS
from rtloop.system.fileio import read_text

if TYPE_CHECKING:
    from rtloop.guard.guard_block import GuardBlock, RawViolation
    from rtloop.guard.symbols import Place

__all__ = ["is_users", "list_violations", "migrated_pages"]

_SYSCALL, _ALLOCATION = 2, 3
#: System calls that start a thread or a process.
_STARTS = ("clone", "clone3", "fork", "vfork")
#: System calls with which a thread waits for others.
_WAITS = ("sched_yield", "futex", "nanosleep", "clock_nanosleep")
#: In the order of guard_malloc.c.
_FUNCTIONS = ("malloc", "calloc", "realloc", "free", "memalign", "aligned_alloc", "posix_memalign", "valloc",
              "pvalloc", "reallocarray")  # fmt: skip
#: A fault so soon after a fork is most likely the first write to a page that the fork made copy-on-write.
_AFTER_FORK_NS = 1_000_000_000
#: Functions that call the dynamic linker on purpose.
_LINKER_CALLS = ("dlopen", "dlmopen", "dlclose", "dlsym", "dlvsym", "dladdr", "dladdr1", "dlinfo", "dl_iterate_phdr",
                 "_dl_find_object")  # fmt: skip
_NOT_USERS = ("libc.so", "libc-", "ld-linux", "ld-", "libpthread", "libm.so", "libstdc++", "libgcc_s", "libpython",
              "librtloop_guard", "[vdso]", "[vsyscall]")  # fmt: skip
#: The package's own folders with compiled code that runs around a step; the demo counts as the user's.
_OWN_ROOMS = ("system", "memory", "data", "guard", "telemetry", "loop", "group", "simulation")


def is_users(path: str) -> bool:
    """Return False for code of the C library, the interpreter and rtloop, its demo excepted; else True."""
    name = os.path.basename(path)
    if name.startswith(_NOT_USERS) or path == _executable():
        return False
    return os.path.dirname(path) not in _own_folders()


@functools.cache
def _executable() -> str:
    """Return the path of the program that this process runs; that of Python if no link can be read."""
    try:
        return os.readlink("/proc/self/exe")
    except OSError:
        return _real(sys.executable)


def _real(path: str) -> str:
    """Return a path without symbolic links, as far as a filter lets them be read."""
    try:
        return os.path.realpath(path)
    except OSError:
        return os.path.abspath(path)


@functools.cache
def _own_folders() -> set[str]:
    package = os.path.dirname(os.path.dirname(_real(__file__)))
    return {os.path.join(package, room) for room in _OWN_ROOMS}


def list_violations(
    block: GuardBlock | None, cycle: int | None = None, *, has_lines: bool = True
) -> list[dict[str, Any]]:
    """Return the violations, one dict for each place, as dicts that JSON can hold.

    Parameters
    ----------
    block : GuardBlock or None
        Block of the run.
    cycle : int, optional
        Return only the places whose last violation was in this cycle.
    has_lines : bool
        True to add file and line. That runs another program, so do it only after the loop has ended.
    """
    if block is None:
        return []
    raw = [v for v in block.violations() if cycle is None or v.last_cycle == cycle]
    if not raw:
        return []
    from rtloop.memory.forks import fork_times

    forks, moved = fork_times(), block.moved if block.moved is not None else migrated_pages() - block.migrated
    traces: dict[tuple[int, ...], tuple[Place, list[Place]]] = {}
    places: dict[tuple[int, ...], list[RawViolation]] = {}
    for v in raw:
        if v.frames not in traces:
            traces[v.frames] = _trace(v.frames, is_after=v.kind in (_SYSCALL, _ALLOCATION))
        number = v.detail if v.kind == _SYSCALL else v.function
        places.setdefault((v.kind, number, traces[v.frames][0].address), []).append(v)
    lines: dict[int, tuple[str, int]] = {}
    if has_lines:
        from rtloop.guard.symbols import lines_of

        lines = lines_of([where for where, _ in traces.values()])
    merged = [_merge(alike) for alike in places.values()]
    return [_entry(v, *traces[v.frames], lines, forks, moved) for v in merged]


def _merge(alike: list[RawViolation]) -> RawViolation:
    """Make one of the records of a place, which the loop's thread kept apart because of other words on the stack."""
    return alike[0]._replace(
        last_cycle=max(v.last_cycle for v in alike),
        times=sum(v.times for v in alike),
        last_time_ns=max(v.last_time_ns for v in alike),
        least=min(v.least for v in alike),
        most=max(v.most for v in alike),
    )


def _trace(frames: tuple[int, ...], is_after: bool) -> tuple[Place, list[Place]]:
    """Return the place in the user's code, and the functions through which it led to the violation.

    `frames` are the address of the violation and then words of the stack, innermost first, which may be return
    addresses. Remains of earlier calls, in a buffer that a function has not filled, are left out as far as the machine
    code of the call shows them: it calls another library than the one that was in fact called.
    """
    from rtloop.guard.symbols import called_at, is_return_address, place_of

    first = place_of(frames[0], is_return=is_after) if frames else place_of(0)
    through: list[Place] = []
    if is_users(first.module) or not frames:
        return first, through
    through.append(first)
    for frame in frames[1:]:
        if is_return_address(frame):
            place = place_of(frame, is_return=True)
            if is_users(place.module):
                called = called_at(frame)
                return place, _from(None if called is None else place_of(called), drop_internals(through))
            is_own = os.path.dirname(place.module) in _own_folders()  # an old frame of the loop itself
            if not is_own and _may_have_called(frame, through[-1]):
                through.append(place)
    return first, []  # without a place in the user's code, old frames cannot be told from those of this call


def _may_have_called(frame: int, inner: Place) -> bool:
    """Return False if the call before a return address leads to another file than that of the next frame inside.

    Calls through a register may lead anywhere, and a call of any function may lead to the dynamic linker.
    """
    from rtloop.guard.symbols import called_at, place_of

    called = None if is_linker(inner) else called_at(frame)
    return called is None or place_of(called).module == inner.module


def is_linker(place: Place) -> bool:
    """Return True for code of the dynamic linker."""
    return os.path.basename(place.module).startswith("ld-")


def _binding_note(v: RawViolation, through: Sequence[Place]) -> str:
    """Return the cause of a violation in the dynamic linker, or in what it has called, else an empty text.

    A function is bound, and thread-local storage allocated, once: what happens again in later cycles has another cause,
    and so has what a call such as dlopen(3) does. A linker's frame further outside that has called through a register
    may be the remains of an earlier call.
    """
    from rtloop.guard.symbols import called_at

    at = next((i for i, place in enumerate(through) if is_linker(place)), None)
    is_asked = any(place.symbol in _LINKER_CALLS for place in through)
    if at is None or is_asked or v.cycle != v.last_cycle or (at and called_at(through[at].address) is None):
        return ""
    return "in the dynamic linker: lazy binding, or thread-local storage"


def drop_internals(through: list[Place]) -> list[Place]:
    """Drop the functions without a name that the innermost function with one calls in its own library.

    Since version 2.41, the C library makes a system call that is a cancellation point some nameless functions below
    the function that is known, such as `write`.
    """
    if not through:
        return through
    named = next((i for i, place in enumerate(through) if place.symbol is not None), 0)
    return through[named:] if all(place.module == through[named].module for place in through[:named]) else through


def _from(called: Place | None, through: list[Place]) -> list[Place]:
    """Drop what lies outside the function that the user's code called: those are remains of earlier calls."""
    if called is None or called.symbol is None:
        return through
    known = [i for i, place in enumerate(through) if place.symbol == called.symbol]
    return through[: known[-1] + 1] if known else [*through, called]


def _after_fork(time_ns: int, forks: Sequence[int]) -> str:
    fork = max((time for time in forks if time <= time_ns), default=None)
    if fork is None or time_ns - fork >= _AFTER_FORK_NS:
        return ""
    return f"{(time_ns - fork) / 1e6:.1f} ms after a fork"


def _pool_note(where: Place, through: Sequence[Place]) -> str:
    """Return the cause of a wait within a library that has a pool of threads, such as OpenBLAS, else an empty text."""
    found = next((pool for place in (where, *through) if (pool := pool_of(place.module)) is not None), None)
    return "" if found is None else f"the step waits for the threads of {found[0]}: set {found[1]}=1"


def _entry(
    v: RawViolation,
    where: Place,
    through: list[Place],
    lines: dict[int, tuple[str, int]],
    forks: Sequence[int],
    moved: int,
) -> dict[str, Any]:
    from rtloop.guard.symbols import describe_memory
    from rtloop.system.syscalls import name_of

    note = ""
    if v.kind == _SYSCALL:
        detail = name_of(v.detail)
        if detail in _WAITS:
            note = _pool_note(where, through)
        elif detail in _STARTS:
            note = "a thread that it starts inherits the loop's CPUs and blocked signals, with ordinary priority"
    elif v.kind == _ALLOCATION:
        name = _FUNCTIONS[v.function] if v.function < len(_FUNCTIONS) else "?"
        size = f"{v.least}" if v.least == v.most else f"{v.least} to {v.most}"
        detail = name if name == "free" else f"{name} of {size} bytes"
    else:
        detail = f"{v.detail:#x} in {describe_memory(v.detail)}" if v.frames else "address unknown"
        note = _after_fork(v.time_ns, forks)
        if not note and (last := _after_fork(v.last_time_ns, forks)):
            note = f"the last one {last}"
        if not note and moved > 0:
            note = f"{moved} pages of the machine were moved during the run (compaction)"
    note = "; ".join(filter(None, (note, _binding_note(v, through))))
    file, line = lines.get(where.address, (None, None))
    return {
        "cycle": v.cycle,
        "last_cycle": v.last_cycle,
        "count": v.times,
        "kind": KINDS[v.kind] if v.kind < len(KINDS) else "?",
        "detail": detail,
        "address": where.address,
        "symbol": str(where) if v.frames else None,
        "through": [str(place) for place in reversed(through)],
        "file": file,
        "line": line,
        "note": note,
    }


def migrated_pages() -> int:
    """Return how many pages the kernel has moved since boot, by compaction or between NUMA nodes."""
    try:
        for line in read_text("/proc/vmstat").splitlines():
            if line.startswith("pgmigrate_success "):
                return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return 0
