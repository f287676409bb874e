"""Loops as one system, on any machine: ordinary policy, nothing locked."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import rtloop_test_processes as processes

import rtloop
from rtloop import LoopGroup, PyLoop, RTLoop
from rtloop.group import ending
from rtloop.group import loop_group as group_module
from rtloop.group.loop_group import rate_monotonic
from rtloop.stats.findings import elapsed_releases
from rtloop.tools.top.sampler import Sampler

RATES = {"current": "1ms", "velocity": "5ms", "planning": "20ms"}


@pytest.fixture
def cascade(probes: ModuleType, ordinary: dict[str, Any]) -> Callable[..., list[Any]]:
    """Make three probe loops of harmonic periods; keywords are settings of all of them."""

    def make(**settings: Any) -> list[Any]:
        return [probes.Probe(period, name=name, **ordinary | settings) for name, period in RATES.items()]

    return make


def grid(stats: rtloop.Stats) -> Any:
    return stats.records["release"]


def ran_all(stats: rtloop.Stats, releases: int) -> bool:
    """Whether each of so many releases ran or is counted as missed; a late last cycle passes some more."""
    least, most = elapsed_releases(stats) or (0, 0)
    return least <= releases <= stats.cycles + stats.missed <= most


def test_the_grids_of_harmonic_periods_coincide_to_the_nanosecond(cascade: Callable[..., list[Any]]) -> None:
    group = LoopGroup(cascade(), name="servo")
    stats = group.run("200ms")
    assert list(stats) == list(RATES) and group.state == "stopped"
    for name, period, releases in zip(RATES, (10**6, 5 * 10**6, 20 * 10**6), (200, 40, 10), strict=True):
        s = stats[name]
        assert ran_all(s, releases)
        assert set((grid(s) - group.origin_ns) % period) == {0}
        assert grid(s)[0] >= group.origin_ns
    on = 20 * 10**6 * np.arange(10) + group.origin_ns
    for name in RATES:  # a late machine drops releases; what ran, ran on the grid
        assert stats[name].missed or set(on) <= set(grid(stats[name]))
    assert group.hyperperiod_ns == 20 * 10**6


def test_phases_count_from_the_one_origin(ordinary: dict[str, Any]) -> None:
    loops = [RTLoop("2ms", name="a", **ordinary), RTLoop("4ms", phase="700us", name="b", **ordinary)]
    group = LoopGroup(loops)
    stats = group.run("40ms")
    assert set((grid(stats["a"]) - group.origin_ns) % 2_000_000) == {0}
    assert set((grid(stats["b"]) - group.origin_ns) % 4_000_000) == {700_000}
    assert ran_all(stats["a"], 20) and ran_all(stats["b"], 10)


def test_align_puts_the_origin_on_the_clock(ordinary: dict[str, Any]) -> None:
    group = LoopGroup([RTLoop("2ms", clock="realtime", **ordinary) for _ in range(2)], align="50ms")
    before = time.time_ns()
    group.run("4ms")
    assert group.origin_ns is not None and group.origin_ns % 50_000_000 == 0
    assert before < group.origin_ns < time.time_ns()


def test_no_step_runs_before_the_last_enter_has_returned(cascade: Callable[..., list[Any]]) -> None:
    loops = cascade()
    loops[1].enter_ns = 150_000_000
    began = time.monotonic_ns()
    group = LoopGroup(loops)
    stats = group.run("20ms")
    assert group.origin_ns is not None and group.origin_ns > began + 150_000_000
    assert min(grid(s)[0] for s in stats.values()) >= group.origin_ns


def test_periods_need_not_be_harmonic(ordinary: dict[str, Any]) -> None:
    group = LoopGroup([RTLoop(period, name=period, **ordinary) for period in ("2ms", "3ms", "5ms")])
    assert group.hyperperiod_ns == 30_000_000
    stats = group.run("60ms")
    assert [ran_all(s, n) for s, n in zip(stats.values(), (30, 20, 12), strict=True)] == [True] * 3


def test_a_group_can_be_started_again(cascade: Callable[..., list[Any]]) -> None:
    loops = cascade()
    group = LoopGroup(loops)
    assert group.state == "new" and group.origin_ns is None
    origins = set()
    for run in range(1, 4):
        with group:
            assert group.state == "running"
            with pytest.raises(rtloop.StateError):
                group.start()
            assert [loop.state for loop in loops] == ["running"] * 3, "the refused start has left the run alone"
        assert group.state == "stopped" and [loop.leaves for loop in loops] == [run] * 3
        origins.add(group.origin_ns)
    assert len(origins) == 3
    group.stop()


def test_each_thread_that_waits_for_its_start_looks_for_it_again_and_again(
    cascade: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a millisecond, because nobody wakes it: a start must not take seconds."""
    release, offset = group_module.member.release_thread, group_module.member.clock_offset
    seen: list[set[str]] = []

    def looks(waiting: set[str]) -> dict[str, int]:
        names = {tid: name for tid, name in processes.thread_names().items() if name in waiting}
        status = {name: processes.read("self", f"task/{tid}/status") for tid, name in names.items()}
        return {name: int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0]) for name, text in status.items()}

    def watch(*waiting: str) -> None:
        before, until = looks({*waiting}), time.monotonic() + 8
        while any(count < before[name] + 200 for name, count in looks({*waiting}).items()):
            assert time.monotonic() < until, (before, looks({*waiting}))
            time.sleep(0.01)
        seen.append(set(before))

    def release_thread(loop: Any) -> None:
        if not seen:
            watch(*RATES, "rtloop-watchdog")  # all have acquired everything
        release(loop)

    def clock_offset(loop: Any) -> int:
        watch(*RATES)  # all have entered
        return offset(loop)

    monkeypatch.setattr(group_module.member, "release_thread", release_thread)
    monkeypatch.setattr(group_module.member, "clock_offset", clock_offset)
    LoopGroup(cascade(), watchdog="1s").run("20ms")
    assert seen == [{*RATES, "rtloop-watchdog"}, {*RATES}]


