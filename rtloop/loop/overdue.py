"""A run that does not end although its limit has passed, because its step does not return."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Overdue"]

#: Time between two looks beyond which the process itself may have stood still.
_LONG_LOOK_NS = 200_000_000


class Overdue:
    """Judge of one run. It is overdue if it completes nothing for a time after its limit has passed.

    Time in which this process was stopped, or the machine suspended, does not count: of a long time between two looks
    only as much as the process has used of its CPUs, which a step that hangs in a busy loop does all the time.

    Parameters
    ----------
    read_progress : callable
        Returns what changes with each cycle; None before the limit has passed, and after the last cycle.
    limit_ns : int
        Time after which the run is overdue.
    """

    def __init__(self, read_progress: Callable[[], object], limit_ns: int) -> None:
        self._read_progress, self.limit_ns = read_progress, limit_ns
        self._progress: object = None
        self._waited_ns = 0
        self._now_ns, self._used_ns = time.monotonic_ns(), time.process_time_ns()

    def look(self) -> bool:
        """Return True if the run is overdue. Call it every 100 ms or so."""
        now, used = time.monotonic_ns(), time.process_time_ns()
        passed = min(now - self._now_ns, max(_LONG_LOOK_NS, used - self._used_ns))
        self._now_ns, self._used_ns = now, used
        progress = self._read_progress()
        if progress is None or progress != self._progress:
            self._progress, self._waited_ns = progress, 0
        else:
            self._waited_ns += passed
        return self.is_over

    @property
    def is_over(self) -> bool:
        """True if the last look found the run overdue."""
        return self._progress is not None and self._waited_ns >= self.limit_ns
