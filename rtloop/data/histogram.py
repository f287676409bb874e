"""Histograms of durations as a loop records them: logarithmic bins, better than 1 % resolution."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Histogram"]

# The layout of include/rtloop/histogram.h.
_SUB_BITS = 7
_MAX_BITS = 40
_BINS = ((_MAX_BITS - _SUB_BITS + 1) << _SUB_BITS) + 1
_OVERFLOW = _BINS - 1


def _lower_edges() -> NDArray[np.int64]:
    bins = np.arange(_BINS, dtype=np.int64)
    octave = np.maximum((bins >> _SUB_BITS) - 1, 0)
    edges: NDArray[np.int64] = (bins - (octave << _SUB_BITS)) << octave
    return edges


_LOWER = _lower_edges()
_EDGES = np.append(_LOWER.astype(np.float64), np.inf)
# The largest integer that a bin holds; the overflow bin has none of its own.
_UPPER = np.append(_LOWER[1:] - 1, np.iinfo(np.int64).max)
_LOWER.flags.writeable = _EDGES.flags.writeable = _UPPER.flags.writeable = False


class Histogram:
    """An immutable histogram of durations in nanoseconds.

    Values below 256 ns have a bin each; from there on, every power of two is divided into 128 bins, so that a bin is
    never wider than 0.8 % of its lower edge. Values of 2^40 ns (18 minutes) and more are in the last bin; negative
    ones, which a loop paced by other hardware may have as latency, are in bin 0. `min`, `max` and `mean` are exact.

    Parameters
    ----------
    counts : array of uint64, shape (4353,)
        How many values each bin holds.
    total : int
        Sum of all values, ns.
    minimum, maximum : int
        The smallest and the largest value, ns.
    """

    __slots__ = ("_counts", "_max", "_min", "_total")

    def __init__(self, counts: ArrayLike, *, total: int, minimum: int, maximum: int) -> None:
        array = np.array(counts, dtype=np.uint64)
        if array.shape != (_BINS,):
            raise ValueError(f"counts has shape {array.shape}; a histogram has {_BINS} bins")
        array.flags.writeable = False
        self._counts: NDArray[np.uint64] = array
        self._total, self._min, self._max = int(total), int(minimum), int(maximum)

    @classmethod
    def empty(cls) -> Histogram:
        """Return a histogram without values."""
        return cls(np.zeros(_BINS, np.uint64), total=0, minimum=0, maximum=0)

    @classmethod
    def from_values(cls, values: Iterable[int] | NDArray[np.int64]) -> Histogram:
        """Make the histogram of some durations.

        Parameters
        ----------
        values : array-like of int
            Nanoseconds.
        """
        array = np.asarray(values if isinstance(values, np.ndarray) else list(values), dtype=np.int64)
        if array.size == 0:
            return cls.empty()
        bins = np.searchsorted(_LOWER, array, side="right") - 1
        counts = np.bincount(np.clip(bins, 0, _OVERFLOW), minlength=_BINS)
        return cls(counts, total=int(array.sum()), minimum=int(array.min()), maximum=int(array.max()))

    @property
    def count(self) -> int:
        """How many values there are."""
        return int(self._counts.sum())

    @property
    def min(self) -> int:
        """The smallest value, ns, exact; 0 where there is none."""
        return self._min

    @property
    def max(self) -> int:
        """The largest value, ns, exact; 0 where there is none."""
        return self._max

    @property
    def mean(self) -> float:
        """The mean, ns, exact; nan where there are no values."""
        count = self.count
        return self._total / count if count else float("nan")

    @property
    def std(self) -> float:
        """The standard deviation, ns, from the middles of the bins; nan where there are no values."""
        used = np.flatnonzero(self._counts)
        if used.size == 0:
            return float("nan")
        middles = self._middles(used)
        weights = self._counts[used].astype(np.float64)
        return float(np.sqrt(np.average((middles - np.average(middles, weights=weights)) ** 2, weights=weights)))

    def _middles(self, bins: NDArray[Any]) -> NDArray[np.float64]:
        low = np.maximum(_LOWER[bins], self._min).astype(np.float64)
        high = np.minimum(_UPPER[bins], self._max).astype(np.float64)
        middles: NDArray[np.float64] = (low + np.maximum(low, high)) / 2
        return middles

    @overload
    def percentile(self, q: float) -> float: ...
    @overload
    def percentile(self, q: Iterable[float]) -> NDArray[np.float64]: ...
    def percentile(self, q: Any) -> Any:
        """Return the value that `q` per cent of all values do not exceed.

        The upper edge of the bin in which the value of that rank lies, but never more than `max`: it does not
        understate, and overstates by less than 0.8 %. The 0th percentile is `min`, the 100th is `max`, both exact.

        Parameters
        ----------
        q : float or array-like of float
            Per cent, 0 to 100.

        Returns
        -------
        float or array of float
            ns; nan where there are no values.

        Raises
        ------
        ValueError
            Where `q` is not within 0 to 100.
        """
        wanted = np.asarray(q, dtype=np.float64)
        if not np.all((wanted >= 0) & (wanted <= 100)):
            raise ValueError(f"q={q!r} must be within 0 to 100")
        cumulated = np.cumsum(self._counts)
        count = int(cumulated[-1])
        if count == 0:
            values = np.full(wanted.shape, np.nan)
        else:
            # Rounded down first, so that the floating point of 99.9 % of 1000 is rank 999.
            rank = np.maximum(np.ceil(np.round(wanted / 100 * count, 6)), 1).astype(np.uint64)
            bins = np.searchsorted(cumulated, rank, side="left")
            values = np.clip(_UPPER[bins], self._min, self._max).astype(np.float64)
            values = np.where(wanted == 0, float(self._min), np.where(wanted == 100, float(self._max), values))
        return float(values) if wanted.ndim == 0 else values

    @property
    def counts(self) -> NDArray[np.uint64]:
        """How many values each bin holds; read-only, shape (4353,)."""
        return self._counts

    @property
    def edges(self) -> NDArray[np.float64]:
        """The bins' edges, ns: bin i holds ``edges[i] <= value < edges[i + 1]``; read-only, shape (4354,), last inf."""
        return _EDGES

    def __add__(self, other: Histogram) -> Histogram:
        """Return the histogram of the values of both."""
        if not isinstance(other, Histogram):
            return NotImplemented
        if not self.count or not other.count:
            return self if self.count else other
        return Histogram(
            self._counts + other._counts,
            total=self._total + other._total,
            minimum=min(self._min, other._min),
            maximum=max(self._max, other._max),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that JSON can hold: the exact figures, and the bins that are not empty."""
        used = np.flatnonzero(self._counts)
        return {
            "count": self.count,
            "min_ns": self._min,
            "max_ns": self._max,
            "total_ns": self._total,
            "bins": used.tolist(),
            "counts": self._counts[used].tolist(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Histogram:
        """Return what :meth:`to_dict` was made of."""
        counts = np.zeros(_BINS, np.uint64)
        counts[np.asarray(values["bins"], dtype=np.intp)] = np.asarray(values["counts"], dtype=np.uint64)
        return cls(counts, total=values["total_ns"], minimum=values["min_ns"], maximum=values["max_ns"])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        same = (self._total, self._min, self._max) == (other._total, other._min, other._max)
        return same and bool(np.array_equal(self._counts, other._counts))

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return Histogram.from_dict, (self.to_dict(),)

    def __repr__(self) -> str:
        if not self.count:
            return "Histogram(empty)"
        p50, p99 = self.percentile(50), self.percentile(99)
        return f"Histogram(count={self.count}, min={self.min}, p50={p50:.0f}, p99={p99:.0f}, max={self.max} ns)"
