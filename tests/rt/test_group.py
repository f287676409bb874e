"""A group on real-time threads: priorities, phases, and a start that is all or nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

import rtloop
from rtloop import LoopGroup, RTLoop
from rtloop.loop import scheduling
from rtloop.stats.findings import elapsed_releases

pytestmark = pytest.mark.rt

RATES = {"current": "1ms", "velocity": "5ms", "planning": "20ms"}


def test_the_kernel_runs_the_loops_at_rate_monotonic_priorities_on_their_cpus(probes: ModuleType) -> None:
    loops = [probes.Probe(period, name=name) for name, period in reversed(RATES.items())]
    last = max(os.sched_getaffinity(0))
    with LoopGroup(loops, cpus=[None, last, [last]]):
        got = {}
        for loop in loops:
            while not loop.enters:
                pass
            got[loop.name] = (os.sched_getscheduler(loop.tid), os.sched_getparam(loop.tid).sched_priority)
            assert loop.name == "planning" or os.sched_getaffinity(loop.tid) == {last}
    fifo = os.SCHED_FIFO | getattr(os, "SCHED_RESET_ON_FORK", 0x40000000)
    assert got == {"current": (fifo, 79), "velocity": (fifo, 75), "planning": (fifo, 71)}
    assert loops[0].settings.priority == 71 and loops[0].stats.settings["priority"] == 71


def test_priorities_as_given_are_left_alone(probes: ModuleType) -> None:
    loops = [probes.Probe("1ms", name="a", priority=7), probes.Probe("2ms", name="b", priority=9)]
    with LoopGroup(loops, priorities="as-given"):
        assert [os.sched_getparam(loop.tid).sched_priority for loop in loops] == [7, 9]


def test_real_time_loops_share_one_grid_to_the_nanosecond(probes: ModuleType) -> None:
    loops = [
        probes.Probe(period, name=name, phase=phase)
        for (name, period), phase in zip(RATES.items(), (0, "250us", "1ms"), strict=True)
    ]
    group = LoopGroup(loops)
    for _ in range(2):
        stats = group.run("300ms")
        for s, period, phase, releases in zip(
            stats.values(), (10**6, 5 * 10**6, 20 * 10**6), (0, 250_000, 10**6), (300, 60, 15), strict=True
        ):
            assert set((s.records["release"] - group.origin_ns) % period) == {phase}
            least, most = elapsed_releases(s) or (0, 0)
            assert least <= releases <= s.cycles + s.missed <= most
            assert s.page_faults == (0, 0)


@pytest.mark.parametrize("refused", [0, 1, 2])
def test_a_refused_loop_gives_everything_of_all_back(
    monkeypatch: pytest.MonkeyPatch,
    probes: ModuleType,
    refused: int,
    account: Callable[[], dict[str, Any]],
) -> None:
    loops = [probes.Probe(period, name=name, core_dumps=False) for name, period in RATES.items()]
    group = LoopGroup(loops, name="servo")
    group.run("10ms")
    before = account()
    real = scheduling.thread_grants
    seen: list[dict[str, Any]] = []

    def thread_grants(settings: Any, *arguments: Any) -> Any:
        seen.append(account())
        grants = real(settings, *arguments)
        if settings.name == loops[refused].name:
            return [grant._replace(ok=False, errno=1) for grant in grants]
        return grants

    with monkeypatch.context() as patch:
        patch.setattr(scheduling, "thread_grants", thread_grants)
        for _ in range(3):
            with pytest.raises(rtloop.PrivilegeError) as caught:
                group.start()
            assert f"{loops[refused].name} could not be started" in "".join(caught.value.__notes__)
            assert caught.value.refused
            assert account() == before
    assert len(seen) == 3 * (refused + 1)
    assert int(seen[refused]["threads"]) == int(before["threads"]) + refused + 1, "the others had been acquired"
    assert [loop.enters for loop in loops] == [1] * 3, "and no callback has run again"
    group.run("10ms")
    assert account() == before


def test_a_failed_enter_and_a_failed_step_give_everything_back(
    probes: ModuleType, account: Callable[[], dict[str, Any]]
) -> None:
    loops = [probes.Probe(period, name=name) for name, period in RATES.items()]
    group = LoopGroup(loops)
    group.run("10ms")
    before = account()
    for field, value in (("enter_code", -19), ("fail_at", 3)):
        setattr(loops[2], field, value)
        with pytest.raises(rtloop.CallbackError, match="planning"):
            group.run()
        assert account() == before
        setattr(loops[2], field, 0 if field == "enter_code" else -1)


def test_the_loops_of_a_group_lock_the_memory_once(probes: ModuleType, account: Callable[[], dict[str, Any]]) -> None:
    before = account()["locked"]
    with LoopGroup([RTLoop("1ms"), RTLoop("2ms")]) as group:
        assert account()["locked"] != before
        group.loops[1].stop()
        assert account()["locked"] != before, "what the last one out gives back"
    assert account()["locked"] == before


def test_after_a_run_the_longest_measured_response_is_held_against_the_bound(probes: ModuleType) -> None:
    last = max(os.sched_getaffinity(0))
    loops = [probes.Probe(period, name=name, warmup=0) for name, period in RATES.items()]
    group = LoopGroup(loops, cpus=[last] * 3)
    stats = group.run("200ms")
    found = group.analyze()
    assert all(found[name].measured >= stats[name].response.max > 0 for name in RATES)
    assert not any(row.is_exceeded for row in found.rows), "C and jitter are those of this very run"
    assert "measured" in str(found)
    known = dict.fromkeys(RATES, "1ns")
    refuted = group.analyze(known)
    assert refuted["current"].is_exceeded, "no step takes a nanosecond"
    assert "current: a response of " in str(refuted) and "over the bound" in str(refuted)
    assert refuted.to_dict()["rows"][0]["is_exceeded"]
