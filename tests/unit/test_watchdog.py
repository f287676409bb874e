"""The watchdog of a group, on any machine: stuck loops, their end and that of the others, and loops that are not stuck.

Limits are long, for a busy machine keeps ordinary threads from running for a while, and that is no reason to fail.
"""

from __future__ import annotations

import pickle
import subprocess
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from types import ModuleType
from typing import Any

import pytest
import rtloop_test_processes as processes

import rtloop
from rtloop import LoopGroup, PyLoop, WatchdogError
from rtloop.group import watchdog_plan
from rtloop.loop import scheduling
from rtloop.settings import make_settings

MS = 1_000_000
#: Of loops with a period of 5 ms: half a second.
N = 100


@pytest.fixture
def pair(probes: ModuleType, ordinary: dict[str, Any]) -> Callable[..., list[Any]]:
    """Make two probe loops of 5 and 20 ms; keywords are settings of both."""

    def make(**settings: Any) -> list[Any]:
        return [probes.Probe(p, name=n, **ordinary | settings) for n, p in (("inner", "5ms"), ("outer", "20ms"))]

    return make


def until(condition: Any) -> None:
    """Wait for what has to come; the watchdog of all tests ends one for which it does not."""
    while not condition():
        time.sleep(0.001)


def tasks() -> dict[str, int]:
    """Return the threads of this process by their names."""
    return {name: tid for tid, name in processes.thread_names().items()}


def let_go_when_safe(loop: Any) -> None:
    """Have the loop's step return as soon as its safe() has been called."""
    loop.safe_lets_go = True


def test_a_stuck_loop_is_made_safe_from_the_watchdogs_thread_and_the_group_fails(
    pair: Callable[..., list[Any]],
) -> None:
    inner, outer = pair()
    inner.hang_at, inner.safe_code = 7, 42
    let_go_when_safe(inner)
    group = LoopGroup([inner, outer], watchdog=N)
    group.start()
    watchdog = tasks()["rtloop-watchdog"]
    with pytest.raises(
        WatchdogError, match=r"inner was found stuck.*cycle 7 .* watchdog=100; safe\(\) returned 42"
    ) as told:
        group.join()
    error = told.value
    assert (error.name, error.cycle, error.safe_code) == ("inner", 6, 42)
    assert error.stuck_ns is not None and error.stuck_ns >= N * 5 * MS, "and not before"
    assert error.acted_ns is not None and error.acted_ns <= inner.safe_at
    assert inner.stats.records["end"][6] == error.acted_ns - error.stuck_ns, "it counts from the end of cycle 6"
    assert (inner.safes, inner.safe_tid) == (1, watchdog) and watchdog != inner.tid
    assert inner.leaves == outer.leaves == 1 and inner.left_at > inner.safe_at
    assert (inner.state, outer.state, outer.safes) == ("failed", "stopped", 0)
    assert inner.steps == 8, "no further step has begun"
    assert "rtloop-watchdog" not in tasks()


@pytest.mark.parametrize("on_failure", ["stop-all", "keep", "hook"])
def test_the_others_do_what_they_do_after_any_failure(pair: Callable[..., list[Any]], on_failure: str) -> None:
    inner, outer = pair()
    inner.hang_at, outer.peer_code = 7, rtloop.RT_CONTINUE
    let_go_when_safe(inner)
    with pytest.raises(WatchdogError), LoopGroup([inner, outer], on_failure=on_failure, watchdog=N) as group:
        until(lambda: inner.state == "failed")
        if on_failure == "stop-all":
            until(lambda: outer.state == "stopped")
        else:
            steps = outer.steps
            until(lambda: outer.steps > steps + 3)
            assert group.state == "running"
    assert outer.peer_failures == (on_failure == "hook") and outer.state == "stopped"


def test_those_that_go_on_are_watched_on(pair: Callable[..., list[Any]], probes: ModuleType, ordinary: Any) -> None:
    inner, outer = pair()
    third = probes.Probe("5ms", name="third", **ordinary)
    inner.hang_at = 7
    for loop in (inner, third):
        let_go_when_safe(loop)
    with (
        pytest.raises(WatchdogError, match="inner") as told,
        LoopGroup([inner, outer, third], on_failure="keep", watchdog=N),
    ):
        until(lambda: inner.state == "failed")
        third.hang = True
        until(lambda: third.state == "failed")
        assert outer.state == "running"
    assert "third was found stuck" in "".join(told.value.__notes__)
    assert (inner.safes, outer.safes, third.safes) == (1, 0, 1)


