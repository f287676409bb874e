"""A loop in a process of its own as a member of a group: one origin, one end, one reaction to failures."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from rtloop_test_waiting import wait_until

import rtloop
from rtloop import Chain, LoopGroup, ProcessLoop
from rtloop.child.safe_call import SafeCall

STEPS = '''
import json, os, sys, time
from pathlib import Path

def note(name, value):
    """Add a line to a file beside this module."""
    with Path(__file__).with_name(name).open("a") as file:
        file.write(json.dumps(value) + "\\n")

def do_nothing(cycle):
    pass

def fail(cycle):
    if cycle.index == 7:
        raise KeyError("torque")

def crash(cycle):
    os._exit(4)

def hang(cycle):
    note("hanging", os.getpid())
    while not Path(__file__).with_name("go").exists():
        time.sleep(0.001)

def spin(cycle):
    note("hanging", os.getpid())
    while not Path(__file__).with_name("go").exists():
        pass

def brake():
    note("safe", [os.getpid(), Path(__file__).with_name("go").exists()])
    return -7

def brake_in_vain():
    raise OSError("no bus")

def refuse():
    raise PermissionError("no bus")

def leave():
    note("left", os.getpid())
'''

Pair = Callable[..., tuple[Any, ProcessLoop]]


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the module group_steps, which the processes of loops import."""
    (tmp_path / "group_steps.py").write_text(STEPS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture
def pair(probes: ModuleType, steps: Path, ordinary: dict[str, Any]) -> Pair:
    """Make a compiled inner loop and a Python outer one, whose step is a function of group_steps."""

    def make(step: str = "do_nothing", **keywords: Any) -> tuple[Any, ProcessLoop]:
        settings = {**ordinary, "leave_timeout": "60s"}
        inner = probes.Probe("1ms", name="inner", **settings)
        leave = "group_steps:leave"
        return inner, ProcessLoop(f"group_steps:{step}", "5ms", leave=leave, name="outer", **settings, **keywords)

    return make


def left(steps: Path) -> list[int]:
    """Return the processes in which leave has run."""
    file = steps / "left"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_the_loops_have_one_origin_and_one_end(pair: Pair, steps: Path) -> None:
    inner, outer = pair()
    chain = Chain([inner, outer], max_age="60s")
    cpu = min(os.sched_getaffinity(0))
    group = LoopGroup([inner, outer], chains=[chain], cpus=[None, cpu], name="servo")
    for run in range(1, 3):  # a group can be started again
        stats = group.run("100ms")
        assert (group.state, inner.state, outer.state) == ("stopped",) * 3
        assert inner.leaves == run and len(left(steps)) == run
        origin = group.origin_ns
        for name, period in (("inner", 1_000_000), ("outer", 5_000_000)):
            releases = stats[name].records["release"]
            assert stats[name].settings["group"] == "servo" and stats[name].settings["origin_ns"] == origin
            assert set((releases - origin) % period) == {0}
            assert releases[0] >= origin and stats[name].cycles > 0
        assert group.ages()[chain.name].count > 0
    assert left(steps)[-1] == outer.pid
    assert outer.settings == group.settings["outer"] and outer.settings.cpu == (cpu,)
    assert {grant.name for grant in group.grants["outer"]} >= {"gil", "collector"}
    outer.run(cycles=3)
    assert outer.settings.cpu != (cpu,) and outer.stats.cycles == 3, "alone it has its own settings again"


def test_a_stop_ends_both_and_neither_can_be_started_meanwhile(pair: Pair, steps: Path) -> None:
    inner, outer = pair()
    group = LoopGroup([outer, inner], name="servo")
    with group:
        wait_until(lambda: outer.stats.cycles > 3 and inner.stats.cycles > 3, "both loops run")
        outer.stop("60s")
        assert (outer.state, inner.state) == ("stopped", "running"), "a normal end of one loop does not end the other"
        with pytest.raises(rtloop.StateError, match="is a loop of servo, which is running: stop the group first"):
            outer.start()
    assert group.state == "stopped" and (inner.leaves, len(left(steps))) == (1, 1)


def test_an_exception_of_the_process_ends_the_others(pair: Pair, steps: Path) -> None:
    inner, outer = pair("fail")
    group = LoopGroup([inner, outer])
    with pytest.raises(KeyError, match="torque") as caught:
        group.run()
    assert "Raised in cycle 7 of outer" in "".join(caught.value.__notes__)
    assert (inner.state, outer.state, group.state) == ("stopped", "failed", "failed")
    assert (inner.leaves, len(left(steps))) == (1, 1)


def test_a_failure_beside_it_ends_the_loop_in_the_process(pair: Pair, steps: Path) -> None:
    inner, outer = pair()
    inner.fail_at = 20
    group = LoopGroup([inner, outer])
    with pytest.raises(rtloop.CallbackError, match="inner"):
        group.run()
    assert (inner.state, outer.state) == ("failed", "stopped")
    assert (inner.leaves, len(left(steps))) == (1, 1)


@pytest.mark.parametrize(("number", "leaves"), [(signal.SIGKILL, 0), (signal.SIGTERM, 1)])
def test_a_process_that_is_ended_ends_the_group_with_its_cause(
    number: int, leaves: int, pair: Pair, steps: Path
) -> None:
    inner, outer = pair()
    group = LoopGroup([inner, outer], watchdog="60s")
    with pytest.raises(rtloop.ProcessDiedError, match=f"outer: .* was ended by {signal.Signals(number).name}"), group:
        wait_until(lambda: outer.stats.cycles > 3, "the outer loop runs")
        assert outer.pid is not None
        os.kill(outer.pid, number)
        group.join()
    assert (inner.state, outer.state) == ("stopped", "failed")
    assert (inner.leaves, len(left(steps))) == (1, leaves)


def test_a_process_that_crashes_leaves_the_others_running_if_they_are_to_keep_on(pair: Pair) -> None:
    inner, outer = pair("crash")
    group = LoopGroup([inner, outer], on_failure="keep")
    group.start()
    wait_until(lambda: outer.state == "failed", "the process crashes")
    cycles = inner.stats.cycles
    wait_until(lambda: inner.stats.cycles > cycles + 10, "the inner loop goes on")
    with pytest.warns(rtloop.RTSetupWarning, match="exit code 4"):
        group.stop("60s")
    assert (inner.leaves, inner.peer_failures) == (1, 0)


def test_the_watchdog_finds_a_process_that_hangs(pair: Pair, steps: Path) -> None:
    inner, outer = pair("hang")
    group = LoopGroup([inner, outer], watchdog="1s")
    group.start()
    wait_until(lambda: inner.leaves == 1, "the watchdog ends the inner loop")
    (steps / "go").touch()
    with pytest.raises(rtloop.WatchdogError, match=r"outer was found stuck.*watchdog="):
        group.join()
    assert (inner.state, outer.state) == ("stopped", "failed") and len(left(steps)) == 1


@pytest.mark.parametrize("step", ["hang", "spin"])
def test_the_process_that_hangs_calls_its_safe_meanwhile_and_leave_afterwards(
    step: str, pair: Pair, steps: Path
) -> None:
    inner, outer = pair(step, safe="group_steps:brake")
    group = LoopGroup([inner, outer], watchdog="1s")
    group.start()
    wait_until((steps / "safe").exists, "safe is called while the step hangs")
    wait_until(lambda: inner.leaves == 1, "the watchdog ends the inner loop")
    assert not left(steps)
    (steps / "go").touch()
    with pytest.raises(rtloop.WatchdogError, match=r"outer was found stuck.*safe\(\) returned -7") as raised:
        group.join()
    assert raised.value.safe_code == -7
    assert json.loads((steps / "safe").read_text()) == [outer.pid, False] and left(steps) == [outer.pid]


def test_a_safe_that_raises_is_reported(pair: Pair, steps: Path, capfd: pytest.CaptureFixture[str]) -> None:
    inner, outer = pair("hang", safe="group_steps:brake_in_vain")
    group = LoopGroup([inner, outer], watchdog="1s")
    group.start()
    wait_until(lambda: inner.leaves == 1, "the watchdog ends the inner loop")
    (steps / "go").touch()
    with pytest.raises(rtloop.WatchdogError) as raised:
        group.join()
    assert raised.value.safe_code == -errno.EINVAL and len(left(steps)) == 1
    assert "outer: its step hangs, and safe has raised an exception" in (told := capfd.readouterr().err)
    assert "OSError: no bus" in told


def test_a_loop_that_does_not_hang_calls_no_safe(pair: Pair, steps: Path) -> None:
    inner, outer = pair(safe="group_steps:brake")
    LoopGroup([inner, outer], watchdog="60s").run("50ms")
    outer.run(cycles=3)
    assert not (steps / "safe").exists() and len(left(steps)) == 2
    with pytest.raises(rtloop.ConfigError, match="safe="):
        ProcessLoop("group_steps:do_nothing", "5ms", safe="nothing")


@pytest.mark.parametrize(("limit", "expected"), [(95, [81]), (80, [81, 80]), (0, [81, 80])])
def test_safe_is_called_at_the_highest_priority_that_the_limit_allows(
    monkeypatch: pytest.MonkeyPatch, limit: int, expected: list[int]
) -> None:
    asked: list[int] = []

    def refuse(pid: int, policy: int, param: Any) -> None:  # with RLIMIT_RTPRIO as high as the loop needs it
        asked.append(param.sched_priority)
        if param.sched_priority > limit:
            raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    may_go = threading.Event()
    may_go.set()
    loop: Any = SimpleNamespace(settings=SimpleNamespace(policy="fifo", priority=80), await_trip=lambda: False)
    SafeCall(lambda: None, None)._work(loop, may_go)
    assert asked == expected


def test_a_setup_that_is_refused_starts_none(pair: Pair, steps: Path) -> None:
    inner, outer = pair(setup="group_steps:refuse")
    group = LoopGroup([inner, outer], name="servo", watchdog="60s")
    with pytest.raises(PermissionError, match="no bus") as caught:
        group.start()
    assert "servo: outer could not be started, so that none of" in "".join(caught.value.__notes__)
    assert (inner.enters, inner.state, outer.state, group.state) == (0, "new", "new", "new")
    assert not left(steps)


SCRIPT = """
import rtloop, group_steps

if __name__ == "__main__":
    settings = dict(policy="other", lock_memory="off", dma_latency=None, leave_timeout="60s")
    inner = rtloop.PyLoop(lambda cycle: None, "2ms", name="inner", leave=group_steps.leave, **settings)
    outer = rtloop.ProcessLoop("group_steps:do_nothing", "5ms", name="outer", leave="group_steps:leave", **settings)
    with rtloop.LoopGroup([inner, outer]) as group:
        group_steps.note("running", outer.pid)
        group.join()
"""


def test_sigterm_runs_leave_in_both_processes(steps: Path) -> None:
    (steps / "script.py").write_text(SCRIPT)
    script = subprocess.Popen([sys.executable, "script.py"], cwd=steps)
    try:
        wait_until((steps / "running").exists, "the group runs")
        script.terminate()
        assert script.wait(60) == -signal.SIGTERM
        assert sorted(left(steps)) == sorted([script.pid, json.loads((steps / "running").read_text())])
    finally:
        script.kill()
        script.wait()
