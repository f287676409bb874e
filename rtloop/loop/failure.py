"""Exceptions and warnings for loops that could not start, run degraded, or have failed."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

from rtloop.errors import (
    CallbackError,
    ClockStepError,
    GuardError,
    OverrunError,
    RtloopError,
    RTSetupWarning,
    SetupError,
    StopTimeoutError,
    WatchdogError,
)
from rtloop.settings import Settings
from rtloop.system.grant import Grant, describe_refused
from rtloop.units import format_duration

__all__ = [
    "add_note",
    "clock_step_error",
    "end_after",
    "end_error",
    "guard_error",
    "mark_handled",
    "note_failed",
    "stop_timeout_error",
    "warn_degraded",
    "warn_failed",
    "warn_stale",
    "warn_tai",
    "watchdog_error",
]


class _Ending(Protocol):
    @property
    def settings(self) -> Settings: ...
    def request_stop(self) -> None: ...
    def end_run(self, timeout_ns: int, interrupts: list[BaseException]) -> bool: ...


def end_error(settings: Settings, end: str, code: int, cycle: int, late_ns: int) -> RtloopError:
    """Make the exception for a failed run.

    Parameters
    ----------
    settings : Settings
        Settings of the loop.
    end : str
        Cause of the end: a callback's name, ``"clock"`` or ``"overruns"``.
    code : int
        Return value of the callback or of clock_nanosleep(2).
    cycle : int
        Index of the last cycle; if the failure came before its start, of the cycle that was next.
    late_ns : int
        Time from the next release to the end of the last overrun.
    """
    s = settings
    if end == "clock":
        return SetupError(-code, f"{s.name}: clock_nanosleep on clock={s.clock!r}: {os.strerror(-code)}")
    if end != "overruns":
        return CallbackError(code, end, s.name, None if end == "enter" else cycle)
    if s.overrun == "stop":
        what = "its first overrun (overrun='stop')"
    else:
        row = "1 overrun" if s.max_overruns == 1 else f"{s.max_overruns} overruns in a row"
        what = f"{row} (max_overruns={s.max_overruns}, overrun={s.overrun!r})"
    return OverrunError(
        f"{s.name} was stopped by {what}: cycle {cycle} ended {format_duration(late_ns)} after the next release, "
        f"with period={format_duration(s.period_ns)}",
        s.name,
        cycle,
        late_ns,
    )


def clock_step_error(settings: Settings, cycle: int, sizes: Sequence[int]) -> ClockStepError:
    """Make the exception for a run that the last of these clock steps has ended, after `cycle` cycles."""
    step_ns = sizes[-1] if sizes else 0
    size, way = format_duration(abs(step_ns)), "forward" if step_ns > 0 else "back"
    return ClockStepError(
        f"{settings.name} was stopped because its clock was set {way} by {size} before cycle {cycle} "
        f"(clock={settings.clock!r}, clock_step='stop'); with clock_step='follow' it continues",
        settings.name,
        cycle,
        step_ns,
    )


def guard_error(settings: Settings, cycle: int, violations: list[dict[str, Any]], unkept: int = 0) -> GuardError:
    """Make the exception for a run that a guard has ended.

    Parameters
    ----------
    settings : Settings
        Settings of the loop.
    cycle : int
        Index of the last cycle.
    violations : list of dict
        The places of that cycle's violations.
    unkept : int
        Number of its violations at other places.
    """
    from rtloop.stats.guard_summary import describe  # here, because `import rtloop` has to be quick

    what = describe(violations[0]) if violations else "a violation that was not recorded"
    others = max(0, sum(v["count"] for v in violations) + unkept - 1)
    more = f", and {others:,} more" if others else ""
    if len(violations) > 1:
        more += f", at {len(violations)} places{' and others' * (unkept > 0)}"
    message = f"{settings.name} was stopped by its guard (guard='stop'): in step of cycle {cycle}: {what}{more}"
    return GuardError(message, settings.name, cycle, violations[0] if violations else None)


def watchdog_error(settings: Settings, trip: dict[str, Any]) -> WatchdogError:
    """Make the exception for a loop that the watchdog has found stuck; `trip` is the watchdog's record."""
    cycles, code = trip["cycles"], trip["safe_code"]
    last = f"the end of cycle {cycles - 1}" if cycles else "its first release"
    message = (
        f"{settings.name} was found stuck by the watchdog: {format_duration(trip['stuck'])} after {last}, "
        f"cycle {cycles} had not ended, with period={format_duration(settings.period_ns)}, "
        f"watchdog={trip['periods']}; " + ("safe() has not returned" if code is None else f"safe() returned {code}")
    )
    cycle = cycles - 1 if cycles else None
    return WatchdogError(message, settings.name, cycle, trip["stuck"], trip["acted"], code)