def test_a_step_that_never_returns_is_not_waited_for(pair: Callable[..., list[Any]]) -> None:
    inner, outer = pair()
    inner.hang_at = 0
    group = LoopGroup([inner, outer], watchdog=N)
    with pytest.raises(WatchdogError, match=r"after its first release, cycle 0 had not ended") as told:
        group.run()
    assert told.value.cycle is None
    assert "inner has not ended 2 s later: its thread runs on" in "".join(told.value.__notes__)
    assert (inner.state, outer.state, group.state, inner.safes) == ("running", "stopped", "running", 1)
    assert group.wait() is False and group.wait("10ms") is False
    with pytest.raises(rtloop.StopTimeoutError, match="inner did not stop") as late:
        group.stop("50ms")
    assert "inner was found stuck by the watchdog" in "".join(late.value.__notes__)
    with pytest.raises(rtloop.StateError):
        group.start()
    inner.let_go = True
    with pytest.raises(WatchdogError) as once_more:
        group.join()
    assert not hasattr(once_more.value, "__notes__") and inner.leaves == 1
    inner.hang_at = -1
    assert group.run("40ms")["outer"].cycles > 0, "and it can be started again"


@pytest.mark.parametrize("on_failure", ["stop-all", "hook"])
def test_a_safe_that_hangs_itself_is_not_waited_for_either(pair: Callable[..., list[Any]], on_failure: str) -> None:
    inner, outer = pair()
    inner.hang_at, inner.safe_ns = 3, 60_000 * MS
    group = LoopGroup([inner, outer], on_failure=on_failure, watchdog=N)
    with pytest.raises(WatchdogError, match=r"safe\(\) has not returned") as told:
        group.run()
    assert told.value.safe_code is None and (inner.state, outer.state) == ("running", "stopped")
    assert outer.peer_failures == (on_failure == "hook")
    inner.safe_ns, inner.let_go = 0, True
    with pytest.raises(WatchdogError, match=r"safe\(\) returned 0"):
        group.join()


def test_join_with_a_timeout_comes_back_before_it_gives_the_loop_up(pair: Callable[..., list[Any]]) -> None:
    inner, outer = pair()
    inner.hang_at = 0
    group = LoopGroup([inner, outer], watchdog=N)
    group.start()
    until(lambda: inner.safes)
    assert group.join(timeout="10ms") is False
    inner.let_go = True
    with pytest.raises(WatchdogError):
        group.join()


def test_stop_during_a_trip_waits_for_safe_to_return(pair: Callable[..., list[Any]]) -> None:
    inner, outer = pair()
    inner.hang_at, inner.safe_ns = 7, 300 * MS
    group = LoopGroup([inner, outer], watchdog=N)
    group.start()
    until(lambda: inner.safe_at)
    inner.let_go = True
    with pytest.warns(rtloop.RTSetupWarning, match="inner was found stuck"):
        group.stop("20s")
    assert inner.safes == 1 and inner.left_at >= inner.safe_at + 300 * MS
    assert (inner.state, outer.state) == ("failed", "stopped") and "rtloop-watchdog" not in tasks()


def test_a_loop_that_is_asked_to_stop_and_hangs_is_found_as_well(pair: Callable[..., list[Any]]) -> None:
    inner, outer = pair()
    inner.hang_at = 7
    let_go_when_safe(inner)
    with pytest.raises(WatchdogError), LoopGroup([inner, outer], watchdog=N):
        until(lambda: inner.steps == 8)
    assert inner.safes == 1, "the stop has waited for its step, in which the watchdog has found it"


def test_who_is_in_enter_or_in_leave_or_has_ended_is_not_stuck(pair: Callable[..., list[Any]]) -> None:
    inner, outer = pair()
    outer.enter_ns = 600 * MS  # three of inner's limits
    inner.stop_at, inner.leave_ns = 3, 600 * MS
    with LoopGroup([inner, outer], watchdog=40) as group:
        until(lambda: inner.state == "stopped")
        assert inner.left_at > group.origin_ns + 600 * MS  # type: ignore[operator]
        steps = outer.steps
        until(lambda: outer.steps > steps + 20)
    assert (inner.safes, outer.safes, inner.steps) == (0, 0, 4)


@pytest.mark.parametrize("kind", ["phase", "shift", "reset", "own wait", "spin", "realtime"])
def test_who_gets_on_is_not_stuck(probes: ModuleType, ordinary: dict[str, Any], kind: str) -> None:
    settings = {"phase": {"phase": "900ms"}, "spin": {"spin": "auto"}, "realtime": {"clock": "realtime"}}.get(kind, {})
    inner = (probes.Paced if kind == "own wait" else probes.Probe)("5ms", name="inner", **ordinary | settings)
    inner.shift_at, inner.shift_ns = (3, 900 * MS) if kind == "shift" else (-1, 0)
    with LoopGroup([inner], watchdog=N) as group:
        until(lambda: inner.steps > 10)
        for _ in range(3 if kind == "reset" else 0):
            group.reset_stats()
            steps = inner.steps
            until(lambda steps=steps: inner.steps > steps + 5)
    assert (inner.safes, inner.state) == (0, "stopped") and inner.index_errors == 0


