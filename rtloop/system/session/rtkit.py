"""RealtimeKit: real-time threads for a user without privileges, over D-Bus (org.freedesktop.RealtimeKit1).

The service makes a thread SCHED_RR, up to a priority of its own, if the process has a limit for the time that a
real-time thread may run without blocking (RLIMIT_RTTIME). See https://github.com/heftig/rtkit.
"""

from __future__ import annotations

import os
import resource
from typing import Any, NamedTuple

from rtloop.errors import SetupError
from rtloop.system.privilege import RLIMIT_RTTIME, read_limit

__all__ = ["Rtkit", "limits_in_use", "make_real_time", "use_rtkit"]

_NAME = "org.freedesktop.RealtimeKit1"
_PATH = "/org/freedesktop/RealtimeKit1"
_TIMEOUT_S = 5.0
_LONGEST_US = 10**12
#: SIGXCPU comes after this share of the time, SIGKILL at its end.
_SOFT_PERCENT = 75


class Rtkit(NamedTuple):
    """Limits of RealtimeKit on this machine.

    Attributes
    ----------
    priority : int
        The highest priority that it grants.
    cpu_time_us : int
        Longest time that a real-time thread may run without blocking, in microseconds.
    """

    priority: int
    cpu_time_us: int


_in_use: Rtkit | None = None


def use_rtkit() -> Rtkit:
    """Ask RealtimeKit for a real-time policy if the kernel refuses it to a loop of this process.

    This needs no administrator, because most desktops run RealtimeKit for the users who are logged in. It grants
    SCHED_RR only. A strict loop must therefore request ``policy="rr"`` and a priority within the limit, and nothing
    that needs other privileges::

        limits = rtloop.use_rtkit()
        loop = Servo("1kHz", policy="rr", priority=limits.priority, lock_memory="own", dma_latency=None)

    The first loop that asks lowers RLIMIT_RTTIME of this process to the limit that RealtimeKit requires; without
    privileges it cannot be raised again. From then on, a real-time thread that does not sleep for three quarters of
    `cpu_time_us` ends the process: the kernel sends SIGXCPU, and at the full time SIGKILL. The grant ``rt_time``
    states the limit. A loop whose period is longer than that, or that spins through its period, is refused.

    It needs ``pip install 'rtloop[rtkit]'``. A loop asks RealtimeKit only if the kernel refuses its policy, so the call
    may stay in a program that also runs with privileges. The process of a :class:`ProcessLoop` does not ask it.

    Returns
    -------
    Rtkit
        The limits of RealtimeKit: `priority` and `cpu_time_us`.

    Raises
    ------
    SetupError
        If RealtimeKit, D-Bus or the extra is missing.
    """
    global _in_use
    with _connected() as call:
        found = Rtkit(call.get("MaxRealtimePriority"), call.get("RTTimeUSecMax"))
    if not (1 <= found.priority <= 99 and 1 <= found.cpu_time_us <= _LONGEST_US):
        raise SetupError(0, f"RealtimeKit grants nothing: priority {found.priority}, {found.cpu_time_us} us")
    _in_use = found
    return found


def limits_in_use() -> Rtkit | None:
    """Return the limits of RealtimeKit if the program uses it, else None."""
    return _in_use


def make_real_time(tid: int, priority: int) -> str:
    """Ask RealtimeKit to make a thread of this process SCHED_RR; return the reason if it refuses, else "".

    Lowers RLIMIT_RTTIME first, if it is above the limit that RealtimeKit requires.
    """
    if _in_use is None:
        return "RealtimeKit is not in use"
    try:
        _limit_cpu_time(_in_use.cpu_time_us)
        with _connected() as call:
            call.make_real_time(tid, min(priority, _in_use.priority))
    except SetupError as error:
        return str(error)
    except (OSError, ValueError) as error:
        return f"RLIMIT_RTTIME could not be set: {error}"
    return ""


def _limit_cpu_time(most_us: int) -> None:
    soft, hard = read_limit(RLIMIT_RTTIME)
    new_hard = most_us if hard == resource.RLIM_INFINITY else min(hard, most_us)
    new_soft = new_hard * _SOFT_PERCENT // 100
    if soft != resource.RLIM_INFINITY:
        new_soft = min(soft, new_soft)
    if (new_soft, new_hard) != (soft, hard):
        resource.setrlimit(RLIMIT_RTTIME, (new_soft, new_hard))


class _connected:  # noqa: N801 - reads as an adjective in its with statement
    """Connection to the system bus."""

    def __enter__(self) -> _connected:
        try:
            import jeepney
            from jeepney.io.blocking import open_dbus_connection
        except ImportError as error:
            raise SetupError(0, "jeepney is not installed: pip install 'rtloop[rtkit]'") from error
        self._jeepney = jeepney
        self._service = jeepney.DBusAddress(_PATH, _NAME, _NAME)
        try:
            self._connection = open_dbus_connection("SYSTEM")
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            raise SetupError(getattr(error, "errno", 0) or 0, f"the system bus of D-Bus cannot be reached: {error}; "
                             "it runs in sessions of users, not in most containers") from error  # fmt: skip
        return self

    def __exit__(self, *exception: object) -> None:
        self._connection.close()

    def get(self, name: str) -> int:
        """Return a property of RealtimeKit."""
        reply = self._send(self._jeepney.Properties(self._service).get(name), "is not available")
        try:
            return int(reply[0][1])
        except (LookupError, TypeError, ValueError) as error:
            raise SetupError(0, f"RealtimeKit is not available: {name} is not a number, but {reply!r}") from error

    def make_real_time(self, tid: int, priority: int) -> None:
        """Make a thread of this process SCHED_RR."""
        arguments = (os.getpid(), tid, priority)
        message = self._jeepney.new_method_call(self._service, "MakeThreadRealtimeWithPID", "ttu", arguments)
        self._send(message, f"refused priority {priority}")

    def _send(self, message: Any, what: str) -> tuple[Any, ...]:
        try:
            reply = self._connection.send_and_get_reply(message, timeout=_TIMEOUT_S)
        except (OSError, LookupError, ValueError) as error:  # the bus is gone, or does not answer, or sends no message
            raise SetupError(0, f"RealtimeKit {what}: {error or 'no answer'}") from error
        if reply.header.message_type is self._jeepney.MessageType.error:
            name = reply.header.fields.get(self._jeepney.HeaderFields.error_name, "")
            text = reply.body[0] if reply.body else ""
            hint = {
                "org.freedesktop.DBus.Error.ServiceUnknown": "; sudo apt install rtkit",
                "org.freedesktop.DBus.Error.AccessDenied": "; it serves users of an active session, and others by a "
                "rule of polkit",
            }.get(name, "")
            raise SetupError(0, f"RealtimeKit {what}: {text or name}{hint}")
        body: tuple[Any, ...] = reply.body
        return body
