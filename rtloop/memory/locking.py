"""Calls that prepare a process's memory for real time, with or without a loop; :mod:`rtloop.memory` exports them.

Call them on any thread, before the time-critical part: they enter the kernel and may take long. Each returns a
:class:`~rtloop.system.grant.Grant` with what the kernel reports afterwards, and raises if the kernel refuses.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from rtloop.errors import ConfigError, StateError
from rtloop.memory import heap
from rtloop.memory.hugepage_supply import transparent_page_size
from rtloop.memory.limits import core_dumps, memlock_limit
from rtloop.memory.lock_grant import range_lock_grant
from rtloop.memory.process_lock import memory_lock
from rtloop.memory.region import Region, stack_left, touch_stack
from rtloop.process.signal_shield import ShieldedLock, shielded_method
from rtloop.system import refusal_cause
from rtloop.system.grant import Grant
from rtloop.system.grant_errors import raise_if_refused
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

#: Accepted by :func:`advise`, with the numbers of <asm-generic/mman-common.h>. Advice that discards data is left out.
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

_registry = ShieldedLock()
_lock_all_modes: list[str] = []
_locked: dict[tuple[int, int], list[tuple[Region, bool]]] = {}


def _granted(grant: Grant) -> Grant:
    """Return the grant if it is ``ok``, else raise its SetupError."""
    raise_if_refused([grant])
    return grant


def raise_limit() -> Grant:
    """Raise RLIMIT_MEMLOCK permanently: to infinity if that is allowed, else to the hard limit.

    A loop raises it by itself while it runs. See setrlimit(2).

    Returns
    -------
    Grant
        With the present limit; its detail contains the former one.
    """
    return memlock_limit.acquire()


def lock_all(current: bool = True, future: bool = True, onfault: bool = False) -> Grant:
    """Lock all memory of the process (mlockall(2)), with one count for these calls and for loops.

    Each call needs its own :func:`unlock_all`.

    Parameters
    ----------
    current : bool
        Lock everything that is mapped now.
    future : bool
        Lock everything that will be mapped.
    onfault : bool
        Lock each page when it is first touched, instead of making all of them present now. It has an effect only if
        every present lock of all memory, those of loops included, was requested this way.

    Returns
    -------
    Grant
        With what is locked now.

    Raises
    ------
    ConfigError
        If neither `current` nor `future` is set.
    MemoryLockError
        If the kernel refuses. Also under a finite RLIMIT_MEMLOCK without CAP_IPC_LOCK, because later allocations,
        thread starts and the growth of the stack would fail (then it is also a PrivilegeError).
    """
    if not (current or future):
        raise ConfigError("lock_all(current=False, future=False) would lock nothing: set one of them, or both")
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
            memory_lock.release(mode)  # the kernel locked only a part of it
        return grant


@shielded_method
def unlock_all() -> None:
    """Undo the last :func:`lock_all`; do nothing if there was none.

    Memory is unlocked as soon as neither another ``lock_all`` nor a running loop needs the lock. What other code had
    locked before the first of them stays locked.
    """
    with _registry:
        if _lock_all_modes:
            memory_lock.release(_lock_all_modes.pop())


@shielded_method
def lock(buffer: Buffer, onfault: bool = False) -> Grant:
    """Lock the memory of an object (mlock(2)); the object can be neither resized nor freed until :func:`unlock`.

    Keep a reference to the object, because :func:`unlock` takes it.
    The lock survives the end of loops that lock everything.

    Parameters
    ----------
    buffer : object
        A NumPy array, bytearray, mmap or another object with the buffer protocol, in one piece. Whole pages are locked,
        including other data on the first and the last of them.
    onfault : bool
        Lock each page when it is first touched (MLOCK_ONFAULT), instead of making all of them present now.

    Returns
    -------
    Grant
        With what is locked now.

    Raises
    ------
    ConfigError
        If the object's memory is not in one piece.
    MemoryLockError
        If the kernel refuses; also a PrivilegeError if the limit is the cause.
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
    """Undo one :func:`lock` of the same object, or of the same memory, and release the object.

    Raises
    ------
    StateError
        If the object is not locked by :func:`lock`.
    """
    asked = Region(buffer)
    key = asked.address, asked.nbytes
    asked.release()
    with _registry:
        if key not in _locked:  # its size was changed by force, such as by NumPy's resize(refcheck=False)
            key = next((k for k, held in _locked.items() if held[-1][0].is_of(buffer)), key)
        regions = _locked.get(key)
        if not regions:
            raise StateError(
                f"this {type(buffer).__name__} of {key[1]} bytes has not been locked by rtloop.memory.lock(), "
                "or has already been unlocked"
            )
        region, is_onfault = regions.pop()
        if not regions:
            del _locked[key]
        memory_lock.release_range(region.address, region.nbytes, is_onfault=is_onfault)
    region.release()


def prefault(buffer: Buffer) -> Grant:
    """Make every page of an object present: read it, and write it back if the object is writable.

    The content does not change. Its first use then causes no page fault; only a lock keeps it that way.

    Returns
    -------
    Grant
        With the bytes that are in memory now (mincore(2)).

    Raises
    ------
    ConfigError
        If the object's memory is not in one piece.
    SetupError
        If the kernel has no memory left for it.
    """
    region = Region(buffer)
    try:
        asked = f"{format_size(region.nbytes)}, present"
        how = "read" if region.is_readonly else "read and written back"
        rc = region.prefault()
        resident = region.resident_bytes()
        granted = f"{format_size(min(max(resident, 0), region.nbytes))}, present"
        if rc:
            why, fix = refusal_cause.explain("madvise", -rc)
            grant = Grant("prefault", asked, granted, False, why, fix, errno=-rc, kind="memory")
        else:
            grant = Grant("prefault", asked, granted, resident >= region.nbytes, f"every page {how}", kind="memory")
    finally:
        region.release()
    return _granted(grant)


