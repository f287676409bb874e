"""Memory locks of the whole process, counted over all loops: the first acquires, the last one restores.

Memory locks, resource limits and core dumps have one state per process and do not nest. Each resource accepts any
number of :meth:`acquire` calls, returns a :class:`~rtloop.system.grant.Grant` for each, and restores the former state
at the last :meth:`release`.
"""

from __future__ import annotations

import errno
import os
import resource
from typing import NamedTuple

from rtloop.memory import kernel, smaps
from rtloop.memory.limits import core_dumps, memlock_limit
from rtloop.memory.lock_grant import explain_lock
from rtloop.process.signal_shield import ShieldedLock, shielded_method
from rtloop.system.fileio import parse_sizes, read_text
from rtloop.system.grant import Grant
from rtloop.system.refusal_cause import lock_limit, may_lock_future
from rtloop.units import format_size

__all__ = [
    "LOCK_MODES",
    "memory_lock",
    "memory_status",
]


def memory_status() -> dict[str, int]:
    """Return the sizes in ``/proc/self/status``, such as VmLck, in bytes."""
    return parse_sizes(read_text("/proc/self/status"))


#: What a lock of everything may cover, with the flags of mlockall(2).
LOCK_MODES = {
    "all": kernel.LOCK_CURRENT | kernel.LOCK_FUTURE,
    "onfault": kernel.LOCK_CURRENT | kernel.LOCK_FUTURE | kernel.LOCK_ONFAULT,
    "current": kernel.LOCK_CURRENT,
    "current onfault": kernel.LOCK_CURRENT | kernel.LOCK_ONFAULT,
    "future": kernel.LOCK_FUTURE,
    "future onfault": kernel.LOCK_FUTURE | kernel.LOCK_ONFAULT,
}


class _Range(NamedTuple):
    start: int
    size: int
    is_onfault: bool
    is_own: bool  # rtloop's, freshly mapped
    was_locked: bool  # by other code, which relies on it
    is_copied: bool = False  # rtloop's, but a forked child inherits some of it: a fork makes it copy-on-write

    def overlaps(self, other: _Range) -> bool:
        """Return True if the two have a page in common; the kernel locks whole pages."""
        page = resource.getpagesize()
        ends_before = (self.start + self.size - 1) // page < other.start // page
        return not ends_before and self.start // page <= (other.start + other.size - 1) // page


_LOCK_LESS = "or lock single objects within the limit: rtloop.memory.lock(array)"


