"""Exceptions and the one warning category of rtloop.

Every exception inherits :class:`RtloopError` and the builtin that a caller would catch anyway,
so that ``except PermissionError`` and ``except rtloop.PrivilegeError`` both work.
"""

from __future__ import annotations

import errno
import os
import sys
import warnings
from typing import Any

__all__ = [
    "AttachError",
    "AttachPrivilegeError",
    "BridgeError",
    "BuildError",
    "CallbackError",
    "ClockStepError",
    "ConfigError",
    "GuardError",
    "LintError",
    "MemoryLockError",
    "MemoryLockPrivilegeError",
    "OverrunError",
    "PayloadError",
    "PoolError",
    "PoolExhaustedError",
    "PrivilegeError",
    "ProcessDiedError",
    "RTSetupWarning",
    "RecorderError",
    "RtloopError",
    "SetupError",
    "StateError",
    "StopTimeoutError",
    "SwapError",
    "WatchdogError",
    "setup_error",
    "warn_of_setup",
]


class RtloopError(Exception):
    """Base class of the exceptions of rtloop."""


class ConfigError(RtloopError, ValueError):
    """A keyword has a value that can never work; the message lists the accepted forms."""


class SetupError(RtloopError, OSError):
    """The kernel refused something that the loop needs, and ``strict`` is on.

    Attributes
    ----------
    errno : int
        Errno of the first refused call; 0 if no call was made.
    grants : tuple of Grant
        All requests until the start ended, refused or not, in order.
    refused : tuple of Grant
        The refused ones among them.
    """

    grants: tuple[Any, ...] = ()

    @property
    def refused(self) -> tuple[Any, ...]:
        """The grants that were refused."""
        return tuple(grant for grant in self.grants if not grant.ok)

    def __str__(self) -> str:
        return super().__str__() if self.errno else str(self.strerror or super().__str__())


class PrivilegeError(SetupError, PermissionError):
    """A :class:`SetupError` whose cause is a missing privilege (EPERM, EACCES or a low limit)."""


class MemoryLockError(SetupError):
    """Memory could not be locked."""


class MemoryLockPrivilegeError(MemoryLockError, PrivilegeError):
    """Memory could not be locked because a privilege is missing: caught by either name."""


class AttachError(RtloopError, LookupError):
    """No running loop matches, or several do, or its telemetry cannot be read."""


class AttachPrivilegeError(AttachError, PermissionError):
    """The process may not be inspected: it belongs to another user, or has privileges that this one does not have."""


class CallbackError(RtloopError, RuntimeError):
    """A callback ended the loop with a code that is neither RT_CONTINUE nor RT_STOP.

    Attributes
    ----------
    code : int
        The callback's return value.
    callback : str
        Its name: ``"enter"``, ``"step"``, ``"overrun"``, ``"wait"`` or ``"on_peer_failure"``.
    name : str or None
        The loop's name.
    cycle : int or None
        The index of the cycle, for ``on_peer_failure`` of the next; None for ``enter``, which runs before the first.
    symbol : str or None
        The errno's name of a negative code, such as ``"EIO"`` for -5.
    """

    def __init__(self, code: int, callback: str = "step", name: str | None = None, cycle: int | None = None) -> None:
        self.code = code
        self.callback = callback
        self.name = name
        self.cycle = cycle
        self.symbol = errno.errorcode.get(-code)
        whose = f"{name}: " if name else ""
        when = "" if cycle is None else f" in cycle {cycle}"
        meaning = f" (-{self.symbol}, {os.strerror(-code)}, if it is an errno)" if self.symbol else ""
        super().__init__(f"{whose}{callback}() returned {code}{when}{meaning}; the loop has stopped")

    def __reduce__(self) -> tuple[type, tuple[int, str, str | None, int | None]]:
        return type(self), (self.code, self.callback, self.name, self.cycle)


