"""Selection of the cycles that deserve an explanation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rtloop.stats.histogram import Histogram

__all__ = ["AUTO", "Late", "Limits", "find_late", "limits_of"]

#: Threshold for the worst cycles of a run, whatever these are.
AUTO = 0
#: No delay below these is looked at, unless the user has named a threshold, ns.
_LEAST_START_NS, _LEAST_EXECUTION_NS = 20_000, 50_000
#: Nor one below this multiple of the median.
_MEDIANS = 2


class Limits(NamedTuple):
    """Delays from which on a cycle is late, and the median execution time, ns."""

    start: float
    execution: float
    usual_execution: float


class Late(NamedTuple):
    """Late cycle: its place among the records, in what it was late, and by how much; True if it was an overrun."""

    place: int
    what: str
    ns: int
    is_overrun: bool


def limits_of(threshold: int, latency: Histogram, execution: Histogram) -> Limits:
    """Return the limits for a threshold of the user's, or for :data:`AUTO`."""
    usual = float(execution.percentile(50)) if execution.count else 0.0
    if threshold != AUTO:
        return Limits(threshold, threshold, usual)
    median = float(latency.percentile(50)) if latency.count else 0.0
    return Limits(max(_LEAST_START_NS, _MEDIANS * median), max(_LEAST_EXECUTION_NS, _MEDIANS * usual), usual)


def find_late(records: NDArray[Any], limits: Limits, period_ns: int, *, has_own_wait: bool) -> list[Late]:
    """Return the late cycles among some records, the longest delay first.

    A cycle that began late and took long is late in what has delayed it more.
    """
    release, start, end = (records[name] for name in ("release", "start", "end"))
    execution = (end - start) - int(limits.usual_execution)
    latency = np.full(len(records), -1) if has_own_wait else start - release
    overruns = np.zeros(len(records), bool) if has_own_wait or not period_ns else end - release > period_ns
    chosen = np.flatnonzero((latency > limits.start) | (execution > limits.execution) | overruns)
    found = []
    for place in chosen.tolist():
        is_start = latency[place] >= execution[place]
        ns = int(latency[place] if is_start else execution[place])
        if ns > 0:
            found.append(Late(place, "start" if is_start else "execution", ns, bool(overruns[place])))
    return sorted(found, key=lambda late: -late.ns)
