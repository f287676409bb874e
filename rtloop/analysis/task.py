"""A task: what the analysis of deadlines knows of a loop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from rtloop.errors import ConfigError
from rtloop.settings import Duration, exact_period
from rtloop.units import as_index, parse_duration, parse_exact_duration, show

if TYPE_CHECKING:
    from rtloop.stats.stats import Stats

__all__ = ["Task", "jitter_of"]


@dataclass(frozen=True)
class Task:
    """A periodic or sporadic task, on one CPU.

    Parameters
    ----------
    name : str
        Unique among the tasks of an analysis.
    period, wcet : duration
        The least time between two releases, and the most CPU time of one.
    deadline : duration, optional
        From the release; by default the period. It may be longer.
    priority : int, optional
        As SCHED_FIFO has it: the greater, the more urgent. Without any, all tasks get rate-monotonic ones.
    cpu : int, optional
        Where it runs. Tasks without one are all on the same CPU.
    jitter : duration
        How much later than its release a task may become ready: the wake-up latency.
    blocking : duration
        How long less urgent tasks can keep it waiting, in locks and with preemption off.
    suspension : duration
        How long a step sleeps by itself (``sleep_until``): the CPU is free meanwhile, and the response later.
    measured : duration, optional
        The longest response time that a run has shown, to be held against the bound.
    """

    name: str
    period: Duration
    wcet: Duration
    deadline: Duration | None = None
    priority: int | None = None
    cpu: int | None = None
    jitter: Duration = 0
    blocking: Duration = 0
    measured: Duration | None = None
    note: str = ""
    suspension: Duration = 0

    def __post_init__(self) -> None:
        period = parse_exact_duration(self.period, f"{self.name}: period", minimum=1)
        object.__setattr__(self, "period", int(period) if period.denominator == 1 else period)
        for field, minimum in (("wcet", 1), ("jitter", 0), ("blocking", 0), ("measured", 0), ("suspension", 0)):
            value = getattr(self, field)
            if value is not None or field != "measured":
                object.__setattr__(self, field, parse_duration(value, f"{self.name}: {field}", minimum=minimum))
        for field in ("priority", "cpu"):
            value = getattr(self, field)
            if value is not None and as_index(value) is None:
                raise ConfigError(f"{self.name}: {field}={show(value)} must be an int, or None")
        deadline = int(period) if self.deadline is None else self.deadline
        object.__setattr__(self, "deadline", parse_duration(deadline, f"{self.name}: deadline", minimum=1))

    @classmethod
    def from_stats(cls, stats: Stats, *, percentile: float | None = None, **others: Any) -> Task:
        """Make a task of what a run has measured: its longest step, and its latest wake-up as jitter.

        Parameters
        ----------
        stats : Stats
            Of a run that was long enough, and under the worst load that the analysis is to hold for.
        percentile : float, optional
            Take this percentile of the execution time and of the wake-up latency, not the maximum: then the analysis is
            no bound, and says so.
        **others
            Other parameters of the task, such as `blocking`; name, period, deadline, priority and CPU are the run's.

        Raises
        ------
        ConfigError
            Where no cycle was measured, or a figure is none.
        """
        settings = stats.settings
        if not stats.execution.count:
            raise ConfigError(f"{stats.name}: no cycle was measured: its histograms are empty")
        _check_percentile(percentile)
        wcet = stats.execution.max if percentile is None else stats.execution.percentile(percentile)
        note = f"C is the longest of {stats.execution.count} measured steps, which is no proof that none takes longer"
        if percentile is not None:
            note = (
                f"C and jitter are the {percentile:g} % percentiles of {stats.execution.count} cycles: one in a while "
                "takes longer"
            )
        is_pinned = isinstance(settings.get("cpu"), (list, tuple)) and len(settings["cpu"]) == 1
        return cls(**{
            "name": stats.name,
            "period": exact_period(settings) / 10**9,
            "wcet": max(1, math.ceil(wcet)),
            "deadline": settings.get("deadline_ns"),
            "priority": settings.get("priority"),
            "cpu": settings["cpu"][0] if is_pinned else None,
            "jitter": jitter_of(stats, percentile),
            "suspension": max(0, math.ceil(stats.waiting.max)) if stats.waiting.count else 0,
            "measured": max(0, math.ceil(stats.response.max)) if stats.response.count else None,
            "note": note,
            **others,
        })  # fmt: skip

    @property
    def utilisation(self) -> Fraction:
        """The share of a CPU."""
        return Fraction(self.ns("wcet")) / self.exact_period

    @property
    def exact_period(self) -> Fraction:
        """The period in nanoseconds, as a Fraction."""
        assert isinstance(self.period, int | Fraction)
        return Fraction(self.period)

    def ns(self, field: str) -> int:
        """Return a time of the task, which is in nanoseconds once it is made."""
        value = getattr(self, field)
        assert isinstance(value, int)
        return value


def jitter_of(stats: Stats, percentile: float | None = None) -> int:
    """Return the latest wake-up that a run has measured, or a percentile of it, ns; 0 where none was."""
    _check_percentile(percentile)
    latency = stats.latency
    if not latency.count:
        return 0
    return max(0, math.ceil(latency.max if percentile is None else latency.percentile(percentile)))


def _check_percentile(percentile: object) -> None:
    is_number = isinstance(percentile, (int, float)) and not isinstance(percentile, bool)
    if percentile is not None and not (is_number and 0 <= percentile <= 100):  # type: ignore[operator]
        raise ConfigError(f"percentile={show(percentile)} must be a number from 0 to 100, or None")
