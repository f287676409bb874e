"""SampleStream: the samples of a running loop, also across swaps of its step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rtloop.errors import AttachError, StateError
from rtloop.live.connect import Connection, connect

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rtloop.live.signals import SignalReader

__all__ = ["SampleStream", "read_new"]


def read_new(reader: SignalReader, cycle: int) -> tuple[NDArray[Any], int]:
    """Return the samples of the present step from a cycle on, and how many of the reader's lost ones are older.

    The block of a step that comes back, after a trial or because it is swapped in again, still has its former samples.
    """
    records = reader.read()
    cycles = records["cycle"].astype(np.int64)
    older = np.flatnonzero((cycles < cycle) | (np.diff(cycles, append=np.iinfo(np.int64).max) <= 0))
    return (records[older[-1] + 1 :], reader.lost) if len(older) else (records, 0)


class SampleStream:
    """Read the samples of a loop from now on. A step that replaces another has to have the same signals.

    Parameters
    ----------
    loop : Connection
        The loop. It stays open; a later connection is closed with this object.

    Attributes
    ----------
    loop : Connection
        The loop with its present step.
    end_reason : str
        Reason for which there are no more samples, or an empty string.
    """

    def __init__(self, loop: Connection) -> None:
        self.loop, self._first = loop, loop
        self.end_reason = ""
        self._swaps = loop.telemetry.swaps[0]
        self._reader = loop.signals.reader()
        self._lost = 0
        self._next = 0  # cycle after the last sample

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a sample."""
        return self._reader.dtype

    @property
    def lost(self) -> int:
        """Number of samples that were overwritten before they were read."""
        return self._lost + self._reader.lost

    def read(self) -> NDArray[Any]:
        """Return the samples since the last read."""
        swaps, cycle = self.loop.telemetry.swaps
        records = self._note(self._reader.read())
        if swaps == self._swaps:
            return records
        try:
            loop = connect(self.loop.label, self.loop.pid)
        except AttachError:  # it has ended meanwhile
            return records
        try:
            reader = loop.signals.reader("begin")
            if reader.dtype != self.dtype:
                raise StateError("the step has other signals")
        except StateError as error:
            loop.close()
            self.end_reason = f"after the swap at cycle {cycle:,} {error}"
            return records
        self.close()
        new, older = read_new(reader, max(cycle, self._next))
        self._lost += self._reader.lost - older
        self.loop, self._swaps, self._reader = loop, swaps, reader
        return np.concatenate((records, self._note(new)))

    def _note(self, records: NDArray[Any]) -> NDArray[Any]:
        if len(records):
            self._next = int(records["cycle"][-1]) + 1
        return records

    def close(self) -> None:
        """Close the connection, unless it is the first."""
        if self.loop is not self._first:
            self.loop.close()
