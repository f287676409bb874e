"""Calls that prepare a process's memory for real time, with or without a loop; :mod:`rtloop.memory` hands them on.

Set-up, on any thread, before the time-critical part: everything here enters the kernel and may take long. Each call
returns a :class:`~rtloop.system.grant.Grant` with what the kernel reports afterwards, and raises if it refuses.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from rtloop.errors import ConfigError, StateError
from rtloop.memory import kernel
from rtloop.memory.process_lock import core_dumps, memlock_limit, memory_lock, range_lock_grant
from rtloop.memory.region import Region, stack_left, touch_stack
from rtloop.system import refusal
from rtloop.system.grant import Grant
from rtloop.system.refusal import raise_if_refused
from rtloop.system.signal_shield import shielded_method
from rtloop.units import format_size, parse_size

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "ADVICE",
    "advise",
    "disable_core_dumps",
    "lock",
    "lock_all",
    "prefault",
    "prefault_stack",
    "raise_limit",
    "setup",
    "tune_malloc",
    "unlock",
    "unlock_all",
]

#: The words of :func:`advise`, with their numbers in <asm-generic/mman-common.h>. Those that discard data are left out.
ADVICE = {
    "normal": 0,
    "random": 1,
    "sequential": 2,
    "willneed": 3,
    "dontfork": 10,
    "dofork": 11,
    "mergeable": 12,
    "unmergeable": 13,
    "hugepage": 14,
    "nohugepage": 15,
    "dontdump": 16,
    "dodump": 17,
    "wipeonfork": 18,
    "keeponfork": 19,
    "cold": 20,
    "populate_read": 22,
    "populate_write": 23,
    "collapse": 25,
}

_registry = threading.RLock()
_lock_all_modes: list[str] = []
_locked: dict[tuple[int, int], list[tuple[Region, bool]]] = {}


def _granted(grant: Grant) -> Grant:
    """Return a grant that is ``ok``; raise the SetupError of one that was refused."""
    raise_if_refused([grant])
    return grant


def raise_limit() -> Grant:
    """Raise RLIMIT_MEMLOCK for good: to infinity where that is allowed, else to the hard limit.

    A loop raises it by itself while it runs. See setrlimit(2).

    Returns
    -------
    Grant
        With the limit as it is now; its detail tells the former one.
    """
    return memlock_limit.acquire()


def lock_all(current: bool = True, future: bool = True, onfault: bool = False) -> Grant:
    """Lock all memory of the process (mlockall(2)). Every call needs an :func:`unlock_all`; loops count with it.

    Parameters
    ----------
    current : bool
        Everything that is mapped now.
    future : bool
        Everything that will be mapped.
    onfault : bool
        Lock each page when it is first touched, instead of making all of them present now. It has an effect only where
        every owner of a lock of everything, loops included, asks for it.

    Returns
    -------
    Grant
        With what is locked now.

    Raises
    ------
    ConfigError
        Where neither `current` nor `future` is asked for.
    MemoryLockError
        Where the kernel refuses, or where it would agree and later allocations, thread starts and the growth of the
        stack would fail: under a finite RLIMIT_MEMLOCK without CAP_IPC_LOCK (then also a PrivilegeError).
    """
    if not (current or future):
        raise ConfigError("lock_all(current=False, future=False) would lock nothing: ask for one of them, or both")
    return _granted(_try_lock_all(current, future, onfault))


@shielded_method
def _try_lock_all(current: bool, future: bool, onfault: bool) -> Grant:
    mode = {(True, True): "all", (True, False): "current", (False, True): "future"}[bool(current), bool(future)]
    if onfault:
        mode = "onfault" if mode == "all" else f"{mode} onfault"
    with _registry:
        grant = memory_lock.acquire(mode)
        if grant.ok:
            _lock_all_modes.append(mode)
        elif not grant.errno:
            memory_lock.release(mode)  # a part of it is not what was asked for
        return grant


@shielded_method
def unlock_all() -> None:
    """Undo the last :func:`lock_all`. Does nothing without one.

    Memory is unlocked when the last one and the last loop that locks everything are gone; what was locked by other code
    before the first of them stays locked.
    """
    with _registry:
        if _lock_all_modes:
            memory_lock.release(_lock_all_modes.pop())


@shielded_method
def lock(buffer: Buffer, onfault: bool = False) -> Grant:
    """Lock the memory of an object (mlock(2)); the object can be neither resized nor freed until :func:`unlock`.

    Keep a reference to it, for that is what :func:`unlock` takes.
    The lock survives the end of loops that lock everything.

    Parameters
    ----------
    buffer : object
        A NumPy array, bytearray, mmap or another object with the buffer protocol, in one piece. Whole pages are locked:
        its neighbours on the first and the last page are, too.
    onfault : bool
        Lock each page when it is first touched (MLOCK_ONFAULT), instead of making all of them present now.

    Returns
    -------
    Grant
        With what is locked now.

    Raises
    ------
    ConfigError
        Where the object has no memory in one piece.
    MemoryLockError
        Where the kernel refuses; also a PrivilegeError where it is for the limit.
    """
    region = Region(buffer)
    rc = memory_lock.acquire_range(region.address, region.nbytes, is_onfault=onfault, is_own=False)
    how, call = ("as it is touched", "mlock2") if onfault else ("present and locked", "mlock")
    grant = range_lock_grant("lock", region.nbytes, rc, detail=how, call=call)
    if rc:
        region.release()
        raise_if_refused([grant])
    with _registry:
        _locked.setdefault((region.address, region.nbytes), []).append((region, bool(onfault)))
    return grant


@shielded_method
def unlock(buffer: Buffer) -> None:
    """Undo one :func:`lock` of the same object, or of the same kernel, and let go of it.

    Raises
    ------
    StateError
        Where the object is not locked by :func:`lock`.
    """
    asked = Region(buffer)
    key = asked.address, asked.nbytes
    asked.release()
    with _registry:
        if key not in _locked:  # somebody has forced it to another size, such as NumPy's resize(refcheck=False)
            key = next((k for k, held in _locked.items() if held[-1][0].is_of(buffer)), key)
        regions = _locked.get(key)
        if not regions:
            raise StateError(
                f"this {type(buffer).__name__} of {key[1]} bytes has not been locked by rtloop.memory.lock(), "
                "or has been unlocked since"
            )
        region, is_onfault = regions.pop()
        if not regions:
            del _locked[key]
        memory_lock.release_range(region.address, region.nbytes, is_onfault=is_onfault)
    region.release()


def prefault(buffer: Buffer) -> Grant:
    """Make every page of an object present: written back where the object is writable, only read where it is not.

    The content does not change. Afterwards its first use does not fault; only a lock keeps it that way.

    Returns
    -------
    Grant
        With the bytes that are in memory now (mincore(2)).

    Raises
    ------
    ConfigError
        Where the object has no memory in one piece.
    SetupError
        Where the kernel has no memory left for it.
    """
    region = Region(buffer)
    try:
        asked = f"{format_size(region.nbytes)}, present"
        how = "read" if region.is_readonly else "read and written back"
        rc = region.prefault()
        resident = region.resident_bytes()
        granted = f"{format_size(min(max(resident, 0), region.nbytes))}, present"
        if rc:
            why, fix = refusal.explain("madvise", -rc)
            grant = Grant("prefault", asked, granted, False, why, fix, errno=-rc, kind="memory")
        else:
            grant = Grant("prefault", asked, granted, resident >= region.nbytes, f"every page {how}", kind="memory")
    finally:
        region.release()
    return _granted(grant)


def prefault_stack(size: int | str) -> Grant:
    """Touch the next `size` of the calling thread's stack, so that calls that use it later do not fault.

    Only a lock keeps it in memory. A loop's own stack is prefaulted by the loop.

    Parameters
    ----------
    size : int or str
        In bytes, or with a unit, such as ``"256K"``.

    Raises
    ------
    SetupError
        ENOSPC where the stack has not that much left; nothing is touched then.
    """
    return _granted(_try_prefault_stack(parse_size(size, "size")))


def _try_prefault_stack(size: int) -> Grant:
    rc = touch_stack(size)
    if rc == 0:
        asked = format_size(size)
        return Grant("prefault_stack", asked, asked, ok=True, detail="of the calling thread", kind="memory")
    return Grant(
        "prefault_stack",
        format_size(size),
        "nothing",
        ok=False,
        detail=f"{os.strerror(-rc)}: the calling thread has {format_size(max(0, stack_left()))} of stack left",
        fix="ask for less, or start the thread with more: threading.stack_size(), or ulimit -s for the main thread",
        errno=-rc,
        kind="memory",
    )


def advise(buffer: Buffer, advice: str) -> Grant:
    """Tell the kernel how an object's memory will be used (madvise(2)). It concerns the whole pages inside the object.

    Parameters
    ----------
    buffer : object
        With at least one whole page inside.
    advice : str
        One of :data:`ADVICE`: ``"hugepage"``, ``"nohugepage"``, ``"willneed"``, ``"wipeonfork"`` and so on.

    Raises
    ------
    ConfigError
        Where the word is unknown, or no whole page is inside the object.
    SetupError
        Where the kernel refuses: EINVAL for advice that it does not know, or not for this kind of memory.
    """
    if advice not in ADVICE:
        raise ConfigError(f"advice={advice!r} is not one of {', '.join(repr(word) for word in ADVICE)}")
    region = Region(buffer)
    try:
        rc, nbytes = region.advise(ADVICE[advice])
        if nbytes == 0:
            raise ConfigError(f"a buffer of {region.nbytes} bytes has no whole page inside, and advice is for pages")
    finally:
        region.release()
    if rc:
        detail, fix = refusal.explain("madvise", -rc)
        if rc == -errno.EINVAL:
            detail += "; this kernel does not know the advice, or does not take it for this kind of memory"
        return _granted(Grant("advise", advice, "nothing", False, detail, fix, errno=-rc, kind="memory"))
    detail = f"for {format_size(nbytes)}, the whole pages inside"
    return Grant("advise", advice, advice, ok=True, detail=detail, kind="memory")


def tune_malloc() -> Grant:
    """Keep glibc's malloc from giving memory back and from mapping large blocks afresh; process-wide and for good.

    ``M_TRIM_THRESHOLD`` to -1 and ``M_MMAP_MAX`` to 0 (mallopt(3)): memory that was once used stays, and is not faulted
    in again. It does not make malloc fit for ``step``: that is what :class:`rtloop.Pool` is for.
    """
    return _granted(_try_tune_malloc())


def _try_tune_malloc() -> Grant:
    if kernel.tune_malloc():
        return Grant("malloc", "tuned", "tuned", True, "for the rest of the process's life", kind="memory")
    why = "mallopt: this C library refuses"
    return Grant("malloc", "tuned", "not tuned", False, why, errno=errno.ENOTSUP, kind="memory")


def disable_core_dumps() -> Grant:
    """Set RLIMIT_CORE to 0 for good, so that a crash does not spend seconds writing the locked memory to disk."""
    return core_dumps.acquire()


def setup(
    *,
    lock: str | None = "all",
    stack: int | str | None = "256K",
    malloc: bool = True,
    core_dumps: bool = False,
    strict: bool = True,
) -> list[Grant]:
    """Make a process ready for real time, in the right order: limits, core dumps, lock, stack of this thread, malloc.

    For any Python program; a loop does its part by itself.

    Parameters
    ----------
    lock : {"all", "onfault", "current", "future", None}
        What :func:`lock_all` locks; "onfault" is everything, as it is touched.
    stack : size or None
        How much of the calling thread's stack is prefaulted.
    malloc : bool
        Whether to call :func:`tune_malloc`.
    core_dumps : bool
        False sets RLIMIT_CORE to 0.
    strict : bool
        Whether a refusal raises, after undoing the lock. Otherwise the refused grants are among those returned.

    Returns
    -------
    list of Grant
        One for each, in the order above.

    Raises
    ------
    SetupError
        The first refusal, where `strict`.
    """
    modes = {"all": (True, True, False), "onfault": (True, True, True), "current": (True, False, False)}
    modes["future"] = (False, True, False)
    if lock is not None and lock not in modes:
        raise ConfigError(f"lock={lock!r} is not one of {', '.join(repr(word) for word in modes)}, None")
    size = None if stack is None else parse_size(stack, "stack")
    steps: list[Callable[[], Grant]] = [raise_limit]
    if not core_dumps:
        steps.append(disable_core_dumps)
    if lock is not None:
        steps.append(lambda: _try_lock_all(*modes[lock]))
    if size is not None:
        steps.append(lambda: _try_prefault_stack(size))
    if malloc:
        steps.append(_try_tune_malloc)
    grants: list[Grant] = []
    for step in steps:
        grants.append(step())
        if strict and not grants[-1].ok:
            if any(grant.name == "memory_lock" and grant.ok for grant in grants):
                unlock_all()
            fix = "\n".join(filter(None, (grants[-1].fix, "or go on without it: strict=False")))
            _granted(grants[-1]._replace(fix=fix))
    return grants


def _reset_after_fork() -> None:
    """In a forked child nothing is locked."""
    global _registry
    _registry = threading.RLock()
    _lock_all_modes.clear()
    _locked.clear()


os.register_at_fork(after_in_child=_reset_after_fork)
