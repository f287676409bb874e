"""Recorded cycles of a run: their overruns and missed releases, and their times across steps of the clock."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from rtloop.settings import exact_period
from rtloop.stats.figures import Figures, Swap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = [
    "continuous_records",
    "exact_period_of",
    "find_missed",
    "find_overruns",
    "first_index",
    "have_one_origin",
    "on_one_clock",
    "period_of",
    "recorded_swaps",
]


_Kind = TypeVar("_Kind", bound=Figures)
#: Each loop measures a step of the clock by itself; they differ by less.
_STEP_ERROR_NS = 1_000_000


def period_of(stats: Figures) -> int:
    """Return the nominal period, ns; 0 if the settings do not contain it."""
    period: int = stats.settings.get("period_ns", 0)
    return period


def exact_period_of(stats: Figures) -> Fraction:
    """Return the exact period, ns; 0 where the settings do not tell."""
    return exact_period(stats.settings)


def continuous_records(stats: Figures, *, known: bool = True) -> NDArray[Any]:
    """Return the records on the clock as it was at the end, as if it had never been set: differences are durations.

    With `known`, records before a step of which the size is no longer known are left out; else they stay as they are.
    """
    records = stats.records
    if not stats.clock_steps:
        return records
    steps = list(zip(stats.clock_step_cycles, stats.clock_step_sizes, strict=True))
    first = first_index(stats)
    begin = 0 if len(steps) == stats.clock_steps else max(0, steps[0][0] - first) if steps else len(records)
    moved = records.copy()
    for cycles, size in steps:
        for name in ("release", "start", "end"):
            moved[name][: max(0, cycles - first)] += size
    return moved[min(begin, len(records)) :] if known else moved


def on_one_clock(stats: _Kind) -> _Kind:
    """Return the statistics with continuous records: times before a step of the clock are as it was at the end.

    So is the origin that a group has told. The steps that are left in it have no size, so that a second call changes
    nothing.
    """
    if not stats.clock_steps:
        return stats
    settings, sizes = dict(stats.settings), stats.clock_step_sizes
    if isinstance(settings.get("origin_ns"), int):
        settings["origin_ns"] += sum(sizes)
    return replace(stats, records=continuous_records(stats), settings=settings, clock_step_sizes=(0,) * len(sizes))


def have_one_origin(every: Sequence[Figures]) -> bool:
    """Return True if the loops are of one run of a group, which has told them its origin."""
    told = [stats.settings.get("origin_ns") for stats in every]
    known = [origin for origin in told if isinstance(origin, int)]
    error = _STEP_ERROR_NS if any(stats.clock_steps for stats in every) else 0
    return bool(known) and len(known) == len(told) and max(known) - min(known) <= error


def first_index(stats: Figures) -> int:
    """Return the index of the oldest recorded cycle."""
    return max(0, stats.cycles - len(stats.records))


def recorded_swaps(stats: Figures) -> list[tuple[int, Swap]]:
    """Return the swaps whose first cycle is recorded, each with the index of that record."""
    first = first_index(stats)
    return [(swap.cycle - first, swap) for swap in stats.swaps or () if 0 <= swap.cycle - first < len(stats.records)]


def find_overruns(stats: Figures) -> NDArray[np.bool_]:
    """Return a mask of the recorded cycles that ended later than the next release."""
    period, records = period_of(stats), stats.records
    if not period or stats.has_own_wait:
        return np.zeros(len(records), np.bool_)
    late: NDArray[np.bool_] = records["end"] - records["release"] > period
    return late


def find_missed(stats: Figures) -> NDArray[np.int64]:
    """Count the releases that were dropped just before each recorded cycle; 0 for the first, which is unknown."""
    period, release = exact_period_of(stats), stats.records["release"]
    missed = np.zeros(len(release), np.int64)
    # If the grid moves, no release is dropped: the time between two cycles is an overrun.
    if period and len(release) > 1 and not stats.has_own_wait and stats.missed:
        missed[1:] = np.maximum(np.rint(np.diff(release) / float(period)).astype(np.int64) - 1, 0)
        # Over a step of the clock nothing was dropped: what it jumped over has not elapsed.
        after = np.array(stats.clock_step_cycles, np.int64) - first_index(stats)
        missed[after[(after > 0) & (after < len(missed))]] = 0
    return missed
