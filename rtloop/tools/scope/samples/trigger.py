"""Trigger: finds the edges of a signal in its samples, at full rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rtloop.errors import ConfigError
from rtloop.units import show

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["EDGES", "Trigger"]

EDGES = ("rising", "falling", "either")


class Trigger:
    """Find where a signal crosses a level, and tell when the samples around it are complete.

    It is armed once `before` samples have been seen, so that every capture has all of them. Edges in the `after`
    samples of a capture belong to that capture.

    Parameters
    ----------
    level : float
        A rising edge is a sample at or above the level after one below it; a falling edge is a sample at or below it
        after one above it.
    edge : {"rising", "falling", "either"}
        Edges to find.
    before, after : int
        Number of samples before the edge, and from the edge on.
    is_single : bool
        Stop after the first capture.

    Raises
    ------
    ConfigError
        If a value is invalid.
    """

    def __init__(self, level: float, edge: str, before: int, after: int, *, is_single: bool) -> None:
        if edge not in EDGES:
            raise ConfigError(f"edge={show(edge)} must be one of {', '.join(EDGES)}")
        if not np.isfinite(level):
            raise ConfigError(f"level={show(level)} must be a finite number")
        if before < 0 or after < 1:
            raise ConfigError(f"before={before} and after={after}: at least 0 samples before the edge and 1 from it on")
        self.level, self.edge, self.before, self.after, self.is_single = level, edge, before, after, is_single
        self.found = 0
        self._seen = 0  # samples since the trigger was armed first, or since a gap
        self._number = 0  # of the next sample
        self._last = float("nan")
        self._at: int | None = None  # edge whose capture is not complete

    @property
    def state(self) -> str:
        """``"filling"`` until it is armed, ``"armed"``, ``"triggered"`` until a capture is complete, or ``"done"``."""
        if self.is_single and self.found:
            return "done"
        if self._at is not None:
            return "triggered"
        return "armed" if self._seen >= self.before else "filling"

    def restart(self, number: int) -> None:
        """Begin anew: the next sample has this number, and does not follow the last one."""
        self._number, self._seen, self._last, self._at = number, 0, float("nan"), None

    def take(self, values: NDArray[np.float64]) -> list[int]:
        """Take the next samples, and return the numbers of the edges whose captures are complete with them."""
        complete: list[int] = []
        if not len(values):
            return complete
        begin, self._number = self._number, self._number + len(values)
        armed_from = begin - self._seen + self.before
        self._seen += len(values)
        edges = begin + self._edges(values)
        self._last = float(values[-1])
        place = 0
        while self.state != "done":
            if self._at is None:
                place += int(np.searchsorted(edges[place:], armed_from))
                if place == len(edges):
                    break
                self._at = int(edges[place])
            if self._at + self.after > self._number:
                break
            complete.append(self._at)
            self.found += 1
            armed_from, self._at = self._at + self.after, None
        return complete

    def _edges(self, values: NDArray[np.float64]) -> NDArray[np.intp]:
        before = np.concatenate(([self._last], values[:-1]))
        with np.errstate(invalid="ignore"):  # a comparison with NaN is false, so NaN is not an edge
            rises = (before < self.level) & (values >= self.level)
            falls = (before > self.level) & (values <= self.level)
        wanted = {"rising": rises, "falling": falls, "either": rises | falls}[self.edge]
        return np.flatnonzero(wanted)
