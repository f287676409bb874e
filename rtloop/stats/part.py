"""A part of a run: statistics of its last cycles, made from their records."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from rtloop.stats.explanation import Explanation
from rtloop.stats.figures import ContextSwitches, Figures, PageFaults, StackUse
from rtloop.stats.histogram import Histogram
from rtloop.stats.records import continuous_records, find_missed, find_overruns
from rtloop.units import parse_duration

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rtloop.settings import Duration

__all__ = ["last_part"]

_Kind = TypeVar("_Kind", bound=Figures)

#: As RT_STALL_NS of include/rtloop/schedule.h.
_STALL_NS = 10**9


def last_part(stats: _Kind, duration: Duration) -> _Kind:
    """Return the statistics of the recorded cycles that started within a time before the last end."""
    length = parse_duration(duration, "duration", minimum=1)
    records = continuous_records(stats)
    lost = len(stats.records) - len(records)
    warmup = stats.warmup - (stats.cycles - len(records))
    since = int(records["end"][-1]) - length if len(records) else 0
    first = max(int(np.searchsorted(records["start"], since, side="right")), warmup)
    chosen = slice(min(first, len(records)), None)
    part = records[chosen]
    release, start, end = (part[name] for name in ("release", "start", "end"))
    before = int(records["end"][first - 1]) if 0 < first <= len(records) else None
    empty = Histogram.empty()
    latency, response = (empty, empty) if stats.has_own_wait else (_of(start - release), _of(end - release))
    # The interval that ends with the first cycle of the part belongs to it, if the cycle before was recorded.
    starts = records["start"][max(first - 1, min(warmup, first), 0) :]
    overruns = find_overruns(stats)[lost:][chosen]
    return replace(
        stats,
        cycles=len(part),
        missed=int(find_missed(stats)[lost:][chosen].sum()),
        overruns=int(np.count_nonzero(overruns)),
        late=_late(release, end, before),
        stalls=int(np.count_nonzero(end - release - stats.settings.get("period_ns", 0) > _STALL_NS)),
        warmup=0,
        duration_ns=max(0, int(end[-1] - release[0])) if len(part) else 0,
        shifted_ns=None,
        clock_steps=0,
        clock_step_sizes=(),
        clock_step_cycles=(),
        waiting=empty,
        device_cycles=None,
        device_missed=None,
        page_faults=PageFaults(None, None),
        context_switches=ContextSwitches(None, None),
        stack=StackUse(stats.stack.size, None),
        guard={},
        settings={**stats.settings, "last_ns": length},
        latency=latency,
        execution=_of(end - start),
        response=response,
        interval=_of(np.diff(starts)),
        records=part.copy(),
        explanations=_explanations_of(stats, len(part)),
    )


def _explanations_of(stats: Figures, count: int) -> tuple[Explanation, ...] | None:
    """Return the explanations of the last cycles, with the indices that they have in the part."""
    if stats.explanations is None:
        return None
    first = stats.cycles - count
    return tuple(one._replace(cycle=one.cycle - first) for one in stats.explanations if one.cycle >= first)


def _of(values: NDArray[Any]) -> Histogram:
    return Histogram.from_values(values)


def _late(release: NDArray[Any], end: NDArray[Any], before: int | None) -> int:
    """Count the cycles whose release had passed when the cycle before them ended."""
    if not len(release):
        return 0
    ends = end[:-1] if before is None else np.concatenate([[before], end[:-1]])
    return int(np.count_nonzero(ends > release[len(release) - len(ends) :]))
