"""``rtloop record --trigger``: what happens to a loop is counted exactly, and found in the cycle where it happened."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from rtloop_test_waiting import wait_until

import rtloop
from rtloop.live.parameter_set import this_writer
from rtloop.tools.record.command import record
from rtloop.tools.record.event_files import EventFiles
from rtloop.tools.record.expression import Expression
from rtloop.tools.record.flight_recorder import FlightRecorder
from rtloop.tools.record.loop_events import EVENTS, QUANTITIES, Happening, LoopEvents, Reading, read_loop
from rtloop.tools.record.sample_stream import SampleStream

PERIOD = 1_000_000
TIMES = np.dtype([("release", "<i8"), ("start", "<i8"), ("end", "<i8")])
SAMPLE = np.dtype([("cycle", "<u8"), ("release", "<i8"), ("start", "<i8"), ("level", "f8"), ("pair", "2f8")])
QUIET = {"overrun": 0, "missed": 0, "late": 0, "fault": 0, "swap": 0}


@pytest.fixture
def loop(signalled: ModuleType, ordinary: dict[str, Any]) -> Iterator[Any]:
    made = signalled.Planted("1kHz", name=f"planted-{os.getpid()}", signals_capacity=1 << 16, **ordinary)
    with made:
        wait_until(lambda: made.stats.cycles > 30, "it runs")
        yield made


def samples(cycles: Any) -> np.ndarray:
    made = np.zeros(len(cycles), SAMPLE)
    made["cycle"] = cycles
    made["release"] = made["start"] = np.asarray(cycles) * PERIOD
    return made


def times(cycles: Any, late: Mapping[int, int] = MappingProxyType({})) -> np.ndarray:
    """Return records of cycles on a grid, each of which ends 1000 ns, or another time, after its release."""
    made = np.zeros(len(cycles), TIMES)
    made["release"] = made["start"] = np.asarray(cycles) * PERIOD
    made["end"] = made["release"] + [late.get(cycle, 1000) for cycle in cycles]
    return made


@pytest.mark.parametrize("policy", ["skip", "catch-up", "shift"])
def test_overruns_of_every_policy_are_found_in_their_cycles(probes: ModuleType, policy: str) -> None:
    random = np.random.default_rng(5)
    execution = np.where(random.random(2000) < 0.05, 2_700_000, 100_000)
    probe = probes.Probe("1kHz", overrun=policy, record=4096)
    stats = probe.simulate(cycles=2000, execution=execution.tolist())
    assert stats.overruns > 50
    counts = {"overrun": stats.overruns, "missed": stats.missed, "late": stats.late}
    events = LoopEvents(Reading(0, 0, dict.fromkeys(counts, 0), np.empty(0, TIMES)), PERIOD, policy, {})
    events.take(Reading(2000, 0, counts, stats.records))
    found = events.columns(samples(range(2000)))
    assert {name: found[name].sum() for name in counts} == counts
    ends, releases = stats.records["end"], stats.records["release"]
    assert np.array_equal(np.flatnonzero(found["overrun"]), np.flatnonzero(ends > releases + PERIOD))
    inexact = [one for one in events.happenings if one.since != one.cycle]
    assert not inexact if policy == "skip" else len(inexact) <= 1, "each is in the one cycle where it happened"
    assert np.array_equal(found["execution"], ends - stats.records["start"])


@pytest.mark.parametrize("piece", [1, 7, 64, 300])
def test_events_are_the_same_however_the_loop_is_read(piece: int) -> None:
    late = {100: 1_500_000, 150: 1_200_000, 151: 1_100_000}
    events = LoopEvents(Reading(0, 0, dict(QUIET), np.empty(0, TIMES)), PERIOD, "catch-up", {})
    sums: dict[str, float] = dict.fromkeys(EVENTS, 0)
    where = []
    for begin in range(0, 300, piece):
        end = min(begin + piece, 300)
        counts = {**QUIET, "overrun": sum(cycle < end for cycle in late), "fault": 3 * (end > 200)}
        counts["late"] = sum(cycle + 1 < end for cycle in late)
        events.take(Reading(end, 0, counts, times(range(max(0, begin - 1), end), late)))
        taken = samples(range(begin, end))
        columns = events.columns(taken)
        where += taken["cycle"][columns["overrun"] > 0].tolist()
        for name in EVENTS:
            sums[name] += columns[name].sum()
    assert where == [100, 150, 151] and sums["overrun"] == 3 and sums["fault"] == 3 and sums["late"] == 3
    (fault,) = [one for one in events.happenings if one.event == "fault"]
    assert fault.number == 3 and fault.since <= 200 <= fault.cycle


def test_counters_that_are_reset_begin_anew() -> None:
    events = LoopEvents(Reading(100, 0, {**QUIET, "overrun": 50}, times([99])), PERIOD, "skip", {})
    events.take(Reading(200, 150, {**QUIET, "overrun": 2}, times(range(150, 200), {160: 1_500_000})))
    events.take(Reading(210, 150, {**QUIET, "overrun": 3}, times(range(199, 210), {205: 1_500_000})))
    assert [one for one in events.happenings if one.event == "overrun"] == [
        Happening("overrun", 1, 160, 160), Happening("overrun", 1, 199, 150), Happening("overrun", 1, 205, 205),
    ]  # fmt: skip
    assert events.counts["overrun"] == 3


def test_events_of_cycles_without_a_sample_belong_to_the_next_one() -> None:
    events = LoopEvents(Reading(0, 0, dict(QUIET), np.empty(0, TIMES)), PERIOD, "shift", {})
    events.take(Reading(10, 0, {**QUIET, "overrun": 2}, times(range(10), {3: 1_500_000, 9: 1_500_000})))
    assert events.columns(samples([0, 4, 8]))["overrun"].tolist() == [0, 1, 0]
    assert events.columns(samples([12]))["overrun"].tolist() == [1]


def test_a_signal_hits_its_limit_once_for_each_time_that_it_leaves_them() -> None:
    limits = {"level": (-1.0, None), "pair": (None, 2.0)}
    events = LoopEvents(Reading(0, 0, dict(QUIET), np.empty(0, TIMES)), PERIOD, "skip", limits)
    taken = samples(range(8))
    taken["level"] = [0, -1, -2, -3, 0, 5, np.nan, 0]
    taken["pair"][2:4, 1] = 3
    assert events.columns(taken)["limit"].tolist() == [0, 0, 2, 2, 0, 0, 1, 0]
    assert [(one.cycle, one.number) for one in events.happenings] == [(2, 2), (6, 1)]
    assert events.counts["limit"] == 3


def test_an_expression_of_signals_and_events() -> None:
    columns = {"overrun": np.array([0, 1, 1]), "level": np.array([9, 9, 9]), "latency": np.array([0, 0, np.nan])}
    taken = samples(range(3))
    taken["level"] = [0, 0, 1]

    def test(text: str) -> list[bool]:
        return [bool(one) for one in Expression(text, SAMPLE, (*EVENTS, *QUANTITIES)).test(taken, columns)]

    assert test("overrun and level < 1") == [False, True, False]
    assert test("loop.overrun or latency >= 0") == [True] * 3
    signal_of_that_name = np.dtype([("overrun", "f8")])
    records = np.zeros(3, signal_of_that_name)
    assert not Expression("overrun", signal_of_that_name, tuple(EVENTS)).test(records, columns).any()
    assert Expression("loop.overrun", signal_of_that_name, tuple(EVENTS)).test(records, columns).tolist() == [0, 1, 1]
    for text in ("loop.nosuch", "nosuch", "level.overrun", "loop.overrun.real", "loop"):
        with pytest.raises(rtloop.ConfigError):
            Expression(text, SAMPLE, tuple(EVENTS))
    with pytest.raises(rtloop.ConfigError):
        Expression("overrun", SAMPLE)
    table = np.dtype([("level", "f8"), ("pair", "f8", 2), ("table", "f8", (2, 3))])
    for text, reason in (
        ("level[0]", "level is not an array"), ("pair", "choose an item, such as pair\\[0\\]"),
        ("pair[-1]", "the index of 2 items must be a whole number from 0 on"), ("pair[2]", "is outside of the array"),
        ("table[0]", "the index of 2 x 3 items must be 2 whole numbers from 0 on"),
    ):  # fmt: skip
        with pytest.raises(rtloop.ConfigError, match=reason):
            Expression(text, table)


def test_planted_events_of_a_running_loop_are_counted_exactly(loop: Any) -> None:
    with rtloop.connect(loop.name, os.getpid()) as there:
        begin = read_loop(there)
        sure = read_loop(there).cycle  # page faults from this cycle on are not in `begin`
        events = LoopEvents(begin, there.period_ns, "skip", dict(there.signals.limits))
        reader = there.signals.reader("begin")
        columns: list[dict[str, np.ndarray]] = []
        taken: list[np.ndarray] = []
        pending = reader.read(0)

        def turn() -> None:
            nonlocal pending
            reading = read_loop(there, events.cycle)
            events.take(reading)
            read = np.concatenate((pending, reader.read()))
            ready = read["cycle"] < reading.cycle
            pending = read[~ready]
            taken.append(read[ready])
            columns.append(events.columns(read[ready]))

        while events.cycle < begin.cycle + 500:
            turn()
            time.sleep(0.01)
        loop.stop()
        turn()
        stats = loop.stats
    cycles = np.concatenate(taken)["cycle"]
    found = {name: np.concatenate([one[name] for one in columns]) for name in EVENTS}
    assert cycles.tolist() == list(range(stats.cycles)), "every sample is there, once"
    assert found["overrun"].sum() == events.counts["overrun"] == stats.overruns - begin.counts["overrun"]
    assert found["missed"].sum() == events.counts["missed"] == stats.missed - begin.counts["missed"]
    assert found["late"].sum() == stats.late - begin.counts["late"]
    planted = (cycles >= begin.cycle) & (cycles % 100 == 20)
    assert planted.sum() >= 4
    assert np.all(found["overrun"][planted] == 1) and np.all(found["missed"][planted] >= 2)
    outside = cycles[np.diff(found["limit"], prepend=0) > 0]
    assert outside.tolist() == [cycle for cycle in range(stats.cycles) if cycle % 100 == 40]
    first_writes = int(np.sum((cycles >= sure) & (cycles % 100 == 60)))
    assert found["fault"].sum() >= first_writes, "each of them is a page fault"


@pytest.mark.parametrize("suffix", ["npz", "mcap", "npy"])
def test_record_writes_what_it_knows_into_the_file_of_each_event(loop: Any, tmp_path: Path, suffix: str) -> None:
    if suffix == "mcap":
        pytest.importorskip("mcap", reason="the extra rtloop[mcap] is not installed")
    loop.parameters.update(gain=3, pair=(5, 6))
    assert loop.parameters.wait(60)
    done = CliRunner().invoke(record, [
        loop.name, "--pid", str(os.getpid()), "-o", str(tmp_path / f"event.{suffix}"), "--trigger",
        "overrun and level == 0 and number % 100 == 20", "--before", "10ms", "--after", "5ms", "--events", "3",
        "--keep", "2", "--for", "60s", "--json",
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    said = json.loads(done.output)
    assert said["written"] == 3 and said["removed"] == 1 and said["counts"]["overrun"] >= 3
    paths = [Path(one["path"]) for one in said["events"]]
    listed = sorted(path for path in tmp_path.iterdir() if path.suffix != ".json")
    assert listed == paths and [path.stem[-5:] for path in paths] == ["-0002", "-0003"], "names sort by time"
    for path, event in zip(paths, said["events"], strict=True):
        records, about = read_event(path)
        assert len(records["cycle"]) == event["records"] == about["written"]
        at = records["release"].index(event["release"])
        assert records["number"][at] % 100 == 20 and records["cycle"][at] == about["trigger_cycle"]
        following = records["release"][at + 1 : at + 2]  # none if the machine was busy for longer
        assert all(release - event["release"] >= 3 * PERIOD for release in following), "that very cycle has overrun"
        assert about["counters"]["cycle"] > about["trigger_cycle"] and about["counters"]["overrun"] > 0
        assert about["parameters"] == {"gain": 3.0, "pair": [5.0, 6.0]} and about["limits"] == {"level": [-1.0, 1.0]}
        happened = {one["event"]: one for one in about["happened"] if one["cycle"] == about["trigger_cycle"]}
        assert happened["overrun"]["count"] == 1 and happened["missed"]["count"] >= 2
    if suffix == "npy":
        assert len(list(tmp_path.glob("*.json"))) == 2


def read_event(path: Path) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Return the columns of an event's file, and what it tells about the event."""
    if path.suffix == ".mcap":
        from mcap.reader import make_reader

        with path.open("rb") as file:
            reader = make_reader(file)
            rows = [json.loads(message.data) for _, _, message in reader.iter_messages()]
            (metadata,) = reader.iter_metadata()
        return {name: [row[name] for row in rows] for name in rows[0]}, {
            name: json.loads(value) for name, value in metadata.metadata.items()
        }
    found = np.load(path)
    records = found if path.suffix == ".npy" else found["records"]
    text = path.with_suffix(".json").read_text() if path.suffix == ".npy" else str(found["about"])
    return {name: records[name].tolist() for name in records.dtype.names}, json.loads(text)


