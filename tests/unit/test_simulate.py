"""Loops in virtual time: the callbacks and schedule of a real run, without waiting, with reproducible results."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import rtloop
from rtloop import RT_STOP, Cycle, RTLoop, Stats

START = 1_000_000_000
DIVIDED = 2.2250738585072014e-308 / 4


def test_an_hour_passes_in_a_moment_with_every_hook_called(probes: ModuleType) -> None:
    loop = probes.Probe("1kHz")
    begin = time.perf_counter()
    stats = loop.simulate("1h")
    assert time.perf_counter() - begin < 60, "it has slept"
    assert (stats.cycles, stats.missed, stats.duration_ns) == (3_600_000, 0, 3_599_999_000_000)
    assert (loop.setups, loop.enters, loop.steps, loop.leaves, loop.overruns) == (1, 1, 3_600_000, 1, 0)
    assert loop.index_errors == loop.dt_errors == loop.late_starts == 0
    assert loop.first_dt == pytest.approx(1e-3) and loop.last_t == pytest.approx(3599.999)
    assert loop.state == "stopped" and loop.stats == stats


def test_releases_are_on_a_grid_that_begins_at_one_second() -> None:
    def first(**settings: Any) -> int:
        return int(RTLoop("10ms", **settings).simulate(cycles=1).records["release"][0])

    assert first() == START
    assert first(phase="3ms") == START + 3_000_000
    assert first(align="4s") == 4_000_000_000
    assert first(align="1s", phase="1ms") == START + 1_000_000
    assert first(clock="realtime") == START, "no clock is read"
    assert list(RTLoop("10ms").simulate(cycles=3).records["release"] - START) == [0, 10_000_000, 20_000_000]


def test_the_same_models_give_the_same_bytes(probes: ModuleType, tmp_path: Path) -> None:
    def run(path: Path) -> bytes:
        noise = np.random.default_rng(7).integers(0, 1_400_000, 997)
        loop = probes.Probe("1ms", overrun="catch-up", spin="auto", name="twin")
        return loop.simulate("20s", execution=noise, latency=noise[::-1] // 20).save(path).read_bytes()

    one, two = run(tmp_path / "one"), run(tmp_path / "two")
    assert one == two
    stats = Stats.load(tmp_path / "one")
    assert stats.is_simulated and stats.overruns > 100 and stats.late > 100 and stats.missed > 0


def test_statistics_say_that_they_are_simulated_and_claim_nothing_of_the_kernel() -> None:
    loop = RTLoop("1ms", policy="fifo", priority=90, cpu=4000, name="pump")  # a CPU that is not there
    stats = loop.simulate(cycles=200, latency="20us", execution="100us")
    assert stats.is_simulated
    assert stats.settings["simulation"] == {"latency": "20 us", "execution": "100 us"}
    assert stats.page_faults == stats.context_switches == (None, None)
    assert stats.stack == (0, 0) and stats.forks == 0 and not stats.has_own_wait
    assert [grant.name for grant in loop.grants] == ["simulation"]
    text = str(stats)
    assert "SIMULATED" in text and "latency is 20 us" in text
    for claim in ("fifo", "CPU", "page faults", "context switches", "stack"):
        assert claim not in text, claim
    assert "SIMULATED" in stats._repr_html_()
    loop.reset_stats()
    assert loop.stats.is_simulated and loop.stats.cycles == 0


def test_a_simulated_loop_can_then_be_run_and_the_other_way_round(ordinary: dict[str, Any]) -> None:
    loop = RTLoop("1ms", **ordinary)
    assert loop.simulate(cycles=30).is_simulated
    stats = loop.run(cycles=30)
    assert not stats.is_simulated and stats.page_faults.minor is not None and stats.stack.size > 0
    assert "policy" in [grant.name for grant in loop.grants]
    assert loop.simulate(cycles=30).is_simulated


# The models.


def times(stats: Stats) -> list[tuple[int, int, int]]:
    return [(int(r) - START, int(s) - int(r), int(e) - int(s)) for r, s, e in stats.records]


@pytest.mark.parametrize(
    "execution",
    [
        ["100us", 200_000, timedelta(microseconds=300)],
        np.array([100_000, 200_000, 300_000]),
        np.array([100_000, 200_000, 300_000], np.uint32),
        lambda index: ("100us", "200us", "300us")[index % 3],
    ],
    ids=["list", "array", "uint32", "callable"],
)
def test_execution_times_come_in_turn(execution: Any) -> None:
    stats = RTLoop("1ms").simulate(cycles=5, execution=execution)
    assert [end - start for _, start, end in stats.records] == [100_000, 200_000, 300_000, 100_000, 200_000]


def test_a_wake_up_is_late_and_spinning_hides_it() -> None:
    assert times(RTLoop("1ms").simulate(cycles=2, latency="30us"))[1] == (1_000_000, 30_000, 0)
    assert times(RTLoop("1ms", spin="50us").simulate(cycles=2, latency="30us"))[1] == (1_000_000, 0, 0)
    assert times(RTLoop("1ms", spin="20us").simulate(cycles=2, latency="30us"))[1] == (1_000_000, 10_000, 0)
    learnt = RTLoop("1ms", spin="auto").simulate(cycles=2000, latency=lambda i: 30_000 if i % 7 else 35_000)
    assert learnt.latency.max == 0


def test_a_late_cycle_does_not_sleep_and_so_does_not_wake_up_late() -> None:
    loop = RTLoop("1ms", overrun="catch-up", max_burst=9)
    stats = loop.simulate(cycles=3, execution=["2.2ms", 0, 0], latency="30us")
    assert times(stats) == [(0, 30_000, 2_200_000), (1_000_000, 1_230_000, 0), (2_000_000, 230_000, 0)]
    assert (stats.overruns, stats.late) == (2, 2)


def test_a_recorded_run_is_replayed_to_the_nanosecond(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = probes.Probe("1ms", overrun="catch-up", **ordinary)
    loop.jitter_ns = 1_600_000
    real = loop.run(cycles=150)
    assert real.overruns > 5, "the record has what is difficult"
    loop.jitter_ns = 0
    again = loop.simulate(cycles=150, execution=real, latency=real)
    moved = real.records["release"][0] - again.records["release"][0]
    for field in ("release", "start", "end"):
        np.testing.assert_array_equal(real.records[field] - moved, again.records[field])
    assert (again.cycles, again.missed, again.overruns) == (real.cycles, real.missed, real.overruns)
    assert again.latency == real.latency and again.interval == real.interval
    assert "as recorded from" in again.settings["simulation"]["latency"]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (0.5, "not a duration"),
        ("-1us", "negative"),
        ("2 days", "not a duration"),
        (90_000_000_000_000, "at most"),
        (np.array([0.001]), "array of float64.*integers, in nanoseconds"),
        (np.array([5, -3]), r"\[1\] is -3"),
        (np.zeros((2, 2), int), "one dimension"),
        ([], "at least one"),
        (["1us", 2.5], r"\[1\]=2.5"),
        ({1, 2}, "an array, a list or a tuple"),
        ({"arm": "1us"}, "not one of the simulated loops"),
    ],
)
@pytest.mark.parametrize("name", ["execution", "latency"])
def test_a_model_that_cannot_work_is_refused_with_its_name(name: str, model: Any, message: str) -> None:
    loop = RTLoop("1ms")
    with pytest.raises(rtloop.ConfigError, match=message) as caught:
        loop.simulate(cycles=3, **{name: model})
    assert name in str(caught.value)
    assert loop.state == "new"
    assert loop.simulate(cycles=3).cycles == 3


def test_a_record_without_timestamps_cannot_be_replayed() -> None:
    nothing = RTLoop("1ms", record=0).simulate(cycles=5)
    with pytest.raises(rtloop.ConfigError, match="no records"):
        RTLoop("1ms").simulate(cycles=5, execution=nothing)


def test_what_a_model_returns_is_checked_and_its_exception_is_raised() -> None:
    loop = RTLoop("1ms")
    with pytest.raises(rtloop.ConfigError, match=r"execution\(4\)=1.5"):
        loop.simulate(cycles=9, execution=lambda index: 1.5 if index == 4 else 0)
    assert (loop.state, loop.stats.cycles) == ("failed", 4)
    with pytest.raises(ZeroDivisionError):
        loop.simulate(cycles=9, latency=lambda index: 10 // (3 - index))
    with pytest.raises(ZeroDivisionError):
        loop.join()


# How it ends.


@pytest.mark.parametrize("where", ["enter", "step", "overrun"])
def test_a_negative_code_raises_as_in_a_run(probes: ModuleType, where: str) -> None:
    loop = probes.Probe("1ms")
    if where == "enter":
        loop.enter_code = -19
    elif where == "step":
        loop.fail_at, loop.fail_code = 5, -19
    else:
        loop.overrun_code = -19
    with pytest.raises(rtloop.CallbackError, match=f"{where}.*-19.*No such device") as caught:
        loop.simulate("1s", execution=["1us"] * 5 + ["3ms"])
    assert (caught.value.callback, caught.value.cycle) == (where, None if where == "enter" else 5)
    assert loop.state == loop.stats.state == "failed"
    assert loop.leaves == (0 if where == "enter" else 1)
    loop.enter_code = loop.overrun_code = 0
    loop.fail_at = -1
    assert loop.simulate(cycles=3).state == "stopped"


def test_RT_STOP_and_stop_are_a_normal_end(probes: ModuleType) -> None:
    loop = probes.Probe("1ms")
    loop.stop_at = 6
    assert loop.simulate().cycles == 7
    loop.enter_code = 1
    assert loop.simulate().cycles == 0 and loop.leaves == 2


def test_overrun_policies_end_it_as_they_end_a_run() -> None:
    with pytest.raises(rtloop.OverrunError, match="first overrun") as caught:
        RTLoop("1ms", overrun="stop").simulate("1s", execution=[0, 0, "1.25ms"])
    assert (caught.value.cycle, caught.value.late_ns) == (2, 250_000)
    loop = RTLoop("1ms", max_overruns=3)
    with pytest.raises(rtloop.OverrunError, match="3 overruns in a row"):
        loop.simulate("1s", execution=[0, "1.5ms", "1.5ms", 0, "1.5ms", "1.5ms", "1.5ms"])
    assert loop.stats.overruns == 5


def test_shift_moves_the_grid(probes: ModuleType) -> None:
    loop = probes.Probe("1ms")
    loop.shift_at, loop.shift_ns = 2, 300_000
    assert list(loop.simulate(cycles=5).records["release"] - START) == [0, 1000000, 2000000, 3300000, 4300000]
    assert loop.shift_rc == 0
    stats = RTLoop("1ms", overrun="shift").simulate(cycles=3, execution=["1.7ms", 0])
    assert list(stats.records["release"] - START) == [0, 1_700_000, 2_700_000] and stats.missed == 0


def test_a_wait_of_its_own_is_left_to_the_virtual_clock(probes: ModuleType) -> None:
    loop = probes.Paced("1ms")
    stats = loop.simulate(cycles=50, latency="7us")
    assert loop.waits == 0 and stats.latency.max == 7000 and not stats.has_own_wait


def test_denormals_are_flushed_for_the_step_alone(probes: ModuleType) -> None:
    loop = probes.Denormal("1ms", flush_denormals=True)
    loop.simulate(cycles=1)
    assert loop.result == 0
    assert loop.smallest / 4 == DIVIDED, "the caller's mode is as it was"
    loop = probes.Denormal("1ms")
    loop.simulate(cycles=1)
    assert loop.result == DIVIDED


def test_the_virtual_clock_ends_rather_than_overflow() -> None:
    loop = RTLoop("1ms", record=8, warmup=0)
    with pytest.raises(rtloop.StateError, match="146 years"):
        loop.simulate(execution="86400s")
    assert loop.stats.cycles == (2**62 - START) // (86400 * 10**9) + 1
    assert loop.state == "failed"


def test_a_setup_that_raises_leaves_the_loops_as_they_were(probes: ModuleType) -> None:
    class Broken(RTLoop):
        def setup(self) -> None:
            raise OSError("no such bus")

    good, bad = RTLoop("1ms"), Broken("1ms")
    with pytest.raises(OSError, match="no such bus"):
        rtloop.simulate([good, bad], "1s")
    assert good.state == bad.state == "new"
    good.simulate(cycles=1)
    with pytest.raises(OSError, match="no such bus"):
        rtloop.simulate([good, bad], "1s")
    assert good.state == "stopped" and good.stats.cycles == 1


def test_arguments_are_those_of_run() -> None:
    loop = RTLoop("1ms")
    with pytest.raises(rtloop.ConfigError, match="did you mean '5s'"):
        loop.simulate(5)
    with pytest.raises(rtloop.ConfigError, match="cycles=0"):
        loop.simulate(cycles=0)
    with pytest.raises(TypeError, match="must be an RTLoop, or a callable"):
        loop.simulate(cycles=1, plant="cart")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="at least one RTLoop"):
        rtloop.simulate([], "1s")
    loop.close()
    with pytest.raises(rtloop.StateError, match="closed"):
        loop.simulate(cycles=1)


# A plant.


def test_a_plant_sees_every_cycle_before_the_step_does(probes: ModuleType) -> None:
    seen: list[Cycle] = []

    def plant(cycle: Cycle) -> None:
        assert loop.steps == cycle.index
        seen.append(cycle)

    loop = probes.Probe("1ms")
    loop.simulate(cycles=4, plant=plant, latency="5us", execution=[0, "2.5ms"])
    assert [c.index for c in seen] == [0, 1, 2, 3]
    assert [c.release - START for c in seen] == [0, 1_000_000, 4_000_000, 5_000_000]
    assert [c.missed for c in seen] == [0, 0, 2, 0]
    assert seen[2].t == pytest.approx(0.004) and seen[2].dt == pytest.approx(0.003)
    assert seen[2].start - seen[2].release == 5000 and seen[2].period == 1_000_000
    with pytest.raises(AttributeError):
        seen[0].index = 3  # type: ignore[misc]


def test_a_plant_ends_the_run_or_fails_it(probes: ModuleType) -> None:
    loop = probes.Probe("1ms")
    assert loop.simulate(plant=lambda cycle: RT_STOP if cycle.index == 5 else None).cycles == 5
    assert loop.simulate(plant=lambda cycle: cycle.index == 5).cycles == 5
    with pytest.raises(KeyError, match="pole"):
        loop.simulate(plant=lambda cycle: {}["pole"])
    assert loop.state == "failed" and loop.leaves == 3
    with pytest.raises(TypeError, match=r"plant returned 'fallen'.*RT_STOP"):
        loop.simulate(plant=lambda cycle: "fallen")  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match="-5"):
        loop.simulate(plant=lambda cycle: -5)


def test_a_plant_may_be_a_loop(probes: ModuleType) -> None:
    plant = probes.Integrator("100us")
    controller = probes.Regulator("1ms", plant=plant)
    stats = controller.simulate(cycles=1000, plant=plant)
    assert stats.cycles == 1000 and stats is controller.stats
    assert plant.stats.cycles == 9_991, "the plant goes first, at the last release, too"
    assert 0 < plant.value < 1e-3
    value, plant.value, plant.rate = plant.value, 1.0, 0.0
    controller.simulate(cycles=1000, plant=plant)
    assert plant.value == value


def test_loops_go_in_the_order_of_time_and_then_of_the_list(probes: ModuleType) -> None:
    def seen(*, plant_first: bool) -> float:
        plant = probes.Integrator("1ms", value=0.0)
        controller = probes.Regulator("1ms", plant=plant)
        plant.rate = 1000.0
        rtloop.simulate([plant, controller] if plant_first else [controller, plant], "1ms")
        return float(controller.seen)

    assert seen(plant_first=True) == pytest.approx(1.0)
    assert seen(plant_first=False) == 0.0


def test_each_loop_lasts_its_duration_and_one_that_ends_ends_all(probes: ModuleType) -> None:
    fast, slow = RTLoop("1ms"), RTLoop("30ms", phase="5ms")
    assert [s.cycles for s in rtloop.simulate([fast, slow], "100ms")] == [100, 4]
    plant = probes.Integrator("1ms")
    plant.stop_at = 40
    assert [s.cycles for s in rtloop.simulate([plant, slow])] == [41, 2]
    failing = probes.Probe("10ms")
    failing.fail_at = 3
    with pytest.raises(rtloop.CallbackError):
        rtloop.simulate([fast, failing])
    assert (fast.state, fast.stats.cycles, failing.state) == ("stopped", 31, "failed")
    assert fast.join() is True


def test_each_loop_may_have_a_model_of_its_own() -> None:
    a, b = RTLoop("1ms"), RTLoop("1ms")
    one, two = rtloop.simulate([a, b], "20ms", execution={b: "7us"}, latency="1us")
    assert (one.execution.max, two.execution.max, two.latency.max) == (0, 7000, 1000)


def test_a_loop_cannot_be_simulated_with_itself() -> None:
    loop = RTLoop("1ms")
    with pytest.raises(rtloop.StateError):
        rtloop.simulate([loop, loop], "1s")
    assert loop.state == "new"


# What others can do meanwhile.


def test_while_it_is_simulated_a_loop_runs(probes: ModuleType) -> None:
    loop = RTLoop("1ms")
    said: list[Any] = []

    def plant(cycle: Cycle) -> None:
        if cycle.index == 20:
            said.extend([loop.state, loop.stats.state, loop.stats.cycles, loop.stats.is_simulated])
            for call in (loop.start, loop.join, lambda: loop.simulate(cycles=1)):
                with pytest.raises(rtloop.StateError):
                    call()
            loop.reset_stats()
        if cycle.index == 30:
            loop.stop()

    stats = loop.simulate(plant=plant)
    assert said == ["running", "running", 20, True]
    assert stats.cycles == 10, "of them, since the reset"
    assert stats.records["release"][0] == START + 21_000_000


@pytest.mark.parametrize("call", ["stop", "close"])
def test_another_thread_may_stop_it(call: str) -> None:
    loop = RTLoop("1ms")

    def stop() -> None:
        while loop.state != "running" or not loop.stats.cycles:
            time.sleep(0.001)
        getattr(loop, call)()
        states.append(loop.state)

    states: list[str] = []
    thread = threading.Thread(target=stop)
    thread.start()
    stats = loop.simulate()
    thread.join(10)
    assert states == ["stopped"] and stats.state == "stopped" and stats.cycles > 0


def test_another_thread_may_join_it() -> None:
    loop = RTLoop("1ms")
    thread = threading.Thread(target=loop.simulate)
    thread.start()
    while loop.state != "running":
        time.sleep(0.001)
    assert loop.join(timeout="20ms") is False
    loop.stop()
    assert loop.join() is True
    thread.join(10)


def test_it_lets_other_threads_have_the_gil() -> None:
    loop = RTLoop("1ms")
    thread = threading.Thread(target=loop.simulate)
    thread.start()
    while loop.state != "running":
        time.sleep(0.001)
    before, deadline = loop.stats.cycles, time.monotonic() + 30
    while loop.stats.cycles == before and time.monotonic() < deadline:
        sum(range(1000))
    assert loop.stats.cycles > before
    loop.stop()
    thread.join(10)


@pytest.mark.parametrize("plant", ["None", "lambda cycle: None"])
def test_ctrl_c_ends_it(script: Callable[..., Any], plant: str) -> None:
    done = script(
        f"""
        import os, signal, threading, time, rtloop
        from probes import Probe
        loop = Probe("1ms")
        def interrupt():
            while not loop.steps:
                time.sleep(0.001)
            os.kill(os.getpid(), signal.SIGINT)
        threading.Thread(target=interrupt, daemon=True).start()
        try:
            loop.simulate(plant={plant})
        except KeyboardInterrupt:
            print(loop.state, loop.leaves, loop.stats.cycles > 0, loop.stats.state)
        """
    )
    assert done.stdout == "stopped 1 True stopped\n", done.stderr


def test_a_fork_in_the_plant_ends_it_in_the_child_alone(script: Callable[..., Any]) -> None:
    done = script(
        """
        import os, rtloop
        loop = rtloop.RTLoop("1ms")
        pid = -1
        def plant(cycle):
            global pid
            if cycle.index == 5:
                pid = os.fork()
        try:
            stats = loop.simulate(cycles=50, plant=plant)
        except rtloop.StateError as error:
            print("child:", error, loop.state, flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
        print("parent:", stats.cycles, loop.state)
        """
    )
    assert "child: plant has forked" in done.stdout and "failed" in done.stdout, done.stderr
    assert "parent: 50 stopped" in done.stdout


@pytest.mark.usefixtures("wiped_children")
@pytest.mark.parametrize("signals", [(), ("x",)], ids=["without signals", "with signals"])
def test_a_fork_in_the_step_ends_it_in_the_child_alone(signals: tuple[str, ...], script: Callable[..., Any]) -> None:
    done = script(
        f"""
        import os, numpy as np, rtloop
        pid = -1
        def step(cycle, *data):
            global pid
            if cycle.index == 5:
                pid = os.fork()
        loop = rtloop.PyLoop(step, "1ms", data=np.zeros((), [("x", "f8")]), signals={signals})
        try:
            stats = loop.simulate(cycles=50)
        except rtloop.StateError as error:
            print("child:", error, flush=True)
            os._exit(7)
        print("parent:", stats.cycles, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """
    )
    assert "child: PyLoop-1: a callback has forked" in done.stdout, done.stderr
    assert "parent: 50 7" in done.stdout


@pytest.mark.usefixtures("wiped_children")
def test_a_child_that_the_step_has_forked_keeps_the_parameters_of_the_start(script: Callable[..., Any]) -> None:
    done = script(
        """
        import os, numpy as np, rtloop
        pid = -1
        data = np.zeros((), [("kp", "f8")])
        def step(cycle):
            global pid
            if cycle.index == 5:
                pid = os.fork()
                if pid == 0:
                    loop.parameters["kp"] += 1
                    print("in the step:", loop.parameters["kp"], data["kp"], loop.parameters.applied, flush=True)
        loop = rtloop.PyLoop(step, "1ms", data=data, parameters=("kp",))
        loop.parameters["kp"] = 3.0
        try:
            stats = loop.simulate(cycles=50)
        except rtloop.StateError as error:
            print("child:", loop.parameters["kp"], error, flush=True)
            os._exit(7)
        print("parent:", loop.parameters["kp"], stats.cycles, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """
    )
    assert "in the step: 4.0 4.0" in done.stdout, done.stderr
    assert "child: 4.0 PyLoop-1: a callback has forked" in done.stdout, done.stderr
    assert "parent: 3.0 50 7" in done.stdout


def test_nothing_stays_open() -> None:
    loop = RTLoop("1ms")
    loop.simulate(cycles=5)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        loop.simulate(cycles=5)
        with pytest.raises(ZeroDivisionError):
            loop.simulate(plant=lambda cycle: 1 // 0)
    assert len(os.listdir("/proc/self/fd")) <= before, "fewer, if what other tests left has gone meanwhile"


def test_recorded_inputs_replayed_through_a_ring_give_the_same_outputs() -> None:
    """What a run has taken from its ring is fed to a simulation at the same cycles, and the answers are the same."""
    rng = np.random.default_rng(3)
    measured = [rng.normal(size=rng.integers(0, 4)) for _ in range(200)]  # a cycle may find none, or several

    def play(inputs: list[Any]) -> tuple[list[Any], list[float], Stats]:
        ring = rtloop.Ring("f8", 16)
        taken: list[Any] = []
        answers: list[float] = []

        def feed(cycle: Cycle) -> None:
            for value in inputs[cycle.index]:
                ring.push(value)

        def step(cycle: Cycle) -> None:
            values = ring.drain()
            taken.append(values)
            answers.append((answers[-1] if answers else 0.0) * 0.9 + float(values.sum()) * cycle.dt)

        loop = rtloop.PyLoop(step, "1ms", name="filter")
        stats = loop.simulate(cycles=len(inputs), plant=feed, execution=["0.2ms", "1.4ms"])
        return taken, answers, stats

    taken, answers, stats = play(measured)
    again, same, same_stats = play(taken)
    assert answers == same and stats == same_stats
    for a, b in zip(taken, again, strict=True):
        np.testing.assert_array_equal(a, b)
