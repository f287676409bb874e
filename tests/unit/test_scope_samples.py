"""What rtloop scope draws and triggers on: no sample is lost on the way from the loop to the eye."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import rtloop
from rtloop.errors import ConfigError, StateError
from rtloop.stats.figures import Swap
from rtloop.tools.scope.samples.channels import TIMING_DTYPE, Channel, signal_channels, timing_channels
from rtloop.tools.scope.samples.history import BLOCK, History
from rtloop.tools.scope.samples.trigger import Trigger
from rtloop.tools.scope.samples.watch import Watch
from rtloop.tools.scope.sources import Machine
from rtloop.tools.scope.view import View, make_frame, parse_view

DTYPE = np.dtype([("cycle", "<u8"), ("release", "<i8"), ("start", "<i8"), ("a", "f8"), ("n", "i4"),
                  ("force", "f4", (2,)), ("wave", "c16"), ("flag", "?")])  # fmt: skip
MS = 1_000_000


def samples(count: int, begin: int = 0) -> np.ndarray:
    made = np.zeros(count, DTYPE)
    made["cycle"] = np.arange(begin, begin + count)
    made["release"] = made["cycle"].astype(np.int64) * MS
    made["n"] = made["cycle"] % 1000
    return made


def history(capacity: int = 100_000) -> History:
    return History(DTYPE, signal_channels(DTYPE, {"a": "rad"}), capacity)


def test_channels_are_the_numbers_of_a_sample() -> None:
    found = signal_channels(DTYPE, {"force": "N"})
    assert [one.name for one in found] == ["a", "n", "force[0]", "force[1]", "wave.real", "wave.imag", "flag"]
    assert [one.unit for one in found] == ["", "", "N", "N", "", "", ""]
    records = samples(3)
    records["force"][1] = 5, 6
    records["wave"][1] = 7 + 8j
    records["flag"][1] = True
    assert [one.values(records)[1] for one in found] == [0, 1, 5, 6, 7, 8, 1]
    timing = np.array([(0, 1000, 3500, 9500), (1, 10_000, 12_000, 20_001)], TIMING_DTYPE)
    assert [one.values(timing).tolist() for one in timing_channels(10_000)] == [[2.5, 2.0], [6.0, 8.001], [0.0, 1.0]]


def test_samples_keep_their_numbers_while_old_ones_make_room() -> None:
    kept = history(1000)
    rng = np.random.default_rng(1)
    written = 0
    for size in [*rng.integers(0, 700, 60).tolist(), 5000, 1]:
        kept.append(samples(size, written))
        written += size
        assert kept.count == written and kept.count - kept.first >= min(written, 1000 - BLOCK)
        records = kept.records(kept.first, kept.count)
        assert np.array_equal(records["cycle"], np.arange(kept.first, written))
    assert kept.first > 0
    middle = (kept.first + kept.count) // 2
    assert kept.find(kept.time(middle)) == middle and kept.nearest(kept.time(middle) + 0.0004) == middle
    assert kept.find(-1e30) == kept.first and kept.find(1e30) == kept.count
    copied = kept.copy(middle - 10, middle + 10)
    kept.append(samples(10_000, written))
    assert np.array_equal(copied.records(0, 20)["cycle"], np.arange(middle - 10, middle + 10))


def test_a_spike_of_one_cycle_is_in_every_picture() -> None:
    """Wherever it is, whatever the zoom, and while the picture moves."""
    rng = np.random.default_rng(2)
    for _ in range(60):
        kept = history(int(rng.integers(2_000, 60_000)))
        count = int(rng.integers(2_000, 150_000))
        made = samples(count)
        at = count - 1 - int(rng.integers(0, min(count, kept.capacity - BLOCK)))
        sign = rng.choice([-1, 1])
        made["a"][at] = 100 * sign
        for piece in np.array_split(made, int(rng.integers(1, 200))):
            kept.append(piece)
            if rng.random() < 0.1:
                kept.line(["a"], 0, kept.count, 300)  # some blocks are made early
        begin = int(rng.integers(kept.first, at + 1))
        end = int(rng.integers(at + 1, count + 1))
        columns = int(rng.integers(16, 2000))
        line = kept.line(["a", "n"], begin, end, columns)
        found = line.values[0]
        assert (found.max() if sign > 0 else found.min()) == 100 * sign, (at, begin, end, columns, line.samples)
        assert len(line.times) == len(found) == len(line.values[1]) <= 4 * columns + 4
        where = line.times[np.argmax(np.abs(found))]
        assert abs(where - at / 1000) <= line.samples / 1000
        assert np.all(np.diff(line.times) >= 0)


def test_decimation_has_the_extremes_of_each_bucket_and_nothing_else() -> None:
    kept = history()
    made = samples(50_000)
    made["a"] = np.random.default_rng(3).normal(size=50_000)
    made["a"][777] = np.nan
    kept.append(made)
    for begin, end, columns in [(0, 50_000, 700), (1234, 45_678, 100), (100, 900, 2000), (64, 128_000, 16)]:
        line = kept.line(["a"], begin, end, columns)
        end = min(end, 50_000)
        if line.samples == 1:
            assert np.array_equal(line.values[0], made["a"][begin:end], equal_nan=True)
            continue
        pairs = line.values[0].reshape(-1, 2)
        first = begin // line.samples
        for number, pair in enumerate(pairs.tolist(), first):
            bucket = made["a"][number * line.samples : (number + 1) * line.samples]
            assert sorted(pair) == [np.nanmin(bucket), np.nanmax(bucket)]


def test_a_bucket_stays_the_same_while_the_picture_moves() -> None:
    """Otherwise the drawing would flicker."""
    kept = history()
    made = samples(40_000)
    made["a"] = np.random.default_rng(4).normal(size=40_000)
    kept.append(made[:30_000])
    before = kept.line(["a"], 20_000, 30_000, 400)
    kept.append(made[30_000:30_100])
    after = kept.line(["a"], 20_100, 30_100, 400)
    common = np.isin(before.times, after.times)
    assert common.sum() > 500
    assert np.array_equal(before.values[0][common][:-2], after.values[0][np.isin(after.times, before.times)][:-2])


def run_trigger(trigger: Trigger, values: np.ndarray, pieces: int, seed: int = 0) -> list[int]:
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.integers(0, len(values) + 1, pieces))
    found = []
    for piece in np.split(values, cuts):
        found += trigger.take(piece)
    return found


@pytest.mark.parametrize("number", range(10))
def test_a_planted_spike_is_caught_with_100_samples_before_it(number: int) -> None:
    rng = np.random.default_rng(number)
    count = 20_000
    at = int(rng.integers(100, count - 400))
    made = samples(count)
    made["a"] = rng.normal(0, 0.1, count).clip(-0.4, 0.4)
    made["a"][at] = 1.0
    kept, trigger = history(), Trigger(0.5, "rising", 100, 400, is_single=True)
    captures = []
    position = 0
    while position < count:
        piece = made[position : position + int(rng.integers(1, 60))]
        position += len(piece)
        kept.append(piece)
        captures += [kept.copy(k - 100, k + 400) for k in trigger.take(piece["a"])]
    (capture,) = captures
    values = capture.values("a", 0, capture.count)
    assert capture.count == 500 and values[100] == 1.0 and np.flatnonzero(values > 0.5).tolist() == [100]
    assert capture.records(100, 101)["cycle"][0] == at and trigger.state == "done"


@pytest.mark.parametrize("pieces", [1, 7, 300])
def test_edges(pieces: int) -> None:
    values = np.zeros(1000)
    values[[100, 101, 300, 500]] = [1, 2, 1, 1]
    values[700:] = 1
    nan = values.copy()
    nan[99] = nan[499] = np.nan

    def edges(edge: str, level: float = 1, source: np.ndarray = values, after: int = 1) -> list[int]:
        return run_trigger(Trigger(level, edge, 0, after, is_single=False), source, pieces)

    assert edges("rising") == [100, 300, 500, 700], "a sample at the level has reached it"
    assert edges("rising", 1.5) == [101] and edges("falling", 1.5) == [102]
    assert edges("falling", 0) == [102, 301, 501]
    assert edges("either", 0.5) == [100, 102, 300, 301, 500, 501, 700]
    assert edges("either", 0.5, after=50) == [100, 300, 500, 700], "edges within a capture belong to it"
    assert edges("rising", source=nan) == [300, 700], "a comparison with NaN is no edge"
    assert edges("rising", after=301) == [100, 500], "what is not complete is not reported"
    single = Trigger(1, "rising", 0, 10, is_single=True)
    assert run_trigger(single, values, pieces) == [100] and single.found == 1


@pytest.mark.parametrize("pieces", [1, 5, 200])
def test_it_is_armed_once_it_has_what_comes_before(pieces: int) -> None:
    values = np.zeros(1000)
    values[[50, 99, 100, 102, 400]] = 1
    trigger = Trigger(0.5, "rising", 101, 20, is_single=False)
    assert trigger.state == "filling"
    assert run_trigger(trigger, values, pieces) == [102, 400] and trigger.state == "armed"


def test_a_gap_begins_anew() -> None:
    trigger = Trigger(0.5, "rising", 10, 5, is_single=False)
    assert trigger.take(np.zeros(20)) == []
    trigger.restart(100)
    assert trigger.state == "filling"
    values = np.ones(30)
    values[15] = 0
    assert trigger.take(values) == [116], "the first sample after a gap is no edge"
    assert trigger.take(np.array([0, 1.0])) == [] and trigger.state == "triggered"
    trigger.restart(200)
    assert trigger.take(np.zeros(40)) == [], "a capture with a gap in it is not one"


@pytest.mark.parametrize(
    ("level", "edge", "before", "after"),
    [(float("nan"), "rising", 0, 1), (float("inf"), "rising", 0, 1), (0, "up", 0, 1), (0, "rising", -1, 1),
     (0, "rising", 0, 0)],
)  # fmt: skip
def test_invalid_triggers(level: float, edge: str, before: int, after: int) -> None:
    with pytest.raises(ConfigError):
        Trigger(level, edge, before, after, is_single=True)


def parsed(frame: bytes) -> tuple[dict[str, Any], list[np.ndarray]]:
    import json

    length = int.from_bytes(frame[:4], "little")
    header = json.loads(frame[4 : 4 + length])
    assert (4 + length) % 8 == 0
    numbers = np.frombuffer(frame[4 + length :], "<f8")
    ends = np.cumsum(header["lengths"])
    assert ends[-1] == len(numbers) if len(ends) else not len(numbers)
    return header, np.split(numbers, ends[:-1])


def message(**values: Any) -> dict[str, Any]:
    return {"mode": "time", "channels": ["a", "loop.latency"], "window": 2, "columns": 300, **values}


def test_a_cursor_moves_by_a_sample_over_releases_that_were_missed() -> None:
    kept, records = history(), samples(10)
    records["release"][5:] += 20 * MS
    kept.append(records)
    assert kept.nearest(kept.time(4), 1) == 5, "the next sample is 21 periods away"
    assert kept.nearest(kept.time(5), -1) == 4
    assert kept.nearest(kept.time(0), -1) == 0 and kept.nearest(kept.time(9), 1) == 9, "it stays at the first and last"


def test_frames() -> None:
    kept, timing = history(), History(TIMING_DTYPE, timing_channels(MS), 1000)
    kept.append(samples(10_000))
    times = np.zeros(500, TIMING_DTYPE)
    times["release"] = np.arange(500) * MS + 9_500 * MS
    times["start"] = times["release"] + 7000
    timing.append(times)
    both = {"signals": kept, "timing": timing}
    header, arrays = parsed(make_frame(parse_view(message()), both, {"is_live": True}))
    assert (header["begin"], header["end"]) == pytest.approx((7.999, 9.999)) and header["is_live"]
    assert [one["channels"] for one in header["groups"]] == [["a"], ["loop.latency"]] and len(arrays) == 4
    assert set(arrays[3]) == {7.0} and arrays[0][0] <= 7.999 and arrays[0][-1] >= 9.99
    header, arrays = parsed(make_frame(parse_view(message(span=[1, 1.1])), both, {}))
    assert header["groups"][0]["samples"] == 1 and 100 <= len(arrays[0]) <= 104
    header, arrays = parsed(make_frame(parse_view(message(mode="histogram", channels=["n"])), both, {}))
    assert arrays[1].sum() == header["groups"][0]["samples"] and 2000 <= arrays[1].sum() <= 2002
    header, arrays = parsed(make_frame(parse_view(message(mode="xy", channels=["n", "a"], window=5)), both, {}))
    assert len(arrays) == 2 and len(arrays[0]) == len(arrays[1]) <= 4000 and header["groups"][0]["samples"] == 2
    for empty in ({}, {"signals": history()}):
        for mode in ("time", "xy", "histogram"):
            assert parsed(make_frame(parse_view(message(mode=mode)), empty, {}))[0]["groups"] == []


@pytest.mark.parametrize(
    "wrong",
    [{"mode": "3d"}, {"window": 0}, {"window": "x"}, {"window": float("nan")}, {"span": [2, 1]}, {"span": [1]},
     {"columns": None}, {"channels": None}, {"columns": 1e400}],
)  # fmt: skip
def test_invalid_views(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="view is invalid"):
        parse_view(message(**wrong))
    assert parse_view(message(columns=10**9)).columns <= 4096
    assert isinstance(parse_view(message()), View) and Channel is not None


def test_a_swap_is_marked_at_the_first_sample_of_the_new_step() -> None:
    kept, records = history(), samples(1000, 500)
    kept.append(records[records["cycle"] % 10 == 0])  # signals_every=10
    timing = History(TIMING_DTYPE, timing_channels(MS), 1000)
    swaps = [Swap(90, "Law", "Gone"), Swap(500, "Gone", "Law"), Swap(703, "Law", "Other"),
             Swap(705, "Other", "Law", "step returned -5"), Swap(1499, "Law", "Later")]  # fmt: skip
    both = {"signals": kept, "timing": timing}
    marks = parsed(make_frame(parse_view(message()), both, {}, swaps))[0]["marks"]
    assert [(one["time"], one["name"]) for one in marks] == [
        (0.5, "Law"), (0.71, "Other"), (0.71, "back to Law: step returned -5")
    ]  # fmt: skip
    made = np.zeros(1, TIMING_DTYPE)
    made["cycle"], made["release"] = 1499, 1499 * MS
    timing.append(made)
    marks = parsed(make_frame(parse_view(message(span=[0.6, 2])), both, {}, swaps))[0]["marks"]
    assert [(one["time"], one["cycle"]) for one in marks] == [(0.71, 703), (0.71, 705), (1.499, 1499)]
    for mode in ("xy", "histogram"):
        assert "marks" not in parsed(make_frame(parse_view(message(mode=mode)), both, {}, swaps))[0]


def test_the_samples_go_on_with_the_step_that_replaces_another(laws: ModuleType, ordinary: dict[str, Any]) -> None:
    def make(signal: str) -> Any:
        law = laws.Law("1kHz", name=f"shown-{os.getpid()}", **ordinary)
        law.show(signal)
        return law

    async def look() -> Watch:
        return Watch.open(Machine(), law.name, os.getpid(), 600.0)

    def follow(holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < deadline, watch.problem
            watch.poll()

    law = make("angle")
    with law:
        watch = asyncio.run(look())
        feed = watch.signals
        assert feed is not None and watch.swaps == []
        for number in range(1, 4):
            cycle = law.swap(make("angle"))
            follow(lambda: feed.history.last_cycle > cycle + 20)  # noqa: B023
            assert watch.swap_count == number and watch.swaps == list(law.stats.swaps)
        assert watch.signals is feed and watch.lost == 0
        cycles = feed.history.records(feed.history.first, feed.history.count)["cycle"]
        assert np.array_equal(cycles, np.arange(cycles[0], cycles[0] + len(cycles))), "every sample of every step"
        cycle = law.swap(make("other"))
        follow(lambda: watch.swap_count == 4)
        assert watch.signals is not None and list(watch.signals.history.channels) == ["other"]
        follow(lambda: watch.signals.history.last_cycle > cycle + 20)  # type: ignore[union-attr]
        history = watch.signals.history
        assert history.records(history.first, history.first + 1)["cycle"] == cycle
        assert history.origin == feed.history.origin, "one axis for the marks and both steps"
        later = asyncio.run(look())
        assert later.swaps == watch.swaps, "a page that comes later knows them, too"
        asyncio.run(later.close())
    follow(lambda: watch.has_ended)
    assert (watch.state, watch.problem) == ("stopped", "")
    asyncio.run(watch.close())


def test_latency_and_overruns_of_another_host_are_those_between_two_statistics() -> None:
    """A bridge sends histograms since the start of the run, and no times of single cycles."""
    loop = rtloop.RTLoop("1ms", name="far")
    long = np.where(np.arange(1000) < 900, 100_000, 1_500_000)
    early = loop.simulate(cycles=900, latency=10_000, execution=long[:900])
    late = loop.simulate(cycles=1000, latency=10_000, execution=long)
    sent = [early]

    class Connection:
        name, pid, host, period_ns, clock, state = "far", 1, "pi", 1_000_000, "monotonic", "running"

        @property
        def signals(self) -> Any:
            raise StateError("its bridge does not publish them")

        def read(self, *, records: int) -> Any:
            return sent[-1]

    async def look() -> Watch:
        return Watch(Connection(), 10.0)  # type: ignore[arg-type]

    watch = asyncio.run(look())
    watch._poll_interval()
    assert watch.timing.history.count == 0, "there is nothing to compare with"
    sent.append(late)
    watch._poll_interval()
    watch._poll_interval()  # no newer ones have come
    history = watch.timing.history
    assert history.count == 1 and watch.signals is None
    found = {name: channel.values(history.records(0, 1))[0] for name, channel in history.channels.items()}
    assert found["loop.latency.median"] == pytest.approx(10, rel=0.02) == found["loop.latency.p99"]
    assert found["loop.execution.p99"] == pytest.approx(1500, rel=0.02)
    assert found["loop.overruns"] == late.overruns - early.overruns > 0
    assert watch.swaps == [] and watch.swap_count == 0
    swaps = [Swap(cycle, "Law", "New") for cycle in range(100)]
    sent.append(dataclasses.replace(late, swaps=tuple(swaps)))
    watch._poll_interval()
    assert watch.swap_count == 100 and watch.swaps == swaps[-len(watch.swaps) :] and len(watch.swaps) > 8
    sent.append(early)  # the next run, or its statistics were reset
    watch._poll_interval()
    assert history.count == 1 and watch.swaps == []
