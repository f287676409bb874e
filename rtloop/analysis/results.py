"""What an analysis of deadlines has found: a row for each task, the bounds of each CPU, and what a run has shown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from rtloop.units import format_duration

__all__ = ["Analysis", "Bounds", "Response", "remarks"]


@dataclass(frozen=True)
class Response:
    """What the analysis says of a task; times in nanoseconds.

    `response` is the longest time from a release to the end of its work, None where there is none or it was not found,
    and under EDF, which is not asked for it. `margin` is what is left of the deadline then. `verdict` is ``"meets"``,
    ``"misses"``, ``"unbounded"`` where more is asked of its CPU than that has, or ``"undecided"`` where a busy period
    is too long to be looked through. `measured` is the longest response of a run, where there was one.
    """

    name: str
    period: int
    wcet: int
    deadline: int
    priority: int | None
    cpu: int | None
    response: int | None
    verdict: str
    measured: int | None = None

    @property
    def meets(self) -> bool:
        """Whether it is shown that every deadline is met."""
        return self.verdict == "meets"

    @property
    def margin(self) -> int | None:
        """The deadline less the worst response."""
        return None if self.response is None else self.deadline - self.response

    @property
    def is_exceeded(self) -> bool:
        """Whether a run has shown a longer response than there can be, if C and all else given here were true."""
        return self.measured is not None and self.response is not None and self.measured > self.response


@dataclass(frozen=True)
class Bounds:
    """What the utilisation of a CPU says by itself. None: the test does not apply to these tasks.

    `liu_layland` and `hyperbolic` are sufficient, not necessary: False is no refusal. `density` is the sum of C over
    the lesser of deadline and period. `admitted` is whether the utilisation is within the 95 % of a CPU up to which the
    kernel takes SCHED_DEADLINE tasks.
    """

    cpu: int | None
    utilisation: Fraction
    density: Fraction
    liu_layland: bool | None
    hyperbolic: bool | None
    admitted: bool


@dataclass(frozen=True)
class Analysis:
    """The outcome of :func:`analyze`."""

    policy: str
    rows: tuple[Response, ...]
    bounds: tuple[Bounds, ...]
    notes: tuple[str, ...]

    @property
    def is_schedulable(self) -> bool:
        """Whether every task meets its deadlines, whatever the phases."""
        return all(row.meets for row in self.rows)

    def __bool__(self) -> bool:
        return self.is_schedulable

    def __getitem__(self, name: str) -> Response:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a dict that JSON can hold, times in nanoseconds."""
        return {
            "policy": self.policy,
            "is_schedulable": self.is_schedulable,
            "rows": [
                {**vars(row), "margin": row.margin, "meets": row.meets, "is_exceeded": row.is_exceeded}
                for row in self.rows
            ],
            "bounds": [
                {**vars(b), "utilisation": float(b.utilisation), "density": float(b.density)} for b in self.bounds
            ],
            "notes": list(self.notes),
        }

    def summary(self) -> str:
        """Return the table as text."""
        heads = [
            "loop",
            "period",
            "C",
            "deadline",
            "priority",
            "CPU",
            "worst response",
            "measured",
            "margin",
            "verdict",
        ]
        rows = [
            [row.name, *(format_duration(ns) for ns in (row.period, row.wcet, row.deadline)), _or_dash(row.priority),
             _or_dash(row.cpu), _or_dash(row.response, format_duration), _or_dash(row.measured, format_duration),
             _signed(row.margin), row.verdict]
            for row in self.rows
        ]  # fmt: skip
        if all(row.measured is None for row in self.rows):
            rows = [[cell for cell, head in zip(row, heads, strict=True) if head != "measured"] for row in rows]
            heads.remove("measured")
        widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                 for row in [heads, *rows]]  # fmt: skip
        for b in self.bounds:
            where = "" if b.cpu is None else f"CPU {b.cpu}: "
            tests = {"Liu & Layland": b.liu_layland, "hyperbolic": b.hyperbolic}
            said = [f"{name} bound {'holds' if holds else 'does not hold'}" for name, holds in tests.items()
                    if holds is not None]  # fmt: skip
            lines.append(", ".join([f"{where}utilisation {float(b.utilisation):.3f}", *said]))
        return "\n".join([*lines, *self.notes])

    __str__ = summary


def _or_dash(value: Any, form: Any = str) -> str:
    return "-" if value is None else str(form(value))


def _signed(ns: int | None) -> str:
    return "-" if ns is None else f"-{format_duration(-ns)}" if ns < 0 else format_duration(ns)


def remarks(rows: Iterable[Response]) -> Iterable[str]:
    """Say where a run has shown what the analysis holds impossible, or missed what it says is met."""
    for row in rows:
        if row.is_exceeded:
            yield (
                f"{row.name}: a response of {_or_dash(row.measured, format_duration)} was measured, which is over the "
                "bound: a step takes longer than its C, or something that is not in this table takes time from its CPU"
            )
        elif row.response is None and row.measured is not None and row.meets and row.measured > row.deadline:
            yield (
                f"{row.name}: a response of {_or_dash(row.measured, format_duration)} was measured, which is over the "
                "deadline that the analysis says is met: its figures are not those of the run"
            )
