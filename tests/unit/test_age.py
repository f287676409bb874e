"""Age of data at the end of a chain: traced through records, never beyond its bound, and reported when too old."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rtloop
from rtloop import Chain, ConfigError, Latest, LoopGroup, Ring, RTLoop, Stats
from rtloop.group.data_age import bound_age, measure_age

MS = 1_000_000
ORDINARY: dict[str, Any] = {"policy": "other", "strict": False, "dma_latency": None, "lock_memory": "off"}


def make(name: str, period: int, rows: list[tuple[int, int, int]], **others: Any) -> Stats:
    """Return stats with these records: release, start and end."""
    base = RTLoop(period, name=name, warmup=0).simulate(cycles=len(rows))
    records = np.array(rows, dtype=base.records.dtype)
    return dataclasses.replace(base, records=records, **others)


def test_the_age_is_from_the_release_that_sensed_to_the_end_that_acts() -> None:
    """The reader that starts at 25 has the cycle that ended at 12; the one that starts at 45 that of 32, not of 50."""
    sense = make("sense", 10_000, [(0, 1, 12), (20, 21, 32), (40, 41, 50)])
    act = make("act", 10_000, [(5, 5, 9), (25, 25, 29), (45, 45, 49)])
    ages, releases, unknown = measure_age([sense, act])
    assert ages.tolist() == [29 - 0, 49 - 20] and releases.tolist() == [25, 45]
    assert unknown == 1, "at 5 there was nothing to read"


def test_what_ends_as_another_starts_has_been_published() -> None:
    sense, act = make("sense", 10_000, [(0, 0, 10)]), make("act", 10_000, [(10, 10, 11)])
    assert measure_age([sense, act])[0].tolist() == [11]


def test_a_chain_of_three_adds_up_and_may_come_back_to_its_first_loop() -> None:
    fast = make("fast", 10_000, [(0, 0, 2), (10, 10, 12), (20, 20, 22), (30, 30, 32)])
    slow = make("slow", 20_000, [(5, 5, 9), (25, 25, 29)])
    ages, releases, unknown = measure_age([fast, slow, fast])
    assert releases.tolist() == [10, 20, 30] and ages.tolist() == [12 - 0, 22 - 0, 32 - 20] and unknown == 1


def test_cycles_whose_data_is_older_than_the_records_are_counted_and_not_guessed() -> None:
    sense = make("sense", 10_000, [(40, 40, 42), (50, 50, 52)], cycles=6)
    act = make("act", 10_000, [(35, 35, 36), (45, 45, 46), (55, 55, 56)])
    ages, _, unknown = measure_age([sense, act])
    assert ages.tolist() == [6, 6] and unknown == 1


def test_a_run_that_goes_on_is_not_traced_beyond_what_was_read_of_it() -> None:
    """The writer's records were read before the reader's: what it has published since is not known."""
    sense = make("sense", 10_000, [(0, 0, 2)], state="running")
    act = make("act", 10_000, [(1, 1, 2), (2, 2, 3), (35, 35, 36)], state="running")
    ages, _, unknown = measure_age([sense, act])
    assert ages.tolist() == [3] and unknown == 2
    stopped = dataclasses.replace(sense, state="stopped")
    assert measure_age([stopped, act])[0].tolist() == [3, 36], "it has ended: the data is as old as that"


def test_without_phases_the_bound_is_that_of_davare() -> None:
    """Davare et al. (DAC 2007): every stage adds a period and a response; the last one only its response."""
    assert bound_age([0, 0, 0], [100, 50, 20], [30, 10, 5], is_aligned=False) == 100 + 30 + 50 + 10 + 5


def test_the_bound_on_one_origin_by_hand() -> None:
    """The reader at 4 has the cycle of 0 where that takes 4, and that of -10 where it may take 5."""
    assert bound_age([0, 4], [10, 10], [4, 2]) == 4 + 2
    assert bound_age([0, 4], [10, 10], [5, 2]) == 14 + 2
    # At 0 the last has what the second was given at -10, and that what the first was at -20; at 5 it is 15 old.
    assert bound_age([0, 0, 0], [10, 10, 5], [3, 3, 2]) == 20 + 2
    assert bound_age([0, 0], [10**9 + 7, 10**9 + 9], [10, 20]) == 10**9 + 7 + 10 + 20, "too long to look through"


LOOPS = st.lists(
    st.tuples(st.sampled_from([2, 3, 4, 5, 6, 8, 10, 12]), st.integers(0, 11), st.integers(1, 12)),
    min_size=2, max_size=4,
)  # fmt: skip


def run(loops: list[tuple[int, int, int]], draw) -> list[Stats]:
    """Let loops run for three hyperperiods: each response is what is drawn, up to the worst; the start before that."""
    every = []
    end = 3 * math.lcm(*(period for period, _, _ in loops)) + 60
    for number, (period, phase, worst) in enumerate(loops):
        cycles, free = [], -100
        for release in range(phase - period * ((phase + 60) // period), end, period):
            done = release + draw(worst)
            start = max(free, draw(done - release) + release)
            cycles.append((release, min(start, done), done))
            free = done
        every.append(make(str(number), period * 1000, cycles))
    return every


@settings(max_examples=150, deadline=None)
@given(loops=LOOPS, data=st.data())
def test_no_schedule_makes_data_older_than_the_bound(loops, data) -> None:
    loops = [(period, phase % period, min(worst, period)) for period, phase, worst in loops]
    periods, phases, worst = zip(*loops, strict=True)
    bound = bound_age(phases, periods, worst)
    assert bound <= bound_age(phases, periods, worst, is_aligned=False)
    random = data.draw(st.randoms(use_true_random=False))
    ages, _, _ = measure_age(run(loops, lambda most: random.randint(0, most)))
    assert not len(ages) or ages.max() <= bound


@settings(max_examples=100, deadline=None)
@given(loops=LOOPS)
def test_the_bound_is_reached_where_all_start_at_once_and_take_their_worst(loops) -> None:
    loops = [(period, phase % period, min(worst, period)) for period, phase, worst in loops]
    periods, phases, worst = zip(*loops, strict=True)
    every = []
    for stats, (_, _, response) in zip(run(loops, lambda most: most), loops, strict=True):
        records = stats.records.copy()
        records["start"], records["end"] = records["release"], records["release"] + response
        every.append(dataclasses.replace(stats, records=records))
    ages, releases, _ = measure_age(every)
    assert ages[releases >= 0].max() == bound_age(phases, periods, worst)


def group(**settings: Any) -> LoopGroup:
    sense, act = RTLoop("1ms", name="sense"), RTLoop("2ms", name="act", phase="300us")
    return LoopGroup([sense, act], chains=[Chain([sense, act], **settings)], cpus=[0, 1])


def simulate(group: LoopGroup, execution: str = "200us") -> None:
    for loop in group.loops:
        loop.simulate("100ms", execution=execution, latency="20us")


def test_a_group_tells_the_age_of_its_chains_beside_the_bound() -> None:
    """Act reads at 320 us what sense has published at 220 us, and ends at 520 us."""
    g = group(max_age="1ms")
    simulate(g)
    age = g.ages()["sense -> act"]
    assert (age.max, age.median, age.bound, age.stale, age.count) == (520_000, 520_000, 520_000, 0, 50)
    text = str(g.ages())
    assert "sense -> act" in text and "520 us" in text and "does not prove" in text and "older than" not in text
    json.dumps(g.ages().to_dict())


def test_data_that_is_older_than_intended_is_named_and_so_is_that_it_can_be() -> None:
    g = group(max_age="500us")
    simulate(g)
    age = g.ages()["sense -> act"]
    assert age.stale == 50 and "50 of 50 cycles acted on data that was older than 500 us" in age.stale_note
    assert "can be as old as 520 us, which is more than the 500 us intended" in str(g.ages())


def test_a_bound_that_a_run_exceeds_says_what_that_means() -> None:
    g = group()
    simulate(g)
    text = str(g.ages({"sense": "10us", "act": "10us"}))
    assert "50 of 50 cycles acted on data older than the bound, the oldest 520 us old: in 50 of them no" in text


def test_where_a_missed_release_made_data_older_than_the_bound_it_says_so() -> None:
    """A step of sense takes 2.5 ms: the releases at 11 and 12 ms are missed, and act has old data twice."""
    g = group()
    sense, act = g.loops
    sense.simulate("100ms", execution=["200us"] * 10 + ["2500us"] + ["200us"] * 100)
    act.simulate("100ms", execution="200us")
    text = str(g.ages({"sense": "200us", "act": "200us"}))
    assert "2 of 50 cycles acted on data older than the bound" in text
    assert "missed releases explain all of them" in text and "sense missed 2 releases" in text


@pytest.mark.parametrize(
    ("loop", "wcet", "word"),
    [
        ({"overrun": "skip"}, {"sense": "1500us", "act": "1us"}, "no worst response time, its verdict is 'unbounded'"),
        (ORDINARY, {"sense": "1us", "act": "1us"}, "policies fifo, other: only loops"),
    ],
)
def test_without_response_times_there_is_no_bound_and_it_says_why(loop, wcet, word: str) -> None:
    sense, act = RTLoop("1ms", name="sense", **loop), RTLoop("2ms", name="act")
    g = LoopGroup([sense, act], chains=[Chain([sense, act])])
    simulate(g)
    age = g.ages(wcet)["sense -> act"]
    assert age.bound is None and age.count and f"no bound: {age.notes[0]}".count(word)


def test_a_loop_that_moves_its_grid_has_the_bound_for_any_phases() -> None:
    sense, act = RTLoop("1ms", name="sense", overrun="shift"), RTLoop("2ms", name="act", phase="300us")
    g = LoopGroup([sense, act], chains=[Chain([sense, act])], cpus=[0, 1])
    simulate(g)
    assert g.ages()["sense -> act"].bound == 1_000_000 + 220_000 + 220_000


def test_a_real_run_warns_once_of_data_that_was_too_old() -> None:
    sense, act = RTLoop("5ms", name="sense", **ORDINARY), RTLoop("5ms", name="act", **ORDINARY)
    g = LoopGroup([sense, act], chains=[Chain([sense, act], max_age=1000)], name="servo")
    with pytest.warns(rtloop.RTSetupWarning, match=r"servo: data was older than intended:\nsense -> act: \d+ of"):
        g.run("50ms")
    fine = LoopGroup([sense, act], chains=[Chain([sense, act], max_age="10s")])
    with warnings.catch_warnings(action="error"):
        g.join()
        fine.run("50ms")


def test_exchanges_know_their_ends() -> None:
    sense, act = RTLoop("1ms", name="sense"), RTLoop("2ms", name="act")
    latest, ring = Latest("f8"), Ring("f8", 8)
    assert latest.ends is None and "to" not in repr(latest)
    LoopGroup([sense, act], chains=[Chain([sense, act, sense], via=[latest, ring])])
    assert latest.ends == ("sense", "act") and ring.ends == ("act", "sense")
    assert repr(latest).endswith(", sense to act)") and repr(ring).endswith(", act to sense)")


def test_a_chain_that_does_not_fit_says_why() -> None:
    a, b, c = (RTLoop("1ms", name=name) for name in "abc")
    latest = Latest("f8")
    for arguments, word in (
        (([a],), "at least two loops"),
        (([a, "b"],), "at least two loops"),
        ((None,), "at least two loops"),
        (([a, a],), "a comes twice in a row"),
        (([a, b], []), "via has 0 exchanges; a chain of 2 loops needs 1"),
        (([a, b], ["x"]), "give the Ring or the Latest"),
    ):
        with pytest.raises(ConfigError, match=word):
            Chain(*arguments)
    with pytest.raises(ConfigError, match="max_age"):
        Chain([a, b], max_age=0)
    with pytest.raises(ConfigError, match="c is not a loop of the group"):
        LoopGroup([a, b], chains=[Chain([a, c])])
    with pytest.raises(ConfigError, match="2 chains are called 'a -> b'"):
        LoopGroup([a, b], chains=[Chain([a, b]), Chain([a, b])])
    with pytest.raises(ConfigError, match=r"goes from b to a here, and from a to b in 'a -> b'; it can have only"):
        LoopGroup([a, b], chains=[Chain([a, b], [latest]), Chain([b, a], [latest])])
    with pytest.raises(ConfigError, match="must be a list of Chain"):
        LoopGroup([a, b], chains=[[a, b]])  # type: ignore[list-item]
    assert latest.ends is None, "a group that was refused has told nobody"
