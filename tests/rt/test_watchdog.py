"""The watchdog on real-time threads: above its loops on the same CPU, clean itself, and released completely."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import rtloop_test_processes as processes

import rtloop
from rtloop import LoopGroup, WatchdogError

pytestmark = pytest.mark.rt

FIFO = os.SCHED_FIFO | getattr(os, "SCHED_RESET_ON_FORK", 0x40000000)
MS = 1_000_000


def make(probes: ModuleType, **settings: Any) -> list[Any]:
    rates = {"current": "1ms", "velocity": "5ms", "planning": "20ms"}
    return [probes.Probe(period, name=name, **settings) for name, period in rates.items()]


def threads() -> dict[str, int]:
    """Return this process's threads by their names."""
    return {name: tid for tid, name in processes.thread_names().items()}


@contextmanager
def on_one_cpu() -> Iterator[int]:
    """Keep this thread, and what it makes, on one CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield max(before)
    finally:
        os.sched_setaffinity(0, before)


def test_the_kernel_runs_it_above_the_highest_loop(probes: ModuleType) -> None:
    with LoopGroup(make(probes), watchdog=1000) as group:
        tid = threads()["rtloop-watchdog"]
        assert (os.sched_getscheduler(tid), os.sched_getparam(tid).sched_priority) == (FIFO, 80)
    granted = {grant.name: grant.granted for grant in group.grants["watchdog"]}
    assert granted["policy"] == "fifo 80" and granted["memory_lock"] == "all"
    assert all(grant.ok for grant in group.grants["watchdog"])
    loops = [probes.Probe("1ms", name="a", priority=7), probes.Probe("2ms", name="b", priority=98)]
    with LoopGroup(loops, priorities="as-given", watchdog=1000) as group:
        assert os.sched_getparam(threads()["rtloop-watchdog"]).sched_priority == 98
    assert "the watchdog cannot run" in str(next(g for g in group.grants["watchdog"] if g.name == "priority"))


def test_a_loop_that_spins_for_ever_on_its_cpu_is_preempted(probes: ModuleType) -> None:
    """Python cannot help here: on this CPU it does not run any more. Only safe() lets the loop go."""
    loops = make(probes)
    loops[0].hang_at, loops[0].is_spinning, loops[0].safe_lets_go, loops[0].safe_code = 100, True, True, 7
    with on_one_cpu() as cpu:
        group = LoopGroup(loops, watchdog=20, cpus=[cpu] * 3)
        with pytest.raises(WatchdogError, match="cycle 100 had not ended") as told:
            group.run()
    error = told.value
    assert (error.name, error.cycle, error.safe_code) == ("current", 99, 7)
    assert error.stuck_ns is not None and error.stuck_ns >= 20 * MS
    assert [loop.state for loop in loops] == ["failed", "stopped", "stopped"]
    assert [loop.safes for loop in loops] == [1, 0, 0] and loops[0].steps == 101


@pytest.mark.parametrize("stuck", [0, 1, 2])
def test_whichever_loop_is_stuck_all_end_and_nothing_stays(
    probes: ModuleType, stuck: int, account: Callable[[], dict[str, Any]]
) -> None:
    loops = make(probes)
    group = LoopGroup(loops, watchdog=10)
    group.run("100ms")
    before = account()
    loops[stuck].hang_at, loops[stuck].safe_lets_go = 5, True
    for _ in range(3):
        loops[stuck].let_go = False
        with pytest.raises(WatchdogError, match=loops[stuck].name) as told:
            group.run()
        period = loops[stuck].settings.period_ns
        assert told.value.stuck_ns is not None and told.value.stuck_ns >= 10 * period
        assert loops[stuck].stats.records["end"][4] == told.value.acted_ns - told.value.stuck_ns
        assert account() == before
    assert loops[stuck].safes == 3 and sum(loop.safes for loop in loops) == 3
    loops[stuck].hang_at = -1
    assert group.run("100ms")["current"].state == "stopped" and account() == before


def test_a_check_faults_on_no_page_and_sleeps_once(probes: ModuleType) -> None:
    """By the kernel's account of its thread: a lock or a wait would be one more switch."""

    def counts(tid: int) -> tuple[int, int, int]:
        task = Path("/proc/self/task", str(tid))
        found = re.search(r"^voluntary_ctxt_switches:\s*(\d+)", (task / "status").read_text(), re.MULTILINE)
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        assert found is not None
        return int(found[1]), int(fields[7]), int(fields[9])

    loops = make(probes)
    with LoopGroup(loops, watchdog=1000) as group:
        watchdog = group._run._watchdog  # type: ignore[union-attr]
        tid = threads()["rtloop-watchdog"]
        while watchdog.checks < 3:
            pass
        checks, (switches, *faults) = watchdog.checks, counts(tid)
        while watchdog.checks < checks + 100:
            pass
        more, (after, *faults_after) = watchdog.checks - checks, counts(tid)
        assert abs(after - switches - more) <= 2 and faults_after == faults
    assert group.stats["current"].page_faults == (0, 0)


def test_a_loop_that_recovers_while_it_is_made_safe_begins_no_further_step(probes: ModuleType) -> None:
    loops = make(probes)
    loops[0].hang_at, loops[0].safe_ns = 50, 300 * MS
    with pytest.raises(WatchdogError), LoopGroup(loops, watchdog=10):
        while not loops[0].safe_at:
            pass
        loops[0].let_go = True
        while not loops[0].safes:
            pass
    assert loops[0].steps == 51 and loops[0].left_at > loops[0].safe_at + 300 * MS


def test_a_refused_priority_starts_none(
    probes: ModuleType, monkeypatch: pytest.MonkeyPatch, account: Callable[[], dict[str, Any]]
) -> None:
    from rtloop.loop import scheduling

    real = scheduling.thread_grants

    def thread_grants(settings: Any, *arguments: Any) -> Any:
        grants = real(settings, *arguments)
        return [g._replace(ok=False, errno=1) for g in grants] if "watchdog" in settings.name else grants

    loops = make(probes)
    group = LoopGroup(loops, watchdog=10)
    group.run("10ms")
    before = account()
    monkeypatch.setattr(scheduling, "thread_grants", thread_grants)
    with pytest.raises(rtloop.PrivilegeError):
        group.start()
    assert account() == before and [loop.enters for loop in loops] == [1] * 3


@pytest.mark.parametrize("hang_at", [0, 1, 7])
def test_it_does_not_act_before_its_limit_nor_in_the_first_cycle(probes: ModuleType, hang_at: int) -> None:
    """By the loop's own records, and by its origin where no cycle has ended."""
    loop = probes.Probe("500us", name="a", phase="1700us")
    loop.hang_at, loop.safe_lets_go = hang_at, True
    group = LoopGroup([loop], watchdog=4)
    for _ in range(20):
        loop.let_go = False
        with pytest.raises(WatchdogError) as told:
            group.run()
        error = told.value
        assert error.stuck_ns is not None and error.acted_ns is not None and group.origin_ns is not None
        ends = [end for end in loop.stats.records["end"].tolist() if end < error.acted_ns]
        assert len(ends) <= hang_at, "fewer only if the machine itself held the loop up"
        begun = ends[-1] if ends else group.origin_ns + 1_700_000
        assert error.acted_ns - error.stuck_ns == begun and error.stuck_ns >= 4 * 500_000
