"""History: the last samples of a loop, and their minimum and maximum over buckets for drawing."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rtloop.tools.scope.samples.channels import Channel

__all__ = ["BLOCK", "History", "Line"]

#: Samples whose minimum and maximum are computed once and kept.
BLOCK = 64
#: Memory of one history, bytes, which bounds its capacity. Twice that is reserved, and touched as it fills.
_MOST_BYTES = 128 << 20
#: Width of a bucket above which NumPy's own reduction is faster.
_WIDE = 48


class Line:
    """Decimated values of several channels over the same buckets.

    Attributes
    ----------
    times : numpy.ndarray
        Time of each point, s.
    values : list of numpy.ndarray
        Values of each channel: the samples themselves if they fit, otherwise the minimum and the maximum of each
        bucket, in the order in which they came if the signal rises or falls steadily.
    samples : int
        Number of samples in a bucket; 1 if nothing was decimated.
    """

    def __init__(self, times: NDArray[np.float64], values: list[NDArray[np.float64]], samples: int) -> None:
        self.times, self.values, self.samples = times, values, samples


class History:
    """The last samples of one source. Samples are numbered from 0, and keep their number.

    Parameters
    ----------
    dtype : numpy.dtype
        Type of a record, with the field ``release``, ns.
    channels : sequence of Channel
        Numbers that can be drawn.
    capacity : int
        Number of samples to keep at least. Fewer are kept if they would take more than 128 MiB.
    origin : int
        Time 0 on the clock of the releases, ns.
    """

    def __init__(self, dtype: np.dtype[Any], channels: Sequence[Channel], capacity: int, origin: int = 0) -> None:
        self.dtype = dtype
        self.channels = {one.name: one for one in channels}
        self.origin = origin
        most = max(_MOST_BYTES // dtype.itemsize, 4 * BLOCK)
        self.capacity = -(-max(1, min(capacity, most)) // BLOCK) * BLOCK
        self._room = 2 * self.capacity + BLOCK
        self._records = np.empty(self._room, dtype)
        self._first = 0  # number of the sample at the beginning of _records; a multiple of BLOCK
        self.count = 0
        # By channel: minimum and maximum of each whole block, and the number of blocks that are done.
        self._blocks: dict[str, tuple[NDArray[np.float64], NDArray[np.float64], int]] = {}

    @property
    def first(self) -> int:
        """Number of the oldest sample that is kept."""
        return self._first

    @property
    def last_release(self) -> int:
        """Release of the newest sample, ns."""
        return int(self._records["release"][self.count - 1 - self._first])

    @property
    def last_cycle(self) -> int:
        """Cycle of the newest sample; -1 if there is none."""
        return int(self._records["cycle"][self.count - 1 - self._first]) if self.count > self._first else -1

    def append(self, records: NDArray[Any]) -> None:
        """Add samples; the oldest ones make room."""
        for begin in range(0, len(records), self.capacity):
            self._append(records[begin : begin + self.capacity])

    def _append(self, records: NDArray[Any]) -> None:
        used = self.count - self._first
        if used + len(records) > self._room:
            drop = -(-(used + len(records) - self.capacity) // BLOCK) * BLOCK
            drop = min(drop, used // BLOCK * BLOCK)
            self._records[: used - drop] = self._records[drop:used].copy()
            self._first += drop
            used -= drop
            for name, (low, high, done) in self._blocks.items():
                gone = drop // BLOCK
                kept = max(0, done - gone)
                low[:kept], high[:kept] = low[gone:done].copy(), high[gone:done].copy()
                self._blocks[name] = low, high, kept
        self._records[used : used + len(records)] = records
        self.count += len(records)

    def forget(self) -> None:
        """Drop all samples, because the next one has an earlier time. It gets a number beyond theirs."""
        self.count = self._first = -(-self.count // BLOCK) * BLOCK
        self._blocks.clear()

    def records(self, begin: int, end: int) -> NDArray[Any]:
        """Return the samples with these numbers, as far as they are kept; valid until the next `append`."""
        begin = max(begin, self._first)
        return self._records[begin - self._first : max(begin, min(end, self.count)) - self._first]

    def copy(self, begin: int = 0, end: int | None = None) -> History:
        """Return a history of its own, of these samples, which no longer changes."""
        found = self.records(begin, self.count if end is None else end)
        made = History(self.dtype, tuple(self.channels.values()), max(1, len(found)), self.origin)
        made.append(found)
        return made

    def values(self, name: str, begin: int, end: int) -> NDArray[np.float64]:
        """Return a channel's values of the samples with these numbers."""
        return self.channels[name].values(self.records(begin, end))

    def time(self, number: int) -> float:
        """Return the time of a sample, s."""
        return float(self._records["release"][number - self._first] - self.origin) / 1e9

    def find(self, seconds: float) -> int:
        """Return the number of the first sample that is not before a time."""
        release = self._records["release"][: self.count - self._first]
        wanted = self.origin + round(max(-9e9, min(9e9, seconds)) * 1e9)
        return self._first + int(np.searchsorted(release, wanted, "left"))

    def find_cycle(self, cycle: int) -> int | None:
        """Return the number of the first sample from a cycle on, None if it is not kept."""
        cycles = self._records["cycle"][: self.count - self._first]
        found = bisect_left(cycles, cycle)  # a search by NumPy would copy them
        return self._first + found if found < len(cycles) and (found or cycles[0] == cycle) else None

    def nearest(self, seconds: float, steps: int = 0) -> int | None:
        """Return the number of the sample nearest to a time, or of one some samples after it; None if there is none."""
        if self.count == self._first:
            return None
        after = min(self.find(seconds), self.count - 1)
        before = max(after - 1, self._first)
        found = before if abs(self.time(before) - seconds) < abs(self.time(after) - seconds) else after
        return min(max(found + steps, self._first), self.count - 1)

    def line(self, names: Sequence[str], begin: int, end: int, columns: int) -> Line:
        """Return what has to be drawn of some channels.

        The buckets begin at multiples of their size, so that a spike stays in its bucket while the picture moves.

        Parameters
        ----------
        names : sequence of str
            Channels.
        begin, end : int
            Numbers of the first sample, and of the one after the last.
        columns : int
            Greatest number of buckets, about.
        """
        begin, end = max(begin, self._first), min(end, self.count)
        size = 1
        while (end - begin) > 2 * columns and size * columns < end - begin:
            size *= 2
        if size == 1:
            records = self.records(begin, end)
            times = (records["release"] - self.origin) / 1e9
            return Line(times, [self.channels[name].values(records) for name in names], 1)
        starts = np.arange(begin // size * size, end, size)
        starts[0] = max(starts[0], self._first)
        ends = np.minimum(starts - starts % size + size, self.count)
        release = self._records["release"]
        times = np.empty(2 * len(starts))
        times[0::2] = release[starts - self._first] - self.origin
        times[1::2] = release[(starts + ends) // 2 - self._first] - self.origin
        return Line(times / 1e9, [self._envelope(name, starts, ends, size) for name in names], size)

    def _envelope(self, name: str, starts: NDArray[Any], ends: NDArray[Any], size: int) -> NDArray[np.float64]:
        begin, end = int(starts[0]), int(ends[-1])
        if size >= BLOCK:
            first = begin // BLOCK
            low, high = self._extremes(name, first, -(-end // BLOCK))
            lead, width = first % (size // BLOCK), size // BLOCK
        else:
            low = high = self.values(name, begin, end)
            lead, width = begin % size, size
        lows, highs = _reduce(np.fmin, low, lead, width), _reduce(np.fmax, high, lead, width)
        values = self.channels[name].values
        opening = values(self._records[starts - self._first])
        closing = values(self._records[ends - 1 - self._first])
        falls = closing < opening
        found = np.empty(2 * len(starts))
        found[0::2] = np.where(falls, highs, lows)
        found[1::2] = np.where(falls, lows, highs)
        return found

    def _extremes(self, name: str, first: int, end: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return minimum and maximum of blocks, the last of which may not be whole."""
        whole = (self.count - self._first) // BLOCK
        if name not in self._blocks:
            empty = np.empty(self._room // BLOCK + 1)
            self._blocks[name] = empty, empty.copy(), 0
        low, high, done = self._blocks[name]
        if whole > done:
            begin = self._first + done * BLOCK
            parts = self.values(name, begin, self._first + whole * BLOCK).reshape(-1, BLOCK)
            low[done:whole], high[done:whole] = np.fmin.reduce(parts, axis=1), np.fmax.reduce(parts, axis=1)
            self._blocks[name] = low, high, whole
        offset = self._first // BLOCK
        if end - offset > whole:
            rest = self.values(name, self._first + whole * BLOCK, self.count)
            low[whole], high[whole] = np.fmin.reduce(rest), np.fmax.reduce(rest)
        return low[first - offset : end - offset], high[first - offset : end - offset]


def _reduce(function: np.ufunc, values: NDArray[np.float64], lead: int, width: int) -> NDArray[np.float64]:
    """Return fmin or fmax of each bucket of this width, of which the first one lacks its first `lead` values.

    fmin and fmax ignore NaN. A NaN therefore hides neither a spike nor the rest of its bucket, and NaN fills what is
    missing.
    """
    count = -(-(lead + len(values)) // width)
    padded = np.full(count * width, np.nan)
    padded[lead : lead + len(values)] = values
    table = padded.reshape(count, width)
    if width > _WIDE:
        reduced: NDArray[np.float64] = function.reduce(table, axis=1)
        return reduced
    found = table[:, 0].copy()
    for column in range(1, width):  # a reduction over few values takes longer than a few over all buckets
        function(found, table[:, column], out=found)
    return found
