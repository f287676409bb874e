"""What belongs to the whole process, counted over all loops: the first one in acquires, the last one out restores.

Memory locks, resource limits and core dumps have one state per process and do not nest. Each resource here takes any
number of :meth:`acquire` calls, answers each with a :class:`~rtloop.system.grant.Grant`, and puts back what it found
when the last :meth:`release` comes.
"""

from __future__ import annotations

import errno
import os
import resource
import threading
from abc import ABC, abstractmethod
from contextlib import suppress

from rtloop.system import memory
from rtloop.system.grant import Grant
from rtloop.system.privilege import CAP_IPC_LOCK, format_limit, is_capable, limit_fix
from rtloop.system.text import read_text
from rtloop.units import format_size

__all__ = ["core_dumps", "may_lock_future", "memlock_limit", "memory_lock", "memory_status"]


def memory_status() -> dict[str, int]:
    """Return the ``Vm*`` lines of ``/proc/self/status``, in bytes."""
    values = {}
    for line in read_text("/proc/self/status").splitlines():
        key, _, rest = line.partition(":")
        if key.startswith("Vm"):
            values[key] = int(rest.split()[0]) * 1024
    return values


def may_lock_future() -> bool:
    """Tell whether locking all future memory is safe: with CAP_IPC_LOCK, or without a limit.

    Under a finite limit it succeeds, and later allocations, thread starts and the growth of the stack fail.
    """
    return resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY or is_capable(CAP_IPC_LOCK)


def _size_limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else format_size(value)


class _Limit(ABC):
    """A resource limit that the first loop changes and the last one puts back, unless somebody has changed it since."""

    def __init__(self, which: int) -> None:
        self._which = which
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget all that was acquired, as a forked child must."""
        self._lock = threading.RLock()
        self._count = 0
        self._former = self._changed = (0, 0)

    def acquire(self) -> Grant:
        """Change the limit if this is the first call, and tell what it is now."""
        with self._lock:
            if self._count == 0:
                self._former = self._changed = resource.getrlimit(self._which)
                self._change()
            self._count += 1
            try:
                return self._grant(resource.getrlimit(self._which))
            except BaseException:
                self.release()
                raise

    def release(self) -> None:
        """Put the limit back if this is the last call."""
        with self._lock:
            self._count -= 1
            if self._count == 0 and resource.getrlimit(self._which) == self._changed != self._former:
                with suppress(ValueError, OSError):  # somebody has lowered the hard limit meanwhile
                    resource.setrlimit(self._which, self._former)

    @abstractmethod
    def _change(self) -> None: ...

    @abstractmethod
    def _grant(self, now: tuple[int, int]) -> Grant: ...


class _MemlockLimit(_Limit):
    """RLIMIT_MEMLOCK, raised as far as this process may."""

    def _change(self) -> None:
        infinite = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        for wanted in (infinite, (self._former[1], self._former[1])):
            if self._former[0] == wanted[0]:
                return
            try:
                resource.setrlimit(self._which, wanted)
            except (ValueError, OSError):
                continue
            self._changed = wanted
            return

    def _grant(self, now: tuple[int, int]) -> Grant:
        return Grant(
            "memlock_limit",
            "as high as allowed",
            _size_limit(now[0]),
            ok=True,
            detail=f"RLIMIT_MEMLOCK was {_size_limit(self._former[0])}, hard limit {_size_limit(now[1])}"
            + (", not applied with CAP_IPC_LOCK" if is_capable(CAP_IPC_LOCK) else ""),
        )


class _CoreDumps(_Limit):
    """RLIMIT_CORE at 0, so that a crash does not write the locked memory to disk."""

    def _change(self) -> None:
        changed = (0, self._former[1])
        resource.setrlimit(self._which, changed)
        self._changed = changed

    def _grant(self, now: tuple[int, int]) -> Grant:
        return Grant("core_dumps", "off", format_limit(now[0]) if now[0] else "off", ok=now[0] == 0)


class _MemoryLock:
    """A lock of all present and future memory, and the ranges locked one by one that must survive its end."""

    def __init__(self) -> None:
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget all that was acquired, as a forked child must."""
        self._lock = threading.RLock()
        self._modes: list[str] = []
        self._was_future_locked = False
        self._former_ranges: list[tuple[int, int]] = []
        self._own_ranges: dict[int, int] = {}

    def acquire(self, mode: str) -> Grant:
        """Lock everything in the given mode, ``"all"`` or ``"onfault"``."""
        with self._lock:
            if not may_lock_future():
                return self._refused(mode)
            if not self._modes:
                self._was_future_locked = memory.is_future_locked()
                self._former_ranges = [] if not memory_status()["VmLck"] else memory.locked_ranges()
            onfault = mode == "onfault" and "all" not in self._modes
            rc = memory.lock_everything(onfault)
            if rc:
                detail = f"mlockall: {os.strerror(-rc)}"
                fix = "free memory, or lock only what the loop itself uses: lock_memory='own'"
                return Grant("memory_lock", mode, "nothing", ok=False, detail=detail, fix=fix, errno=-rc)
            self._modes.append(mode)
            try:
                status = memory_status()
                is_kept = memory.is_future_locked()
            except BaseException:
                self.release(mode)
                raise
            return Grant(
                "memory_lock",
                mode,
                mode if is_kept else "present memory only",
                ok=is_kept,
                detail=f"VmLck {format_size(status['VmLck'])} of VmSize {format_size(status['VmSize'])}, "
                f"VmRSS {format_size(status['VmRSS'])}",
            )

    @staticmethod
    def _refused(mode: str) -> Grant:
        limit = format_limit(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0])
        return Grant(
            "memory_lock",
            mode,
            "own memory only",
            ok=False,
            detail=f"RLIMIT_MEMLOCK is {limit} bytes and CAP_IPC_LOCK is missing: with all future memory locked, "
            "later allocations, thread starts and stack growth would fail",
            fix=limit_fix("RLIMIT_MEMLOCK") + "\nor lock only what the loop itself uses: lock_memory='own'",
            errno=errno.EPERM,
        )

    def release(self, mode: str) -> None:
        with self._lock:
            self._modes.remove(mode)
            if self._modes:
                return
            memory.forget_lock()
            if self._was_future_locked:
                return
            memory.unlock_everything()
            for start, size in [*self._former_ranges, *self._own_ranges.items()]:
                memory.lock_range(start, size)  # a range that is gone by now needs no lock

    def acquire_range(self, address: int, size: int) -> int:
        """Lock one range, in a way that outlives a lock of everything. Returns 0 or a negative errno."""
        with self._lock:
            rc = memory.lock_range(address, size)
            if rc == 0:
                self._own_ranges[address] = size
            return rc

    def release_range(self, address: int) -> None:
        """Unlock a range of :meth:`acquire_range`, unless everything is locked."""
        with self._lock:
            size = self._own_ranges.pop(address, 0)
            if size and not self._modes and not self._was_future_locked:
                memory.unlock_range(address, size)


memlock_limit = _MemlockLimit(resource.RLIMIT_MEMLOCK)
core_dumps = _CoreDumps(resource.RLIMIT_CORE)
memory_lock = _MemoryLock()


def _begin_anew() -> None:
    """In a forked child no memory is locked, no loop runs, and a mutex copied while it was held would stay so."""
    shared: _Limit | _MemoryLock
    for shared in (memlock_limit, core_dumps, memory_lock):
        shared.begin_anew()


os.register_at_fork(after_in_child=_begin_anew)
