"""Histograms of durations: logarithmic bins of better than 1 % resolution, as a loop records them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, overload

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Histogram"]

# Layout of include/rtloop/histogram.h.
_SUB_BITS = 7
_MAX_BITS = 40
_BINS = ((_MAX_BITS - _SUB_BITS + 1) << _SUB_BITS) + 1
_OVERFLOW = _BINS - 1
_SUMMARY = ("mean_ns", "std_ns", "p50_ns", "p90_ns", "p99_ns", "p99_9_ns", "p99_99_ns")


def _lower_edges() -> NDArray[np.int64]:
    bins = np.arange(_BINS, dtype=np.int64)
    octave = np.maximum((bins >> _SUB_BITS) - 1, 0)
    edges: NDArray[np.int64] = (bins - (octave << _SUB_BITS)) << octave
    return edges


_LOWER = _lower_edges()
_EDGES = np.append(_LOWER.astype(np.float64), np.inf)
# Largest integer of each bin; the overflow bin has no limit of its own.
_UPPER = np.append(_LOWER[1:] - 1, np.iinfo(np.int64).max)
_LOWER.flags.writeable = _EDGES.flags.writeable = _UPPER.flags.writeable = False


def _exact_sums(array: NDArray[np.int64], minimum: int, maximum: int) -> tuple[int, int]:
    """Return the sum and the sum of the squares, as Python's integers, which do not overflow."""
    size = max(-minimum, maximum, 1)
    room = (2**63 - 1) // size**2  # how many squares are sure to fit into 64 bits
    if room == 0:
        return sum(array.tolist()), sum(value * value for value in array.tolist())
    pieces = [array[first : first + room] for first in range(0, len(array), room)]
    return sum(int(piece.sum()) for piece in pieces), sum(int(np.dot(piece, piece)) for piece in pieces)


