"""End of a group: the wait for loops that may never end, and the stop of all of them in reverse."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rtloop.errors import StopTimeoutError, WatchdogError
from rtloop.loop.outcome import failure
from rtloop.loop.registry import EXIT_TIMEOUT_NS
from rtloop.process import ending_signals
from rtloop.units import format_duration

if TYPE_CHECKING:
    from rtloop.child.child_member import ChildMember
    from rtloop.loop.lifecycle import Control

__all__ = ["end", "hung_error", "wait_all"]

#: Interval at which a waiting group checks for loops that hang.
_LOOK_NS = 100_000_000
#: Time in which the loops are stopped one after the other; after that the remaining ones are asked at once.
_IN_ORDER_NS = 100_000_000


def _has_hung(control: Control | ChildMember) -> bool:
    """Return True if the watchdog found the loop stuck more than two seconds ago."""
    trip = control.thread.trip()
    return trip is not None and time.monotonic_ns() - trip["monotonic"] > EXIT_TIMEOUT_NS


def wait_all(controls: Sequence[Control | ChildMember], deadline: int | None) -> tuple[bool, StopTimeoutError | None]:
    """Wait until the loops have ended, or until `deadline` on the monotonic clock.

    The wait for a stuck loop ends two seconds after the watchdog found it, and that for a loop whose step does not
    return although the limit of the run has passed after its `leave_timeout`, or a longer period.

    Returns
    -------
    tuple
        True if all have ended, and the exception for the first loop that is overdue, if any.
    """
    have_all_ended = True
    error: StopTimeoutError | None = None
    judges = [control.make_overdue() for control in controls]
    for control, overdue in zip(controls, judges, strict=True):
        while True:
            left = _LOOK_NS if deadline is None else max(0, min(_LOOK_NS, deadline - time.monotonic_ns()))
            if control.wait(left):
                break
            if deadline is not None and time.monotonic_ns() >= deadline:
                return False, error
            if _has_hung(control):
                control.thread.notify_siblings()
                have_all_ended = False
                break
            for judge in judges:
                judge.look()
            if overdue.is_over:
                control.request_stop()
                error = error or failure.overdue_error(control.settings.name, overdue.limit_ns)
                have_all_ended = False
                break
    return have_all_ended, error


def hung_error(controls: Sequence[Control | ChildMember]) -> WatchdogError | None:
    """Make the exception for the first loop that was found stuck and has not ended two seconds later, if any."""
    for control in controls:
        trip = control.thread.trip()
        if trip is not None and control.state == "running" and _has_hung(control):
            error = failure.watchdog_error(control.settings, trip)
            waited = format_duration(EXIT_TIMEOUT_NS)
            failure.add_note(
                error, f"{control.settings.name} has not ended {waited} later: its thread runs on until step returns"
            )
            return error
    return None


def end(name: str, controls: Sequence[Control | ChildMember], timeout_ns: int) -> None:
    """Stop the loops of a group one after the other, in reverse; after 100 ms ask all remaining ones at once.

    Nothing is reaped before all threads have ended. Exceptions of signal handlers are raised after that.

    Raises
    ------
    StopTimeoutError
        If a callback has not returned by then; all other loops have been stopped nevertheless.
    """
    begin = time.monotonic_ns()
    armed = ending_signals.arm()
    interrupts: list[BaseException] = []
    try:
        error = _end_all(name, controls, begin, timeout_ns, interrupts)
    finally:
        ending_signals.disarm(armed)
    if interrupts:
        if error is not None:
            failure.add_note(interrupts[0], str(error))
        raise interrupts[0]
    if error is not None:
        raise error


def _end_all(
    name: str, controls: Sequence[Control | ChildMember], begin: int, timeout_ns: int, interrupts: list[BaseException]
) -> StopTimeoutError | None:
    """Ask, wait and reap. Returns the exception for a loop that has not ended, None if all have."""
    late: list[Control | ChildMember] = []
    error: StopTimeoutError | None = None
    for patience_ns in (min(timeout_ns, _IN_ORDER_NS), timeout_ns):
        late = []
        for control in reversed(controls):
            try:
                if not control.end_run(max(0, begin + patience_ns - time.monotonic_ns()), interrupts, must_reap=False):
                    late.append(control)
            except StopTimeoutError as still_starting:
                error = still_starting
        if not late:
            break
    for control in reversed(controls):
        control.reap()
    if late:
        error = failure.stop_timeout_error(late[0].settings.name, timeout_ns)
    if error is not None:
        error.add_note(f"{name}: all of its loops were asked to stop, for up to {format_duration(timeout_ns)}")
        for control in controls:
            if (trip := control.thread.trip()) is not None:
                error.add_note(str(failure.watchdog_error(control.settings, trip)))
    return error
