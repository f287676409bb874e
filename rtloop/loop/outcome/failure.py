"""Failure of a run as an exception: of a callback, or made for a code, an overrun, a guard, a watchdog or a clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rtloop.errors import (
    CallbackError,
    ClockStepError,
    GuardError,
    OverrunError,
    RtloopError,
    SetupError,
    StopTimeoutError,
    WatchdogError,
)
from rtloop.guard.violations import list_violations
from rtloop.process.signal_shield import ShieldedLock
from rtloop.settings import Settings
from rtloop.system import refusal_cause
from rtloop.units import format_duration

if TYPE_CHECKING:
    from rtloop.loop.thread import LoopThread

__all__ = [
    "RunFailure",
    "add_note",
    "clock_step_error",
    "describe",
    "end_error",
    "guard_error",
    "note_failed",
    "overdue_error",
    "stop_timeout_error",
    "watchdog_error",
]


class RunFailure:
    """Exception for the failure of one run, however it failed; ``join`` raises it, or a warning reports it, once.

    A callback in Python raises it itself. For everything else the thread records the reason, and the exception is made
    on request, because that of a guard looks up symbols, which is slow.

    Parameters
    ----------
    thread : LoopThread
        Thread of the run.

    Attributes
    ----------
    raised : BaseException or None
        Exception that a callback in Python has raised; it ends the run.
    is_reported : bool
        True if the exception has been raised or told.
    """

    def __init__(self, thread: LoopThread) -> None:
        self.raised: BaseException | None = None
        self.is_reported = False
        self._thread = thread
        self._lock = ShieldedLock()
        self._is_settled = False
        self._make: Callable[[], BaseException] | None = None
        self._error: BaseException | None = None
        self._traceback: TracebackType | None = None

    def settle(self) -> None:
        """Determine, once, how the run ended; its thread must have ended."""
        with self._lock:
            if not self._is_settled:
                self._is_settled = True
                self._make = self._maker()

    def settle_with(self, error: BaseException | None) -> None:
        """Set the reason for the end of a run without a thread, which the caller raises."""
        with self._lock:
            self._is_settled = self.is_reported = True
            self._keep(error)

    def read(self) -> BaseException | None:
        """Return the exception of a settled run, None if it ended normally or is not settled."""
        make = self._make
        if make is not None:  # not under the lock, because this is slow and a signal handler may interrupt it
            error = make()
            with self._lock:
                if self._make is make:
                    self._keep(error)
        return self._error

    def _keep(self, error: BaseException | None) -> None:
        self._error, self._make = error, None
        self._traceback = None if error is None else error.__traceback__

    def raise_if_failed(self) -> None:
        """Raise the exception of a settled run, unless that ended normally."""
        error = self.read()
        if error is not None:
            self.is_reported = True
            raise error.with_traceback(self._traceback)

    def take_unreported(self) -> BaseException | None:
        """Return the exception of a settled run, once and only if it has not been raised."""
        with self._lock:
            was_reported, self.is_reported = self.is_reported, True
        return None if was_reported else self.read()

    def make(self) -> BaseException | None:
        """Make the exception for the end of a run that has just ended, None for a normal end."""
        make = self._maker()
        return None if make is None else make()

    def _maker(self) -> Callable[[], BaseException] | None:
        error, settings = self.raised, self._thread.settings
        if error is not None:
            return lambda: error
        cause, code, cycle, late_ns = self._thread.end()
        if cause is None:
            return None
        if cause == "watchdog":
            trip = self._thread.trip()
            assert trip is not None
            return lambda: watchdog_error(settings, trip)
        if cause == "guard":
            guard = self._thread.guard  # stays readable after the release
            assert guard is not None
            return lambda: guard_error(settings, cycle, list_violations(guard, cycle), sum(guard.unkept))
        if cause == "clock_step":
            block = self._thread.block
            assert block is not None
            sizes = block.snapshot().counters["clock_step_sizes"]
            return lambda: clock_step_error(settings, cycle, sizes)
        return lambda: end_error(settings, cause, code, cycle, late_ns)


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
        why, fix = refusal_cause.explain("clock_nanosleep", -code)
        return SetupError(-code, f"{s.name} on clock={s.clock!r}: {why}" + (f"\n{fix}" if fix else ""))
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


def stop_timeout_error(name: str, timeout_ns: int, since: str = "") -> StopTimeoutError:
    """Make the exception for a loop that has not ended in time, which may be counted since an event."""
    return StopTimeoutError(
        f"{name} did not stop within {format_duration(timeout_ns)}{since}: a callback has not returned. "
        "Its thread keeps running, and ends when the callback returns"
    )


def overdue_error(name: str, timeout_ns: int) -> StopTimeoutError:
    """Make the exception for a loop that has not ended this long after the limit of its run."""
    return stop_timeout_error(name, timeout_ns, " after the limit of its run")


def describe(error: BaseException) -> str:
    """Format an error, with its type unless it is one of rtloop's, whose messages are complete."""
    return str(error) if isinstance(error, RtloopError) else f"{type(error).__name__}: {error}"


def add_note(error: BaseException, text: str) -> None:
    """Add a note to an exception, once. Some exceptions do not accept notes, such as frozen dataclasses."""
    with suppress(Exception):
        if text not in getattr(error, "__notes__", ()):
            error.add_note(text)


def note_failed(raised: BaseException, error: BaseException | None) -> None:
    """Note on an exception that leaves a with block that the loop has failed as well."""
    if error is not None:
        add_note(raised, f"The loop had also failed: {describe(error)}")
