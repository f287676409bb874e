"""SampleStream: the samples of a running loop, also across swaps of its step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rtloop.errors import AttachError, StateError
from rtloop.live.connect import Connection, connect

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SampleStream"]


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
        records = self._reader.read()
        if swaps == self._swaps:
            return records
        try:
            loop = connect(self.loop.name, self.loop.pid)
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
        self._lost += self._reader.lost
        self.loop, self._swaps, self._reader = loop, loop.telemetry.swaps[0], reader
        return np.concatenate((records, reader.read()))

    def close(self) -> None:
        """Close the connection, unless it is the first."""
        if self.loop is not self._first:
            self.loop.close()
