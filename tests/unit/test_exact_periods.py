"""Periods that are no whole number of nanoseconds: parsed, run in virtual time, and analysed without a drift."""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

import pytest

from rtloop import ConfigError, LoopGroup, RTLoop, Stats
from rtloop.group.data_age import bound_age
from rtloop.stats.findings import elapsed_releases

RATES = {
    "44.1kHz": Fraction(10**7, 441),
    "48kHz": Fraction(62_500, 3),
    "3kHz": Fraction(10**6, 3),
    "120Hz": Fraction(25 * 10**6, 3),
    "30000/1001Hz": Fraction(1001 * 10**5, 3),
    "1/60s": Fraction(50 * 10**6, 3),
    "1024Hz": Fraction(1_953_125, 2),
    "1kHz": Fraction(10**6),
}


@pytest.mark.parametrize("rate", RATES)
def test_a_rate_is_exact_and_so_is_every_release(rate: str, tmp_path) -> None:
    loop = RTLoop(rate, phase="7ns", warmup=0)
    assert loop.settings.period == RATES[rate] and loop.settings.period_ns == round(RATES[rate] + Fraction(1, 10**9))
    draw = random.Random(1)
    steps = [draw.randrange(1, int(4 * RATES[rate])) for _ in range(500)]
    stats = loop.simulate(cycles=3_000, execution=steps)
    numbers = [round((int(release) - 10**9 - 7) / RATES[rate]) for release in stats.records["release"]]
    assert (
        stats.records["release"].tolist() == [10**9 + 7 + round(k * RATES[rate]) for k in numbers] or rate == "1024Hz"
    )
    assert stats.records["release"].tolist() == [round(10**9 + 7 + k * RATES[rate]) for k in numbers]
    least, most = elapsed_releases(stats) or (0, 0)
    assert stats.missed > 0 and least <= stats.cycles + stats.missed <= most
    loaded = Stats.load(stats.save(tmp_path / "run"))
    assert elapsed_releases(loaded) == (least, most) and Fraction(loaded.settings["period"]) == RATES[rate]


def test_a_fraction_is_in_seconds() -> None:
    assert RTLoop(Fraction(1, 60)).settings.period == RATES["1/60s"]
    with pytest.raises(ConfigError, match="denominator"):
        RTLoop(Fraction(2**80 + 1, 2**90 + 3))


def test_a_hyperperiod_is_exact() -> None:
    group = LoopGroup([RTLoop("120Hz", name="a"), RTLoop("60Hz", name="b")])
    assert (group.hyperperiod, group.hyperperiod_ns) == (Fraction(1, 60), 16_666_667)
    assert LoopGroup([RTLoop("3kHz", name="a"), RTLoop("1kHz", name="b")]).hyperperiod == Fraction(1, 1000)
    assert bound_age([0, 0], [Fraction(10**6, 3), 10**6], [1000, 1000]) < 10**6


@pytest.mark.parametrize(("period", "align", "nearest"), [
    ("3ms", "1s", "'999ms'"), ("30000/1001Hz", "1s", "'1.001s'"), ("10ms", "1ms", "'10ms'"),
])  # fmt: skip
def test_an_align_that_is_no_grid_is_refused_with_the_nearest(period: str, align: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=nearest):
        RTLoop(period, align=align)
    with pytest.raises(ConfigError, match=nearest):
        LoopGroup([RTLoop(period)], align=align)
    RTLoop(period, align=nearest.strip("'"))


@pytest.mark.parametrize(("period", "align"), [("3kHz", "1/3ms"), ("1/60s", Fraction(1, 60)), ("44.1kHz", "20/441s")])
def test_an_align_may_be_a_fraction_of_a_nanosecond(period: str, align: Any) -> None:
    """Origins are whole nanoseconds, so those multiples of it count that are."""
    loop = RTLoop(period, align=align)
    first = loop.simulate(cycles=1).records["release"][0]
    assert loop.settings.align_ns % loop.settings.period.numerator == 0 and first % loop.settings.align_ns == 0


def test_loops_of_one_align_are_on_one_grid_for_ever() -> None:
    first = RTLoop("44.1kHz", align="10ms").simulate(cycles=10_000).records["release"]
    later = RTLoop("44.1kHz", align="30ms").simulate(cycles=10_000).records["release"]
    both = set(first.tolist()) & set(later.tolist())
    assert len(both) > 8_000 and sorted(both) == [r for r in later.tolist() if first[0] <= r <= first[-1]]