@pytest.mark.parametrize("refused", [0, 1, 2])
def test_one_loop_that_cannot_start_starts_none(
    cascade: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    loops = cascade()
    group = LoopGroup(loops, name="servo")
    real = group_module.member.prepare

    def prepare(loop: Any, *arguments: Any) -> None:
        if loop is loops[refused]:
            raise rtloop.SetupError(1, "refused")
        real(loop, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(group_module.member, "prepare", prepare)
        with pytest.raises(rtloop.SetupError, match="refused") as caught:
            group.run("10ms")
    assert f"servo: {loops[refused].name} could not be started" in "".join(caught.value.__notes__)
    assert [loop.enters for loop in loops] == [0] * 3, "no callback has run"
    assert [loop.state for loop in loops] == ["new"] * 3 and group.state == "new"
    assert group.run("10ms")["current"].cycles > 0, "and it can be tried again"


def test_a_setup_that_raises_unwinds_in_reverse(
    probes: ModuleType, ordinary: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(probes.Probe):  # type: ignore[misc, name-defined]
        def setup(self) -> None:
            raise OSError("no such motor")

    loops = [probes.Probe("1ms", **ordinary), probes.Probe("2ms", **ordinary), Broken("4ms", **ordinary)]
    undone: list[Any] = []
    real = group_module.member.withdraw
    monkeypatch.setattr(group_module.member, "withdraw", lambda loop, run: (undone.append(loop), real(loop, run)))
    threads = threading.active_count()
    with pytest.raises(OSError, match="no such motor"):
        LoopGroup(loops).start()
    assert undone == loops[::-1] and threading.active_count() == threads
    assert [loop.enters for loop in loops] == [0] * 3


def test_an_exception_that_takes_no_notes_is_raised_as_it_is(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    @dataclass(frozen=True)
    class NoMotorError(Exception):
        bus: int

    class Broken(probes.Probe):  # type: ignore[misc, name-defined]
        def setup(self) -> None:
            raise NoMotorError(3)

    first = probes.Probe("1ms", **ordinary)
    with pytest.raises(NoMotorError):
        LoopGroup([first, Broken("1ms", **ordinary)]).start()
    assert first.state == "new"


@pytest.mark.parametrize("on_failure", ["stop-all", "keep"])
def test_an_enter_that_fails_starts_none(cascade: Callable[..., list[Any]], on_failure: str) -> None:
    loops = cascade()
    loops[1].enter_code = -19
    group = LoopGroup(loops, on_failure=on_failure)
    with pytest.raises(rtloop.CallbackError, match=r"velocity.*enter"):
        group.start()
    assert [loop.steps for loop in loops] == [0] * 3
    assert "running" not in {loop.state for loop in loops}
    loops[1].enter_code = 0
    assert group.run("10ms")["velocity"].cycles > 0


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_loop_that_fails_stops_the_others(cascade: Callable[..., list[Any]], failing: int) -> None:
    loops = cascade()
    loops[failing].fail_at, loops[failing].fail_code = 2, -5
    group = LoopGroup(loops)
    with pytest.raises(rtloop.CallbackError, match=loops[failing].name):
        group.run()  # nothing else would ever end it
    assert group.state == "failed" and group.stats[loops[failing].name].state == "failed"
    assert [loop.state for loop in loops].count("stopped") == 2
    assert [loop.leaves for loop in loops] == [1] * 3
    loops[failing].fail_at = -1
    assert group.run("10ms")["current"].state == "stopped", "and it can be started again"


def test_keep_lets_the_others_go_on(cascade: Callable[..., list[Any]]) -> None:
    loops = cascade()
    loops[0].fail_at = 2
    group = LoopGroup(loops, on_failure="keep")
    with pytest.raises(rtloop.CallbackError, match="current"):
        group.run("100ms")
    stats = group.stats
    assert ran_all(stats["velocity"], 20) and stats["planning"].state == "stopped"
    assert ran_all(stats["planning"], 5)


def test_the_first_of_several_failures_has_notes_of_the_others(cascade: Callable[..., list[Any]]) -> None:
    loops = cascade()
    loops[0].fail_at = loops[2].fail_at = 1
    with pytest.raises(rtloop.CallbackError, match="current") as caught, LoopGroup(loops, on_failure="keep") as group:
        while loops[2].state == "running" or loops[0].state == "running":
            time.sleep(0.01)
        assert group.state == "running", "velocity goes on"
    assert "planning" in "".join(caught.value.__notes__)


def test_a_normal_end_of_one_loop_leaves_the_others(cascade: Callable[..., list[Any]]) -> None:
    loops = cascade()
    loops[0].stop_at = 3
    group = LoopGroup(loops)
    stats = group.run("100ms")
    assert stats["current"].cycles == 4 and ran_all(stats["velocity"], 20)
    assert group.state == "stopped"


def test_a_failure_that_nobody_asked_for_is_told(cascade: Callable[..., list[Any]]) -> None:
    loops = cascade()
    loops[1].fail_at = 1
    group = LoopGroup(loops)
    group.start()
    assert group.wait() and group.wait("1s")
    with pytest.warns(rtloop.RTSetupWarning, match="velocity") as caught:
        group.stop()
    assert [one.filename for one in caught if one.category is rtloop.RTSetupWarning] == [__file__]
    group.stop()  # once
    with pytest.raises(rtloop.CallbackError), LoopGroup(loops):
        loops[1].join()
    with pytest.raises(KeyError) as caught, LoopGroup(loops) as again:
        again.wait()
        raise KeyError("the program's own")
    assert "velocity" in "".join(caught.value.__notes__)


def test_stop_goes_in_reverse_one_after_the_other(
    probes: ModuleType, ordinary: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "_IN_ORDER_NS", 20_000_000_000)
    loops = [probes.Probe(period, name=period, **ordinary) for period in ("2ms", "30ms", "45ms")]
    group = LoopGroup(loops)
    for _ in range(3):
        group.start()
        time.sleep(0.05)
        group.stop(timeout="20s")
        fast, middle, slow = (loop.left_at for loop in loops)
        assert slow < middle < fast, "asked together, the fastest would have ended first"


def test_stop_of_a_loop_that_hangs_stops_the_others_nevertheless(cascade: Callable[..., list[Any]]) -> None:
    loops = cascade()
    loops[2].hang = True
    group = LoopGroup(loops)
    group.start()
    while not loops[2].steps:
        time.sleep(0.001)
    with pytest.raises(rtloop.StopTimeoutError, match="planning"):
        group.stop(timeout="400ms")
    assert [loop.state for loop in loops] == ["stopped", "stopped", "running"]
    assert group.state == "running" and not group.join(timeout="10ms")
    with pytest.raises(rtloop.StateError):
        group.start()
    assert [loop.state for loop in loops] == ["stopped", "stopped", "running"], "nor has that touched the one that runs"
    loops[2].let_go = True
    assert group.join()


def test_no_loop_of_a_running_group_is_started_alone(cascade: Callable[..., list[Any]]) -> None:
    loops = cascade()
    loops[0].stop_at = 1
    with LoopGroup(loops, name="servo"):
        loops[0].join()
        with pytest.raises(rtloop.StateError, match="servo, which is running"):
            loops[0].start()
    assert loops[0].run().cycles == 2, "alone again, it finds an origin by itself"


def test_a_loop_that_runs_already_keeps_running_and_starts_none(cascade: Callable[..., list[Any]]) -> None:
    loops = cascade()
    group = LoopGroup(loops)
    with loops[1]:
        with pytest.raises(rtloop.StateError, match="velocity"):
            LoopGroup(loops)
        with pytest.raises(rtloop.StateError, match="velocity") as caught:
            group.start()
        assert "velocity could not be started" in "".join(caught.value.__notes__)
        assert [loop.state for loop in loops] == ["new", "running", "new"]
        steps = loops[1].steps
        while loops[1].steps == steps:
            time.sleep(0.001)


def test_what_cannot_be_a_group_is_refused(ordinary: dict[str, Any]) -> None:
    a, b = RTLoop("1ms", name="a", **ordinary), RTLoop("2ms", name="b", **ordinary)
    for loops in ((), a, None, [a, "b"], [a, None]):
        with pytest.raises(rtloop.ConfigError, match="loops="):
            LoopGroup(loops)  # type: ignore[arg-type]
    with pytest.raises(rtloop.ConfigError, match="a is in the group twice"):
        LoopGroup([a, b, a])
    with pytest.raises(rtloop.ConfigError, match="2 loops are called 'a'"):
        LoopGroup([a, RTLoop("2ms", name="a", **ordinary)])
    with pytest.raises(rtloop.ConfigError, match="the same clock"):
        LoopGroup([a, RTLoop("2ms", clock="tai", **ordinary)])
    with pytest.raises(rtloop.ConfigError, match="share one origin"):
        LoopGroup([a, RTLoop("2ms", align="1s", **ordinary)])
    bad: list[dict[str, Any]] = [
        {"priorities": "edf"}, {"on_failure": "ignore"}, {"align": 0}, {"align": "soon"}, {"name": ""}, {"name": 3},
        {"cpus": [0]}, {"cpus": "00"}, {"cpus": 0}, {"cpus": [0, -1]}, {"cpus": [0, "x"]},
    ]  # fmt: skip
    for keywords in bad:
        with pytest.raises(rtloop.ConfigError, match=next(iter(keywords))[:3]):
            LoopGroup([a, b], **keywords)
    with pytest.raises(rtloop.StateError, match="has not been started"):
        LoopGroup([a, b]).join()


def test_priorities_are_rate_monotonic_below_80() -> None:
    assert rate_monotonic([100, 10, 1000]) == [75, 79, 71]
    assert rate_monotonic([5, 5, 7, 5]) == [79, 79, 75, 79], "equal for equal periods"
    assert rate_monotonic([]) == [] and rate_monotonic([7]) == [79]
    for count in range(1, 80):
        levels = rate_monotonic(range(1, count + 1))
        assert levels[0] == 79 and min(levels) >= 1 and levels == sorted(set(levels), reverse=True)
        assert count > 29 or levels[-1] > 50, "above the kernel's interrupt threads"
    with pytest.raises(rtloop.ConfigError, match="80 different periods"):
        rate_monotonic(range(1, 81))


def test_the_groups_priorities_and_cpus_are_checked_and_are_the_groups_alone(ordinary: dict[str, Any]) -> None:
    fast, slow = RTLoop("1ms", name="fast"), RTLoop("10ms", name="slow", priority=9)
    plain = RTLoop("5ms", name="plain", **ordinary)
    group = LoopGroup([slow, plain, fast], cpus=[(0, 1), None, 0])
    assert [s.priority for s in group.settings.values()] == [75, 0, 79]
    assert [s.cpu for s in group.settings.values()] == [(0, 1), None, (0,)]
    assert (slow.settings.priority, slow.settings.cpu) == (9, "auto"), "a loop keeps its own settings"
    given = LoopGroup([slow, fast], priorities="as-given").settings
    assert [s.priority for s in given.values()] == [9, 80]
    edf = RTLoop("1ms", name="edf", policy="deadline", runtime="100us")
    assert LoopGroup([edf, fast]).settings["edf"].priority == 0
    with pytest.raises(rtloop.ConfigError, match="pinned"):
        LoopGroup([edf, fast], cpus=[0, 0])


def test_settings_hold_for_the_groups_run(ordinary: dict[str, Any]) -> None:
    loop = RTLoop("2ms", name="a", **ordinary)
    group = LoopGroup([loop], cpus=[0])
    stats = group.run("10ms")["a"]
    assert loop.settings.cpu == stats.settings["cpu"] == [0] or loop.settings.cpu == (0,)
    assert next(grant for grant in group.grants["a"] if grant.name == "cpu").granted == "0"
    loop.run(cycles=2)
    assert loop.settings.cpu == "auto"


def test_others_see_which_group_a_loop_runs_in(cascade: Callable[..., list[Any]]) -> None:
    loops = cascade()
    for group in (LoopGroup(loops, name="servo"), loops[0]):
        with group:
            row = next(row for row in Sampler(pid=os.getpid()).sample().rows if row.reader.name == "current")
            assert row.group == row.to_dict()["group"] == ("servo" if group is not loops[0] else None)
            assert row.label == ("servo/current" if group is not loops[0] else "current")


def test_the_loops_of_a_group_come_together_in_top(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    one, two = (
        LoopGroup([probes.Probe("5ms", name=name, **ordinary) for name in names], name=group)
        for group, names in (("arm", "zx"), ("leg", "ay"))
    )
    with one, two, probes.Probe("5ms", name="k", **ordinary):
        labels = [row.label for row in Sampler(pid=os.getpid()).sample().rows]
    assert labels == ["arm/x", "arm/z", "k", "leg/a", "leg/y"]


def test_durations_are_checked_and_stats_can_be_reset(cascade: Callable[..., list[Any]]) -> None:
    group = LoopGroup(cascade())
    with pytest.raises(rtloop.ConfigError, match="did you mean '5s'"):
        group.run(5)
    assert group.state == "new"
    with group:
        while group.stats["current"].cycles < 50:
            time.sleep(0.001)
        group.reset_stats()
        while not 0 < group.stats["planning"].cycles < 50:
            time.sleep(0.001)
        group.reset_stats()
    with pytest.raises(TypeError):
        group.stats["current"] = None  # type: ignore[index]
    assert "servo" in repr(LoopGroup(cascade(), name="servo")) and "'current' 1 kHz" in repr(group)


def test_stop_from_another_thread_ends_a_start_that_is_under_way(cascade: Callable[..., list[Any]]) -> None:
    loops = cascade()
    loops[0].enter_ns = 200_000_000
    group = LoopGroup(loops)
    starting = threading.Thread(target=group.start)
    starting.start()
    while not loops[0].enters:
        time.sleep(0.001)
    group.stop(timeout="20s")
    starting.join()
    assert "running" not in {loop.state for loop in loops}


def test_a_stop_that_comes_before_a_loop_has_its_turn_ends_that_one_too(
    probes: ModuleType, ordinary: dict[str, Any]
) -> None:
    is_in_setup, may_go_on = threading.Event(), threading.Event()

    class Slow(probes.Probe):  # type: ignore[misc, name-defined]
        def setup(self) -> None:
            is_in_setup.set()
            may_go_on.wait()

    loops = [probes.Probe("1ms", **ordinary), Slow("1ms", **ordinary), probes.Probe("1ms", **ordinary)]
    group = LoopGroup(loops)
    starting = threading.Thread(target=group.start)
    starting.start()
    is_in_setup.wait()
    with pytest.raises(rtloop.StopTimeoutError, match="still being started"):
        group.stop(timeout="50ms")
    may_go_on.set()
    starting.join()
    assert [loop.state for loop in loops] == ["stopped"] * 3


def test_a_python_callback_that_fails_stops_the_compiled_loops(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    def think(cycle: rtloop.Cycle) -> None:
        if cycle.index == 2:
            raise ValueError("no plan")

    fast = probes.Probe("1ms", name="fast", **ordinary)
    group = LoopGroup([fast, PyLoop(think, "10ms", name="plan", **ordinary)])
    with pytest.raises(ValueError, match="no plan"):
        group.run()
    assert fast.state == "stopped"


def test_join_from_a_loops_own_thread_is_refused_and_stop_is_not(ordinary: dict[str, Any]) -> None:
    said: list[Exception] = []

    def think(cycle: rtloop.Cycle) -> None:
        try:
            group.join()
        except rtloop.StateError as error:
            said.append(error)
        group.stop()

    group = LoopGroup([PyLoop(think, "5ms", name="a", **ordinary), RTLoop("5ms", name="b", **ordinary)])
    group.run()
    assert "on this very thread" in str(said[0])


@pytest.mark.parametrize("call", ["run", "join", "start"])
def test_ctrl_c_stops_all(script: Callable[..., subprocess.CompletedProcess[str]], call: str) -> None:
    done = script(f"""
    import os, signal, threading, time, probes, rtloop
    plain = dict(policy="other", lock_memory="off", dma_latency=None)
    loops = [probes.Probe(p, name=p, **plain) for p in ("1ms", "100ms", "1min", "1h")]
    group = rtloop.LoopGroup(loops)
    call = {call!r}
    if call == "start":
        loops[1].enter_ns = 1_000_000_000
    if call == "join":
        group.start()
    def interrupt():
        begun = (lambda: loops[1].enters) if call == "start" else (lambda: loops[0].steps)
        while not begun():
            time.sleep(0.001)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=interrupt, daemon=True).start()
    try:
        getattr(group, call)()
    except KeyboardInterrupt:
        print("interrupted", [loop.state for loop in loops], len(os.listdir("/proc/self/fd")))
    print(group.run("1ms")["1ms"].cycles)
    """)
    assert done.returncode == 0, done.stderr
    states = ["stopped"] * 4
    assert done.stdout.startswith(f"interrupted {states}"), done.stdout
    assert done.stdout.split()[-1] == "1"


def test_an_exception_that_takes_no_note_is_raised_all_the_same(ordinary: dict[str, Any]) -> None:
    @dataclasses.dataclass(frozen=True)
    class NoMotorError(Exception):
        axis: int

    class Servo(RTLoop):
        def setup(self) -> None:
            raise NoMotorError(3)

    with pytest.raises(NoMotorError):
        LoopGroup([RTLoop("5ms", **ordinary), Servo("5ms", **ordinary)]).start()


def test_a_group_is_analysed_with_its_own_priorities_and_cpus() -> None:
    loops = [RTLoop("10ms", name="slow"), RTLoop("1ms", name="fast"), RTLoop("2ms", name="aside")]
    group = LoopGroup(loops, cpus=[0, 0, 1])
    found = group.analyze({"slow": "4ms", "fast": "300us", "aside": "1ms"})
    assert found["fast"].response == 300_000 and found["aside"].response == 10**6
    assert found["slow"].response == 5_800_000 and found["slow"].priority < found["fast"].priority
    assert [(b.cpu, float(b.utilisation)) for b in found.bounds] == [(0, 0.7), (1, 0.5)]
    assert not group.analyze({"slow": "8ms", "fast": "300us", "aside": "1ms"})


def test_loops_are_put_on_the_isolated_cpus_by_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """First-fit decreasing, up to 95 %: d has CPU 2; b joins it, c does not fit there, and a fits beside c."""
    monkeypatch.setattr("rtloop.group.plan.usable_isolated_cpus", lambda: (2, 3))
    loops = [RTLoop("1ms", name=name) for name in "abc"] + [RTLoop("1ms", name="d", cpu=2)]
    wcet = {"a": "400us", "b": "600us", "c": "500us", "d": "100us"}
    group = LoopGroup(loops, cpus="partition", wcet=wcet)
    assert {name: s.cpu for name, s in group.settings.items()} == {"a": (3,), "b": (2,), "c": (3,), "d": (2,)}
    assert group.analyze().is_schedulable and len(group.analyze().bounds) == 2
    with pytest.raises(rtloop.ConfigError, match=r"c needs 0\.900 of a CPU, and none has room"):
        LoopGroup(loops, cpus="partition", wcet={**wcet, "b": "900us", "c": "900us"})
    with pytest.raises(rtloop.ConfigError, match=r"the execution time of a.*wcet=\{'a'"):
        LoopGroup(loops, cpus="partition", wcet={"b": "600us"})
    for wrong in (["400us", "600us"], "400us", 5):
        with pytest.raises(rtloop.ConfigError, match=r"must hold a time for each loop's name"):
            LoopGroup(loops, wcet=wrong)  # type: ignore[arg-type]
        with pytest.raises(rtloop.ConfigError, match=r"must hold a time for each loop's name"):
            group.analyze(wrong)  # type: ignore[arg-type]
    with pytest.raises(rtloop.ConfigError, match="wcet names 'x'"):
        LoopGroup(loops, wcet={"x": "600us"})


def test_without_isolated_cpus_those_of_the_process_are_filled_by_what_was_measured() -> None:
    loops = [RTLoop("1ms", name="a"), RTLoop("5ms", name="b")]
    for loop in loops:
        loop.simulate(cycles=100, execution="900us")
    (first, *_), (cpu, *_) = sorted(os.sched_getaffinity(0)), LoopGroup(loops, cpus="partition").settings["a"].cpu
    assert cpu == first


def test_a_group_that_has_run_is_analysed_by_what_was_measured(cascade: Callable[..., list[Any]]) -> None:
    """By the longest step, and by the latest wake-up as jitter: 1000 + 2 * 200 + 40 us for the slower loop."""
    loops = [RTLoop("1ms", name="a"), RTLoop("5ms", name="b")]
    group = LoopGroup(loops)
    with pytest.raises(rtloop.ConfigError, match=r"a has not run.*wcet=\{'a'"):
        group.analyze()
    for loop, execution in zip(loops, ("200us", "1ms"), strict=True):
        loop.simulate(cycles=100, latency="40us", execution=execution)
    found = group.analyze()
    assert (found["a"].response, found["b"].response) == (240_000, 1_440_000) and "does not prove" in found.notes[0]
    assert group.analyze({"b": "2ms"})["b"].response == 2_640_000, "what is given goes before what was measured"
    assert (found["a"].measured, found["b"].measured) == (240_000, 1_040_000) and "measured" in str(found)
    too_little = group.analyze({"a": "50us", "b": "2ms"})
    assert too_little["a"].is_exceeded and not too_little["b"].is_exceeded
    assert "a: a response of 240 us was measured, which is over the bound" in str(too_little)
    assert "percentile" in group.analyze(percentile=99).notes[0]
    with pytest.raises(rtloop.ConfigError, match="percentile=101 must be a number from 0 to 100"):
        group.analyze({"a": "50us", "b": "2ms"}, percentile=101)
    with pytest.raises(rtloop.ConfigError, match="policies other: only loops"):
        LoopGroup(cascade()).analyze()


def test_a_group_of_sched_deadline_is_analysed_as_edf() -> None:
    loops = [RTLoop("10ms", name=n, policy="deadline", runtime="4ms", deadline="5ms", cpu=None) for n in "ab"]
    found = LoopGroup(loops).analyze({"a": "4ms", "b": "4ms"})
    assert found.policy == "edf" and [row.verdict for row in found.rows] == ["misses", "misses"]
    assert LoopGroup(loops).analyze({"a": "2ms", "b": "3ms"}), "5 of 5 ms"


@pytest.mark.parametrize(
    ("cpus", "wcet", "word"),
    [([0, None], {"a": "1us", "b": "1us"}, "b: not pinned"), (None, {"x": "1us"}, "wcet names 'x'.*'a', 'b'")],
)
def test_a_group_that_cannot_be_analysed_says_why(cpus: Any, wcet: dict[str, str], word: str) -> None:
    group = LoopGroup([RTLoop("1ms", name="a"), RTLoop("5ms", name="b")], cpus=cpus)
    with pytest.raises(rtloop.ConfigError, match=word):
        group.analyze(wcet)