class ProcessDiedError(RtloopError, ChildProcessError):
    """The process of a :class:`ProcessLoop` was killed, or has crashed, while its loop ran or started.

    Attributes
    ----------
    name : str
        The loop's name.
    pid : int
        The process.
    exit_code : int
        Its exit code, or the negative number of the signal that ended it.
    has_left : bool or None
        True if ``leave`` had run before; None if unknown.
    """

    def __init__(self, message: str, name: str, pid: int, exit_code: int, has_left: bool | None) -> None:
        self.name = name
        self.pid = pid
        self.exit_code = exit_code
        self.has_left = has_left
        super().__init__(message)

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return type(self), (self.args[0], self.name, self.pid, self.exit_code, self.has_left)


class LintError(RtloopError, RuntimeError):
    """A module cannot be examined: it cannot be read, or Cython does not compile it."""


class OverrunError(RtloopError, RuntimeError):
    """Too many overruns: ``max_overruns`` in a row, or the first one with ``overrun="stop"``.

    Attributes
    ----------
    name : str or None
        The loop's name.
    cycle : int or None
        The index of the cycle whose overrun ended the loop.
    late_ns : int or None
        Time from the next release to the end of that cycle, in nanoseconds.
    """

    def __init__(
        self, message: str, name: str | None = None, cycle: int | None = None, late_ns: int | None = None
    ) -> None:
        self.name = name
        self.cycle = cycle
        self.late_ns = late_ns
        super().__init__(message)

    def __reduce__(self) -> tuple[type, tuple[str, str | None, int | None, int | None]]:
        return type(self), (str(self), self.name, self.cycle, self.late_ns)


class ClockStepError(RtloopError, RuntimeError):
    """The loop's clock was set while it ran, and ``clock_step="stop"``.

    Attributes
    ----------
    name : str or None
        The loop's name.
    cycle : int or None
        Number of cycles that had run.
    step_ns : int or None
        Step of the clock, in nanoseconds; negative if it was set back.
    """

    def __init__(
        self, message: str, name: str | None = None, cycle: int | None = None, step_ns: int | None = None
    ) -> None:
        self.name = name
        self.cycle = cycle
        self.step_ns = step_ns
        super().__init__(message)

    def __reduce__(self) -> tuple[type, tuple[str, str | None, int | None, int | None]]:
        return type(self), (str(self), self.name, self.cycle, self.step_ns)


