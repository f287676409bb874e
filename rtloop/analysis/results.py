"""Results of a schedulability analysis: a row per task, the utilisation bounds per CPU, and remarks on a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from rtloop.units import format_duration

__all__ = ["Analysis", "Bounds", "Response", "remarks"]


@dataclass(frozen=True)
class Response:
    """Result for one task; times in nanoseconds.

    `response` is the worst-case time from a release to the end of its work. It is None if it is unbounded or was not
    found, and always under EDF. `margin` is the deadline less `response`. `verdict` is ``"meets"``, ``"misses"``,
    ``"unbounded"`` if its CPU is overloaded, or ``"undecided"`` if a busy period is too long to be examined.
    `measured` is the longest response of a run, if there was one.
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
        """True if the analysis proves that every deadline is met."""
        return self.verdict == "meets"

    @property
    def margin(self) -> int | None:
        """The deadline less the worst response."""
        return None if self.response is None else self.deadline - self.response

    @property
    def is_exceeded(self) -> bool:
        """True if a run had a longer response than the analysis allows, so that some of its input is wrong."""
        return self.measured is not None and self.response is not None and self.measured > self.response


@dataclass(frozen=True)
class Bounds:
    """Utilisation tests of one CPU. None: the test does not apply to these tasks.

    `liu_layland` and `hyperbolic` are sufficient, not necessary: tasks for which they are False may still be
    schedulable. `density` is the sum of C / min(deadline, period). `admitted` is True if the utilisation is at most
    95 % of the CPU, up to which the kernel admits SCHED_DEADLINE tasks.
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
        """True if every task meets its deadlines, whatever the phases."""
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
    """Yield a remark for each task whose measured response contradicts the analysis."""
    for row in rows:
        if row.is_exceeded:
            yield (
                f"{row.name}: a response of {_or_dash(row.measured, format_duration)} was measured, which is over the "
                "bound: a step takes longer than its C, or something outside this table uses the same CPU"
            )
        elif row.response is None and row.measured is not None and row.meets and row.measured > row.deadline:
            yield (
                f"{row.name}: a response of {_or_dash(row.measured, format_duration)} was measured, which is over the "
                "deadline, although the analysis found it met: the input of the analysis does not describe the run"
            )
