"""A run with a limit whose step does not return: run() raises by itself, but not before it has to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import rtloop
from rtloop.loop.overdue import Overdue
from rtloop.tools.run.show import Silence

MS = 1_000_000


@contextmanager
def held() -> Iterator[threading.Event]:
    """An event that a callback waits for; it is set at the end, whatever happens, so that the loop can end."""
    event = threading.Event()
    try:
        yield event
    finally:
        event.set()


def hang_in(index: int, event: threading.Event) -> Callable[[rtloop.Cycle], None]:
    def step(cycle: rtloop.Cycle) -> None:
        if cycle.index == index:
            event.wait(60)

    return step


@pytest.mark.parametrize("clock", ["monotonic", "realtime"])
def test_a_step_that_hangs_ends_the_wait_of_a_run(ordinary: dict[str, Any], clock: Any) -> None:
    with held() as event:
        loop = rtloop.PyLoop(hang_in(5, event), "2ms", name="servo", clock=clock, leave_timeout="300ms", **ordinary)
        begin = time.monotonic()
        with pytest.raises(
            rtloop.StopTimeoutError, match="servo did not stop within 300 ms after the limit of its run"
        ):
            loop.run("200ms")
        assert 0.5 <= time.monotonic() - begin < 30
        assert (loop.state, loop.stats.cycles) == ("running", 5)
        event.set()
        assert loop.join("30s") and loop.stats.cycles == 6, "it was asked to stop"


def test_a_last_step_has_its_time(ordinary: dict[str, Any]) -> None:
    def slow(cycle: rtloop.Cycle) -> None:
        if cycle.index == 5:
            time.sleep(0.7)

    loop = rtloop.PyLoop(slow, "10ms", leave_timeout="1100ms", **ordinary)
    assert loop.run("80ms").cycles == 6
    assert loop.run(cycles=6).cycles == 6
    assert loop.state == "stopped"


def test_a_step_may_take_a_period(ordinary: dict[str, Any]) -> None:
    loop = rtloop.PyLoop(lambda cycle: time.sleep(0.7), "1s", leave_timeout="100ms", **ordinary)
    assert loop.run("100ms").cycles == 1


@pytest.mark.parametrize("limit", [{"duration": "20ms"}, {"cycles": 10}])
def test_a_run_that_ends_normally_waits_for_leave(ordinary: dict[str, Any], limit: dict[str, Any]) -> None:
    ends = []

    def park() -> None:
        time.sleep(0.7)
        ends.append("parked")

    rtloop.PyLoop(lambda cycle: None, "2ms", leave=park, leave_timeout="100ms", **ordinary).run(**limit)
    assert ends == ["parked"]


def test_a_long_cycle_before_the_limit_is_no_hang(ordinary: dict[str, Any]) -> None:
    def slow(cycle: rtloop.Cycle) -> None:
        time.sleep(0.3)

    loop = rtloop.PyLoop(slow, "1ms", leave_timeout="100ms", **ordinary)
    assert loop.run(cycles=2).cycles == 2


def test_a_loop_of_a_group_that_hangs_ends_the_wait_of_the_group(ordinary: dict[str, Any]) -> None:
    with held() as event:
        good = rtloop.RTLoop("2ms", name="good", **ordinary)
        bad = rtloop.PyLoop(hang_in(5, event), "2ms", name="bad", leave_timeout="200ms", **ordinary)
        group = rtloop.LoopGroup([bad, good])
        with pytest.raises(rtloop.StopTimeoutError, match="bad did not stop within 200 ms after the limit"):
            group.run("60ms")
        assert (bad.state, good.state) == ("running", "stopped")
        event.set()
        assert group.wait("30s")


def test_a_loop_in_another_process_that_hangs_ends_the_wait_of_a_run(
    ordinary: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "far_step.py").write_text("import time\ndef step(cycle):\n    if cycle.index == 5: time.sleep(60)\n")
    monkeypatch.syspath_prepend(tmp_path)
    loop = rtloop.ProcessLoop("far_step:step", "2ms", name="overdue", leave_timeout="200ms", **ordinary)
    with pytest.raises(rtloop.StopTimeoutError, match="overdue did not stop within 200 ms after the limit"):
        loop.run("60ms")
    assert loop.state == "failed"


class Clock:
    """Time and CPU time of a process, for a judge."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.used = 0
        monkeypatch.setattr(time, "monotonic_ns", lambda: self.now)
        monkeypatch.setattr(time, "process_time_ns", lambda: self.used)

    def pass_(self, ms: int, used_ms: int = 0) -> None:
        self.now += ms * MS
        self.used += used_ms * MS


def test_time_in_which_the_process_stood_still_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    judge = Overdue(lambda: (7,), 2000 * MS)
    assert not judge.look()
    clock.pass_(3_600_000)
    assert not judge.look(), "stopped for an hour"
    for _ in range(17):
        clock.pass_(100)
        assert not judge.look()
    clock.pass_(100)
    assert judge.look() and judge.is_over


def test_time_in_which_a_busy_step_keeps_the_waiter_from_running_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    judge = Overdue(lambda: (7,), 2000 * MS)
    judge.look()
    clock.pass_(950, used_ms=940)
    assert not judge.look()
    clock.pass_(1100, used_ms=1100)
    assert judge.look()


def test_progress_and_a_limit_that_has_not_passed_begin_the_time_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    progress: list[object] = [None]
    judge = Overdue(lambda: progress[0], 150 * MS)
    for number in range(50):
        progress[0] = None if number < 20 else (number,)
        assert not judge.look()
        clock.pass_(100)
    assert not judge.look()
    clock.pass_(100)
    assert judge.look()
    progress[0] = (51,)
    assert not judge.look() and not judge.is_over


def test_the_live_line_shows_for_how_long_no_cycle_has_ended() -> None:
    silence = Silence(period_ns=MS)
    assert [silence.look(200, now) for now in (10.0, 11.0, 12.0)] == [""] * 3
    assert silence.look(200, 15.0) == "no cycle for 5 s"
    assert silence.look(201, 16.0) == ""
    slow = Silence(period_ns=10_000 * MS)
    assert [slow.look(3, now) for now in (0.0, 29.0, 31.0)] == ["", "", "no cycle for 31 s"]
