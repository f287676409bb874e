"""Garbage collection in the slack of a loop: after a step, if there is enough time until the next release."""

from __future__ import annotations

import gc
import time

from rtloop.system.grant import Grant

__all__ = ["SlackCollector"]

#: Young collections before one of the middle generation, and before a full one.
_MIDDLE, _FULL = 10, 100
#: A collection may take this multiple of the longest one of its generation so far.
_MARGIN = 2


class SlackCollector:
    """Garbage collector of a process that runs only one loop.

    Objects that exist at :meth:`freeze` are excluded, so a collection examines only those that the steps have created.
    It runs between two cycles if the time until the next release is at least twice the longest collection so far.
    Otherwise it is postponed. Each postponement lowers the estimate, so that memory cannot grow without limit.

    Real-time contract of :meth:`is_due` and :meth:`collect`: the loop's thread, with the GIL.

    Attributes
    ----------
    collections, postponed : int
        Number of collections, and of postponements to the next cycle.
    longest_ns : int
        Duration of the longest collection.
    """

    def __init__(self) -> None:
        self.collections = self.postponed = self.longest_ns = 0
        self._expected_ns = [0, 0, 0]
        self._threshold = max(1, gc.get_threshold()[0])

    def freeze(self) -> None:
        """Collect once, exclude all objects that exist now, and disable the interpreter's automatic collections."""
        gc.collect()
        gc.disable()
        gc.freeze()

    def is_due(self) -> bool:
        """Return True if enough objects were created since the last collection."""
        return gc.get_count()[0] >= self._threshold

    def collect(self, slack_ns: int) -> None:
        """Collect the oldest generation that is due, if the time until the next release is sufficient for it."""
        following = self.collections + 1
        due = 2 if following % _FULL == 0 else 1 if following % _MIDDLE == 0 else 0
        expected = self._expected_ns
        generation = next((one for one in range(due, -1, -1) if expected[one] * _MARGIN <= slack_ns), None)
        if generation is None or slack_ns <= 0:
            self.postponed += 1
            expected[0] = expected[0] * 15 // 16
            return
        if generation < due:
            expected[due] = expected[due] * 15 // 16
        begin = time.monotonic_ns()
        gc.collect(generation)
        took = time.monotonic_ns() - begin
        expected[generation] = max(took, expected[generation] * 15 // 16)
        self.longest_ns = max(self.longest_ns, took)
        self.collections += 1

    def grant(self) -> Grant:
        """Return a grant, whose detail has the figures of the collections so far."""
        text = "objects from before the start are excluded; it runs after a step if there is enough time"
        if self.collections or self.postponed:
            took = f"the longest {self.longest_ns / 1000:.0f} us"
            text += f": {self.collections} collections, {took}, {self.postponed} postponed"
        return Grant("collector", "in the slack", "in the slack", ok=True, detail=text, kind="thread")
