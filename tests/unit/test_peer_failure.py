"""Reaction of a group's loops to the failure of another one, with on_failure="hook"."""

from __future__ import annotations

import time
from types import ModuleType
from typing import Any

import pytest

import rtloop
from rtloop import RT_CONTINUE, RT_STOP, LoopGroup, PyLoop, RTLoop


def until(condition: Any) -> None:
    """Wait for what has to come; the watchdog of all tests ends one for which it does not."""
    while not condition():
        time.sleep(0.001)


def make(probes: ModuleType, ordinary: dict[str, Any], *periods: str, code: int = RT_CONTINUE) -> list[Any]:
    """Make loops that answer a failure with `code`."""
    loops = [probes.Probe(period, name="abcd"[i], **ordinary) for i, period in enumerate(periods)]
    for loop in loops:
        loop.peer_code = code
    return loops


def test_each_other_loop_is_asked_once_on_its_own_thread_and_may_go_on(
    probes: ModuleType, ordinary: dict[str, Any]
) -> None:
    a, b, c = make(probes, ordinary, "1ms", "2ms", "5ms")
    a.fail_at = 3
    with pytest.raises(rtloop.CallbackError, match="a: step"), LoopGroup([a, b, c], on_failure="hook") as group:
        until(lambda: b.peer_failures and c.peer_failures)
        steps = b.steps, c.steps
        until(lambda: b.steps > steps[0] + 20 and c.steps > steps[1] + 20)
        assert group.state == "running" and a.state == "failed"
    assert [loop.peer_failures for loop in (a, b, c)] == [0, 1, 1]
    assert (b.peer_tid, c.peer_tid) == (b.tid, c.tid)
    assert (b.state, c.state) == ("stopped", "stopped")
    assert [loop.index_errors + loop.late_starts for loop in (b, c)] == [0, 0]


@pytest.mark.parametrize("kind", ["Probe", "RTLoop"])
def test_rt_stop_is_a_normal_end_and_what_a_loop_without_the_hook_does(
    probes: ModuleType, ordinary: dict[str, Any], kind: str
) -> None:
    a = probes.Probe("1ms", name="a", **ordinary)
    b = (probes.Probe if kind == "Probe" else RTLoop)("2ms", name="b", **ordinary)
    a.fail_at = 3
    with pytest.raises(rtloop.CallbackError, match="a: step"):
        LoopGroup([a, b], on_failure="hook").run()
    assert b.state == "stopped" and b.stats.state == "stopped"
    assert kind == "RTLoop" or (b.peer_failures, b.leaves) == (1, 1)


