"""Exceptions and the one warning category of rtloop.

Every exception inherits :class:`RtloopError` and the builtin that a caller would catch anyway,
so that ``except PermissionError`` and ``except rtloop.PrivilegeError`` both work.
"""

from __future__ import annotations

import os

__all__ = [
    "CallbackError",
    "ConfigError",
    "GuardError",
    "MemoryLockError",
    "MemoryLockPrivilegeError",
    "OverrunError",
    "PoolError",
    "PrivilegeError",
    "RTSetupWarning",
    "RtloopError",
    "SetupError",
    "StateError",
    "StopTimeoutError",
    "setup_error",
]


class RtloopError(Exception):
    """Base of every exception that rtloop raises on purpose."""


class ConfigError(RtloopError, ValueError):
    """A keyword has a value that can never work; the message lists the accepted forms."""


class SetupError(RtloopError, OSError):
    """The kernel refused something that the loop needs, and ``strict`` is on."""


class PrivilegeError(SetupError, PermissionError):
    """A :class:`SetupError` whose cause is a missing privilege (EPERM, EACCES or a low limit)."""


class MemoryLockError(SetupError):
    """Memory could not be locked."""


class MemoryLockPrivilegeError(MemoryLockError, PrivilegeError):
    """Memory could not be locked for want of a privilege: caught by either name."""


class CallbackError(RtloopError, RuntimeError):
    """A callback ended the loop with a negative code.

    Attributes
    ----------
    code : int
        What the callback returned.
    callback : str
        Which one: ``"enter"``, ``"step"``, ``"overrun"`` or ``"wait"``.
    """

    def __init__(self, code: int, callback: str = "step") -> None:
        self.code = code
        self.callback = callback
        name = f", which is {os.strerror(-code)} if it is a negative errno" if 0 < -code < 134 else ""
        super().__init__(f"{callback}() returned {code}{name}; the loop has stopped")

    def __reduce__(self) -> tuple[type, tuple[int, str]]:
        return type(self), (self.code, self.callback)


class OverrunError(RtloopError, RuntimeError):
    """Too many overruns: ``max_overruns`` in a row, or the first one with ``overrun="stop"``."""


class GuardError(RtloopError, RuntimeError):
    """A guard found a page fault, a system call or an allocation in ``step``."""


class StateError(RtloopError, RuntimeError):
    """The call does not fit the state of the loop, such as starting one that runs."""


class StopTimeoutError(StateError, TimeoutError):
    """A loop did not stop in time, because a callback has not returned; it goes on running."""


class PoolError(RtloopError, RuntimeError):
    """A block was returned to a pool that does not own it, or twice."""


class RTSetupWarning(RuntimeWarning):
    """The loop runs, but not under the conditions that were asked for."""


def setup_error(errno_: int, message: str, *, memory_lock: bool = False, privilege: bool = False) -> SetupError:
    """Make the :class:`SetupError` that fits: a ``PermissionError`` where a privilege is missing.

    Parameters
    ----------
    errno_ : int
        The positive errno of the refused call; 0 where no call was made.
    message : str
        What failed, with which value, why, and the fix.
    memory_lock : bool
        Whether it was memory that could not be locked.
    privilege : bool
        Whether a privilege or a limit is the cause.
    """
    kinds = {
        (False, False): SetupError,
        (False, True): PrivilegeError,
        (True, False): MemoryLockError,
        (True, True): MemoryLockPrivilegeError,
    }
    return kinds[memory_lock, privilege](errno_, message)