def prefault_stack(size: int | str) -> Grant:
    """Touch the next `size` bytes of the calling thread's stack, so that later calls that use it cause no page fault.

    Only a lock keeps it in memory. A loop's own stack is prefaulted by the loop.

    Parameters
    ----------
    size : int or str
        In bytes, or with a unit, such as ``"256K"``.

    Raises
    ------
    SetupError
        ENOSPC if less stack than that is left; nothing is touched then.
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
        fix="prefault less, or give the thread more: threading.stack_size(), or ulimit -s for the main thread",
        errno=-rc,
        kind="memory",
    )


def advise(buffer: Buffer, advice: str) -> Grant:
    """Advise the kernel about the use of an object's memory (madvise(2)); applies to the whole pages inside it.

    Parameters
    ----------
    buffer : object
        With at least one whole page inside it.
    advice : str
        One of :data:`ADVICE`: ``"hugepage"``, ``"nohugepage"``, ``"willneed"``, ``"wipeonfork"`` and so on. On a kernel
        without transparent huge pages, such as one with PREEMPT_RT, ``"hugepage"`` is refused, and ``"nohugepage"`` is
        granted.

    Raises
    ------
    ConfigError
        If the advice is unknown, or the object contains no whole page.
    SetupError
        If the kernel refuses: EINVAL for advice that it does not support, at all or for this kind of memory.
    """
    if advice not in ADVICE:
        raise ConfigError(f"advice={advice!r} is not one of {', '.join(repr(word) for word in ADVICE)}")
    region = Region(buffer)
    try:
        rc, nbytes = region.advise(ADVICE[advice])
        if nbytes == 0:
            raise ConfigError(
                f"a buffer of {region.nbytes} bytes contains no whole page, and advice applies to whole pages"
            )
    finally:
        region.release()
    if rc == -errno.EINVAL and advice == "nohugepage" and not transparent_page_size():
        detail = "this kernel has no transparent huge pages"
        return Grant("advise", advice, advice, ok=True, detail=detail, kind="memory")
    if rc:
        detail, fix = refusal_cause.explain("madvise", -rc)
        if rc == -errno.EINVAL:
            detail += "; this kernel does not support the advice, at all or for this kind of memory"
        return _granted(Grant("advise", advice, "nothing", False, detail, fix, errno=-rc, kind="memory"))
    detail = f"for {format_size(nbytes)}, the whole pages inside"
    return Grant("advise", advice, advice, ok=True, detail=detail, kind="memory")


def tune_malloc() -> Grant:
    """Keep glibc's malloc from returning memory to the kernel and from mapping large blocks.

    Sets ``M_TRIM_THRESHOLD`` to -1 and ``M_MMAP_MAX`` to 0 (mallopt(3)), permanently and for the whole process. Memory
    that was used once then causes no page fault when it is used again. It does not make malloc suitable for ``step``;
    use :class:`rtloop.Pool` there.

    Raises
    ------
    SetupError
        If another malloc serves the process, such as a preloaded jemalloc or that of musl, which mallopt(3) does not
        change. The error names it, and its own settings if they are known.
    """
    return _granted(heap.tune())


def disable_core_dumps() -> Grant:
    """Set RLIMIT_CORE to 0 permanently, so that a crash does not spend seconds writing the locked memory to disk."""
    return core_dumps.acquire()


def setup(
    *,
    lock: str | None = "all",
    stack: int | str | None = "256K",
    malloc: bool = True,
    core_dumps: bool = False,
    strict: bool = True,
) -> list[Grant]:
    """Prepare a process for real time, in the right order: limits, core dumps, lock, stack of this thread, malloc.

    It is for any Python program; a loop prepares its own memory.

    Parameters
    ----------
    lock : {"all", "onfault", "current", "future", None}
        What :func:`lock_all` locks; "onfault" is all memory, each page when it is first touched.
    stack : size or None
        How much of the calling thread's stack to prefault.
    malloc : bool
        True to call :func:`tune_malloc`.
    core_dumps : bool
        False to set RLIMIT_CORE to 0.
    strict : bool
        True to undo the lock and raise if a request is refused. Otherwise refused grants are among those returned.

    Returns
    -------
    list of Grant
        One for each, in the order above.

    Raises
    ------
    SetupError
        For the first refusal, if `strict`.
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
        steps.append(heap.tune)
    grants: list[Grant] = []
    for step in steps:
        grants.append(step())
        if strict and not grants[-1].ok:
            if any(grant.name == "memory_lock" and grant.ok for grant in grants):
                unlock_all()
            fix = "\n".join(filter(None, (grants[-1].fix, "or continue without it: strict=False")))
            _granted(grants[-1]._replace(fix=fix))
    return grants


def _reset_after_fork() -> None:
    """Forget all locks in a forked child, which inherits none."""
    global _registry
    _registry = ShieldedLock()
    _lock_all_modes.clear()
    _locked.clear()


os.register_at_fork(after_in_child=_reset_after_fork)
