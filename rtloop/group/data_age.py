"""Age of the data that the last loop of a chain acts on: measured from records, and bounded by response times."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rtloop.settings import exact_period, exact_phase
from rtloop.stats.records import continuous_records, find_missed
from rtloop.units import format_duration, lcm_of

if TYPE_CHECKING:
    from rtloop.analysis.results import Analysis
    from rtloop.group.chain import Chain
    from rtloop.stats.stats import Stats

__all__ = ["Age", "Ages", "bound_age", "make_age", "measure_age"]

#: With more releases in a hyperperiod than this, the bound is the one for unknown phases.
_MOST_RELEASES = 1_000_000
_INT64_MAX = 2**63 - 1


def measure_age(every: Sequence[Stats]) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Return the age of the data that each recorded cycle of the last loop acted on.

    A step is assumed to read at its start what the previous loop has published by the end of its steps. A step that
    reads later or publishes earlier has newer data, so the true ages are never greater.

    Parameters
    ----------
    every : sequence of Stats
        Statistics of the chain's loops, in order.

    Returns
    -------
    ages, releases : int64 arrays, shape (n,), ns
        Time from the release of the first loop's cycle to the end of the last loop's; and the releases of the latter.
    int
        Number of cycles without an age, because their data is older than the records, or there was none yet.
    """
    last = continuous_records(every[-1])
    known = np.ones(len(last), np.bool_)
    starts, release = last["start"], last["release"]
    for stats in reversed(every[:-1]):
        records = continuous_records(stats)
        if not len(records):
            return np.empty(0, np.int64), np.empty(0, np.int64), len(last)
        found = np.searchsorted(records["end"], starts, side="right") - 1
        known &= found >= 0
        if stats.state == "running":  # it may have published more since its records were read
            known &= starts <= records["end"][-1]
        found = np.maximum(found, 0)
        starts = records["start"][found]
        release = starts if stats.has_own_wait else records["release"][found]
    ages = (last["end"] - release)[known]
    return ages, last["release"][known], int(len(last) - np.count_nonzero(known))


def bound_age(
    phases: Sequence[int] | Sequence[Fraction],
    periods: Sequence[int] | Sequence[Fraction],
    responses: Sequence[int],
    *,
    is_aligned: bool = True,
) -> int:
    """Return the greatest age of a chain's data if no release is missed, ns.

    A cycle released at r starts at r or later. It therefore reads data of the previous loop that is at least as new as
    that of the newest cycle whose release plus worst response time R is at most r. The same holds for that cycle and
    the loop before it. Going back like this from the last loop to the first leads to a release on the common grid;
    newer data only reduces the age. The bound is the maximum over the releases of a hyperperiod, plus the last loop's
    response time.

    With unknown phases each step goes back by less than T + R; the bound is the sum of these plus the last response
    (Davare et al., Period optimization for hard real-time distributed automotive systems, DAC 2007).

    Parameters
    ----------
    phases, periods : sequence of int or of Fraction
        Of the chain's loops, in order, ns.
    responses : sequence of int
        Worst response times, ns.
    is_aligned : bool
        True if the loops have a common origin.
    """
    exact, offsets = [Fraction(period) for period in periods], [Fraction(phase) for phase in phases]
    hyperperiod, unit = lcm_of(exact), math.lcm(*(time.denominator for time in exact + offsets))
    number = int(hyperperiod / exact[-1])
    # Times are in units of 1/`unit` ns; each release is rounded by at most half a ns.
    rounding = 0 if unit == 1 else 1
    if (
        not is_aligned
        or number > _MOST_RELEASES
        or (hyperperiod + max(offsets) + sum(responses)) * unit > _INT64_MAX // 4
    ):
        return math.ceil(sum(exact[:-1])) + sum(responses) + rounding
    released = int(offsets[-1] * unit) + np.arange(number, dtype=np.int64) * int(exact[-1] * unit)
    sensed = released
    for phase, period, response in reversed(list(zip(offsets, exact, responses, strict=True))[:-1]):
        step, begin = int(period * unit), int(phase * unit)
        late = begin + (response + rounding) * unit
        sensed = begin + (sensed - late) // step * step
    return math.ceil(Fraction(int((released - sensed).max()), unit)) + responses[-1] + rounding


@dataclass(frozen=True, eq=False)
class Age:
    """Measured and greatest possible age of a chain's data; times in nanoseconds.

    `values` and `releases` belong to the traced cycles of the last loop; `unknown` is the number of recorded cycles
    whose data cannot be traced. `bound` is None if there is none, and the `notes` then contain the reason. `max_age` is
    the greatest intended age, and `stale_note` describes the cycles that acted on older data, if any.
    """

    name: str
    loops: tuple[str, ...]
    values: NDArray[np.int64]
    releases: NDArray[np.int64]
    unknown: int
    bound: int | None
    max_age: int | None
    stale_note: str
    notes: tuple[str, ...]

    @property
    def count(self) -> int:
        """Number of cycles that were traced."""
        return len(self.values)

    @property
    def median(self) -> int | None:
        """Median of the ages; None without any."""
        return int(np.median(self.values)) if self.count else None

    @property
    def max(self) -> int | None:
        """Greatest age; None without any."""
        return int(self.values.max()) if self.count else None

    @property
    def stale(self) -> int:
        """Number of cycles that acted on data older than intended."""
        return 0 if self.max_age is None else int(np.count_nonzero(self.values > self.max_age))

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the values as a dict that JSON can hold."""
        names = ("name", "count", "unknown", "median", "max", "bound", "max_age", "stale")
        return {**{name: getattr(self, name) for name in names}, "loops": list(self.loops), "notes": list(self.notes)}


class Ages(Mapping[str, Age]):
    """Ages of a group's chains, by name; ``print`` shows the table.

    The `notes` are about the execution times from which the bounds were computed.
    """

    def __init__(self, every: Sequence[Age], notes: Sequence[str] = ()) -> None:
        self._every = {age.name: age for age in every}
        self.notes = tuple(notes)

    def __getitem__(self, name: str) -> Age:
        return self._every[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._every)

    def __len__(self) -> int:
        return len(self._every)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the single values as a dict that JSON can hold, times in nanoseconds."""
        return {name: age.to_dict() for name, age in self.items()}

    def summary(self) -> str:
        """Return the table as text."""
        heads = ["chain", "cycles", "median age", "max", "bound", "intended", "older"]
        rows = [
            [age.name, f"{age.count:,}", *(_time(ns) for ns in (age.median, age.max, age.bound, age.max_age)),
             "-" if age.max_age is None else f"{age.stale:,}"]
            for age in self.values()
        ]  # fmt: skip
        widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                 for row in [heads, *rows]]  # fmt: skip
        return "\n".join([*lines, *(f"{age.name}: {note}" for age in self.values() for note in age.notes), *self.notes])

    __str__ = summary