class GuardError(RtloopError, RuntimeError):
    """A guard found a page fault, a system call or an allocation in ``step``.

    Attributes
    ----------
    name : str or None
        The loop's name.
    cycle : int or None
        The index of the cycle that ended the loop.
    violation : dict or None
        The first place of that cycle's violations, as in ``Stats.guard["violations"]``; None if none was recorded.
    """

    def __init__(
        self,
        message: str,
        name: str | None = None,
        cycle: int | None = None,
        violation: dict[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.cycle = cycle
        self.violation = violation
        super().__init__(message)

    def __reduce__(self) -> tuple[type, tuple[str, str | None, int | None, dict[str, Any] | None]]:
        return type(self), (str(self), self.name, self.cycle, self.violation)


class WatchdogError(RtloopError, RuntimeError):
    """The watchdog of a group ended a loop that had not completed a cycle for too long.

    Attributes
    ----------
    name : str or None
        The loop's name.
    cycle : int or None
        The index of the last completed cycle since its start; None if there was none.
    stuck_ns : int or None
        Time from the end of that cycle, or else from the first release, to `acted_ns`, in nanoseconds.
    acted_ns : int or None
        Time of the watchdog's call of ``safe``, on the loop's clock.
    safe_code : int or None
        Return value of ``safe``; None if it had not returned.
    """

    def __init__(
        self,
        message: str,
        name: str | None = None,
        cycle: int | None = None,
        stuck_ns: int | None = None,
        acted_ns: int | None = None,
        safe_code: int | None = None,
    ) -> None:
        self.name = name
        self.cycle = cycle
        self.stuck_ns = stuck_ns
        self.acted_ns = acted_ns
        self.safe_code = safe_code
        super().__init__(message)

    def __reduce__(self) -> tuple[type, tuple[str, str | None, int | None, int | None, int | None, int | None]]:
        return type(self), (str(self), self.name, self.cycle, self.stuck_ns, self.acted_ns, self.safe_code)


class StateError(RtloopError, RuntimeError):
    """The call does not fit the state of the loop, such as starting one that runs."""


class StopTimeoutError(StateError, TimeoutError):
    """A loop did not stop in time, because a callback has not returned; it keeps running."""


class SwapError(RtloopError, RuntimeError):
    """A swap or a rehearsal failed: the new step refused or failed, or the present one did not return in time.

    Attributes
    ----------
    code : int or None
        What ``take_over`` returned; None if it was not called, or has not returned.
    """

    def __init__(self, message: str, code: int | None = None) -> None:
        self.code = code
        super().__init__(message)

    def __reduce__(self) -> tuple[type, tuple[str, int | None]]:
        return type(self), (str(self), self.code)


class PoolError(RtloopError, RuntimeError):
    """A block was returned twice, or to a pool that does not own it."""


class PoolExhaustedError(PoolError, MemoryError):
    """Every block of a pool is in use."""


class BridgeError(RtloopError, OSError):
    """A Zenoh session could not be opened or used."""


class PayloadError(RtloopError, ValueError):
    """A payload from the network is malformed; the message describes the fault."""


class BuildError(RtloopError, ImportError):
    """A ``.pyx`` could not be compiled, or the compiled module could not be imported.

    Attributes
    ----------
    diagnostics : tuple of Diagnostic
        The compilers' messages, each with `path`, `line`, `column` (from 1; 0 if unknown), `text` and `fix`. Empty if
        the fault is not in the code.
    """

    def __init__(self, message: str, *, diagnostics: tuple[Any, ...] = (), path: str | None = None) -> None:
        super().__init__(message, path=path)
        self.diagnostics = diagnostics

    def _render_traceback_(self) -> list[str]:
        # IPython shows this, without rtloop's own frames.
        return [f"{type(self).__name__}: {self}"]


class RecorderError(RtloopError, OSError):
    """A recording could not be written, or is incomplete; `errno` is that of the failed write."""


class RTSetupWarning(RuntimeWarning):
    """The loop runs, but not under the conditions that were asked for.

    Attributes
    ----------
    grants : tuple of Grant
        The refused requests of a loop that starts degraded; empty in any other warning.
    """

    grants: tuple[Any, ...] = ()


def setup_error(
    errno_: int, message: str, *, memory_lock: bool = False, privilege: bool = False, grants: tuple[Any, ...] = ()
) -> SetupError:
    """Make the :class:`SetupError` that fits: a ``PermissionError`` if a privilege is missing.

    Parameters
    ----------
    errno_ : int
        The positive errno of the refused call; 0 if no call was made.
    message : str
        The failure, the value, the cause and the fix.
    memory_lock : bool
        True if memory could not be locked.
    privilege : bool
        True if a privilege or a limit is the cause.
    grants : tuple of Grant
        All requests until then.
    """
    kinds = {
        (False, False): SetupError,
        (False, True): PrivilegeError,
        (True, False): MemoryLockError,
        (True, True): MemoryLockPrivilegeError,
    }
    error = kinds[memory_lock, privilege](errno_, message)
    error.grants = grants
    return error


def warn_of_setup(message: str, grants: tuple[Any, ...] = ()) -> None:
    """Issue an RTSetupWarning that names the line outside of rtloop that led to it; `grants` are the refused ones."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "rtloop":
        level, frame = level + 1, frame.f_back
    warning = RTSetupWarning(message)
    warning.grants = grants
    warnings.warn(warning, stacklevel=level)