def stop_timeout_error(name: str, timeout_ns: int) -> StopTimeoutError:
    """Make the exception for a loop that has not ended in time."""
    return StopTimeoutError(
        f"{name} did not stop within {format_duration(timeout_ns)}: a callback has not returned. "
        "Its thread keeps running, and ends when the callback returns"
    )


def end_after(controls: Sequence[_Ending], name: str, interrupt: BaseException, timeout_ns: int) -> bool:
    """End runs because a wait for them was interrupted, and report on stderr how long that took. Raises nothing.

    All are asked at once. Exceptions of signal handlers meanwhile are counted but not raised, because leave() has to
    run. Returns True if all runs have ended.
    """
    begin = time.monotonic_ns()
    further: list[BaseException] = []
    late = []
    for control in controls:
        control.request_stop()
    for control in controls:
        left = max(0, begin + timeout_ns - time.monotonic_ns())
        try:
            if not control.end_run(left, further):
                late.append(control.settings.name)
        except StopTimeoutError as error:
            add_note(interrupt, str(error))
    took = format_duration(time.monotonic_ns() - begin)
    for one in late:
        add_note(interrupt, str(stop_timeout_error(one, timeout_ns)))
    who = "" if late in ([], [name]) else f"{', '.join(late)} "
    what = f"{who}has not ended after {took}" if late else f"ended after {took}"
    more = f"; {len(further)} more interrupt{'s' * (len(further) != 1)} arrived" if further else ""
    with suppress(OSError, ValueError, AttributeError):  # print(file=None) would write to stdout
        sys.stderr.write(f"rtloop: {name}: {type(interrupt).__name__}: asked to stop, {what}{more}\n")
        sys.stderr.flush()
    return not late


def warn_tai(settings: Settings, offset_s: int) -> None:
    """Warn of a loop on CLOCK_TAI without a TAI offset: the clock then equals the time of day, and steps with it."""
    if settings.clock == "tai" and offset_s == 0:
        warnings.warn(
            f"{settings.name} is on clock='tai', but the kernel has a TAI offset of 0, so this clock equals the time "
            "of day. It steps when the offset is set (37 s since 2017). Let chrony (leapsectz) or ptp4l set the offset "
            "before the loop starts",
            RTSetupWarning,
            stacklevel=2,
        )


def warn_degraded(grants: tuple[Grant, ...], name: str) -> None:
    """Warn of a degraded loop, with all requests that were refused."""
    refused = [grant for grant in grants if not grant.ok]
    if refused:
        count = "1 request was" if len(refused) == 1 else f"{len(refused)} requests were"
        text = describe_refused(*refused)
        message = f"{name} runs degraded: {count} refused:\n{text}\nMore about this machine: rtloop doctor"
        warnings.warn(message, RTSetupWarning, stacklevel=2)


def warn_lost(lost: Sequence[Grant], name: str) -> None:
    """Warn of grants that a running loop has lost."""
    if lost:
        text = "\n".join(f"{grant.name}: {grant.detail}" for grant in lost)
        warnings.warn(f"{name} no longer has what it was granted:\n{text}\n{lost[0].fix}", RTSetupWarning, stacklevel=2)


def _describe(error: BaseException) -> str:
    """Format an error, with its type unless it is one of rtloop's, whose messages are complete."""
    return str(error) if isinstance(error, RtloopError) else f"{type(error).__name__}: {error}"


def warn_failed(error: BaseException | None) -> None:
    """Warn that a loop had failed before it was stopped, if nothing has raised the reason."""
    if error is not None:
        message = f"the loop had already failed; join() would have raised the reason: {_describe(error)}"
        warnings.warn(message, RTSetupWarning, stacklevel=2)


def warn_stale(name: str, lines: Sequence[str]) -> None:
    """Warn of a group's chains whose data was older than intended."""
    if lines:
        text = "\n".join(lines)
        warnings.warn(f"{name}: data was older than intended:\n{text}", RTSetupWarning, stacklevel=3)


def mark_handled(interrupt: BaseException, by: object) -> bool:
    """Mark an interrupt as handled by a loop or a group. Returns whether it was not marked before.

    The mark is on the exception itself, because the id of an exception is used again once it is freed.
    """
    marks = getattr(interrupt, "_rtloop_handled_by", ())
    if any(one is by for one in marks):
        return False
    with suppress(Exception):  # one of a frozen dataclass takes no attribute
        interrupt._rtloop_handled_by = (*marks, by)  # type: ignore[attr-defined]
    return True


def add_note(error: BaseException, text: str) -> None:
    """Add a note to an exception, once. Some exceptions do not accept notes, such as frozen dataclasses."""
    with suppress(Exception):
        if text not in getattr(error, "__notes__", ()):
            error.add_note(text)


def note_failed(raised: BaseException, error: BaseException | None) -> None:
    """Note on an exception that leaves a with block that the loop has failed as well."""
    if error is not None:
        add_note(raised, f"The loop had also failed: {_describe(error)}")