def test_a_wait_of_its_own_that_hangs_is_found(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = probes.Paced("5ms", name="paced", **ordinary)
    loop.hang_in_wait_at = 7
    let_go_when_safe(loop)
    with pytest.raises(WatchdogError, match="cycle 7 had not ended"):
        LoopGroup([loop], watchdog=N).run()
    assert (loop.steps, loop.safes, loop.leaves) == (7, 1, 1)


def test_a_loop_written_in_python_is_found_and_has_nothing_to_be_called(
    probes: ModuleType, ordinary: dict[str, Any]
) -> None:
    may_go_on = threading.Event()

    def think(cycle: rtloop.Cycle) -> None:
        if cycle.index == 3:
            may_go_on.wait()

    inner = probes.Probe("5ms", name="inner", **ordinary)
    group = LoopGroup([inner, PyLoop(think, "5ms", name="plan", **ordinary)], watchdog=N)
    group.start()
    until(lambda: inner.state == "stopped")
    may_go_on.set()
    with pytest.raises(WatchdogError, match=r"plan was found stuck.*safe\(\) returned 0"):
        group.join()


def test_a_loop_that_stops_its_own_group_does_not_wait_for_the_watchdog(
    probes: ModuleType, ordinary: dict[str, Any]
) -> None:
    """It would hang until it is found stuck by whom it waits for."""

    def think(cycle: rtloop.Cycle) -> None:
        group.stop("20s")

    inner = probes.Probe("5ms", name="inner", **ordinary)
    group = LoopGroup([inner, PyLoop(think, "5ms", name="plan", **ordinary)], watchdog=N)
    group.run()
    assert group.state == "stopped" and "rtloop-watchdog" not in tasks()


def test_groups_start_and_end_again_and_again_beside_each_other(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    groups = [
        LoopGroup([probes.Probe("5ms", name=f"{i}{j}", **ordinary) for j in range(2)], watchdog=N) for i in range(2)
    ]
    for _ in range(5):
        with groups[0], groups[1]:
            assert all(dict(group.grants)["watchdog"] for group in groups)
        assert "rtloop-watchdog" not in tasks()
    for loop in groups[0].loops:
        loop.stop_at = 2
    groups[0].start()
    until(lambda: all(loop.state == "stopped" for loop in groups[0].loops))
    groups[0].loops[0].run(cycles=2)  # alone, when its group has ended by itself
    assert groups[0].run()["00"].cycles == 3


def test_a_watchdog_that_cannot_be_had_starts_none(
    pair: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    loops = pair(strict=True)
    group = LoopGroup(loops, name="servo", watchdog=N)
    real = scheduling.thread_grants

    def thread_grants(settings: Any, *arguments: Any) -> Any:
        grants = real(settings, *arguments)
        if "watchdog" in settings.name:
            return [grant._replace(ok=False, errno=1) for grant in grants]
        return grants

    before = tasks()
    with monkeypatch.context() as patch:
        patch.setattr(scheduling, "thread_grants", thread_grants)
        with pytest.raises(rtloop.PrivilegeError, match="servo's watchdog: 4 requests were refused") as told:
            group.start()
    assert "the watchdog could not be started, so that none of the group's loops runs" in "".join(told.value.__notes__)
    assert [loop.enters for loop in loops] == [0, 0] and tasks() == before
    assert group.run("40ms")["outer"].cycles > 0


@pytest.mark.parametrize("limit", ["400ms", timedelta(milliseconds=400)])
def test_a_watchdog_may_have_a_time_for_all_loops(pair: Callable[..., list[Any]], limit: Any) -> None:
    inner, outer = pair()
    outer.hang_at = 7
    let_go_when_safe(outer)
    with pytest.raises(WatchdogError) as told:
        LoopGroup([inner, outer], watchdog=limit).run("10s")
    assert told.value.name == outer.name and told.value.stuck_ns is not None and told.value.stuck_ns >= 400 * MS
    with pytest.raises(rtloop.ConfigError, match=f"watchdog='1ms' is less than two periods of {outer.name}"):
        LoopGroup([inner, outer], watchdog="1ms")


@pytest.mark.parametrize("watchdog", [1, 0, -3, 1.5, "5", True, 10**7])
def test_what_cannot_be_a_number_of_periods_is_refused(pair: Callable[..., list[Any]], watchdog: Any) -> None:
    with pytest.raises(rtloop.ConfigError, match="watchdog="):
        LoopGroup(pair(), watchdog=watchdog)


def test_the_grants_of_the_watchdog_are_under_its_name(
    pair: Callable[..., list[Any]], probes: ModuleType, ordinary: dict[str, Any]
) -> None:
    loops = pair()
    assert "watchdog" not in LoopGroup(loops).grants
    group = LoopGroup(loops, watchdog=N)
    assert group.grants["watchdog"] == ()
    group.run("40ms")
    granted = {grant.name: grant.granted for grant in group.grants["watchdog"]}
    assert granted["policy"] == "other" and {"state", "stack", "signal_stack"} <= set(granted)
    with pytest.raises(rtloop.ConfigError, match="a loop is called 'watchdog'"):
        LoopGroup([probes.Probe("5ms", name="watchdog", **ordinary)], watchdog=N)


def test_it_is_above_its_loops_and_below_99() -> None:
    def planned(*every: dict[str, Any]) -> tuple[str, int, list[str]]:
        made = [make_settings("x", "1ms", **keywords) for keywords in every]
        settings, _, remarks = watchdog_plan.plan("g", made, watchdog_plan.Limit(5))
        return settings.policy, settings.priority, [remark.granted for remark in remarks]

    assert planned({"priority": 79}, {"priority": 75}) == ("fifo", 80, [])
    assert planned({"priority": 97}) == ("fifo", 98, [])
    assert planned({"priority": 98}, {"priority": 3}) == ("fifo", 98, ["98"])
    assert planned({"policy": "other"}, {"priority": 20, "policy": "rr"}) == ("fifo", 21, [])
    assert planned({"policy": "other"}) == ("other", 0, [])
    assert planned({"policy": "deadline", "runtime": "100us"}) == ("fifo", 80, [])


def test_it_is_as_strict_and_locks_as_much_as_the_most_demanding_of_its_loops() -> None:
    every = [
        make_settings("a", "100us", strict=False, lock_memory="own"),
        make_settings("b", "20ms", lock_memory="onfault"),
    ]
    settings, limits, _ = watchdog_plan.plan("g", every, watchdog_plan.Limit(10))
    assert settings.strict and settings.lock_memory == "onfault" and settings.cpu is None
    assert limits == [MS, 200 * MS] and settings.period_ns == 125_000
    assert watchdog_plan.plan("g", every[1:], watchdog_plan.Limit(10))[0].period_ns == 10 * MS, "at most"
    assert watchdog_plan.plan("g", every[:1], watchdog_plan.Limit(2))[0].period_ns == 100_000, "at least"


def test_the_error_survives_pickling() -> None:
    error = WatchdogError("stuck", "a", 3, 5, 7, -1)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.name, again.cycle, again.stuck_ns, again.acted_ns, again.safe_code) == (
        "stuck", "a", 3, 5, 7, -1,
    )  # fmt: skip


SCRIPT = """
import os, signal, sys, threading, time, probes, rtloop
plain = dict(policy="other", lock_memory="off", dma_latency=None)
loops = [probes.Probe("5ms", name=name, **plain) for name in ("a", "b")]
group = rtloop.LoopGroup(loops, watchdog=100)
"""


def test_the_interpreter_ends_with_a_group_that_is_watched(
    script: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = script(SCRIPT + "group.start()\nprint(group.state)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "running\n", "")


def test_the_interpreter_ends_with_a_loop_that_hangs(script: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = script(
        SCRIPT + "loops[0].hang = True\ngroup.start()\nwhile not loops[0].steps: time.sleep(0.001)\nprint('bye')"
    )
    assert (done.returncode, done.stdout) == (0, "bye\n")
    assert "a did not stop within 2 s" in done.stderr and "watchdog" not in done.stderr


def test_ctrl_c_stops_a_group_that_is_watched(script: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = script(
        SCRIPT
        + """
def interrupt():
    while not all(loop.steps for loop in loops):
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt, daemon=True).start()
try:
    group.run()
except KeyboardInterrupt:
    print("interrupted", [loop.state for loop in loops])
print(group.run("20ms")["a"].state)
"""
    )
    assert done.stdout == "interrupted ['stopped', 'stopped']\nstopped\n", done.stderr


@pytest.mark.filterwarnings("ignore:this process forks")
def test_a_fork_leaves_the_watchdog_to_the_parent(script: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = script(
        SCRIPT
        + """
import warnings
warnings.simplefilter("ignore")
group.start()
child = os.fork()
if child == 0:
    again = rtloop.LoopGroup([probes.Probe("5ms", name="a", **plain)], watchdog=100)
    os._exit(7 if group.state == "failed" and again.run("20ms")["a"].cycles else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
loops[0].safe_lets_go = loops[0].hang = True
try:
    group.join()
except rtloop.WatchdogError as error:
    print(error.name, loops[0].safes)
"""
    )
    assert done.stdout == "7\na 1\n", done.stderr
