"""Schedulability analysis: published task sets with known answers, and simulations that must stay within its bounds."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import rtloop
from rtloop import ConfigError, Task, analyze, partition

MS = 1_000_000


def ms(name: str, period: int, wcet: int, **others) -> Task:
    times = {key: f"{value}ms" for key, value in others.items() if key in ("deadline", "jitter", "blocking")}
    return Task(name, f"{period}ms", f"{wcet}ms", **{**others, **times})


def responses(tasks: list[Task]) -> list[float | None]:
    return [None if row.response is None else row.response / MS for row in analyze(tasks).rows]


def test_the_three_tasks_of_burns_and_wellings() -> None:
    """Burns & Wellings, Real-Time Systems and Programming Languages: (7, 3), (12, 3), (20, 5) answer in 3, 6 and 20."""
    tasks = [ms("a", 7, 3, priority=3), ms("b", 12, 3, priority=2), ms("c", 20, 5, priority=1)]
    found = analyze(tasks)
    assert responses(tasks) == [3, 6, 20] and found and found["c"].margin == 0
    assert found.bounds[0].liu_layland is False, "0.93 of a CPU: the bound cannot tell, the response times can"


def test_their_set_at_full_load_meets_its_deadlines() -> None:
    """The same book, set C: (80, 40), (40, 10), (20, 5), a utilisation of 1 and harmonic periods."""
    tasks = [ms("a", 80, 40), ms("b", 40, 10), ms("c", 20, 5)]
    assert responses(tasks) == [80, 15, 5] and analyze(tasks).bounds[0].utilisation == 1


def test_their_set_a_misses_a_deadline_and_a_simulation_shows_it() -> None:
    """The same book, set A: (50, 12), (40, 10), (30, 10), of which the slowest has had 10 of its 12 at 50."""
    tasks = [ms("a", 50, 12), ms("b", 40, 10), ms("c", 30, 10)]
    found = analyze(tasks)
    assert responses(tasks)[0] == 52 and not found.is_schedulable and found["a"].verdict == "misses"
    assert found["a"].margin == -2 * MS and found["b"].meets and found["c"].meets
    seen = simulate([(30, 10, 0), (40, 10, 0), (50, 12, 0)], [0, 0, 0], 600)
    assert seen[2][0] == 52 > 50, "the first release already"


def test_the_worst_response_is_not_always_the_first() -> None:
    """Lehoczky (1990): (70, 26), (100, 62): the second task answers in 114, 102, 116, 104, 118, 106 and 94."""
    tasks = [ms("1", 70, 26), ms("2", 100, 62, deadline=120)]
    assert responses(tasks) == [26, 118] and analyze(tasks)
    assert simulate([(70, 26, 0), (100, 62, 0)], [0, 0], 700)[1] == [114, 102, 116, 104, 118, 106, 94]


def test_the_bound_of_liu_and_layland_at_its_edge() -> None:
    """Liu & Layland (1973): two tasks below 0.828 are always safe; at 5/6 these two are not."""
    safe, unsafe = [ms("a", 100, 41), ms("b", 141, 58)], [ms("a", 100, 42), ms("b", 141, 59)]
    assert analyze(safe).bounds[0].liu_layland and analyze(safe)
    assert not analyze(unsafe).bounds[0].liu_layland and not analyze(unsafe)
    harmonic = [ms("a", 10, 5), ms("b", 20, 10)]
    assert analyze(harmonic) and not analyze(harmonic).bounds[0].hyperbolic, "sufficient, not necessary"


def test_the_hyperbolic_bound_takes_what_the_older_one_does_not() -> None:
    """Bini, Buttazzo & Buttazzo (2003): the product of U + 1 up to 2."""
    (bounds,) = analyze([ms("a", 100, 60), ms("b", 1000, 250)]).bounds
    assert bounds.utilisation == Fraction(17, 20) and bounds.hyperbolic and not bounds.liu_layland
    assert analyze([ms("a", 100, 60, deadline=90), ms("b", 1000, 250)]).bounds[0].hyperbolic is None, "not its case"


def test_the_demand_of_buttazzos_three_tasks_fits() -> None:
    """Buttazzo, Hard Real-Time Computing Systems, the processor demand criterion: C 2, 2, 3; D 4, 5, 7; T 6, 8, 9."""
    tasks = [ms("1", 6, 2, deadline=4), ms("2", 8, 2, deadline=5), ms("3", 9, 3, deadline=7)]
    found = analyze(tasks, policy="edf")
    assert found and found.bounds[0].density > 1, "the density says nothing here"
    assert not analyze([*tasks[:2], ms("3", 9, 4, deadline=7)], policy="edf")


def test_blocking_and_jitter_are_added_where_they_belong() -> None:
    tasks = [ms("a", 10, 2, jitter=1), ms("b", 100, 20, blocking=3)]
    # b: 3 + 20 + ceil((w + 1) / 10) * 2 = 29, of which a comes three times in 30
    assert responses(tasks) == [3, 29]


def test_more_than_a_cpu_is_unbounded_and_ends() -> None:
    found = analyze([ms("a", 10, 6), ms("b", 20, 9)])
    assert found["b"].response is None and found["b"].verdict == "unbounded" and found["a"].meets
    assert [row.verdict for row in analyze([ms("a", 10, 6), ms("b", 20, 9)], policy="edf").rows] == ["unbounded"] * 2


@pytest.mark.parametrize("more", ["jitter", "blocking"])
def test_at_full_load_the_response_has_a_bound_though_the_busy_period_has_no_end(more: str) -> None:
    """Full load, and 1 ms more that is never made up: every release of b answers in 21, never later."""
    late = analyze([ms("a", 10, 6), ms("b", 20, 8, **{more: 1})])
    assert late["b"].response == (21 if more == "jitter" else 27) * MS and late["b"].verdict == "misses"
    assert analyze([ms("a", 10, 6), ms("b", 20, 8, **{more: 1}, deadline=27)])


def test_a_set_that_misses_under_edf_below_full_load_is_not_called_unbounded() -> None:
    tasks = [ms("a", 10, 4, deadline=5), ms("b", 10, 4, deadline=5)]
    assert [row.verdict for row in analyze(tasks, policy="edf").rows] == ["misses", "misses"]
    seen = simulate([(10, 4, 5), (10, 4, 5)], [0, 0], 20, edf=True)
    assert seen[1][0] == 8 > 5


@pytest.mark.parametrize(("jitter", "meets"), [(0, True), (1, True), (2, False)])
def test_edf_at_full_load_is_decided_with_jitter(jitter: int, meets: bool) -> None:
    """By 28 ms at most 3 releases of a are due, 2 of b and 4 of c: 29 ms of work, where a may be ready 2 ms late."""
    tasks = [ms("a", 10, 5, jitter=jitter), ms("b", 15, 5, deadline=13), ms("c", 6, 1)]
    assert analyze(tasks, policy="edf").is_schedulable is meets


def test_the_period_of_a_task_may_be_a_rate() -> None:
    assert Task("a", "1kHz", "5us").period == MS
    assert Task("a", "44.1kHz", "5us").period == Fraction(10**7, 441)


def test_a_busy_period_of_years_is_given_up_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Periods without a common factor at nearly full load: neither a hang nor a guess."""
    monkeypatch.setattr("rtloop.analysis.schedulability._MOST_STEPS", 1000)
    tasks = [Task("a", 1_000_003, 500_000), Task("b", 999_999_937, 500_001_468, deadline="10s")]
    row = analyze(tasks)["b"]
    assert row.response is None and row.verdict == "undecided" and not row.meets
    hard = [tasks[0], Task("b", 999_999_937, 500_001_468, deadline=500_000_000)]
    assert analyze(hard)["b"].verdict == "misses", "what was seen until then is enough to refute it"


