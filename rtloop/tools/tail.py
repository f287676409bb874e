"""What a measured tail of latencies lets one claim: a rate, a confidence, and how long to measure for more."""

from __future__ import annotations

import math
from typing import NamedTuple

from rtloop.data.histogram import Histogram
from rtloop.units import format_duration, format_rate

__all__ = ["CONFIDENCE", "Claim", "bound", "claims", "conclude", "format_time", "late_than"]

#: Of every statement.
CONFIDENCE = 0.95
#: Rates people run loops at, Hz.
RATES = (10_000, 8_000, 5_000, 4_000, 2_000, 1_000, 500, 250, 100, 50)
#: A loop counts as carried where a wake-up takes no more than this part of its period.
BUDGET = 0.5


class Claim(NamedTuple):
    """What the measurement says of one rate.

    Attributes
    ----------
    rate_hz : int
        The rate.
    budget_ns : int
        Half of its period, which the wake-up may take.
    late : int
        How many wake-ups took longer.
    fraction : float
        At most this part of all wake-ups takes longer, at the `CONFIDENCE`.
    """

    rate_hz: int
    budget_ns: int
    late: int
    fraction: float


def late_than(histogram: Histogram, limit_ns: float) -> int:
    """Count the values of more than a limit; those of the bin that it is in count, too, unless none can exceed it."""
    if not histogram.count or histogram.max <= limit_ns:
        return 0
    return int(histogram.counts[histogram.edges[1:] > limit_ns].sum())


def bound(late: int, count: int, confidence: float = CONFIDENCE) -> float:
    """Return the upper bound of a probability, of which `late` of `count` independent trials are known.

    The Poisson bound, which is a little above the exact one of Clopper and Pearson; for none of them it is the "rule of
    three", 3.0 / count at 95 %.
    """
    if count <= 0:
        return 1.0
    low, high = float(late), late + 10.0 * math.sqrt(late + 1.0) + 20.0
    for _ in range(100):
        middle = (low + high) / 2
        term = total = math.exp(-middle)
        for k in range(1, late + 1):
            term *= middle / k
            total += term
        low, high = (middle, high) if total > 1 - confidence else (low, middle)
    return min(1.0, high / count)


def claims(histogram: Histogram) -> list[Claim]:
    """Return what the measurement says of each of the usual rates, the fastest first."""
    found = []
    for rate in RATES:
        budget = int(BUDGET * 1e9 / rate)
        late = late_than(histogram, budget)
        # Beyond a few hundred the normal approximation is as good, and the sum of Poisson's would underflow.
        fraction = bound(late, histogram.count) if late <= 500 else min(1.0, (late + 2 * late**0.5) / histogram.count)
        found.append(Claim(rate, budget, late, fraction))
    return found


def format_time(seconds: float) -> str:
    """Write a time that a person has to wait: ``"30 s"``, ``"50 min"``, ``"14 h"``, ``"3 days"``."""
    for unit, scale in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * scale:
            return f"{seconds / scale:.0f} {unit}"
    return f"{seconds:.3g} s"


def _one_in(fraction: float) -> str:
    return f"one in {round(1 / fraction):,}"


def conclude(histogram: Histogram, period_ns: int, loops: int = 1) -> str:
    """Say in a few sentences what rate this machine carries, how surely, and how long it takes to say more."""
    count = histogram.count
    if not count:
        return "No cycle was measured: the run was no longer than its warm-up."
    seconds = count * period_ns * 1e-9 / loops
    worst = format_duration(histogram.max, 1)
    carried = next((claim for claim in claims(histogram) if claim.late == 0), None)
    if carried is None:
        slowest = claims(histogram)[-1]
        return (
            f"Of {count:,} wake-ups in {format_time(seconds)} the worst came {worst} late: as it is set up now, this"
            f" machine does not carry even {slowest.rate_hz} Hz with half of the period left: it took longer"
            f" {slowest.late:,} times. See: rtloop doctor"
        )
    wanted = 1e-6 if carried.fraction > 2e-6 else carried.fraction / 10
    needed = 3.0 / wanted * period_ns * 1e-9 / loops
    return (
        f"Of {count:,} wake-ups in {format_time(seconds)} the worst came {worst} late. A loop at"
        f" {format_rate(10**9 // carried.rate_hz)} would have had half of its period left every time; at"
        f" {CONFIDENCE:.0%} confidence fewer than {_one_in(carried.fraction)} of its wake-ups take more than"
        f" {format_duration(carried.budget_ns, 0)}, if the machine's load stays as it was. To claim fewer than"
        f" {_one_in(wanted)}, measure for {format_time(needed)} without one."
    )
