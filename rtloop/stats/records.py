"""Overruns and missed releases among the recorded cycles of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rtloop.stats.stats import Stats

__all__ = ["find_missed", "find_overruns", "first_index", "period_of"]


def period_of(stats: Stats) -> int:
    """Return the nominal period, ns; 0 if the settings do not contain it."""
    period: int = stats.settings.get("period_ns", 0)
    return period


def first_index(stats: Stats) -> int:
    """Return the index of the oldest recorded cycle."""
    return max(0, stats.cycles - len(stats.records))


def find_overruns(stats: Stats) -> NDArray[np.bool_]:
    """Return a mask of the recorded cycles that ended later than the next release."""
    period, records = period_of(stats), stats.records
    if not period or stats.has_own_wait:
        return np.zeros(len(records), np.bool_)
    late: NDArray[np.bool_] = records["end"] - records["release"] > period
    return late


def find_missed(stats: Stats) -> NDArray[np.int64]:
    """Count the releases that were dropped just before each recorded cycle; 0 for the first, which is unknown."""
    period, release = period_of(stats), stats.records["release"]
    missed = np.zeros(len(release), np.int64)
    # If the grid moves, no release is dropped: the time between two cycles is an overrun.
    if period and len(release) > 1 and not stats.has_own_wait and stats.missed:
        missed[1:] = np.maximum((np.diff(release) + period // 2) // period - 1, 0)
    return missed