def test_equal_priorities_delay_each_other() -> None:
    tasks = [ms("a", 10, 2, priority=5), ms("b", 10, 3, priority=5)]
    assert responses(tasks) == [5, 5]


def test_each_cpu_is_by_itself() -> None:
    found = analyze([ms("a", 10, 6, cpu=2), ms("b", 10, 6, cpu=3), ms("c", 20, 4, cpu=3)])
    assert found and [b.cpu for b in found.bounds] == [2, 3] and found["c"].response == 10 * MS


def test_partition_is_first_fit_decreasing() -> None:
    tasks = [ms("a", 10, 4), ms("b", 10, 6), ms("c", 10, 5), ms("d", 10, 3), ms("kept", 10, 1, cpu=1)]
    placed = {t.name: t.cpu for t in partition(tasks, [0, 1], most=1)}
    assert placed == {"b": 0, "c": 1, "a": 0, "d": 1, "kept": 1}
    with pytest.raises(ConfigError, match=r"d needs 0\.300 of a CPU.*CPU 0 has 0\.150 left"):
        partition([ms("a", 10, 8), ms("d", 10, 3)], [0])


def test_what_a_run_has_measured_is_a_task_that_says_what_it_is_worth() -> None:
    stats = rtloop.RTLoop("1ms", name="measured").simulate(cycles=1000, latency="40us", execution="200us")
    task = Task.from_stats(stats, deadline="900us")
    assert (task.period, task.wcet, task.jitter, task.deadline) == (MS, 200_000, 40_000, 900_000)
    assert "does not prove" in analyze([task]).notes[0] and analyze([task])["measured"].response == 240_000
    typical = Task.from_stats(stats, percentile=99.9)
    assert "99.9 % percentile" in typical.note and 40_000 <= typical.jitter <= 41_000
    with pytest.raises(ConfigError, match="no cycle was measured"):
        Task.from_stats(rtloop.RTLoop("1ms", name="none").stats)
    for wrong in (-1, 100.1, float("nan"), "99", True):
        with pytest.raises(ConfigError, match=r"percentile=.* must be a number from 0 to 100"):
            Task.from_stats(stats, percentile=wrong)  # type: ignore[arg-type]


