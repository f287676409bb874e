"""Interrupts of a wait for loops, such as Ctrl-C: the loops end before the interrupt takes its course."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from rtloop.errors import StopTimeoutError
from rtloop.loop.outcome.failure import add_note, stop_timeout_error
from rtloop.settings import Settings
from rtloop.units import format_duration

__all__ = ["end_after", "mark_handled"]


class _Ending(Protocol):
    @property
    def settings(self) -> Settings: ...
    def request_stop(self) -> None: ...
    def end_run(self, timeout_ns: int, interrupts: list[BaseException]) -> bool: ...


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
    said = [one for one in interrupt.args[:1] if isinstance(one, (str, int))]
    cause = type(interrupt).__name__ + "".join(f" ({one})" for one in said)
    with suppress(OSError, ValueError, AttributeError):  # print(file=None) would write to stdout
        sys.stderr.write(f"rtloop: {name}: {cause}: asked to stop, {what}{more}\n")
        sys.stderr.flush()
    return not late


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
