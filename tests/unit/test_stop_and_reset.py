"""Requests at an awkward moment: a stop during the start, a reset while the loop sleeps or works."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

import rtloop

Script = Callable[..., "subprocess.CompletedProcess[str]"]


def test_a_stop_from_another_thread_during_a_start_stops_the_loop(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    class Slow(probes.Probe):  # type: ignore[misc, name-defined]
        def setup(self) -> None:
            in_setup.set()
            go_on.wait(10)

    in_setup, go_on, stopped = threading.Event(), threading.Event(), threading.Event()
    loop = Slow("1ms", **ordinary)
    starter = threading.Thread(target=loop.start)

    def stop() -> None:
        loop.stop()
        stopped.set()

    starter.start()
    assert in_setup.wait(10)
    stopper = threading.Thread(target=stop)
    stopper.start()
    assert not stopped.wait(0.1), "the stop waits for the start"
    go_on.set()
    assert stopped.wait(10)
    starter.join()
    stopper.join()
    assert (loop.state, loop.enters, loop.steps, loop.leaves) == ("stopped", 1, 0, 1)


def test_a_stop_gives_up_on_a_start_that_hangs(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    class Slow(probes.Probe):  # type: ignore[misc, name-defined]
        def setup(self) -> None:
            in_setup.set()
            go_on.wait(10)

    in_setup, go_on = threading.Event(), threading.Event()
    loop = Slow("1ms", **ordinary)
    starter = threading.Thread(target=loop.start)
    starter.start()
    assert in_setup.wait(10)
    with pytest.raises(rtloop.StopTimeoutError, match="being started"):
        loop.stop(timeout="50ms")
    go_on.set()
    starter.join()
    loop.join(timeout="5s")
    assert (loop.state, loop.steps) == ("stopped", 0), "the stop was not forgotten"


def test_a_stop_from_within_setup_stops_the_loop(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    class Reluctant(probes.Probe):  # type: ignore[misc, name-defined]
        def setup(self) -> None:
            self.stop()

    stats = Reluctant("1ms", **ordinary).run(duration="5s")
    assert stats.cycles == 0


def test_a_stop_from_a_signal_handler_during_a_start_stops_the_loop(script: Script) -> None:
    done = script("""
    import os, signal, time
    import probes
    class Slow(probes.Probe):
        def setup(self):
            os.kill(os.getpid(), signal.SIGUSR1)
            for _ in range(1000):
                pass
    loop = Slow("1ms", policy="other", lock_memory="off", dma_latency=None)
    signal.signal(signal.SIGUSR1, lambda *_: loop.stop())
    print(loop.run(duration="10s").cycles, loop.state)
    """)
    assert done.stdout.split() == ["0", "stopped"], done.stderr


def test_an_exception_that_comes_as_the_loop_is_let_go_leaves_no_loop(script: Script) -> None:
    """Interrupted by a signal at a random moment: what comes out of start() leaves no loop running."""
    done = script("""
    import os, random, signal, time, traceback
    import probes
    class Now(Exception):
        pass
    def handler(*_):
        raise Now
    signal.signal(signal.SIGALRM, handler)
    loop = probes.Probe("1ms", policy="other", lock_memory="off", dma_latency=None)
    took = []
    for _ in range(5):
        begin = time.monotonic()
        loop.start()
        took.append(time.monotonic() - begin)
        loop.stop()
    random.seed(1)
    seen = {"stopped": 0, "running": 0}
    for _ in range(150):
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 2 * min(took)))  # half are interrupted, or more
            loop.start()
            signal.setitimer(signal.ITIMER_REAL, 0)
        except Now as now:
            seen[loop.state] += 1
            files = [frame.filename for frame in traceback.extract_tb(now.__traceback__)]
            came_out_of_start = any("loop.pyx" in name for name in files)
            assert loop.state != "running" or not came_out_of_start
        loop.stop()
    def threads():
        for tid in os.listdir("/proc/self/task"):
            try:
                yield open(f"/proc/self/task/{tid}/comm").read().strip()
            except OSError:  # it ends just now
                pass
    deadline = time.monotonic() + 30
    while loop.name in threads() and time.monotonic() < deadline:  # a thread is in /proc for a moment after its join
        time.sleep(0.01)
    print(sum(seen.values()) > 10, loop.state, list(threads()).count("rtloop-keeper"), loop.name in threads())
    """)
    assert done.stdout.split() == ["True", "stopped", "1", "False"], done.stdout + done.stderr


def test_a_loop_that_is_restarted_is_what_it_was_until_it_runs(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    class Telling(probes.Probe):  # type: ignore[misc, name-defined]
        def setup(self) -> None:
            states.append(self.state)

    states: list[str] = []
    loop = Telling("1ms", **ordinary)
    loop.run(cycles=2)
    loop.fail_at = 0
    try:
        loop.run(cycles=2)
    except rtloop.CallbackError:
        loop.fail_at = -1
    loop.run(cycles=2)
    assert states == ["new", "stopped", "failed"]


def test_a_reset_shows_at_once_though_the_loop_sleeps_for_long(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    with probes.Probe("3s", warmup=0, **ordinary) as loop:
        while loop.stats.cycles == 0:
            time.sleep(0.01)
        loop.reset_stats()
        assert loop.stats.cycles == 0
        time.sleep(0.2)
        assert loop.stats.cycles == 0, "the thread itself has turned, while it slept"
    assert loop.stats.cycles == 0
    assert loop.stats.missed == 0


def test_a_reset_during_a_long_step_leaves_that_step_out(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = probes.Probe("1ms", warmup=0, **ordinary)
    loop.hang = True
    loop.start()
    while loop.steps == 0:
        time.sleep(0.001)
    loop.reset_stats()
    assert (loop.stats.cycles, len(loop.stats.records)) == (0, 0)
    loop.stop_at = 0
    loop.let_go = True
    loop.join(timeout="5s")
    assert (loop.stats.cycles, loop.stats.overruns) == (0, 0)


def test_every_snapshot_conserves_through_many_resets(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    """In each: cycles + missed == releases from its first one to the next. The sum over all is in test_wait.c."""
    period = 500_000
    loop = probes.Probe(period, warmup=0, **ordinary)
    loop.jitter_ns = 3 * period
    done, resets = threading.Event(), 0

    def reset() -> None:
        nonlocal resets
        while not done.wait(0.003):  # which may take 0.3 s on a busy machine
            loop.reset_stats()
            resets += 1

    snapshots = []
    with loop:
        resetter = threading.Thread(target=reset)
        resetter.start()
        begin, after_a_miss = time.monotonic(), 0
        while (passed := time.monotonic() - begin) < 1.0 or (min(resets, after_a_miss) <= 30 and passed < 30.0):
            snapshots.append(loop.stats)
            after_a_miss += snapshots[-1].missed > 0
        done.set()
        resetter.join()
    snapshots.append(loop.stats)
    for stats in snapshots:
        records = stats.records
        assert len(records) == stats.cycles
        if stats.cycles:
            first, last = records[0], records[-1]
            dropped = max(0, -(-int(last["end"] - last["release"] - period) // period))
            following = int(last["release"]) + period * (1 + dropped)
            assert stats.cycles + stats.missed == (following - int(first["release"])) // period
    assert sum(stats.missed > 0 for stats in snapshots) > 20
    begins = {int(stats.records["release"][0]) for stats in snapshots if stats.cycles}
    assert len(begins) > 10, "it was reset again and again"


def test_an_exception_in_the_question_whether_the_main_thread_is_alive_is_not_its_end(script: Script) -> None:
    """Before Python 3.13 an exception of a signal handler within is_alive() marks the thread as ended for ever."""
    done = script("""
    import threading, probes
    from rtloop.process import exit_hooks
    asked = []
    main = threading.main_thread()
    main.is_alive = lambda: asked.append(threading.get_ident()) or True
    loop = probes.Probe("1ms", policy="other", lock_memory="off", dma_latency=None)
    loop.run(cycles=3)
    print(exit_hooks.ending() == "", main.ident in asked)
    """)
    assert done.stdout.split() == ["True", "False"], done.stdout + done.stderr