def test_the_table_and_the_dict_tell_everything() -> None:
    import json

    found = analyze([ms("current", 1, 1, priority=79), ms("plan", 10, 2, priority=70)])
    text = str(found)
    assert "worst response" in text and "unbounded" in text and "CPU" in text and "utilisation 1.200" in text
    assert found.to_dict()["rows"][1]["verdict"] == "unbounded" and found.to_dict()["is_schedulable"] is False
    json.dumps(found.to_dict())
    assert "wake-up" not in text, "there is none here"
    late = analyze([ms("current", 10, 2, priority=79, jitter=3)])
    assert "includes the wake-up latency: current 3 ms" in str(late) and late.to_dict()["notes"]


@pytest.mark.parametrize(
    ("tasks", "word"),
    [
        ([], "at least one Task"),
        (["x"], "at least one Task"),
        ([ms("a", 1, 1), ms("a", 2, 1)], "2 tasks are called 'a'"),
        ([ms("a", 1, 1, priority=3), ms("b", 2, 1)], "b: no priority"),
    ],
)
def test_what_does_not_fit_together_is_refused(tasks: list[Task], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        analyze(tasks)


def test_a_wrong_time_names_its_task() -> None:
    with pytest.raises(ConfigError, match="arm: wcet"):
        Task("arm", "1ms", "0ms")
    with pytest.raises(ConfigError, match="arm: priority='high' must be an int"):
        Task("arm", "1ms", "1us", priority="high")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="policy='rr'"):
        analyze([ms("a", 1, 1)], policy="rr")


# The simulation: preemptive, in whole units of time, the tasks in the order of their priorities.


