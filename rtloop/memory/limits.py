"""Resource limits that loops change while they run, with one count over all loops."""

from __future__ import annotations

import errno
import resource
from abc import ABC, abstractmethod
from contextlib import suppress

from rtloop.process.signal_shield import ShieldedLock, shielded_method
from rtloop.system import refusal_cause
from rtloop.system.grant import Grant
from rtloop.system.privilege import CAP_IPC_LOCK, format_limit, is_capable, read_limit
from rtloop.units import format_size

__all__ = ["core_dumps", "memlock_limit"]


def _size_limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else format_size(value)


class _Limit(ABC):
    """Resource limit that the first loop changes and the last one restores, unless other code has changed it since."""

    def __init__(self, which: int) -> None:
        self._which = which
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """Forget everything that was acquired, in a forked child."""
        self._lock = ShieldedLock()
        self._count = 0
        self._former = self._changed = (0, 0)

    @shielded_method
    def acquire(self) -> Grant:
        """Change the limit on the first call, and return its present value as a grant."""
        with self._lock:
            if self._count == 0:
                self._former = self._changed = read_limit(self._which)
                self._change()
            self._count += 1
            try:
                return self._grant(read_limit(self._which))
            except BaseException:
                self.release()
                raise

    @shielded_method
    def release(self) -> None:
        """Restore the limit on the last call."""
        with self._lock:
            self._count -= 1
            if self._count == 0 and read_limit(self._which) == self._changed != self._former:
                with suppress(ValueError, OSError):  # other code may have lowered the hard limit meanwhile
                    resource.setrlimit(self._which, self._former)

    @abstractmethod
    def _change(self) -> None: ...

    @abstractmethod
    def _grant(self, now: tuple[int, int]) -> Grant: ...


class _MemlockLimit(_Limit):
    """RLIMIT_MEMLOCK, raised as far as this process is allowed to."""

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
            + (", not enforced because of CAP_IPC_LOCK" if is_capable(CAP_IPC_LOCK) else ""),
            kind="limit",
            value=now[0],
        )


class _CoreDumps(_Limit):
    """RLIMIT_CORE at 0, so that a crash does not write the locked memory to disk."""

    _error = 0

    def _change(self) -> None:
        changed = (0, self._former[1])
        self._error = 0
        try:
            resource.setrlimit(self._which, changed)
            self._changed = changed
        except OSError as error:  # such as in a sandbox; the grant reports it
            self._error = error.errno or errno.EPERM
        except ValueError:  # Python raises this for EPERM
            self._error = errno.EPERM

    def _grant(self, now: tuple[int, int]) -> Grant:
        if now[0] == 0:
            return Grant("core_dumps", "off", "off", ok=True, kind="limit")
        granted = format_limit(now[0])
        why, fix = (
            refusal_cause.explain("prlimit64", self._error) if self._error else ("other code has set RLIMIT_CORE", "")
        )
        return Grant("core_dumps", "off", granted, ok=False, detail=why, fix=fix, errno=self._error, kind="limit")


memlock_limit = _MemlockLimit(resource.RLIMIT_MEMLOCK)
core_dumps = _CoreDumps(resource.RLIMIT_CORE)