class Histogram:
    """An immutable histogram of durations in nanoseconds.

    Values below 256 ns have a bin each; from there on, every power of two is divided into 128 bins, so that a bin is
    never wider than 0.8 % of its lower edge. Values of 2^40 ns (18 minutes) and more are in the last bin; negative
    ones, which a loop paced by other hardware may have as latency, are in bin 0. `min`, `max`, `mean` and `std` are
    exact.

    Parameters
    ----------
    counts : array of int, shape (4353,)
        Number of values in each bin; copied, unless it is a read-only uint64 array that owns its memory.
    total : int
        Sum of all values, ns; ignored if there are none, as are the others.
    squares : int, optional
        Sum of the squares of all values, ns^2. Without it, `std` is an estimate from the bins.
    minimum, maximum : int
        The smallest and the largest value, ns.

    Raises
    ------
    ValueError
        If `counts` has another shape, is negative or is not of integers, `minimum` is above `maximum`, or `squares` is
        less than the values of that sum can have.
    """

    __slots__ = ("_count", "_counts", "_max", "_min", "_squares", "_total")

    def __init__(
        self, counts: ArrayLike, *, total: int, minimum: int, maximum: int, squares: int | None = None
    ) -> None:
        given = np.asarray(counts)
        if given.shape != (_BINS,):
            raise ValueError(f"counts has shape {given.shape}; a histogram has {_BINS} bins")
        if given.dtype.kind not in "iu" or (given.dtype.kind == "i" and given.min() < 0):
            raise ValueError("counts must be integers of at least 0")
        is_constant = given.dtype == np.uint64 and given.flags.owndata and not given.flags.writeable
        array = given if is_constant else given.astype(np.uint64)
        array.flags.writeable = False
        self._counts: NDArray[np.uint64] = array
        self._count = int(array.sum())
        if not self._count:
            total = minimum = maximum = squares = 0
        if minimum > maximum:
            raise ValueError(f"minimum={minimum} is above maximum={maximum}")
        self._total, self._min, self._max = int(total), int(minimum), int(maximum)
        self._squares = None if squares is None else int(squares)
        if self._squares is not None and self._squares * self._count < self._total**2:
            raise ValueError(f"squares={squares} is less than {self._count} values of the sum {total} can have")

    @classmethod
    def empty(cls) -> Histogram:
        """Return a histogram without values."""
        return cls(np.zeros(_BINS, np.uint64), total=0, minimum=0, maximum=0, squares=0)

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
        minimum, maximum = int(array.min()), int(array.max())
        total, squares = _exact_sums(array, minimum, maximum)
        return cls(counts, total=total, minimum=minimum, maximum=maximum, squares=squares)

    @property
    def count(self) -> int:
        """Number of values."""
        return self._count

    @property
    def min(self) -> int:
        """Smallest value, ns, exact; 0 if there are none."""
        return self._min

    @property
    def max(self) -> int:
        """Largest value, ns, exact; 0 if there are none."""
        return self._max

    @property
    def mean(self) -> float:
        """Mean, ns, exact; nan if there are no values."""
        return self._total / self._count if self._count else float("nan")

    @property
    def has_exact_std(self) -> bool:
        """True if `std` is exact. In a file saved before rtloop 0.1.0 it may be an estimate from the bins."""
        return self._squares is not None

    @property
    def std(self) -> float:
        """Standard deviation, ns, exact to rounding; nan if there are no values. See `has_exact_std`."""
        if self._squares is not None and self._count:
            # Integers of any size, whose quotient Python rounds once.
            return math.sqrt((self._squares * self._count - self._total**2) / self._count**2)
        used = np.flatnonzero(self._counts)
        if used.size == 0:
            return float("nan")
        middles = self._middles(used)
        weights = self._counts[used].astype(np.float64)
        return float(np.sqrt(np.average((middles - np.average(middles, weights=weights)) ** 2, weights=weights)))

    @property
    def min_ns(self) -> int:
        """The same as `min`, by its name in JSON."""
        return self._min

    @property
    def max_ns(self) -> int:
        """The same as `max`, by its name in JSON."""
        return self._max

    @property
    def mean_ns(self) -> float:
        """The same as `mean`, by its name in JSON, where nan is null."""
        return self.mean

    @property
    def std_ns(self) -> float:
        """The same as `std`, by its name in JSON, where nan is null, and so is the spread of a single value."""
        return self.std

    @property
    def p50_ns(self) -> float:
        """Median, ns, as :meth:`percentile` has it."""
        return self.percentile(50)

    @property
    def p90_ns(self) -> float:
        """90th percentile, ns."""
        return self.percentile(90)

    @property
    def p99_ns(self) -> float:
        """99th percentile, ns."""
        return self.percentile(99)

    @property
    def p99_9_ns(self) -> float:
        """99.9th percentile, ns."""
        return self.percentile(99.9)

    @property
    def p99_99_ns(self) -> float:
        """99.99th percentile, ns."""
        return self.percentile(99.99)

    def summary(self) -> dict[str, float | None]:
        """Return the figures that JSON has beside the bins; None instead of nan, and for the spread of one value."""
        if not self._count:
            return dict.fromkeys(_SUMMARY)
        values: dict[str, float | None] = {name: getattr(self, name) for name in _SUMMARY}
        if self._count == 1:
            values["std_ns"] = None
        return values

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

        The nearest-rank percentile: the upper edge of the bin in which the value of that rank lies, but never more than
        `max`. It never underestimates, and overestimates by less than 0.8 % (by more, up to `max`, in the overflow
        bin). The 0th percentile is `min`, the 100th is `max`, both exact.

        Parameters
        ----------
        q : float or array-like of float
            Per cent, 0 to 100.

        Returns
        -------
        float or array of float
            ns; nan if there are no values.

        Raises
        ------
        ValueError
            If `q` is not within 0 to 100.
        """
        if isinstance(q, int | float):
            return self._percentile(q)
        wanted = np.asarray(q, dtype=np.float64)
        if not np.all((wanted >= 0) & (wanted <= 100)):
            raise ValueError(f"q={q!r} must be within 0 to 100")
        cumulated, count = np.cumsum(self._counts), self._count
        if count == 0:
            values = np.full(wanted.shape, np.nan)
        else:
            # A few ulp less, so that a product rounded up to 999.0000000000001 is rank 999.
            rank = np.clip(np.ceil(wanted / 100 * count * (1 - 1e-15)), 1, count).astype(np.uint64)
            bins = np.searchsorted(cumulated, rank, side="left")
            values = np.clip(_UPPER[bins], self._min, self._max).astype(np.float64)
            values = np.where(wanted == 0, float(self._min), np.where(wanted == 100, float(self._max), values))
        return float(values) if wanted.ndim == 0 else values

    def _percentile(self, q: float) -> float:
        """Compute one percentile in the same way, in a third of the time."""
        if not 0 <= q <= 100:
            raise ValueError(f"q={q!r} must be within 0 to 100")
        if not self._count:
            return float("nan")
        if q in (0, 100):
            return float(self._max if q else self._min)
        rank = min(max(math.ceil(q / 100 * self._count * (1 - 1e-15)), 1), self._count)
        place = np.searchsorted(np.cumsum(self._counts), np.uint64(rank), side="left")
        return float(min(max(int(_UPPER[place]), self._min), self._max))

    @property
    def counts(self) -> NDArray[np.uint64]:
        """Number of values in each bin; read-only, shape (4353,)."""
        return self._counts

    @property
    def edges(self) -> NDArray[np.float64]:
        """Edges of the bins, ns: bin i holds ``edges[i] <= value < edges[i + 1]``; read-only, shape (4354,).

        The last one is inf, for the overflow bin; the first is 0, although bin 0 holds negative values, too.
        """
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
            squares=None if self._squares is None or other._squares is None else self._squares + other._squares,
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
            "squares_ns2": self._squares,
            "bins": used.tolist(),
            "counts": self._counts[used].tolist(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Histogram:
        """Return the histogram that :meth:`to_dict` was called on; other keys than its own are ignored.

        Raises
        ------
        ValueError
            If a bin does not exist, or the bins do not add up to the count.
        """
        bins, held = np.asarray(values["bins"], dtype=np.intp), np.asarray(values["counts"], dtype=np.uint64)
        if bins.shape != held.shape or np.any((bins < 0) | (bins > _OVERFLOW)):
            raise ValueError(f"bins and counts must be of one length, and each bin within 0 to {_OVERFLOW}")
        counts = np.zeros(_BINS, np.uint64)
        counts[bins] = held
        histogram = cls(
            counts,
            total=values["total_ns"],
            minimum=values["min_ns"],
            maximum=values["max_ns"],
            squares=values.get("squares_ns2"),
        )
        if histogram.count != values["count"]:
            raise ValueError(f"the bins hold {histogram.count} values, not {values['count']}")
        return histogram

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        ours = (self._total, self._squares, self._min, self._max)
        return ours == (other._total, other._squares, other._min, other._max) and bool(
            np.array_equal(self._counts, other._counts)
        )

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return Histogram.from_dict, (self.to_dict(),)

    def __repr__(self) -> str:
        if not self.count:
            return "Histogram(empty)"
        p50, p99 = self.percentile(50), self.percentile(99)
        return f"Histogram(count={self.count}, min={self.min}, p50={p50:.0f}, p99={p99:.0f}, max={self.max} ns)"