def simulate(tasks: list[tuple[int, int, int]], offsets: list[int], end: int, *, edf: bool = False) -> list[list[int]]:
    """Return the response times of the jobs of each task (period, C, deadline) that were released before `end`."""
    jobs: list[list[int]] = []  # [order, task, release, left]
    found: list[list[int]] = [[] for _ in tasks]
    time = 0
    while time < end or jobs:
        for i, (period, wcet, deadline) in enumerate(tasks):
            if time < end and time >= offsets[i] and (time - offsets[i]) % period == 0:
                jobs.append([time + deadline if edf else i, i, time, wcet])
        if jobs:
            job = min(jobs, key=lambda job: (job[0], job[2]))
            job[3] -= 1
            if job[3] == 0:
                jobs.remove(job)
                found[job[1]].append(time + 1 - job[2])
        time += 1
    return found


@settings(max_examples=100, deadline=None)
@given(
    data=st.lists(st.tuples(st.integers(2, 10), st.integers(1, 5), st.integers(1, 30)), min_size=1, max_size=4),
    blocking=st.integers(0, 4),
)
def test_with_deadlines_beyond_the_period_the_bound_is_still_reached(data, blocking) -> None:
    """The most urgent `task` of the simulation releases once: what blocks the least urgent one of the set."""
    assume(sum(Fraction(min(c, t), t) for t, c, _ in data) <= 1)
    rows = [(t, min(c, t), d) for t, c, d in data]
    last = len(rows) - 1
    tasks = [ms(str(i), t, c, deadline=d, priority=50 - i) for i, (t, c, d) in enumerate(rows)]
    tasks[last] = ms(str(last), *rows[last][:2], deadline=rows[last][2], priority=1, blocking=blocking)
    bounds = responses(tasks)
    end = math.lcm(*(t for t, _, _ in rows)) + 300  # a hyperperiod, and the longest response of such sets
    once = [(10 * end, blocking, 0)] if blocking else []
    seen = simulate([*once, *rows], [0] * (len(rows) + len(once)), end)[len(once) :]
    assert max(seen[last]) == bounds[last]
    found = analyze(tasks)
    assert found[str(last)].meets is (max(seen[last]) <= rows[last][2])


SETS = st.lists(st.tuples(st.integers(2, 12), st.integers(1, 6)), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(pairs=SETS, data=st.data())
def test_no_simulated_response_is_beyond_the_bound_and_the_critical_instant_reaches_it(pairs, data) -> None:
    pairs = sorted((t, min(c, t)) for t, c in pairs)
    assume(sum(Fraction(c, t) for t, c in pairs) <= 1)
    tasks = [ms(str(i), t, c, priority=50 - i) for i, (t, c) in enumerate(pairs)]
    bounds = responses(tasks)
    assert None not in bounds
    end = 2 * math.lcm(*(t for t, _ in pairs))
    triples = [(t, c, t) for t, c in pairs]
    together = simulate(triples, [0] * len(pairs), end)
    assert [max(found) for found in together] == bounds
    offsets = [data.draw(st.integers(0, t - 1)) for t, _ in pairs]
    apart = simulate(triples, offsets, end)
    assert all(max(found, default=0) <= bound for found, bound in zip(apart, bounds, strict=True))


@settings(max_examples=150, deadline=None)
@given(data=st.lists(st.tuples(st.integers(2, 12), st.integers(1, 5), st.integers(1, 14)), min_size=1, max_size=4))
def test_edf_meets_its_deadlines_exactly_where_the_analysis_says_so(data) -> None:
    triples = [(t, min(c, t), max(d, min(c, t))) for t, c, d in data]
    assume(sum(Fraction(c, t) for t, c, _ in triples) <= 1)
    found = analyze([ms(str(i), t, c, deadline=d) for i, (t, c, d) in enumerate(triples)], policy="edf")
    seen = simulate(triples, [0] * len(triples), math.lcm(*(t for t, _, _ in triples)) + 14, edf=True)
    assert found.is_schedulable == all(max(r) <= d for r, (_, _, d) in zip(seen, triples, strict=True))