class _MemoryLock:
    """Locks of all memory, and of ranges, with any number of owners.

    The kernel keeps one lock per page. A lock of all memory covers what its owners request together; the last one to
    release it restores what was locked before the first. A range stays locked as long as any owner needs it. If other
    code calls mlock(2) while all memory is locked, that lock cannot be told apart and is lost at the last release.
    """

    def __init__(self) -> None:
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """Forget everything that was acquired, in a forked child."""
        self._lock = ShieldedLock()
        self._modes: list[str] = []
        self._former_future: str | None = None
        self._unlocked: int | None = None  # bytes that were mapped and not locked after the last mlockall(2)
        self._former: list[smaps.Mapping] = []
        self._is_former_known = True
        self._ranges: list[_Range] = []

    @shielded_method
    def acquire(self, mode: str, *, instead: str = "nothing", advice: str = _LOCK_LESS) -> Grant:
        """Lock everything in one of the LOCK_MODES.

        Parameters
        ----------
        mode : str
            What to lock.
        instead : str
            What stays locked if this is refused; it is reported as granted.
        advice : str
            How to request less; it is appended to the fix.
        """
        with self._lock:
            if not may_lock_future():
                return self._refused(mode, instead, advice)
            if not self._modes:
                self._remember()
            flags = self._flags([*self._modes, mode])
            rc = 0 if self._is_in_force(flags) else self._lock_everything(flags)
            if rc:
                detail, fix = explain_lock("mlockall", -rc)
                if -rc in (errno.ENOMEM, errno.EAGAIN):
                    fix = fix or "free memory"
                fix = f"{fix}\n{advice}" if fix else advice
                return Grant("memory_lock", mode, instead, ok=False, detail=detail, fix=fix, errno=-rc, kind="lock")
            self._modes.append(mode)
            try:
                return self._granted(mode)
            except BaseException:
                self.release(mode)
                raise

    def _is_in_force(self, flags: int) -> bool:
        """Return True if all memory is already locked with these flags, so that mlockall(2) would change nothing.

        The call walks through all pages of the process, which takes milliseconds. It is needed if other code has
        unlocked a range since the last call: more memory than before is then mapped and not locked. Less of it may hide
        such a range, as when a buffer on huge pages, which do not count as locked, has been freed.
        """
        if not self._modes or flags != self._flags(self._modes) or not flags & kernel.LOCK_FUTURE:
            return False
        unlocked = self._unlocked_bytes()
        if unlocked is None or self._unlocked is None or unlocked != self._unlocked:
            return False
        return kernel.future_lock() == ("onfault" if flags & kernel.LOCK_ONFAULT else "all")

    def _lock_everything(self, flags: int) -> int:
        rc = kernel.lock_everything(flags)
        self._unlocked = self._unlocked_bytes() if rc == 0 else None
        return rc

    @staticmethod
    def _unlocked_bytes() -> int | None:
        """Return the size of the memory that is mapped and not locked; None if it cannot be read."""
        try:
            status = memory_status()
            return status["VmSize"] - status["VmLck"]
        except (OSError, KeyError):
            return None

    def _remember(self) -> None:
        """Record the locks of other code, to restore them later."""
        self._former_future = kernel.future_lock()
        self._is_former_known = True
        try:
            has_locked = memory_status()["VmLck"] or self._former_future
            found = smaps.mappings() if has_locked else []
        except OSError:
            self._is_former_known, found = False, []
        self._former = [piece for mapping in found for piece in self._without_own(mapping)]

    def _without_own(self, mapping: smaps.Mapping) -> list[smaps.Mapping]:
        """Split a mapping and mark rtloop's own ranges as not locked, because their owners may release them first."""
        pieces = [mapping]
        for own in list(self._ranges) if mapping.is_locked else []:
            if own.was_locked:
                continue
            page = resource.getpagesize()
            begin, end = own.start // page * page, -(-(own.start + own.size) // page) * page
            whole, pieces = pieces, []
            for piece in whole:
                stop = piece.start + piece.size
                edges = [piece.start, min(max(begin, piece.start), stop), max(min(end, stop), piece.start), stop]
                if edges[2] < edges[1]:
                    edges[2] = edges[1]
                for i in range(3):
                    part = piece._replace(start=edges[i], size=edges[i + 1] - edges[i])
                    if part.size:
                        pieces.append(part._replace(is_locked=False, is_onfault=False) if i == 1 else part)
        return pieces

    @staticmethod
    def _flags(modes: list[str]) -> int:
        flags, onfault = 0, kernel.LOCK_ONFAULT
        for mode in modes:
            flags |= LOCK_MODES[mode]
            onfault &= LOCK_MODES[mode]
        return flags & ~kernel.LOCK_ONFAULT | onfault

    def _granted(self, mode: str) -> Grant:
        """Read back what the kernel does now, which may be more if another owner requested more."""
        try:
            status = memory_status()
            detail = (
                f"VmLck {format_size(status['VmLck'])} of VmSize {format_size(status['VmSize'])}, "
                f"VmRSS {format_size(status['VmRSS'])}"
            )
        except OSError as error:
            detail = f"how much is not known: /proc/self/status: {error.strerror}"
        if not self._is_former_known:
            detail += "; memory that was locked before will not be locked again at the end"
        if not LOCK_MODES[mode] & kernel.LOCK_FUTURE:
            is_locked = kernel.is_range_locked(id(self), 1)  # any byte of the heap will do
            return Grant("memory_lock", mode, mode if is_locked else "nothing", is_locked, detail, kind="lock")
        future = kernel.future_lock()
        if future is None:
            return Grant("memory_lock", mode, "present memory only", ok=False, detail=detail, kind="lock")
        granted, is_onfault = mode, "onfault" in mode
        if is_onfault and future == "all":
            granted = "all" if mode == "onfault" else "future"
            detail += "; another lock of all memory in this process requires every page to be present"
        elif not is_onfault and future == "onfault":
            granted = "onfault" if mode == "all" else "future onfault"
        return Grant("memory_lock", mode, granted, is_onfault or future == "all", detail, kind="lock")

    @staticmethod
    def _refused(mode: str, instead: str, advice: str) -> Grant:
        cause = lock_limit()
        return Grant(
            "memory_lock",
            mode,
            instead,
            ok=False,
            detail=f"{cause.found}: with everything locked, later allocations, thread starts and stack growth "
            "would fail",
            fix=cause.fix + "\n" + advice,
            errno=errno.EPERM,
            kind="lock",
        )

    @shielded_method
    def release(self, mode: str) -> None:
        """Undo one :meth:`acquire` that locked something."""
        with self._lock:
            before = self._flags(self._modes)
            self._modes.remove(mode)
            if self._modes:
                if self._flags(self._modes) != before:
                    self._lock_everything(self._flags(self._modes))
                return
            kernel.forget_lock()
            if self._former_future is None:
                kernel.unlock_everything()
                self._lock_former()
            else:
                mode = "future onfault" if self._former_future == "onfault" else "future"
                kernel.lock_everything(LOCK_MODES[mode], is_again_after_fork=False)
                self._restore_present()
            for own in list(self._ranges):  # a copy, because the garbage collector may release one meanwhile
                kernel.lock_range(own.start, own.size, own.is_onfault)
            self._former = []

    def _lock_former(self) -> None:
        """Lock again what was locked before and is still mapped."""
        former_locks = [former for former in self._former if former.is_locked]
        for now in smaps.mappings() if former_locks else []:
            for former in former_locks:
                start, end = max(now.start, former.start), min(now.start + now.size, former.start + former.size)
                if start < end:
                    kernel.lock_range(start, end - start, former.is_onfault)

    def _restore_present(self) -> None:
        """Restore the locks of former mappings; newer ones are locked because other code locks future memory."""
        for now in smaps.mappings() if self._is_former_known else []:
            for former in self._former:
                start, end = max(now.start, former.start), min(now.start + now.size, former.start + former.size)
                if start >= end or not now.is_locked:
                    continue
                if not former.is_locked:
                    kernel.unlock_range(start, end - start)
                elif former.is_onfault and not now.is_onfault:
                    kernel.lock_range(start, end - start, onfault=True)

    @shielded_method
    def acquire_range(
        self, address: int, size: int, *, is_onfault: bool = False, is_own: bool = True, is_copied: bool = False
    ) -> int:
        """Lock one range; the lock survives the end of a lock of all memory.

        Parameters
        ----------
        address, size : int
            The range, in bytes.
        is_onfault : bool
            Lock each page when it is first touched.
        is_own : bool
            True if the memory is rtloop's own and freshly mapped. Other memory may have been locked by other code, and
            then stays locked.
        is_copied : bool
            True for memory of rtloop's own that a forked child inherits, at least in part: the parent locks it again
            after a fork. The rest of rtloop's memory is wiped in the child, and a fork does not affect it.

        Returns
        -------
        int
            0 or a negative errno.
        """
        with self._lock:
            new = _Range(address, size, is_onfault, is_own, was_locked=False, is_copied=is_copied)
            if not is_own:
                new = new._replace(was_locked=self._is_locked_by_others(new))
            rc = kernel.lock_range(address, size, is_onfault)
            if rc == 0 and size and not kernel.is_range_locked(address, size):
                rc = -errno.EAGAIN  # the kernel returned success but did not lock it
            if rc == 0:
                self._ranges.append(new)
            elif size:
                self._unlock(new)  # mlock(2) can fail half-way, with the range locked but not present
            return rc

    def _is_locked_by_others(self, asked: _Range) -> bool:
        overlapping = [own for own in list(self._ranges) if own.overlaps(asked)]
        if overlapping:
            return any(own.was_locked for own in overlapping)
        if self._modes:
            return any(m.is_locked and m.start <= asked.start < m.start + m.size for m in self._former)
        # Use the list of mappings: is_range_locked() would split an unlocked huge page.
        try:
            if not memory_status()["VmLck"]:
                return False
        except OSError:
            return kernel.is_range_locked(asked.start, asked.size)
        within = [m for m in smaps.mappings() if m.start < asked.start + asked.size and asked.start < m.start + m.size]
        return bool(within) and all(m.is_locked for m in within)

    @shielded_method
    def release_range(self, address: int, size: int | None = None, *, is_onfault: bool = False) -> None:
        """Undo one :meth:`acquire_range`; pages that another owner needs stay locked.

        `size` and `is_onfault` distinguish ranges with the same address; rtloop's own ranges never share one.
        """
        with self._lock:
            found = [own for own in list(self._ranges) if own.start == address]
            if size is not None:
                found = [own for own in found if (own.size, own.is_onfault) == (size, is_onfault)]
            if found:
                self._ranges.remove(found[-1])
                if not found[-1].was_locked:
                    self._unlock(found[-1])

    def forget_range(self, address: int) -> None:
        """Drop the record of a range of rtloop's own that is about to be unmapped; takes no lock, for destructors.

        It uses no global name of this module, because a destructor may call it after the interpreter has cleared them.
        """
        for own in list(self._ranges):
            if own.start == address and own.is_own:
                try:  # noqa: SIM105
                    self._ranges.remove(own)
                except ValueError:
                    pass

    def _unlock(self, gone: _Range) -> None:
        """Unlock a range, except pages that other owners need."""
        if self._modes:
            return
        kernel.unlock_range(gone.start, gone.size)
        for own in list(self._ranges):
            if own.overlaps(gone):
                kernel.lock_range(own.start, own.size, own.is_onfault)

    def lock_again(self) -> None:
        """Lock pages again that a fork has made copy-on-write, so that they are copied here and not in a cycle."""
        for own in list(self._ranges):
            if (own.is_copied or not own.is_own) and not own.is_onfault:
                kernel.lock_range(own.start, own.size)


memory_lock = _MemoryLock()


def _reset_after_fork() -> None:
    """Reset everything in a forked child: it has no locks and no loops, and a mutex may have been copied while held."""
    for shared in (memlock_limit, core_dumps, memory_lock):
        shared.reset_after_fork()


os.register_at_fork(after_in_parent=lambda: memory_lock.lock_again(), after_in_child=_reset_after_fork)
