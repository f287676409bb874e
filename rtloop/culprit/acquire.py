"""The trace beside a run as a resource of the loop: its grant, and its removal at the end."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from rtloop.culprit.run_tracer import RunTracer
from rtloop.culprit.tracefs import MOUNT
from rtloop.errors import RtloopError
from rtloop.process.pid_namespace import FIRST, own_pid_namespace
from rtloop.system.grant import Grant
from rtloop.telemetry.assemble import machine
from rtloop.telemetry.gc_watch import watch_collector
from rtloop.units import format_duration

if TYPE_CHECKING:
    from contextlib import ExitStack

    from rtloop.settings import Settings
    from rtloop.telemetry.block import TelemetryBlock

__all__ = ["acquire"]

#: Timestamps of so long a time are kept at least, so that a look that comes late still finds them, ns.
_RECORDED_NS = 200_000_000
_WITHOUT = "or run without it: explain=False"


def acquire(
    settings: Settings, stack: ExitStack, block: TelemetryBlock, tid: int, *, needs_interpreter: bool,
    has_own_wait: bool,
) -> tuple[Grant, RunTracer | None]:  # fmt: skip
    """Begin to trace the kernel. Returns the grant, and the tracer unless it was refused."""
    asked = f"delays beyond {format_duration(settings.explain_ns)}" if settings.explain_ns else "the worst delays"
    if not settings.record:
        why = "record=0 keeps no timestamps, so late cycles cannot be found"
        return _refused(asked, why, "record=65536, the default", 0), None
    least = -(-_RECORDED_NS // settings.period_ns) if settings.period_ns else 0
    if settings.record < least:
        kept = format_duration(settings.record * settings.period_ns)
        why = f"record={settings.record} keeps the timestamps of {kept}, and late cycles are looked for every 50 ms"
        return _refused(asked, why, f"record={least} at least; 65536 is the default", 0), None
    if own_pid_namespace() not in (0, FIRST):
        why = "the kernel's trace has thread numbers of the host, and this process is in another pid namespace"
        return _refused(asked, why, f"docker run --pid=host ...\n{_WITHOUT}", 0), None
    if needs_interpreter:
        watch_collector()
    try:
        tracer = RunTracer(
            settings, block, tid, needs_interpreter=needs_interpreter, has_own_wait=has_own_wait,
            is_virtual=bool(machine()["is_virtual"]),
        )  # fmt: skip
    except OSError as error:
        number = error.errno or errno.EIO
        why = f"{error.filename or 'tracefs'}: {os.strerror(number)}"
        if number in (errno.EACCES, errno.EPERM):
            needed = "tracing the kernel needs root" if os.geteuid() else "not even root may trace the kernel here"
            return _refused(asked, f"{why}; {needed}", f"{_root()}{_WITHOUT}", number), None
        if number == errno.EROFS:
            why += "; tracefs is mounted read-only, as in a container"
            return _refused(asked, why, "give the container the host's /sys/kernel/tracing, writable", number), None
        return _refused(asked, why, "explain=False, or free what is missing", number), None
    except RtloopError as error:
        return _refused(asked, str(error).partition("; fix")[0], f"{MOUNT}\n{_root()}{_WITHOUT}", errno.ENOENT), None
    stack.callback(tracer.close)
    detail = "a private instance of tracefs, read only when a cycle was late"
    if tracer.missing:
        detail += f"; this kernel has no {', '.join(tracer.missing)}"
    return Grant("explain", asked, asked, ok=True, detail=detail, kind="other"), tracer


def _root() -> str:
    """Return the line of a fix that gives the rights of root; empty for root."""
    return "run as root: sudo $(which python) ...\n" if os.geteuid() else ""


def _refused(asked: str, why: str, fix: str, number: int) -> Grant:
    return Grant("explain", asked, "no trace", False, why, fix, number, kind="other")