def test_a_hook_that_fails_is_a_failure_of_which_the_others_hear(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    a, b, c, d = make(probes, ordinary, "1ms", "50ms", "1ms", "2ms")
    a.fail_at, b.peer_code = 3, -7
    with pytest.raises(rtloop.CallbackError, match="a: step") as caught, LoopGroup([a, b, c, d], on_failure="hook"):
        until(lambda: b.state == "failed")
        heard = c.peer_failures, d.peer_failures
        steps = c.steps, d.steps
        until(lambda: c.steps > steps[0] + 2 and d.steps > steps[1] + 2)
        assert (c.state, d.state) == ("running", "running")
    assert "b: on_peer_failure() returned -7 in cycle" in "".join(caught.value.__notes__)
    assert min(heard) >= 1
    assert {c.peer_failures, d.peer_failures} <= {1, 2}, "once for each failure, or once for both"
    with pytest.raises(rtloop.CallbackError) as own:
        b.join()
    assert (own.value.callback, own.value.code) == ("on_peer_failure", -7) and b.leaves == 1


def test_failures_one_after_the_other_ask_again(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    a, b, c, d = make(probes, ordinary, "1ms", "1ms", "1ms", "2ms")
    with pytest.raises(rtloop.CallbackError, match="a: step"), LoopGroup([a, b, c, d], on_failure="hook"):
        for asked, failing in enumerate((a, b, c), 1):
            failing.fail_at = failing.last_index + 100
            until(lambda failing=failing, asked=asked: failing.state == "failed" and d.peer_failures == asked)
        steps = d.steps
        until(lambda: d.steps > steps + 2)
    assert [loop.peer_failures for loop in (a, b, c, d)] == [0, 1, 2, 3]


@pytest.mark.parametrize("code", [RT_CONTINUE, RT_STOP, -7])
def test_a_release_that_is_far_away_is_not_waited_for(probes: ModuleType, ordinary: dict[str, Any], code: int) -> None:
    a, b = make(probes, ordinary, "1ms", "1h", code=code)
    a.fail_at = 3
    with pytest.raises(rtloop.CallbackError, match="a: step"), LoopGroup([a, b], on_failure="hook"):
        until(lambda: b.peer_failures)
        if code == RT_CONTINUE:
            time.sleep(0.1)
            assert (b.state, b.steps, b.peer_failures) == ("running", 1, 1), "it waits for its release as before"
        else:
            until(lambda: b.state != "running")
    assert b.state == {RT_CONTINUE: "stopped", RT_STOP: "stopped", -7: "failed"}[code] and b.steps == 1


@pytest.mark.parametrize("spin", [0, "auto", "20ms"])
@pytest.mark.parametrize("kind", ["Probe", "Paced"])
def test_no_step_comes_early_for_it(probes: ModuleType, ordinary: dict[str, Any], kind: str, spin: Any) -> None:
    a = probes.Probe("1ms", name="a", **ordinary)
    b = getattr(probes, kind)("130ms", name="b", **ordinary | {"spin": spin})
    b.peer_code, a.fail_at = RT_CONTINUE, 3
    if kind == "Paced":
        b.use_own = True
    with pytest.raises(rtloop.CallbackError, match="a: step"), LoopGroup([a, b], on_failure="hook"):
        until(lambda: b.steps == 3)
    assert (b.peer_failures, b.late_starts, b.index_errors) == (1, 0, 0)


def test_a_reset_at_the_same_time_is_done_too(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    a, b = make(probes, ordinary, "1ms", "200ms")
    with pytest.raises(rtloop.CallbackError, match="a: step"), LoopGroup([a, b], on_failure="hook"):
        until(lambda: b.steps)
        a.fail_at = a.last_index + 20
        until(lambda: a.state == "failed")
        b.reset_stats()
        until(lambda: b.peer_failures and b.steps > 2)
        assert b.stats.cycles < b.steps


def test_a_guarded_loop_is_not_blamed_for_its_hook(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    """The hook calls gettid(), which between two steps is nobody's business."""
    a, b = make(probes, ordinary | {"guard": "count", "warmup": 0}, "1ms", "2ms")
    a.fail_at = 3
    with pytest.raises(rtloop.CallbackError, match="a: step"), LoopGroup([a, b], on_failure="hook"):
        until(lambda: b.peer_failures and b.steps > 20)
    assert b.stats.guard["system_calls"] in (0, None)


def test_python_loops_take_part(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    def think(cycle: rtloop.Cycle) -> None:
        if cycle.index == 2:
            raise ValueError("no plan")

    a = probes.Probe("1ms", name="a", **ordinary)
    with pytest.raises(ValueError, match="no plan"):
        LoopGroup([a, PyLoop(think, "5ms", name="plan", **ordinary)], on_failure="hook").run()
    assert (a.peer_failures, a.state) == (1, "stopped")
    a.fail_at = 3
    plan = PyLoop(lambda cycle: None, "5ms", name="plan", **ordinary)
    with pytest.raises(rtloop.CallbackError, match="a: step"):
        LoopGroup([a, plan], on_failure="hook").run()
    assert plan.state == "stopped", "it has no hook, and stops"


def test_an_enter_that_fails_starts_none_and_asks_none(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    a, b, c = make(probes, ordinary, "1ms", "2ms", "5ms")
    b.enter_code = -19
    with pytest.raises(rtloop.CallbackError, match=r"b.*enter"):
        LoopGroup([a, b, c], on_failure="hook").start()
    assert [(loop.steps, loop.peer_failures) for loop in (a, b, c)] == [(0, 0)] * 3
