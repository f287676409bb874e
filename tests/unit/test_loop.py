"""The life of a loop, its schedule and its accounting, on any machine: ordinary policy, nothing locked."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import rtloop
from rtloop import RTLoop


def elapsed_releases(stats: rtloop.Stats) -> int:
    """How many releases of the grid lie between the first and the last recorded cycle, both included."""
    span = int(stats.records["release"][-1] - stats.records["release"][0])
    assert span % stats.settings["period_ns"] == 0, "every release is on the grid"
    return span // stats.settings["period_ns"] + 1


def test_a_loop_runs_the_cycles_it_was_asked_for(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = probes.Probe("2ms", **ordinary)
    stats = loop.run(cycles=50)
    assert stats.cycles == loop.steps == 50
    assert loop.setups == loop.enters == loop.leaves == 1
    assert loop.index_errors == 0 and loop.last_index == 49
    assert loop.state == stats.state == "stopped"
    assert len(stats.records) == 50


def test_a_duration_runs_the_releases_of_that_long(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = probes.Probe("1ms", overrun="catch-up", max_burst=1000, **ordinary)
    stats = loop.run("100ms")
    assert stats.cycles + stats.missed == 100


def test_C8_the_first_cycle_has_a_nominal_dt_and_the_interval_begins_with_the_second(
    probes: ModuleType, ordinary: dict[str, Any]
) -> None:
    loop = probes.Probe("2ms", warmup=0, overrun="catch-up", max_burst=1000, **ordinary)
    stats = loop.run(cycles=20)
    assert loop.first_dt == pytest.approx(0.002, abs=1e-12)
    assert loop.last_t == pytest.approx(19 * 0.002)
    assert loop.dt_errors == 0
    assert (stats.latency.count, stats.interval.count) == (20, 19)


def test_dt_adds_up_to_t_whatever_was_missed(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = probes.Probe("1ms", **ordinary)
    loop.busy_ns, loop.busy_every = 3_300_000, 4
    loop.run(cycles=40)
    assert loop.dt_sum - loop.first_dt == pytest.approx(loop.last_t, abs=1e-9)


def test_the_warmup_is_recorded_and_counted_but_in_no_histogram(ordinary: dict[str, Any]) -> None:
    stats = RTLoop("1ms", warmup=15, **ordinary).run(cycles=40)
    assert (stats.cycles, stats.warmup, len(stats.records)) == (40, 15, 40)
    assert stats.latency.count == stats.execution.count == stats.response.count == 25
    assert stats.interval.count == 24


def test_the_records_keep_the_last_cycles_oldest_first(ordinary: dict[str, Any]) -> None:
    stats = RTLoop("1ms", record=30, **ordinary).run(cycles=100)
    records = stats.records
    assert len(records) == 30
    assert np.all(np.diff(records["release"]) > 0)
    assert np.all(records["end"] >= records["start"])
    assert np.all(records["start"] >= records["release"])
    assert len(RTLoop("1ms", record=0, **ordinary).run(cycles=5).records) == 0


@pytest.mark.parametrize("overrun", ["skip", "catch-up"])
def test_C3_cycles_and_missed_releases_add_up_on_the_grid(
    probes: ModuleType, ordinary: dict[str, Any], overrun: str
) -> None:
    loop = probes.Probe("1ms", overrun=overrun, max_burst=3, warmup=0, **ordinary)
    loop.jitter_ns = 4_000_000
    stats = loop.run(cycles=150)
    tail = stats.missed - loop.missed_in_step  # dropped after the last cycle: beyond the last record
    assert stats.cycles + stats.missed == elapsed_releases(stats) + tail
    assert stats.overruns == loop.overruns > 0
    assert stats.missed == loop.missed_in_overrun > 0
    assert stats.latency.count == stats.execution.count == stats.cycles


def test_catch_up_runs_late_releases_back_to_back_and_then_skips(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = probes.Probe("2ms", overrun="catch-up", max_burst=100, **ordinary)
    loop.busy_ns, loop.busy_every = 9_000_000, 20
    stats = loop.run(cycles=39)
    assert stats.missed == 0 and stats.late >= 3, "a burst of late cycles, none dropped"
    assert elapsed_releases(stats) == 39

    loop = probes.Probe("2ms", overrun="catch-up", max_burst=1, **ordinary)
    loop.busy_ns, loop.busy_every = 9_000_000, 20
    assert loop.run(cycles=39).missed > 0


def test_shift_moves_the_grid_to_now_and_misses_nothing(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = probes.Probe("1ms", overrun="shift", **ordinary)
    loop.busy_ns, loop.busy_every = 2_500_000, 10
    stats = loop.run(cycles=50)
    assert stats.missed == 0 and stats.cycles == 50 and stats.overruns >= 4
    releases = stats.records["release"]
    assert releases[-1] - releases[0] >= 49 * 1_000_000 + 4 * 1_500_000


def test_the_policy_stop_fails_at_the_first_overrun(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = probes.Probe("5ms", overrun="stop", **ordinary)
    loop.busy_ns, loop.busy_every = 12_000_000, 7
    with pytest.raises(rtloop.OverrunError, match="first overrun"):
        loop.run(cycles=100)
    assert loop.state == "failed" and loop.stats.overruns == 1 and loop.leaves == 1


def test_max_overruns_counts_consecutive_ones(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = probes.Probe("2ms", max_overruns=3, **ordinary)
    loop.busy_ns = 3_000_000
    with pytest.raises(rtloop.OverrunError, match="3 overruns in a row"):
        loop.run(cycles=100)
    assert loop.stats.cycles == 3


def test_shift_from_step_moves_the_grid_once(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = probes.Probe("2ms", overrun="catch-up", max_burst=1000, **ordinary)
    loop.shift_at, loop.shift_ns = 9, 700_000
    releases = loop.run(cycles=20).records["release"]
    steps = np.diff(releases)
    assert steps[9] == 2_700_000
    assert np.all(np.delete(steps, 9) == 2_000_000)
    assert loop.shift_rc == 0


def test_a_shift_past_the_present_release_is_refused(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = probes.Probe("2ms", overrun="catch-up", max_burst=1000, **ordinary)
    loop.shift_at, loop.shift_ns = 3, -2_000_000
    releases = loop.run(cycles=10).records["release"]
    assert loop.shift_rc == -34  # ERANGE
    assert np.all(np.diff(releases) == 2_000_000)


@pytest.mark.parametrize("clock", ["monotonic", "boottime", "tai", "realtime"])
def test_C1_the_four_clocks_and_align(ordinary: dict[str, Any], clock: str) -> None:
    number = {"monotonic": time.CLOCK_MONOTONIC, "boottime": 7, "tai": 11, "realtime": time.CLOCK_REALTIME}[clock]
    before = time.clock_gettime_ns(number)
    stats = RTLoop("1ms", clock=clock, align="20ms", phase="300us", **ordinary).run(cycles=10)
    releases = stats.records["release"]
    assert releases[0] % 20_000_000 == 300_000
    assert before < releases[0] < before + 2_000_000_000
    assert stats.records["end"][-1] <= time.clock_gettime_ns(number)


def test_two_loops_with_the_same_align_share_a_grid(ordinary: dict[str, Any]) -> None:
    fast, slow = RTLoop("1ms", align="10ms", **ordinary), RTLoop("5ms", align="10ms", **ordinary)
    with fast, slow:
        time.sleep(0.1)
    assert (fast.stats.records["release"][0] - slow.stats.records["release"][0]) % 10_000_000 == 0


@pytest.mark.parametrize("spin", ["300us", "auto"])
def test_spinning_never_starts_before_the_release(probes: ModuleType, ordinary: dict[str, Any], spin: str) -> None:
    loop = probes.Probe("2ms", spin=spin, **ordinary)
    stats = loop.run(cycles=100)
    assert loop.late_starts == 0, "late_starts counts starts before their release"
    assert stats.latency.min >= 0


def test_a_wait_of_its_own_paces_the_loop(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    for use_own in (False, True):
        loop = probes.Paced("2ms", **ordinary)
        loop.use_own = use_own
        stats = loop.run(cycles=20)
        assert loop.waits >= 20 and stats.cycles == 20
        assert stats.latency.min >= 0


def test_a_wait_may_stop_or_fail_the_loop(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = probes.Paced("2ms", **ordinary)
    loop.wait_code = 1
    assert loop.run().cycles == 0 and loop.state == "stopped"
    loop.wait_code = -5
    with pytest.raises(rtloop.CallbackError, match=r"wait\(\) returned -5"):
        loop.run()


@pytest.mark.parametrize("where", ["enter", "step", "overrun"])
def test_P8_a_negative_code_fails_the_loop_and_join_raises_it(
    probes: ModuleType, ordinary: dict[str, Any], where: str
) -> None:
    loop = probes.Probe("2ms", **ordinary)
    if where == "enter":
        loop.enter_code = -19
    elif where == "step":
        loop.fail_at, loop.fail_code = 5, -19
    else:
        loop.overrun_code, loop.busy_ns = -19, 5_000_000
    loop.start()
    for _ in range(2):  # every join says so
        with pytest.raises(rtloop.CallbackError, match=f"{where}.*-19.*No such device") as caught:
            loop.join()
    assert (caught.value.code, caught.value.callback) == (-19, where)
    assert loop.state == loop.stats.state == "failed"
    assert loop.leaves == (0 if where == "enter" else 1), "leave runs if and only if enter succeeded"
    loop.stop()
    loop.enter_code = loop.overrun_code = loop.busy_ns = 0
    loop.fail_at = -1
    assert loop.run(cycles=3).cycles == 3, "a failed loop can be started again"


def test_RT_STOP_is_a_normal_end(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = probes.Probe("1ms", **ordinary)
    loop.stop_at = 6
    assert loop.run().cycles == 7
    assert loop.state == "stopped"
    loop.enter_code = 1
    assert loop.run().cycles == 0 and loop.leaves == 2


def test_a_loop_starts_and_stops_any_number_of_times(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = probes.Probe("1ms", record=16, stack_size="64K", **ordinary)
    for _ in range(50):
        loop.start()
        loop.stop()
    assert loop.setups == loop.enters == loop.leaves == 50
    loop.start()
    with pytest.raises(rtloop.StateError, match="running"):
        loop.start()
    loop.stop()
    loop.stop()


def test_stop_ends_a_slow_loop_at_once(ordinary: dict[str, Any]) -> None:
    loop = RTLoop("1min", **ordinary)
    loop.start()
    time.sleep(0.05)
    loop.stop(timeout="1s")
    assert loop.state == "stopped"


def test_P8_a_step_that_hangs_makes_stop_raise_and_not_hang(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = probes.Probe("1ms", **ordinary)
    loop.hang = True
    loop.start()
    time.sleep(0.05)
    with pytest.raises(TimeoutError, match="has not returned") as caught:
        loop.stop(timeout="50ms")
    assert isinstance(caught.value, rtloop.StateError)
    assert loop.state == "running"
    assert loop.join(timeout="10ms") is False
    loop.let_go = True
    loop.stop()
    assert loop.state == "stopped"


def test_P10_of_many_threads_that_start_one_loop_one_wins(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = probes.Probe("1ms", **ordinary)
    barrier, outcomes = threading.Barrier(8), []

    def start() -> None:
        barrier.wait()
        try:
            loop.start()
            outcomes.append("started")
        except rtloop.StateError:
            outcomes.append("refused")

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    loop.stop()
    assert sorted(outcomes) == ["refused"] * 7 + ["started"]
    assert loop.enters == 1


def test_many_threads_may_stop_and_join_one_loop(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = probes.Probe("1ms", **ordinary)
    loop.start()
    threads = [threading.Thread(target=loop.stop if i % 2 else loop.join) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert loop.state == "stopped" and loop.leaves == 1


def test_P4_a_running_loop_outlives_its_last_name(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    probe = probes.Probe("1ms", **ordinary)
    probe.stop_at = 60
    probe.start()
    del probe
    for _ in range(10):
        gc.collect()
        time.sleep(0.02)
    RTLoop("1ms", **ordinary).run(cycles=1)  # and is collected after its end


def test_a_loop_that_ended_by_itself_is_seen_as_stopped(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = probes.Probe("1ms", **ordinary)
    loop.stop_at = 3
    loop.start()
    deadline = time.monotonic() + 5
    while loop.state == "running" and time.monotonic() < deadline:
        time.sleep(0.005)
    assert loop.state == "stopped" and loop.stats.cycles == 4
    assert loop.join() is True


def test_the_context_manager_starts_stops_and_raises_what_failed(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    with probes.Probe("1ms", **ordinary) as loop:
        assert loop.state == "running"
    assert loop.state == "stopped"
    loop = probes.Probe("1ms", **ordinary)
    loop.fail_at = 2
    with pytest.raises(rtloop.CallbackError), loop:
        time.sleep(0.1)
    loop = probes.Probe("1ms", **ordinary)
    loop.fail_at = 2
    with pytest.raises(KeyError), loop:
        time.sleep(0.1)
        raise KeyError("the body's own exception comes first")


def test_a_closed_loop_stays_closed_and_keeps_its_statistics(ordinary: dict[str, Any]) -> None:
    loop = RTLoop("1ms", **ordinary)
    loop.run(cycles=10)
    loop.close()
    loop.close()
    assert loop.stats.cycles == 10 and loop.state == "stopped"
    with pytest.raises(rtloop.StateError, match="closed"):
        loop.start()


def test_a_new_loop_has_empty_statistics_and_cannot_be_joined(ordinary: dict[str, Any]) -> None:
    loop = RTLoop("1ms", **ordinary)
    assert (loop.stats.cycles, loop.stats.state, loop.grants, len(loop.stats.records)) == (0, "new", (), 0)
    assert "1 kHz" in repr(loop) and "new" in repr(loop)
    with pytest.raises(rtloop.StateError, match="not been started"):
        loop.join()
    loop.stop()


def test_a_subclass_that_forgets_its_base_init_is_told_so() -> None:
    class Forgetful(RTLoop):
        def __init__(self) -> None:
            pass

    loop = Forgetful()
    assert "not initialised" in repr(loop)
    with pytest.raises(rtloop.StateError, match=r"super\(\)\.__init__"):
        loop.start()
    loop.close()


def test_an_exception_in_setup_leaves_a_new_loop(ordinary: dict[str, Any]) -> None:
    class Unready(RTLoop):
        fail = True

        def setup(self) -> None:
            if self.fail:
                raise ConnectionError("no robot")

    loop = Unready("1ms", **ordinary)
    with pytest.raises(ConnectionError):
        loop.start()
    assert loop.state == "new"
    loop.fail = False
    assert loop.run(cycles=2).cycles == 2


def test_snapshots_of_a_running_loop_are_consistent(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = probes.Probe("200us", warmup=0, record=64, **ordinary)
    loop.jitter_ns = 150_000
    with loop:
        last = 0
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            stats = loop.stats
            assert stats.cycles >= last
            last = stats.cycles
            assert stats.latency.count == stats.execution.count == stats.response.count == stats.cycles
            assert stats.interval.count == max(0, stats.cycles - 1)
            assert np.all(np.diff(stats.records["release"]) > 0) and len(stats.records) <= 64
    assert last > 100


def test_reset_stats_begins_anew_without_stopping(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = probes.Probe("1ms", warmup=0, **ordinary)
    with loop:
        for _ in range(5):
            time.sleep(0.05)
            loop.reset_stats()
            stats = loop.stats
            assert stats.cycles < 40 and stats.latency.count == stats.cycles == len(stats.records)
        steps = loop.steps
    assert loop.stats.cycles < steps, "the loop went on"
    loop.reset_stats()
    assert loop.stats.cycles == 0


def test_the_statistics_of_each_run_are_its_own(ordinary: dict[str, Any]) -> None:
    loop = RTLoop("1ms", **ordinary)
    first = loop.run(cycles=20)
    assert loop.run(cycles=30).cycles == 30
    assert first.cycles == 20


def test_C7_a_step_that_sees_a_stall_records_one_and_no_million_misses(
    probes: ModuleType, ordinary: dict[str, Any]
) -> None:
    loop = probes.Probe("10us", warmup=0, **ordinary)
    loop.busy_ns, loop.busy_every = 1_200_000_000, 5
    stats = loop.run(cycles=6)
    assert stats.stalls == 1
    assert stats.missed >= 119_000
    assert loop.overruns <= 6


def test_the_name_is_the_threads_name(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    with probes.Probe("1ms", name="left arm motor", **ordinary) as loop:
        time.sleep(0.05)
        with open(f"/proc/self/task/{loop.tid}/comm") as file:
            assert file.read().strip() == "left arm motor"
        assert loop.name == "left arm motor"
    with probes.Probe("1ms", name="ein sehr langer Name für den Antrieb", **ordinary) as loop:
        time.sleep(0.05)
        with open(f"/proc/self/task/{loop.tid}/comm") as file:
            assert file.read().strip() == "ein sehr langer"


def test_P12_a_module_of_another_interface_is_told_to_recompile() -> None:
    import rtloop.loop.loop as module

    with pytest.raises(ImportError, match=r"interface 7.*has interface 1.*recompile"):
        _ = module._RTLoop_7
    with contextlib.suppress(AttributeError):
        _ = module.no_such_name
        pytest.fail("an unknown name is an AttributeError")


def test_statistics_may_be_read_while_the_loop_ends_and_starts_again(ordinary: dict[str, Any]) -> None:
    loop = RTLoop("1ms", record=4096, **ordinary)
    errors: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                stats = loop.stats
                assert stats.latency.count == stats.execution.count
        except BaseException as error:
            errors.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for _ in range(40):
        loop.run(cycles=5)
    done.set()
    for reader in readers:
        reader.join()
    assert not errors


def test_the_records_kept_are_as_many_as_asked_for(ordinary: dict[str, Any]) -> None:
    for record in (1, 2, 63, 64, 65):
        assert len(RTLoop("500us", record=record, **ordinary).run(cycles=80).records) == record


def test_a_step_written_in_python_is_refused_with_the_way_to_write_it() -> None:
    class Slow(RTLoop):
        def step(self, cycle: object) -> int:
            return 0

    with pytest.raises(TypeError, match=r"Slow\.step is a Python method.*noexcept nogil"):
        Slow("1ms")


def test_callbacks_before_init_are_refused_and_do_not_crash(probes: ModuleType) -> None:
    assert probes.Early().result == -22
