"""Periods that are no whole number of nanoseconds: parsed, run in virtual time, and analysed without a drift."""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

import pytest

from rtloop import ConfigError, LoopGroup, RTLoop, Stats, simulate
from rtloop.group.data_age import bound_age
from rtloop.settings import exact_phase
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


@pytest.mark.parametrize(("rate", "phase", "exact"), [
    ("3kHz", "1/6ms", Fraction(10**6, 6)), ("3kHz", "2/3us", Fraction(2000, 3)), ("1kHz", "1/3us", Fraction(1000, 3)),
    ("44.1kHz", "1/7us", Fraction(1000, 7)), ("1024Hz", "0.5ns", Fraction(1, 2)),
    ("1000001ns", "0.5ns", Fraction(1, 2)), ("1kHz", "1.5ns", Fraction(3, 2)),
    ("3kHz", Fraction(1, 6000), Fraction(10**6, 6)),
])  # fmt: skip
@pytest.mark.parametrize("clock", ["monotonic", "tai"])
def test_a_phase_is_exact_and_so_is_every_release(rate: str, phase: Any, exact: Fraction, clock: str, tmp_path) -> None:
    loop = RTLoop(rate, phase=phase, clock=clock, warmup=0)
    settings = loop.settings
    assert settings.phase == exact and abs(settings.phase_ns - exact) <= Fraction(1, 2)
    stats = loop.simulate(cycles=1_000)
    assert stats.records["release"].tolist() == [round(10**9 + exact + k * settings.period) for k in range(1_000)]
    assert elapsed_releases(stats) == (1_000, 1_000)
    assert stats.settings["phase"] == str(exact)
    loaded = Stats.load(stats.save(tmp_path / "run"))
    assert exact_phase(loaded.settings) == exact and loaded.settings["phase_ns"] == settings.phase_ns
    late = loop.simulate(cycles=300, execution=[int(3 * settings.period), 1])
    assert late.missed and set(late.records["release"].tolist()) < {
        round(10**9 + exact + k * settings.period) for k in range(1_300)
    }


def test_half_a_nanosecond_does_not_add_a_cycle() -> None:
    """A release rounded down is a nanosecond before the time by which the cycles are used up."""
    for cycles in range(1, 8):
        assert RTLoop("1000001ns", phase="0.5ns", warmup=0).simulate(cycles=cycles).cycles == cycles


def test_phases_of_a_group_are_exact_and_so_is_the_age_of_its_data() -> None:
    loops = [RTLoop("3kHz", name="a"), RTLoop("3kHz", phase="1/6ms", name="b"), RTLoop("1kHz", phase="2/3us", name="c")]
    for loop, stats in zip(loops, simulate(loops, "20ms"), strict=True):
        releases, settings = stats.records["release"].tolist(), loop.settings
        assert releases == [round(10**9 + settings.phase + k * settings.period) for k in range(len(releases))]
    period = Fraction(10**6, 3)
    # b, half a period after a, reads what a has computed from a release half a period ago: 166666.67 and a ns.
    assert bound_age([0, Fraction(10**6, 6)], [period, period], [1000, 1000]) == 166_667 + 1_000 + 1


@pytest.mark.parametrize("is_aligned", [False, True])
def test_releases_of_running_loops_are_as_in_virtual_time(is_aligned: bool, ordinary) -> None:
    loops = [RTLoop("300Hz", phase="1/6ms", name="a", **ordinary), RTLoop("3ms", phase="2/3us", name="b", **ordinary)]
    group = LoopGroup(loops, align="30ms" if is_aligned else None)
    group.run("60ms")
    alone = RTLoop("300Hz", phase="1/6ms", align="10ms" if is_aligned else None, **ordinary)
    alone.run("30ms")
    for loop in [*loops, alone]:
        settings, releases = loop.settings, loop.stats.records["release"].tolist()
        origin = round(releases[0] - settings.phase) if loop is alone else group.origin_ns
        assert not settings.align_ns or origin % settings.align_ns == 0
        grid = {round(origin + settings.phase + k * settings.period) for k in range(10_000)}
        assert releases and set(releases) <= grid


def test_a_phase_and_a_period_need_a_common_denominator() -> None:
    with pytest.raises(ConfigError, match="common denominator") as caught:
        RTLoop(Fraction(2**29, 2**40 - 87), phase=Fraction(1, 2**41 - 21))
    assert "is nearly the same" in str(caught.value)


def test_a_phase_of_an_older_file_is_whole() -> None:
    assert exact_phase({"phase_ns": 7}) == 7 and exact_phase({}) == 0
    assert exact_phase({"phase_ns": 7, "phase": "20/3"}) == Fraction(20, 3)
    assert exact_phase({"phase_ns": 7, "phase": "9"}) == 7


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
