"""The schedule of a loop and its accounting, on any machine: ordinary policy, nothing locked."""

from __future__ import annotations

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


def test_the_first_cycle_has_a_nominal_dt_and_the_interval_begins_with_the_second(
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
def test_cycles_and_missed_releases_add_up_on_the_grid(
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
def test_the_four_clocks_and_align(ordinary: dict[str, Any], clock: str) -> None:
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
        assert np.all(stats.records["start"] >= stats.records["release"])


def test_a_wait_may_stop_or_fail_the_loop(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = probes.Paced("2ms", **ordinary)
    loop.wait_code = 1
    assert loop.run().cycles == 0 and loop.state == "stopped"
    loop.wait_code = -5
    with pytest.raises(rtloop.CallbackError, match=r"wait\(\) returned -5"):
        loop.run()


def test_a_new_loop_has_empty_statistics_and_cannot_be_joined(ordinary: dict[str, Any]) -> None:
    loop = RTLoop("1ms", **ordinary)
    assert (loop.stats.cycles, loop.stats.state, loop.grants, len(loop.stats.records)) == (0, "new", (), 0)
    assert "1 kHz" in repr(loop) and "new" in repr(loop)
    with pytest.raises(rtloop.StateError, match="not been started"):
        loop.join()
    loop.stop()


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


def test_a_step_that_sees_a_stall_records_one_and_no_million_misses(
    probes: ModuleType, ordinary: dict[str, Any]
) -> None:
    loop = probes.Probe("10us", warmup=0, **ordinary)
    loop.busy_ns, loop.busy_every = 1_200_000_000, 5
    stats = loop.run(cycles=6)
    assert stats.stalls == 1
    assert stats.missed >= 119_000
    assert loop.overruns <= 6


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
