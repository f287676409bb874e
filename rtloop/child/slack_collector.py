"""Collector of garbage that runs in the slack of a loop: after a step, if there is time until the next release."""

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
    """Collector of garbage of a process whose only purpose is one loop.

    Objects that exist at :meth:`freeze` are never looked at again, so a collection is about those that the steps have
    made. It runs between two cycles if the time until the next release is twice that of the longest collection so far.
    Otherwise it is postponed. The estimate shrinks with each postponement, so that memory cannot grow for ever.

    Real-time contract of :meth:`is_due` and :meth:`collect`: the loop's thread, with the GIL.

    Attributes
    ----------
    collections, postponed : int
        Number of collections that were made, and of those that were put off to the next cycle.
    longest_ns : int
        Time of the longest one.
    """

    def __init__(self) -> None:
        self.collections = self.postponed = self.longest_ns = 0
        self._expected_ns = [0, 0, 0]
        self._threshold = max(1, gc.get_threshold()[0])

    def freeze(self) -> None:
        """Collect once, leave out everything that exists now, and switch the collections of the interpreter off."""
        gc.collect()
        gc.disable()
        gc.freeze()

    def is_due(self) -> bool:
        """Return True if enough objects have been made since the last collection."""
        return gc.get_count()[0] >= self._threshold

    def collect(self, slack_ns: int) -> None:
        """Collect if the time until the next release is sufficient: the oldest generation that is due and fits."""
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
        """Return a grant, whose detail has what became of the collections so far."""
        text = "objects from before the start are left out; it runs after a step if the time suffices"
        if self.collections or self.postponed:
            took = f"the longest {self.longest_ns / 1000:.0f} us"
            text += f": {self.collections} collections, {took}, {self.postponed} postponed"
        return Grant("collector", "in the slack", "in the slack", ok=True, detail=text, kind="thread")
