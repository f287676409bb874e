"""Properties of every loop, whatever its settings, overruns and lateness, checked in virtual time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rtloop
from rtloop import RTLoop, Stats

PERIODS = st.sampled_from([2_000, 10_000, 1_000_000, 33_333_333])
#: Durations as shares of the period: mostly short, now and then several periods, once in a while a stall.
SHARES = st.lists(
    st.one_of(st.floats(0, 0.9), st.floats(0, 5), st.sampled_from([0.0, 1.0, 2.0, 3.0, 700_000.0])),
    min_size=1,
    max_size=40,
)
POLICIES = st.sampled_from(["skip", "catch-up", "shift"])
CYCLES = st.integers(1, 200)


@st.composite
def loops(draw: st.DrawFn) -> dict[str, Any]:
    """Draw the keywords of a loop, and the models and the length of its simulation."""
    period = draw(PERIODS)
    spin = draw(st.sampled_from([0, period // 3, "auto"]))
    keywords = {
        "period": f"{period}ns",
        "phase": draw(st.sampled_from([0, 1, period // 2, 3 * period])),
        "align": None if (periods := draw(st.sampled_from([0, 7, 1000]))) == 0 else f"{periods * period}ns",
        "overrun": draw(POLICIES),
        "max_burst": draw(st.integers(1, 5)),
        "warmup": draw(st.integers(0, 20)),
        "spin": spin,
        "name": "drawn",
    }
    return {
        "keywords": keywords,
        "cycles": draw(CYCLES),
        "execution": np.array([int(share * period) for share in draw(SHARES)]),
        "latency": np.array([int(share * period) for share in draw(SHARES)]),
    }


def simulate(case: dict[str, Any]) -> Stats:
    loop = RTLoop(**case["keywords"])
    return loop.simulate(cycles=case["cycles"], execution=case["execution"], latency=case["latency"])


@settings(derandomize=True, max_examples=150, deadline=None)
@given(loops())
def test_every_release_on_the_grid_is_run_or_missed(case: dict[str, Any]) -> None:
    stats = simulate(case)
    period, policy = stats.settings["period_ns"], stats.settings["overrun"]
    release, end = stats.records["release"], stats.records["end"]
    assert stats.cycles == case["cycles"] == len(release)
    elapsed = int(release[-1] - release[0])
    late = max(0, int(end[-1]) - int(release[-1]) - period)
    if policy == "shift":
        assert stats.missed == 0
        moved = np.maximum(0, end[:-1] - release[:-1] - period)
        np.testing.assert_array_equal(np.diff(release), period + moved)
        return
    assert (np.diff(release) % period == 0).all() and (np.diff(release) > 0).all()
    # What the last cycle has made late is missed at once by "skip", and by "catch-up" when the burst is over.
    behind = -(-late // period)
    before = elapsed // period + 1
    allowed = {before + behind} if policy == "skip" else {before, before + behind}
    assert stats.cycles + stats.missed in allowed


@settings(derandomize=True, max_examples=150, deadline=None)
@given(loops())
def test_cycles_follow_one_another_and_take_what_the_model_says(case: dict[str, Any]) -> None:
    records = simulate(case).records
    release, start, end = (records[name] for name in ("release", "start", "end"))
    assert (start >= release).all(), "nobody starts early"
    assert (start[1:] >= end[:-1]).all(), "nor before the cycle before has ended"
    np.testing.assert_array_equal(end - start, np.resize(case["execution"], len(records)))


@settings(derandomize=True, max_examples=150, deadline=None)
@given(loops())
def test_counters_and_histograms_are_those_of_the_records(case: dict[str, Any]) -> None:
    stats = simulate(case)
    release, start, end = (stats.records[name] for name in ("release", "start", "end"))
    period, warmup = stats.settings["period_ns"], stats.settings["warmup"]
    overran = end > release + period
    assert stats.overruns == overran.sum()
    assert stats.stalls == (end - release - period > 10**9).sum()
    assert stats.late == (end[:-1] > release[1:]).sum()
    assert stats.warmup == min(warmup, stats.cycles)
    values = {"latency": start - release, "execution": end - start, "response": end - release}
    for name, expected in values.items():
        histogram = getattr(stats, name)
        expected = expected[warmup:]
        assert histogram.count == histogram.counts.sum() == len(expected), name
        if len(expected):
            assert (histogram.min, histogram.max) == (expected.min(), expected.max()), name
            assert abs(histogram.mean - float(expected.mean())) <= 1e-6 * max(1, histogram.max), name
    assert stats.interval.count == max(0, stats.cycles - warmup - 1)
    assert stats.duration_ns == end[-1] - release[0]


@settings(derandomize=True, max_examples=50, deadline=None)
@given(loops())
def test_the_same_again_is_the_same_to_the_bit(case: dict[str, Any]) -> None:
    one, two = simulate(case), simulate(case)
    assert one.to_json(records=True) == two.to_json(records=True)


@settings(derandomize=True, max_examples=50, deadline=None)
@given(loops(), st.integers(0, 5))
def test_a_simulation_replayed_from_its_own_record_is_the_same(case: dict[str, Any], more: int) -> None:
    one = simulate(case)
    two = RTLoop(**case["keywords"]).simulate(cycles=case["cycles"], execution=one, latency=one)
    np.testing.assert_array_equal(one.records, two.records)
    assert (one.missed, one.overruns, one.late) == (two.missed, two.overruns, two.late)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(loops(), st.integers(1, 4))
def test_so_many_overruns_in_a_row_fail_it_and_no_fewer(case: dict[str, Any], limit: int) -> None:
    stats = simulate(case)
    overran = stats.records["end"] > stats.records["release"] + stats.settings["period_ns"]
    row, ended = 0, None
    for index, is_overrun in enumerate(overran):
        row = row + 1 if is_overrun else 0
        if row >= limit:
            ended = index
            break
    case["keywords"]["max_overruns"] = limit
    loop = RTLoop(**case["keywords"])
    if ended is None:
        loop.simulate(cycles=case["cycles"], execution=case["execution"], latency=case["latency"])
    else:
        with pytest.raises(rtloop.OverrunError) as caught:
            loop.simulate(cycles=case["cycles"], execution=case["execution"], latency=case["latency"])
        assert caught.value.cycle == ended
    assert loop.stats.cycles == (case["cycles"] if ended is None else ended + 1)


@settings(derandomize=True, max_examples=50, deadline=None)
@given(loops(), loops())
def test_beside_another_loop_each_is_as_it_is_alone(one: dict[str, Any], two: dict[str, Any]) -> None:
    def make() -> list[RTLoop]:
        return [RTLoop(**case["keywords"]) for case in (one, two)]

    pair = make()
    duration = f"{50 * max(loop.settings.period_ns for loop in pair)}ns"
    if min(loop.settings.period_ns for loop in pair) * 200_000 < pair[0].settings.period_ns * 50:
        return  # a loop so much faster than the other takes more cycles than a test has time for
    models = {
        name: {loop: case[name] for loop, case in zip(pair, (one, two), strict=True)}
        for name in ("execution", "latency")
    }
    together = rtloop.simulate(pair, duration, **models)
    for loop, case, stats in zip(make(), (one, two), together, strict=True):
        alone = loop.simulate(duration, execution=case["execution"], latency=case["latency"])
        np.testing.assert_array_equal(alone.records, stats.records)
        assert (alone.cycles, alone.missed, alone.latency) == (stats.cycles, stats.missed, stats.latency)
