"""Saved stats as CSV: the recorded cycles, or the histograms."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rtloop.stats.records import find_overruns, first_index

if TYPE_CHECKING:
    from rtloop.stats.stats import Stats

__all__ = ["histograms_to_csv", "records_to_csv"]

_SERIES = ("latency", "execution", "response", "interval")


def records_to_csv(stats: Stats) -> str:
    """Return a row for each recorded cycle.

    For a loop with its own wait, latency, response and overrun are empty, because there was no planned time.
    """
    records = stats.records
    release, start, end = (records[name] for name in ("release", "start", "end"))
    index = np.arange(len(records)) + first_index(stats)
    header = "index,release_ns,start_ns,end_ns,latency_ns,execution_ns,response_ns,overrun"
    columns = [index, release, start, end, start - release, end - start, end - release, find_overruns(stats)]
    if stats.has_own_wait:
        rows = [f"{i},{r},{s},{e},,{x},," for i, r, s, e, _, x, *_ in zip(*_lists(columns), strict=True)]
    else:
        rows = [",".join(str(int(value)) for value in row) for row in zip(*_lists(columns), strict=True)]
    return "\n".join([header, *rows]) + "\n"


def _lists(columns: list[np.ndarray]) -> list[list[int]]:
    return [column.tolist() for column in columns]


def histograms_to_csv(stats: Stats) -> str:
    """Return a row for each bin that is not empty: its values are ``lower_ns <= value < upper_ns``."""
    rows = ["series,lower_ns,upper_ns,count"]
    for series in _SERIES:
        histogram = getattr(stats, series)
        for i in np.flatnonzero(histogram.counts).tolist():
            upper = histogram.edges[i + 1]
            above = f"{int(upper)}" if np.isfinite(upper) else ""  # the overflow bin has no upper edge
            rows.append(f"{series},{int(histogram.edges[i])},{above},{int(histogram.counts[i])}")
    return "\n".join(rows) + "\n"
