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
#: Most threads that are remembered: those that moved pages last.
_MOST_MOVERS = 1000


class _Move(NamedTuple):
    """Time in which a thread moved pages, the reason, and the thread's name at the start."""

    begin: int
    end: int
    reason: str
    comm: str


class _Mover:
    """A thread that moves pages: its finished moves, in order, and those that it is in, the outermost first."""

    def __init__(self) -> None:
        self.done: list[_Move] = []
        self.open: list[_Move] = []


class PageMoves:
    """Times in which threads moved pages.

    One move may last for seconds, far longer than the delay that it causes.

    Parameters
    ----------
    missing : iterable of str
        Those of `EVENTS` that this kernel lacks. Moves of which it does not trace both the start and the end are not
        known: Linux 5.10 has no event at the start of a page migration.
    """

    def __init__(self, missing: Iterable[str] = ()) -> None:
        self._movers: dict[int, _Mover] = {}
        self._known_since = 0
        names = {event.partition("/")[2] for event in missing}
        self._unknown = {kind for name, kind in (_BEGINS | _ENDS).items() if name in names}

    def add(self, events: Iterable[Event]) -> None:
        """Add events of all CPUs, in their order, after those that were added before."""
        for event in events:
            if event.name == LOST:  # which may have been ends
                self._known_since = event.t
                for mover in self._movers.values():
                    mover.open.clear()
            elif (kind := _BEGINS.get(event.name)) and kind not in self._unknown:
                self._mover(event).open.append(_Move(event.t, event.t, kind, event.comm))
            elif (kind := _ENDS.get(event.name)) and kind not in self._unknown:
                self._end(event, kind)

    def _mover(self, event: Event) -> _Mover:
        mover = self._movers.pop(event.pid, None)
        if mover is None:
            mover = _Mover()
            while len(self._movers) >= _MOST_MOVERS:
                self._forget_one(event.t)
        self._movers[event.pid] = mover  # the newest
        return mover

    def _forget_one(self, now: int) -> None:
        closed = next((pid for pid, mover in self._movers.items() if not mover.open), None)
        if closed is None:  # the end of a move that is forgotten would be taken for one that began before the trace
            self._known_since = now
        del self._movers[next(iter(self._movers)) if closed is None else closed]

    def _end(self, event: Event, kind: str) -> None:
        mover = self._mover(event)
        if any(move.reason == kind for move in mover.open):
            while (move := mover.open.pop()).reason != kind:
                pass
        elif not mover.open and (not mover.done or mover.done[-1].end < self._known_since):
            move = _Move(self._known_since, event.t, kind, event.comm)  # it began before the trace, or was lost
        else:
            return
        if not mover.open:
            mover.done.append(move._replace(end=event.t))
            del mover.done[:-_MOST]

    def at(self, pid: int, t: int) -> tuple[str, str] | None:
        """Return the reason for which a thread moved pages at a time, and the thread's name; None if it did not."""
        mover = self._movers.get(pid)
        if mover is None:
            return None
        if mover.open and mover.open[0].begin <= t:
            return mover.open[0].reason, mover.open[0].comm
        for move in reversed(mover.done):
            if move.end < t:
                break
            if move.begin <= t:
                return move.reason, move.comm
        return None