def follow(recorder: FlightRecorder, is_over: Any) -> None:
    deadline = time.monotonic() + 60
    while recorder.turn() and not is_over():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(("output", "error"), [
    ("event", rtloop.ConfigError), (".npz", rtloop.ConfigError), ("none/event.npz", FileNotFoundError),
])  # fmt: skip
def test_a_name_for_files_that_cannot_be_written_is_refused_before_the_first_event(
    tmp_path: Path, output: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        EventFiles(tmp_path / output, "motor", "monotonic", 100)
    assert not list(tmp_path.iterdir())


def test_what_happened_before_the_recording_is_no_event_but_is_in_the_file_of_the_next_one(
    loop: Any, tmp_path: Path
) -> None:
    """And the parameters in its file are those of its cycle."""
    loop.parameters["gain"] = 4.0
    assert loop.parameters.wait(60)
    changed = loop.stats.cycles
    wait_until(lambda: loop.stats.cycles > changed + 150, "there are older samples")
    files = EventFiles(tmp_path / "event.npz", loop.name, "monotonic", 100)
    trigger = f"number % 50 == 0 or cycle == {changed + 10}"
    recorder = FlightRecorder(rtloop.connect(loop.name, os.getpid()), trigger, (100 * PERIOD, 0), files)
    begin = recorder._events.cycle
    loop.parameters["gain"] = 5.0
    follow(recorder, lambda: recorder._events.cycle > begin + 120)
    recorder.finish()
    recorder.close()
    assert recorder.lost == 0 and 0 < recorder.taken <= loop.stats.cycles - begin
    assert 2 <= files.written <= 4
    for one in files.kept:
        records, about = read_event(Path(one["path"]))
        at = about["trigger_cycle"]
        assert at >= begin and records["cycle"][0] < at - 50, "with the samples before"
        assert about["parameters_since"] <= at
        assert about["parameters"]["gain"] == (5.0 if about["parameters_since"] >= begin else 4.0)


def test_no_more_files_are_written_than_asked_for_however_many_events_one_turn_finds(loop: Any, tmp_path: Path) -> None:
    files = EventFiles(tmp_path / "few.npz", loop.name, "monotonic", 100, 2)
    recorder = FlightRecorder(rtloop.connect(loop.name, os.getpid()), "number % 10 == 0", (PERIOD, 0), files)
    cycle = loop.stats.cycles
    wait_until(lambda: loop.stats.cycles > cycle + 100, "ten events have come")
    recorder.turn()
    recorder.close()
    assert files.written == 2 and files.are_complete


def test_each_refused_set_of_parameters_is_an_event(loop: Any, tmp_path: Path) -> None:
    files = EventFiles(tmp_path / "refused.npz", loop.name, "monotonic", 100)
    recorder = FlightRecorder(rtloop.connect(loop.name, os.getpid()), "refused", (PERIOD, 0), files)
    view: Any = recorder.loop._parameters._view  # type: ignore[union-attr]
    for number in range(1, 4):
        set_ = bytearray(view.asked().values)
        set_[:8] = np.float64(11).tobytes()  # above the limit of `gain`
        view.publish(bytes(set_), this_writer())
        wait_until(lambda number=number: loop.parameters.refused == number, "it refuses the set")
        cycle = loop.stats.cycles
        follow(recorder, lambda cycle=cycle: recorder._events.cycle > cycle + 10)
    recorder.finish()
    recorder.close()
    assert recorder.counts["refused"] == 3 and files.written == 3
    for one in files.kept:
        _, about = read_event(Path(one["path"]))
        assert about["parameters"]["gain"] == 2.0, "it is not in use"
        assert sum(one["count"] for one in about["happened"] if one["event"] == "refused") == 1
    assert about["counters"]["refused"] == 3


def test_a_recording_goes_on_with_the_step_that_replaces_another(laws: ModuleType, ordinary: dict[str, Any],
                                                                 tmp_path: Path) -> None:  # fmt: skip
    def make(signal: str = "angle") -> Any:
        law = laws.Law("1kHz", name=f"law-{os.getpid()}", **ordinary)
        law.declare()
        law.show(signal)
        return law

    law = make()
    files = EventFiles(tmp_path / "swap.npz", law.name, "monotonic", 10)
    with law:
        wait_until(lambda: law.stats.cycles > 20, "it runs")
        recorder = FlightRecorder(rtloop.connect(law.name, os.getpid()), "swap", (8 * PERIOD, 12 * PERIOD), files)
        begin = recorder._events.cycle
        swapped = []
        for _ in range(2):
            wait_until(lambda: law.stats.cycles > 30 + (swapped[-1] if swapped else 0), "it goes on")
            swapped.append(law.swap(make()))
            wait_until(lambda: law.stats.cycles > swapped[-1] + 20, "it goes on")
            follow(recorder, lambda: recorder._events.cycle > swapped[-1] + 20)
        law.swap(make("other"))
        follow(recorder, lambda: recorder.counts["swap"] == 3)
        cycle = recorder._events.cycle
        follow(recorder, lambda: recorder._events.cycle > cycle + 20)
    recorder.finish()
    recorder.close()
    assert recorder.counts["swap"] == 3 and files.written == 3
    assert recorder.taken == law.stats.cycles - begin and recorder.lost == 0, "every sample of every step"
    assert set(read_event(Path(files.kept[2]["path"]))[0]) == {"cycle", "release", "start", "other"}
    for cycle, one in zip(swapped, files.kept, strict=False):
        records, about = read_event(Path(one["path"]))
        assert about["trigger_cycle"] == cycle, "the first cycle of the new step"
        cycles = records["cycle"]
        assert cycles == list(range(cycles[0], cycles[-1] + 1)) and cycles[0] <= cycle <= cycles[-1]


def test_a_trigger_that_the_new_step_cannot_have_ends_the_recording(laws: ModuleType, ordinary: dict[str, Any],
                                                                    tmp_path: Path) -> None:  # fmt: skip
    law, other = (laws.Law("1kHz", name=f"law-{os.getpid()}", **ordinary) for _ in range(2))
    law.show("angle")
    other.show("other")
    with law:
        wait_until(lambda: law.stats.cycles > 20, "it runs")
        files = EventFiles(tmp_path / "swap.npy", law.name, "monotonic", 10)
        recorder = FlightRecorder(rtloop.connect(law.name, os.getpid()), "angle > 1e9", (PERIOD, PERIOD), files)
        cycle = law.swap(other)
        follow(recorder, lambda: False)
        recorder.close()
    assert f"the swap at cycle {cycle:,}" in recorder.end_reason and "no signal angle" in recorder.end_reason


def test_limits_of_signals_that_are_none_are_refused(signalled: ModuleType) -> None:
    loop = signalled.Counting("1kHz")
    with pytest.raises(rtloop.ConfigError, match="no limits"):
        loop.declare("flag", "?").limits(0, 1)
    for low, high in ((1, 0), (float("nan"), 1), (0, float("inf")), ("0", 1), (False, 1)):
        with pytest.raises(rtloop.ConfigError, match="limits of other"):
            loop.declare("other").limits(low, high)
    loop.declare("other").limits(None, 1)
    assert dict(loop.signals.limits) == {"other": (None, 1.0)}
    data = np.zeros((), [("force", "f8"), ("angle", "f8")])
    fields = rtloop.PyLoop(lambda *_: None, "1ms", data=data, signals={"force": (-50, 50, "N"), "angle": "rad"})
    assert dict(fields.signals.limits) == {"force": (-50.0, 50.0)} and fields.signals.units["angle"] == "rad"


def test_a_recording_without_a_trigger_goes_on_after_a_swap(laws: ModuleType, ordinary: dict[str, Any]) -> None:
    law, same, other = (laws.Law("1kHz", name=f"law-{os.getpid()}", **ordinary) for _ in range(3))
    law.show()
    same.show()
    other.show("other")
    with law, rtloop.connect(law.name, os.getpid()) as there:
        stream = SampleStream(there)
        begin = law.stats.cycles
        wait_until(lambda: law.stats.cycles > begin + 3, "it runs")
        taken: list[int] = []
        cycle = law.swap(same)
        while not taken or taken[-1] < cycle + 20:
            taken += stream.read()["cycle"].tolist()
            time.sleep(0.001)
        assert taken == list(range(taken[0], taken[-1] + 1)) and taken[0] < cycle and stream.lost == 0
        cycle = law.swap(other)
        taken += stream.read()["cycle"].tolist()
        assert taken == list(range(taken[0], cycle)), "to the last cycle of the step"
        assert stream.end_reason == f"after the swap at cycle {cycle:,} the step has other signals"
        stream.close()


def test_the_samples_of_a_step_that_comes_back_are_recorded_once(laws: ModuleType, ordinary: dict[str, Any],
                                                                 tmp_path: Path) -> None:  # fmt: skip
    """Its block still has those from before the swap."""
    settings = {**ordinary, "name": f"law-{os.getpid()}", "signals_capacity": 1 << 16}
    law, new = (laws.Law("1kHz", **settings) for _ in range(2))
    law.show()
    new.show()
    new.step_code = -5
    files = EventFiles(tmp_path / "back.npz", law.name, "monotonic", 10)
    with warnings.catch_warnings(), law, rtloop.connect(law.name, os.getpid()) as there:
        warnings.simplefilter("ignore")
        wait_until(lambda: law.stats.cycles > 30, "it runs")
        stream = SampleStream(there)
        recorder = FlightRecorder(rtloop.connect(law.name, os.getpid()), "swap", (PERIOD, PERIOD), files)
        begin = recorder._events.cycle
        law.swap(new, trial="1h", revert_on=())
        taken = stream.read()["cycle"].tolist()
        recorder.turn()
        while law.on_trial:
            if new.stop_at < new.steps:
                new.stop_at = new.steps + 100  # far enough for a busy machine, or else once more
            time.sleep(0.001)
        back = law.stats.swaps[1].cycle
        deadline = time.monotonic() + 60
        while not taken or taken[-1] < back + 20:
            taken += stream.read()["cycle"].tolist()
            assert time.monotonic() < deadline
        follow(recorder, lambda: recorder._events.cycle > back + 20)
    recorder.finish()
    recorder.close()
    stream.close()
    assert taken == list(range(taken[0], taken[-1] + 1)) and stream.lost == 0, "each once"
    assert recorder.taken == law.stats.cycles - begin and recorder.lost == 0 and recorder.counts["swap"] == 2