def _time(ns: int | None) -> str:
    return "-" if ns is None else format_duration(ns)


def make_age(chain: Chain, stats: Mapping[str, Stats], analysis: Analysis | str, origin_ns: int | None) -> Age:
    """Return the age of a chain's data. `analysis` is that of its loops, or the reason that there is none."""
    names = tuple(loop.name for loop in chain.loops)
    every = [stats[name] for name in names]
    values, releases, unknown = measure_age(every)
    bound, why = _bound(every, analysis)
    notes = [] if why is None else [f"no bound: {why}"]
    if bound is not None:
        chosen = {one.name: one for one in every}.values()
        missed = [f"{one.name} missed {one.missed:,} releases" for one in chosen if one.missed]
        if missed:
            notes.append(f"{', '.join(missed)}: the bound does not hold for cycles with a missed release before them")
        over = values > bound
        if over.any():
            notes.append(_describe_over(values, over, over & _is_undisturbed(every, values, releases)))
    older, max_age = "", chain.max_age_ns
    if max_age is not None:
        older = _describe_stale(values, releases, max_age, origin_ns)
        notes += [older] if older else []
        if bound is not None and bound > max_age:
            notes.append(f"the data can be as old as {_time(bound)}, which is more than the {_time(max_age)} intended")
    return Age(chain.name, names, values, releases, unknown, bound, max_age, older, tuple(notes))


def _bound(every: Sequence[Stats], analysis: Analysis | str) -> tuple[int | None, str | None]:
    """Return the bound, or None and the reason that there is none."""
    if isinstance(analysis, str):
        return None, analysis
    responses = []
    for stats in every:
        if stats.has_own_wait:
            return None, f"{stats.name} has its own wait(), so its releases are not on the grid"
        row = analysis[stats.name]
        response = row.deadline if row.response is None and row.meets else row.response
        if response is None:
            return None, f"{stats.name} has no worst response time, its verdict is {row.verdict!r}"
        if response > row.period:
            return None, f"the worst response time of {stats.name} exceeds its period, so it can miss releases"
        responses.append(response)
    settings = [stats.settings for stats in every]
    periods, phases = [exact_period(s) for s in settings], [exact_phase(s) for s in settings]
    # A loop that moves its grid leaves the common one.
    return bound_age(phases, periods, responses, is_aligned=all(s.get("overrun") != "shift" for s in settings)), None


def _is_undisturbed(
    every: Sequence[Stats], values: NDArray[np.int64], releases: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return True for each cycle on whose data path no loop of the chain missed a release."""
    begin, end = releases - values, releases + every[-1].settings["period_ns"]
    clean = np.ones(len(values), np.bool_)
    for stats in {one.name: one for one in every}.values():
        after = np.flatnonzero(find_missed(stats))
        if not len(after):
            continue
        release = continuous_records(stats, known=False)["release"]
        gaps, until = release[after - 1], release[after]
        first = np.searchsorted(until, begin, side="right")  # the first gap that ends within
        clean &= ~((first < len(after)) & (gaps[np.minimum(first, len(after) - 1)] < end))
    return clean


def _describe_over(values: NDArray[np.int64], over: NDArray[np.bool_], unexplained: NDArray[np.bool_]) -> str:
    """Report how many cycles exceed the bound, and whether missed releases explain it."""
    count, more = int(np.count_nonzero(over)), int(np.count_nonzero(unexplained))
    why = "missed releases explain all of them"
    if more:
        why = f"in {more:,} of them no release was missed: a response time is longer than analyze() computed"
    return (
        f"{count:,} of {len(values):,} cycles acted on data older than the bound, the oldest "
        f"{_time(int(values.max()))} old: {why}"
    )


def _describe_stale(values: NDArray[np.int64], releases: NDArray[np.int64], max_age: int, origin_ns: int | None) -> str:
    """Report the cycles whose data was older than intended; "" if there are none."""
    older = int(np.count_nonzero(values > max_age))
    if not older:
        return ""
    worst = int(values.argmax())
    when = "" if origin_ns is None else f", {_time(int(releases[worst]) - origin_ns)} after the origin"
    return (
        f"{older:,} of {len(values):,} cycles acted on data that was older than {_time(max_age)}; "
        f"the oldest was {_time(int(values[worst]))} old{when}"
    )
