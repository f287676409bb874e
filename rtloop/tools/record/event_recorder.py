"""EventRecorder: keeps the last samples in memory, and hands over those around each event."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from rtloop.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rtloop.tools.record.expression import Expression

__all__ = ["EventRecorder"]

#: Bytes of samples in memory.
_MOST_BYTES = 1 << 30


class EventRecorder:
    """Cut the samples around each event out of the stream of a loop's samples.

    An event is a sample for which the condition holds, and did not hold for the one before. One that comes before the
    samples of the last event are complete belongs to that event.

    Parameters
    ----------
    condition : Expression
        The condition.
    before, after : int
        Times around the event, ns of the releases.
    write : callable
        Takes the samples of an event, and the release of the one at which the condition became true.
    was_true : bool
        True if the condition held before the first sample, or if that is unknown; it has then not just become true.
    """

    def __init__(
        self,
        condition: Expression,
        before: int,
        after: int,
        write: Callable[[NDArray[Any], int], None],
        was_true: bool = True,
    ) -> None:
        self._condition = condition
        self._before, self._after = before, after
        self._write = write
        self._kept: deque[NDArray[Any]] = deque()
        self._bytes = 0
        self.was_true = was_true
        self._at: int | None = None  # release of the event that is under way
        self._last: int | None = None  # release of the newest sample

    def remember(self, records: NDArray[Any], columns: Mapping[str, NDArray[Any]]) -> None:
        """Take samples from before the recording, of which no event is made, and the columns of the last one.

        The first event may need them, and a condition that holds for the last one has not just become true.
        """
        if len(records):
            self.was_true = bool(self._condition.test(records[-1:], columns)[-1])
            self._keep(records)

    def take(self, records: NDArray[Any], columns: Mapping[str, NDArray[Any]] = MappingProxyType({})) -> None:
        """Take the next samples, and the columns of events that the condition may name."""
        if not len(records):
            return
        # A run that begins anew has a later release on the same clock, or an earlier one after the clock was set.
        holds = self._condition.test(records, columns)
        became = holds & ~np.concatenate(([self.was_true], holds[:-1]))
        self.was_true = bool(holds[-1])
        begin = 0
        for index in np.flatnonzero(became).tolist():
            if self._at is None:
                self._keep(records[begin:index])
                begin = index
                self._at = int(records["release"][index])
            else:
                begin = self._end_before(records, begin, index)
                if self._at is None:
                    self._keep(records[begin:index])
                    begin = index
                    self._at = int(records["release"][index])
        if self._at is not None:
            begin = self._end_before(records, begin, len(records))
        self._keep(records[begin:])

    def _end_before(self, records: NDArray[Any], begin: int, end: int) -> int:
        """Complete the event if its last sample is among these. Returns the index of the first one after it."""
        late = records["release"][begin:end] > self._limit
        if not late.any():
            return begin
        stop = begin + int(np.argmax(late))
        self._keep(records[begin:stop])
        self.finish()
        return stop

    @property
    def _limit(self) -> int:
        return (self._at or 0) + self._after

    def finish(self) -> None:
        """Hand over the event that is under way, if there is one."""
        at, self._at = self._at, None
        if at is not None:
            kept = np.concatenate(list(self._kept))
            release = kept["release"]
            self._write(kept[(release >= at - self._before) & (release <= at + self._after)], at)

    def _keep(self, records: NDArray[Any]) -> None:
        """Keep samples, and forget those that no event needs any more."""
        if not len(records):
            return
        self._kept.append(records.copy())
        self._bytes += records.nbytes
        oldest = (int(records["release"][-1]) if self._at is None else self._at) - self._before
        while len(self._kept) > 1 and int(self._kept[0]["release"][-1]) < oldest:
            self._bytes -= self._kept.popleft().nbytes
        if self._bytes > _MOST_BYTES:
            raise ConfigError(
                f"the samples around an event are more than {_MOST_BYTES >> 30} GiB: choose shorter times, or "
                "sample less often (signals_every=)"
            )
