"""Times in which threads moved pages, from the events of a trace: compaction, and other migration of pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rtloop.culprit.trace_text import LOST

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rtloop.culprit.trace_text import Event

__all__ = ["EVENTS", "PageMoves"]

_BEGINS = {"mm_compaction_begin": "compaction", "mm_migrate_pages_start": "page migration"}
_ENDS = {"mm_compaction_end": "compaction", "mm_migrate_pages": "page migration"}
#: Events of the kernel from which the times are known.
EVENTS = ("compaction/mm_compaction_begin", "compaction/mm_compaction_end", "migrate/mm_migrate_pages_start",
          "migrate/mm_migrate_pages")  # fmt: skip
#: Most finished moves of a thread that are remembered: a compaction consists of many.
_MOST = 10_000
#: Most threads that are remembered, the newest.
_MOST_MOVERS = 1000


class _Move(NamedTuple):
    """Time in which a thread moved pages, and the reason."""

    begin: int
    end: int
    reason: str


class _Mover:
    """A thread that moves pages: its finished moves, in order, and those that it is in, the outermost first."""

    def __init__(self, comm: str) -> None:
        self.comm = comm
        self.done: list[_Move] = []
        self.open: list[tuple[int, str]] = []


class PageMoves:
    """Times in which threads moved pages.

    One move may last for seconds, far longer than the delay that it causes.
    """

    def __init__(self) -> None:
        self._movers: dict[int, _Mover] = {}
        self._known_since = 0

    def add(self, events: Iterable[Event]) -> None:
        """Add events of all CPUs, in their order, after those that were added before."""
        for event in events:
            if event.name in _BEGINS:
                self._mover(event).open.append((event.t, _BEGINS[event.name]))
            elif event.name in _ENDS:
                self._end(event)
            elif event.name == LOST:  # which may have been ends
                self._known_since = event.t
                for mover in self._movers.values():
                    mover.open.clear()

    def _mover(self, event: Event) -> _Mover:
        mover = self._movers.get(event.pid)
        if mover is None:
            while len(self._movers) >= _MOST_MOVERS:
                del self._movers[next(iter(self._movers))]
            mover = self._movers[event.pid] = _Mover(event.comm)
        return mover

    def _end(self, event: Event) -> None:
        mover = self._mover(event)
        if mover.open:
            begin, reason = mover.open.pop()
        elif not mover.done or mover.done[-1].end < self._known_since:  # it began before the trace, or was lost
            begin, reason = self._known_since, _ENDS[event.name]
        else:
            return
        if not mover.open:
            mover.done.append(_Move(begin, event.t, reason))
            del mover.done[:-_MOST]

    def at(self, pid: int, t: int) -> tuple[str, str] | None:
        """Return the reason for which a thread moved pages at a time, and the thread's name; None if it did not."""
        mover = self._movers.get(pid)
        if mover is None:
            return None
        if mover.open and mover.open[0][0] <= t:
            return mover.open[0][1], mover.comm
        for move in reversed(mover.done):
            if move.end < t:
                break
            if move.begin <= t:
                return move.reason, mover.comm
        return None
