"""Figures against NumPy on the records: deviations, parts of a run, moves of the grid; live, attached, saved."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import rtloop
from rtloop import Histogram, RTLoop, Stats

PLAIN: dict[str, Any] = {"strict": False, "policy": "other", "lock_memory": "off", "dma_latency": None}
pytestmark = pytest.mark.filterwarnings("ignore::rtloop.RTSetupWarning")


def values_of(records: NDArray[Any]) -> dict[str, NDArray[Any]]:
    release, start, end = (records[name] for name in ("release", "start", "end"))
    return {
        "latency": start - release,
        "execution": end - start,
        "response": end - release,
        "interval": np.diff(start),
    }


def check(stats: Stats) -> None:
    """Compare all that a histogram tells exactly with NumPy on the same cycles, none of which is a warm-up."""
    assert len(stats.records) == stats.cycles and stats.warmup == 0
    for name, values in values_of(stats.records).items():
        histogram: Histogram = getattr(stats, name)
        assert histogram == Histogram.from_values(values), name
        assert histogram.has_exact_std
        middle = values.mean()
        assert histogram.std == pytest.approx(np.sqrt(((values - middle) ** 2).mean()), rel=1e-9, abs=1e-6), name


def test_the_deviation_of_two_latencies_in_turn_is_that_of_numpy() -> None:
    stats = RTLoop("1kHz", warmup=0, record=200_000).simulate(cycles=100_000, latency=["1000ns", "1400ns"])
    assert stats.interval.std == pytest.approx(400, rel=1e-6)
    assert stats.latency.std == stats.response.std == 200
    assert stats.execution.std == 0
    check(stats)


def test_a_jitter_of_a_few_us_shows_at_10_hz() -> None:
    """A bin at 100 ms is 0.8 ms wide: the jitter lies within one."""
    rng = np.random.default_rng(4)
    latency = rng.integers(5_000, 90_000, 1000)
    stats = RTLoop("10Hz", warmup=0, record=2000).simulate(cycles=1000, latency=latency)
    assert stats.interval.std == pytest.approx(np.diff(stats.records["start"]).std(), rel=1e-9) and stats.interval.std
    check(stats)


def test_a_running_loop_is_exact_here_and_from_outside(tmp_path: Path) -> None:
    loop = RTLoop("1kHz", warmup=0, name="exact", **PLAIN)
    with loop:
        while loop.stats.cycles < 50:
            pass
        check(rtloop.attach(pid=os.getpid(), name="exact"))
        check(loop.stats)
    check(loop.stats)
    loop.stats.save(tmp_path / "run")
    loaded = Stats.load(tmp_path / "run")
    check(loaded)
    assert loaded == loop.stats


def test_the_loops_of_a_group_and_their_sum_are_exact() -> None:
    loops = [RTLoop(period, warmup=0, **PLAIN) for period in ("2ms", "5ms")]
    rtloop.LoopGroup(loops).run("100ms")
    for loop in loops:
        check(loop.stats)
    merged = loops[0].stats.execution + loops[1].stats.execution
    both = np.concatenate([values_of(loop.stats.records)["execution"] for loop in loops])
    assert merged == Histogram.from_values(both)


def test_a_reset_begins_the_deviations_anew() -> None:
    loop = RTLoop("1ms", warmup=0, **PLAIN)
    with loop:
        while loop.stats.cycles < 20:
            pass
        loop.reset_stats()
        while not 0 < loop.stats.cycles < 20:
            pass
    stats = loop.stats
    assert stats.execution == Histogram.from_values(values_of(stats.records)["execution"][-stats.execution.count :])


# Names of JSON.


def test_every_figure_of_json_has_its_name_in_python() -> None:
    stats = RTLoop("1kHz").simulate(cycles=500, latency=["1us", "3us", "90us"], execution="10us")
    for name in ("latency", "execution", "response", "interval"):
        histogram = getattr(stats, name)
        for key, value in json.loads(stats.to_json())[name].items():
            if key.endswith("_ns") and key != "total_ns":
                assert getattr(histogram, key) == value, key
    assert stats.latency.p50_ns == stats.latency.percentile(50) and np.isnan(Histogram.empty().p99_9_ns)


# The last part of a run.


def test_the_last_second_is_that_of_the_records() -> None:
    stats = RTLoop("1kHz", record=20_000).simulate(cycles=5000, latency=["1us", "3us", "90us"], execution="10us")
    last = stats.last("1s")
    records = stats.records[stats.records["start"] > stats.records["end"][-1] - 10**9]
    assert last.cycles == len(records) and 999 <= last.cycles <= 1001
    assert np.array_equal(last.records, records)
    assert last.latency == Histogram.from_values(records["start"] - records["release"])
    assert last.interval.count == last.cycles, "the first interval ends with the first cycle, and is known"
    assert last.duration_ns == records["end"][-1] - records["release"][0]
    assert (last.missed, last.overruns, last.late, last.warmup) == (0, 0, 0, 0)
    assert last.page_faults == (None, None) and last.shifted_ns is None
    assert "Cycles of the last 1 s" in str(last)


def test_the_parts_of_a_run_with_overruns_add_up_to_it() -> None:
    """Parts that begin further and further back have all that the whole has, once they have all cycles."""
    work = ["100us"] * 7 + ["2500us"]
    stats = RTLoop("1ms", record=20_000, warmup=0).simulate(cycles=404, execution=work)
    assert stats.overruns == 50 and stats.missed
    whole = stats.last("1h")
    for name in ("cycles", "missed", "overruns", "late", "stalls", "duration_ns"):
        assert getattr(whole, name) == getattr(stats, name), name
    for name in ("latency", "execution", "response", "interval"):
        assert getattr(whole, name) == getattr(stats, name)
    half = stats.last(stats.duration_ns // 2)
    assert 0 < half.overruns < stats.overruns and half.cycles + half.missed <= -(-stats.duration_ns // 2 // 10**6) + 3


def test_the_warm_up_and_what_was_not_recorded_are_in_no_part() -> None:
    loop = RTLoop("1ms", warmup=30, record=100)
    few = loop.simulate(cycles=60)
    assert few.last("1s").cycles == 30 and few.last("1s").interval == few.interval
    many = loop.simulate(cycles=1000)
    assert many.last("1s").cycles == 100 and many.last("10ms").cycles == 10
    assert RTLoop("1ms", warmup=30).simulate(cycles=20).last("1s").cycles == 0
    never = RTLoop("1ms").stats.last("1s")
    assert (never.cycles, never.duration_ns) == (0, 0) and str(never)


def test_a_part_is_saved_and_loaded_as_any_run(tmp_path: Path) -> None:
    part = RTLoop("1ms").simulate(cycles=300).last("50ms")
    assert Stats.load(part.save(tmp_path / "part")) == part
    with pytest.raises(rtloop.ConfigError, match="duration="):
        part.last("0s")


# Moves of the grid.


def test_the_time_by_which_overruns_moved_the_grid_is_a_figure(tmp_path: Path) -> None:
    work = ["100us"] * 9 + ["2ms"]
    stats = RTLoop("1ms", overrun="shift", warmup=0).simulate(cycles=100, execution=work)
    release = stats.records["release"]
    assert stats.shifted_ns == release[-1] - release[0] - 99 * 1_000_000 + _last_move(stats) > 0
    assert stats.missed == 0
    assert f"grid moved        {stats.shifted_ns // 10**6} ms" in str(stats)
    assert json.loads(stats.to_json())["shifted_ns"] == stats.shifted_ns
    assert Stats.load(stats.save(tmp_path / "run")).shifted_ns == stats.shifted_ns
    from rtloop.stats.findings import find

    assert any("grid moved" in finding.text or "Simulated" in finding.text for finding in find(stats))


def _last_move(stats: Stats) -> int:
    """The move after the last cycle, which no release shows."""
    late = int(stats.records["end"][-1] - stats.records["release"][-1]) - 1_000_000
    return max(0, late)


@pytest.mark.parametrize("policy", ["skip", "catch-up"])
def test_a_grid_that_is_kept_has_not_moved(policy: str) -> None:
    stats = RTLoop("1ms", overrun=policy, warmup=0).simulate(cycles=100, execution=["100us"] * 9 + ["2500us"])
    assert stats.overruns and stats.shifted_ns == 0 and "grid moved" not in str(stats)


def test_an_older_file_does_not_tell_and_is_read(tmp_path: Path) -> None:
    """A file of before the squares and the moves: neither is made up."""
    stats = RTLoop("1ms", overrun="shift").simulate(cycles=300, latency=["1us", "2us"])
    values = json.loads(stats.to_json())
    del values["shifted_ns"]
    for name in ("latency", "execution", "response", "interval"):
        del values[name]["squares_ns2"]
    np.savez_compressed(tmp_path / "old.npz", stats=np.array(json.dumps(values)), records=stats.records)
    old = Stats.load(tmp_path / "old.npz")
    assert old.shifted_ns is None and "grid moved" not in str(old)
    assert old.latency.std == pytest.approx(500, rel=0.02) and not old.latency.has_exact_std
    assert "estimates from the bins" in " ".join(str(old).split()) and "estimates" not in str(stats)


# A device that paces the loop.


def passed(cycles: int, restart_at: int = 0) -> int:
    """The cycles of the device that a loop of so many has missed."""
    number = missed = 0
    for _ in range(cycles):
        step = 3 if number % 10 == 9 else 1
        number += step
        if restart_at and number >= restart_at:
            restart_at, number, step = 0, 1, 1
        missed += step - 1
    return missed


@pytest.mark.parametrize("restart_at", [0, 25])
def test_the_cycles_of_a_device_that_were_missed_are_counted(probes: Any, tmp_path: Path, restart_at: int) -> None:
    loop = probes.Device("10ms", **PLAIN)
    loop.restart_at = restart_at
    stats = loop.run(cycles=60)
    assert (stats.device_cycles, stats.device_missed) == (60, passed(60, restart_at))
    assert loop.told == stats.device_missed
    text = str(stats)
    assert "missed (device)" in text and "missed (nominal)" in text and "missed releases  " not in text
    assert Stats.load(stats.save(tmp_path / "run")) == stats
    assert json.loads(stats.to_json())["device_missed"] == stats.device_missed
    again = loop.run(cycles=10)
    assert again.device_cycles == 10, "a run begins anew"


def test_a_loop_without_a_device_says_nothing_of_one() -> None:
    stats = RTLoop("1kHz").simulate(cycles=10)
    assert stats.device_missed is None and "missed (device)" not in str(stats) and "missed releases  " in str(stats)
