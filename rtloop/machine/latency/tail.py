"""Claims that a measured tail of latencies supports: a rate, a confidence, the time needed for more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from rtloop.stats.histogram import Histogram
from rtloop.units import format_duration, format_rate

__all__ = ["CONFIDENCE", "Claim", "Tail", "bound", "claims", "conclude", "format_time", "late_than"]

#: Confidence of every claim.
CONFIDENCE = 0.95
#: Usual loop rates, Hz.
RATES = (10_000, 8_000, 5_000, 4_000, 2_000, 1_000, 500, 250, 100, 50)
#: A rate counts as supported if a wake-up takes no more than this part of its period.
BUDGET = 0.5


class Claim(NamedTuple):
    """Claim about one rate.

    Attributes
    ----------
    rate_hz : int
        The rate.
    budget_ns : int
        Half of its period, which the wake-up may take.
    late : int
        Wake-ups of all loops that took longer, each release that was missed meanwhile included.
    fraction : float
        At most this part of a loop's wake-ups takes longer, at the `CONFIDENCE`. For several loops, that of the loop
        with the weakest evidence, because each CPU is judged by itself.
    """

    rate_hz: int
    budget_ns: int
    late: int
    fraction: float


class Tail(NamedTuple):
    """Measurement of one loop: its wake-up latencies, and the releases that late ones made it miss."""

    histogram: Histogram
    missed: int = 0


def late_than(histogram: Histogram, limit_ns: float) -> int:
    """Count the values above a limit; values in the limit's own bin count unless none can exceed it."""
    if not histogram.count or histogram.max <= limit_ns:
        return 0
    return int(histogram.counts[histogram.edges[1:] > limit_ns].sum())


def bound(late: int, count: int, confidence: float = CONFIDENCE) -> float:
    """Return the upper bound of a probability, given `late` hits in `count` independent trials.

    It is the Poisson bound, slightly above the exact one of Clopper and Pearson; without hits it is the "rule of
    three", 3.0 / count at 95 %.
    """
    if count <= 0:
        return 1.0
    if late > 500:  # the normal approximation is as good, and the Poisson sum would underflow
        return min(1.0, (late + 2 * math.sqrt(late)) / count)
    low, high = float(late), late + 10.0 * math.sqrt(late + 1.0) + 20.0
    for _ in range(100):
        middle = (low + high) / 2
        term = total = math.exp(-middle)
        for k in range(1, late + 1):
            term *= middle / k
            total += term
        low, high = (middle, high) if total > 1 - confidence else (low, middle)
    return min(1.0, high / count)


def claims(tails: Sequence[Tail]) -> list[Claim]:
    """Return the claim about each usual rate, the fastest first."""
    found = []
    for rate in RATES:
        budget = int(BUDGET * 1e9 / rate)
        # A release is missed during a late wake-up, so it waited no longer than that one.
        late = [count + tail.missed if (count := late_than(tail.histogram, budget)) else 0 for tail in tails]
        known = [bound(count, tail.histogram.count + tail.missed) for count, tail in zip(late, tails, strict=True)]
        found.append(Claim(rate, budget, sum(late), max(known, default=1.0)))
    return found


def format_time(seconds: float) -> str:
    """Format a waiting time: ``"30 s"``, ``"50 min"``, ``"14 h"``, ``"3 days"``."""
    for unit, scale in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * scale:
            return f"{seconds / scale:.0f} {unit}"
    return f"{seconds:.3g} s"


def _one_in(fraction: float) -> str:
    return f"one in {round(1 / fraction):,}"


def conclude(tails: Sequence[Tail], period_ns: int) -> str:
    """Summarise the rate that this machine supports, the confidence, and the time needed to claim more.

    Parameters
    ----------
    tails : sequence of Tail
        One for each loop that ran at the same time.
    period_ns : int
        Of all of them.
    """
    if not all(tail.histogram.count for tail in tails):
        return "No cycle was measured: the run was no longer than its warm-up."
    count = sum(tail.histogram.count for tail in tails)
    seconds = max(tail.histogram.count + tail.missed for tail in tails) * period_ns * 1e-9
    worst = format_duration(max(tail.histogram.max for tail in tails), 1)
    found = claims(tails)
    carried = next((claim for claim in found if claim.late == 0), None)
    if carried is None:
        slowest = found[-1]
        return (
            f"The worst of {count:,} wake-ups in {format_time(seconds)} came {worst} late. As configured now, this"
            f" machine does not support even {slowest.rate_hz} Hz with half of the period left, because"
            f" {slowest.late:,} wake-ups took longer. See: rtloop doctor"
        )
    wanted = 1e-6 if carried.fraction > 2e-6 else carried.fraction / 10
    needed = 3.0 / wanted * period_ns * 1e-9
    where = " on any one of these CPUs" if len(tails) > 1 else ""
    return (
        f"The worst of {count:,} wake-ups in {format_time(seconds)} came {worst} late. A loop at"
        f" {format_rate(10**9 // carried.rate_hz)}{where} would have had half of its period left every time. With"
        f" {CONFIDENCE:.0%} confidence, fewer than {_one_in(carried.fraction)} of its wake-ups take more than"
        f" {format_duration(carried.budget_ns, 1)}, if the machine's load stays the same. To claim fewer than"
        f" {_one_in(wanted)}, measure for {format_time(needed)} without such a wake-up."
    )
