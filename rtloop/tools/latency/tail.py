"""What a measured tail of latencies lets one claim: a rate, a confidence, and how long to measure for more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from rtloop.stats.histogram import Histogram
from rtloop.units import format_duration, format_rate

__all__ = ["CONFIDENCE", "Claim", "Tail", "bound", "claims", "conclude", "format_time", "late_than"]

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
        How many wake-ups took longer, of all loops together; a release that was missed meanwhile is one of them.
    fraction : float
        At most this part of a loop's wake-ups takes longer, at the `CONFIDENCE`; of several loops that of the one of
        which the least is known, for on another CPU a loop is another one.
    """

    rate_hz: int
    budget_ns: int
    late: int
    fraction: float


class Tail(NamedTuple):
    """What was measured of one loop: its wake-up latencies, and how many releases were missed for a late one."""

    histogram: Histogram
    missed: int = 0


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
    if late > 500:  # the normal approximation is as good, and the sum of Poisson's would underflow
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
    """Return what the measurement says of each of the usual rates, the fastest first."""
    found = []
    for rate in RATES:
        budget = int(BUDGET * 1e9 / rate)
        # A release is missed while a late wake-up lasts, so it waited no longer: late at most where that one is.
        late = [count + tail.missed if (count := late_than(tail.histogram, budget)) else 0 for tail in tails]
        known = [bound(count, tail.histogram.count + tail.missed) for count, tail in zip(late, tails, strict=True)]
        found.append(Claim(rate, budget, sum(late), max(known, default=1.0)))
    return found


def format_time(seconds: float) -> str:
    """Write a time that a person has to wait: ``"30 s"``, ``"50 min"``, ``"14 h"``, ``"3 days"``."""
    for unit, scale in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * scale:
            return f"{seconds / scale:.0f} {unit}"
    return f"{seconds:.3g} s"


def _one_in(fraction: float) -> str:
    return f"one in {round(1 / fraction):,}"


def conclude(tails: Sequence[Tail], period_ns: int) -> str:
    """Say in a few sentences what rate this machine carries, how surely, and how long it takes to say more.

    Parameters
    ----------
    tails : sequence of Tail
        One of each loop that ran at the time.
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
            f"Of {count:,} wake-ups in {format_time(seconds)} the worst came {worst} late: as it is set up now, this"
            f" machine does not carry even {slowest.rate_hz} Hz with half of the period left: it took longer"
            f" {slowest.late:,} times. See: rtloop doctor"
        )
    wanted = 1e-6 if carried.fraction > 2e-6 else carried.fraction / 10
    needed = 3.0 / wanted * period_ns * 1e-9
    where = " on any one of these CPUs" if len(tails) > 1 else ""
    return (
        f"Of {count:,} wake-ups in {format_time(seconds)} the worst came {worst} late. A loop at"
        f" {format_rate(10**9 // carried.rate_hz)}{where} would have had half of its period left every time; at"
        f" {CONFIDENCE:.0%} confidence fewer than {_one_in(carried.fraction)} of its wake-ups take more than"
        f" {format_duration(carried.budget_ns, 1)}, if the machine's load stays as it was. To claim fewer than"
        f" {_one_in(wanted)}, measure for {format_time(needed)} without one."
    )
