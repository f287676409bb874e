"""How old the data is that the last loop of a chain acts on: measured from records, and bounded by response times."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rtloop.settings import exact_period
from rtloop.stats.records import continuous_records, find_missed
from rtloop.units import format_duration, lcm_of

if TYPE_CHECKING:
    from rtloop.analysis.results import Analysis
    from rtloop.group.chain import Chain
    from rtloop.stats.stats import Stats

__all__ = ["Age", "Ages", "bound_age", "make_age", "measure_age"]

#: More releases in a hyperperiod than this are not looked through: the bound for any phases is given.
_MOST_RELEASES = 1_000_000
_INT64_MAX = 2**63 - 1


def measure_age(every: Sequence[Stats]) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Return how old the data was that each recorded cycle of the last loop acted on, from the records of all.

    A step reads, when it starts, what the loop before it had published by the ends of its steps. Who reads later in
    the step, or publishes earlier, has newer data: the ages are never less than the true ones.

    Parameters
    ----------
    every : sequence of Stats
        Of the chain's loops, in order.

    Returns
    -------
    ages, releases : int64 arrays, shape (n,), ns
        From the release of the first loop's cycle to the end of the last one's; and the releases of the last one's.
    int
        How many cycles have no age: what they read is older than the records, or there was nothing to read yet.
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
    phases: Sequence[int],
    periods: Sequence[int] | Sequence[Fraction],
    responses: Sequence[int],
    *,
    is_aligned: bool = True,
) -> int:
    """Return how old the data of a chain can become where no release is missed, ns.

    Let a cycle be released at r. It starts at r or later, and so reads what the loop before it has published by r: at
    least the newest of its cycles whose release plus worst response time R is not beyond r. That one again has read, at
    its own release or later, ...: from the last loop back to the first, each step goes to a release that is known on
    the common grid, and newer data only makes the age less. The bound is the greatest over the releases of a
    hyperperiod, with the last loop's own response.

    With phases that nobody knows each step goes back by less than T + R: the sum of these, and the last response
    (Davare et al., Period optimization for hard real-time distributed automotive systems, DAC 2007).

    Parameters
    ----------
    phases, periods, responses : sequence of int, or of Fraction for the periods
        Of the chain's loops, in order, ns.
    is_aligned : bool
        Whether the loops are on one origin.
    """
    exact = [Fraction(period) for period in periods]
    hyperperiod, unit = lcm_of(exact), math.lcm(*(period.denominator for period in exact))
    number = int(hyperperiod / exact[-1])
    # In units of a fraction of a ns; each release is rounded by half a ns at most.
    rounding = 0 if unit == 1 else 1
    if (
        not is_aligned
        or number > _MOST_RELEASES
        or (hyperperiod + max(phases) + sum(responses)) * unit > _INT64_MAX // 4
    ):
        return math.ceil(sum(exact[:-1])) + sum(responses) + rounding
    released = phases[-1] * unit + np.arange(number, dtype=np.int64) * int(exact[-1] * unit)
    sensed = released
    for phase, period, response in reversed(list(zip(phases, exact, responses, strict=True))[:-1]):
        step = int(period * unit)
        late = phase * unit + (response + rounding) * unit
        sensed = phase * unit + (sensed - late) // step * step
    return math.ceil(Fraction(int((released - sensed).max()), unit)) + responses[-1] + rounding


@dataclass(frozen=True, eq=False)
class Age:
    """How old the data of a chain was, and can be; times in nanoseconds.

    `values` and `releases` are of the counted cycles of the last loop; `unknown` is how many more were recorded whose
    data cannot be traced. `bound` is None where there is none, for a reason among the `notes`; `max_age` is what was
    intended, and `stale_note` says, where there is something to say, which cycles acted on older data.
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
        """How many cycles were traced."""
        return len(self.values)

    @property
    def median(self) -> int | None:
        """The age that half of the cycles stayed below."""
        return int(np.median(self.values)) if self.count else None

    @property
    def max(self) -> int | None:
        """The oldest."""
        return int(self.values.max()) if self.count else None

    @property
    def stale(self) -> int:
        """How many cycles acted on data that was older than intended."""
        return 0 if self.max_age is None else int(np.count_nonzero(self.values > self.max_age))

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the values as a dict that JSON can hold."""
        names = ("name", "count", "unknown", "median", "max", "bound", "max_age", "stale")
        return {**{name: getattr(self, name) for name in names}, "loops": list(self.loops), "notes": list(self.notes)}


class Ages(Mapping[str, Age]):
    """The ages of a group's chains, by name; ``print`` shows the table.

    `notes` say what the execution times are worth that the bounds are made of.
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
    """Return the age of a chain's data, by the runs of its loops and their analysis, or why there is none."""
    names = tuple(loop.name for loop in chain.loops)
    every = [stats[name] for name in names]
    values, releases, unknown = measure_age(every)
    bound, why = _bound(every, analysis)
    notes = [] if why is None else [f"no bound: {why}"]
    if bound is not None:
        chosen = {one.name: one for one in every}.values()
        missed = [f"{one.name} missed {one.missed:,} releases" for one in chosen if one.missed]
        if missed:
            notes.append(f"{', '.join(missed)}: the bound is that of cycles before which none was missed")
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
    """Return the bound, or None and why there is none."""
    if isinstance(analysis, str):
        return None, analysis
    responses = []
    for stats in every:
        if stats.has_own_wait:
            return None, f"{stats.name} waits for its hardware, whose releases are not on the grid"
        row = analysis[stats.name]
        response = row.deadline if row.response is None and row.meets else row.response
        if response is None:
            return None, f"{stats.name} has no worst response time, its verdict is {row.verdict!r}"
        if response > row.period:
            return None, f"{stats.name} may answer after its next release, which it misses then"
        responses.append(response)
    settings = [stats.settings for stats in every]
    periods, phases = [exact_period(s) for s in settings], [int(s["phase_ns"]) for s in settings]
    # A loop that moves its grid is on the common one no longer.
    return bound_age(phases, periods, responses, is_aligned=all(s.get("overrun") != "shift" for s in settings)), None


def _is_undisturbed(
    every: Sequence[Stats], values: NDArray[np.int64], releases: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Tell of which cycles the way of the data had no missed release in it, of any loop of the chain."""
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
    """Say how many cycles are beyond the bound, and whether missed releases are why."""
    count, more = int(np.count_nonzero(over)), int(np.count_nonzero(unexplained))
    why = "releases were missed on the way, each time"
    if more:
        why = f"in {more:,} of them no release was missed: a response is longer than analyze() says"
    return (
        f"{count:,} of {len(values):,} cycles acted on data older than the bound, the worst on data of "
        f"{_time(int(values.max()))}: {why}"
    )


def _describe_stale(values: NDArray[np.int64], releases: NDArray[np.int64], max_age: int, origin_ns: int | None) -> str:
    """Say where data was older than intended; nothing where none was."""
    older = int(np.count_nonzero(values > max_age))
    if not older:
        return ""
    worst = int(values.argmax())
    when = "" if origin_ns is None else f", {_time(int(releases[worst]) - origin_ns)} after the origin"
    return (
        f"{older:,} of {len(values):,} cycles acted on data that was older than {_time(max_age)}; "
        f"the worst on data of {_time(int(values[worst]))}{when}"
    )
