"""Records of a running loop, kept from one snapshot to the next, so that a snapshot copies only the new ones."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEAST", "Copy", "RecordLog"]

#: Fewer records than this are copied anew for each snapshot, which takes less than a millisecond.
LEAST = 1 << 17

#: Copies the records before a number, as many as fit, to the beginning of an array; returns how many of the newest it
#: has copied.
Copy = Callable[[NDArray[Any], int], int]


class _Kept(NamedTuple):
    """An array of records that is only appended to; `filled` of them are there, numbered from `begin` on."""

    array: NDArray[Any]
    begin: int
    filled: int

    @property
    def end(self) -> int:
        """Number of the first record that is not there."""
        return self.begin + self.filled

    def holds(self, first: int, last: int) -> bool:
        """Return whether it can go on with records from `first` to before `last`: without a gap, and with the room."""
        return self.begin <= first <= self.end and last - self.begin <= len(self.array)

    def part(self, first: int, last: int) -> NDArray[Any]:
        """Return the records from `first` to before `last` without a copy. The array cannot be made writable."""
        size = self.array.itemsize
        memory = self.array.view(np.uint8).data.toreadonly()
        part = memory[(first - self.begin) * size : (last - self.begin) * size]
        return np.frombuffer(part, self.array.dtype)


class RecordLog:
    """Records that a reader has copied before. Snapshots are read-only parts of one array, which is only appended to.

    The first snapshot is a copy of its own. From the second on, the array has room for half as many records again; when
    it is full, another takes its place, and it is freed with the last snapshot that shows a part of it.

    Parameters
    ----------
    dtype : numpy.dtype
        Type of a record.
    least : int
        Fewer records than this are a copy of their own.
    """

    def __init__(self, dtype: np.dtype[Any], least: int = LEAST) -> None:
        self._lock, self._least = threading.Lock(), least
        self._kept = _Kept(np.empty(0, dtype), 0, 0)

    def read(self, copy: Copy, last: int, count: int) -> NDArray[Any]:
        """Return the `count` records before record number `last`, fewer if the loop has overwritten the oldest.

        Parameters
        ----------
        copy : callable
            Copies records of the loop, see `Copy`.
        last, count : int
            The end of the part, and its length.
        """
        # The lock may be held by another thread, or by the code that a signal handler has interrupted.
        if count < self._least or not self._lock.acquire(blocking=False):
            array = np.empty(count, self._kept.array.dtype)
            copied = copy(array, last)
            return array if copied == count else array[:copied].copy()
        try:
            return self._read(copy, last, count)
        finally:
            self._lock.release()

    def _read(self, copy: Copy, last: int, count: int) -> NDArray[Any]:
        kept, first = self._kept, last - count
        new = last - kept.end
        if kept.holds(first, last) and (new <= 0 or copy(kept.array[kept.filled : kept.filled + new], last) == new):
            if new > 0:  # one assignment, because an exception of a signal handler can come between two
                self._kept = kept = kept._replace(filled=kept.filled + new)
        else:
            room = count + count // 2 if len(kept.array) else count
            array = np.empty(room, kept.array.dtype)
            filled = copy(array[:count], last)
            self._kept = kept = _Kept(array, last - filled, filled)
        return kept.part(max(first, kept.begin), last)
