"""Task: a loop as the schedulability analysis sees it."""

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
    """Periodic or sporadic task on one CPU.

    Parameters
    ----------
    name : str
        Unique among the tasks of an analysis.
    period, wcet : duration
        Least time between two releases, and most CPU time of one of them.
    deadline : duration, optional
        Counted from the release; by default the period, and it may be longer than that.
    priority : int, optional
        As with SCHED_FIFO, a greater number is more urgent. If no task has one, they are rate-monotonic.
    cpu : int, optional
        The CPU that it runs on. Tasks without one share the same CPU.
    jitter : duration
        Longest time from its release until the task is ready to run: the wake-up latency.
    blocking : duration
        Longest time that less urgent tasks can keep it waiting, with locks or with preemption off.
    suspension : duration
        Longest time that a step sleeps by itself (``sleep_until``), which leaves the CPU free but delays the response.
    measured : duration, optional
        Longest response time of a run, to be compared with the bound.
    note : str
        A remark that the table of the analysis repeats.
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
        period = parse_exact_duration(self.period, f"{self.name}: period", rate=True, minimum=1)
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
        """Make a task from measurements: the longest step as C, and the largest wake-up latency as jitter.

        Parameters
        ----------
        stats : Stats
            Of a run that was long enough, under the worst load that the analysis is to cover.
        percentile : float, optional
            Use this percentile of the execution time and the wake-up latency instead of the maximum. The result of the
            analysis is then not a bound, and a note in it states that.
        **others
            Other parameters of the task, such as `blocking`, or values that replace the run's own.

        Raises
        ------
        ConfigError
            If no cycle was measured, or a parameter is not valid.
        """
        settings = stats.settings
        if not stats.execution.count:
            raise ConfigError(f"{stats.name}: no cycle was measured: its histograms are empty")
        _check_percentile(percentile)
        wcet = stats.execution.max if percentile is None else stats.execution.percentile(percentile)
        note = f"C is the longest of {stats.execution.count} measured steps; it does not prove that none takes longer"
        if percentile is not None:
            note = (
                f"C and jitter are the {percentile:g} % percentiles of {stats.execution.count} cycles: some cycles "
                "take longer"
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
        """Share of a CPU: C / period."""
        return Fraction(self.ns("wcet")) / self.exact_period

    @property
    def exact_period(self) -> Fraction:
        """Period in nanoseconds, as a Fraction."""
        assert isinstance(self.period, int | Fraction)
        return Fraction(self.period)

    def ns(self, field: str) -> int:
        """Return a duration of the task in nanoseconds."""
        value = getattr(self, field)
        assert isinstance(value, int)
        return value


def jitter_of(stats: Stats, percentile: float | None = None) -> int:
    """Return the maximum of a run's wake-up latency, or a percentile of it, in ns; 0 if nothing was measured."""
    _check_percentile(percentile)
    latency = stats.latency
    if not latency.count:
        return 0
    return max(0, math.ceil(latency.max if percentile is None else latency.percentile(percentile)))


def _check_percentile(percentile: object) -> None:
    is_number = isinstance(percentile, (int, float)) and not isinstance(percentile, bool)
    if percentile is not None and not (is_number and 0 <= percentile <= 100):  # type: ignore[operator]
        raise ConfigError(f"percentile={show(percentile)} must be a number from 0 to 100, or None")
