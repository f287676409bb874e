"""Saved stats in other tools' formats: read back with those tools, or against what their formats say."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtloop import Histogram, RTLoop, Stats

pytest.importorskip("click", reason="the command line needs rtloop[cli]")

from rtloop.stats.figures import Swap
from rtloop.tools.cli import main
from rtloop.tools.export.csv import histograms_to_csv, records_to_csv
from rtloop.tools.export.trace import to_trace
from rtloop.tools.saved_runs import Run

PERIOD = 1_000_000
EPOCH = 1_790_000_000_123_456_789


def make(name: str = "arm", *, begin: int = EPOCH, cycles: int = 6, **settings: Any) -> Stats:
    """A run at 1 kHz whose third cycle took 2.4 ms: it overran, and two releases after it were dropped."""
    grid = np.array([k + (2 if k > 2 else 0) for k in range(cycles)], dtype=np.int64)
    records = np.zeros(cycles, dtype=[("release", "<i8"), ("start", "<i8"), ("end", "<i8")])
    records["release"] = begin + grid * PERIOD
    records["start"] = records["release"] + 10_001 + np.arange(cycles)
    records["end"] = records["start"] + 20_003
    if cycles > 2:
        records["end"][2] += 2_400_000
    empty = RTLoop(PERIOD, name=name).stats
    return replace(
        empty,
        cycles=cycles + 100,
        missed=2 if cycles > 2 else 0,
        overruns=1 if cycles > 2 else 0,
        duration_ns=10**9,
        latency=Histogram.from_values(records["start"] - records["release"]),
        execution=Histogram.from_values(records["end"] - records["start"]),
        response=Histogram.from_values(records["end"] - records["release"]),
        interval=Histogram.from_values(np.diff(records["start"])),
        records=records,
        settings=empty.settings | settings,
    )


def run(*args: str | Path) -> int:
    with pytest.raises(SystemExit) as exit_:
        main([str(arg) for arg in args])
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


def events(text: str, phase: str, **wanted: Any) -> list[dict[str, Any]]:
    """The events of one phase, times as exact decimals."""
    found = json.loads(text, parse_float=Decimal)["traceEvents"]
    return [e for e in found if e["ph"] == phase and all(e.get(key) == value for key, value in wanted.items())]


def test_csv_has_a_row_a_cycle_with_exact_times() -> None:
    stats = make()
    rows = list(csv.DictReader(io.StringIO(records_to_csv(stats))))
    assert [int(row["index"]) for row in rows] == list(range(100, 106)), "the first 100 cycles are no longer recorded"
    for row, record in zip(rows, stats.records, strict=True):
        assert [int(row[f"{name}_ns"]) for name in ("release", "start", "end")] == list(record.item())
        assert int(row["latency_ns"]) == record["start"] - record["release"]
        assert int(row["execution_ns"]) == record["end"] - record["start"]
        assert int(row["response_ns"]) == record["end"] - record["release"]
    assert [row["overrun"] for row in rows] == ["0", "0", "1", "0", "0", "0"]


def test_csv_of_a_loop_with_its_own_wait_claims_no_latency() -> None:
    rows = list(csv.DictReader(io.StringIO(records_to_csv(make(has_own_wait=True)))))
    assert {(row["latency_ns"], row["response_ns"], row["overrun"]) for row in rows} == {("", "", "")}
    assert int(rows[0]["execution_ns"]) == 20_003


def test_csv_of_the_histograms_holds_every_count() -> None:
    stats = replace(make(), latency=Histogram.from_values([0, 5, 5, 70_000, 2**41]))
    rows = [row for row in csv.DictReader(io.StringIO(histograms_to_csv(stats))) if row["series"] == "latency"]
    assert [(row["lower_ns"], row["count"]) for row in rows[:2]] == [("0", "1"), ("5", "2")]
    assert int(rows[2]["lower_ns"]) <= 70_000 < int(rows[2]["upper_ns"])
    assert (rows[3]["lower_ns"], rows[3]["upper_ns"]) == (str(2**40), ""), "the overflow bin has no end"


def test_json_is_everything(tmp_path: Path) -> None:
    stats = make()
    stats.save(tmp_path / "run.npz")
    assert run("export", tmp_path / "run.npz", "-o", tmp_path / "run.json") == 0
    assert json.loads((tmp_path / "run.json").read_text()) == json.loads(stats.to_json(records=True))


def test_hdr_log_is_read_back_by_the_package(tmp_path: Path) -> None:
    hdr = pytest.importorskip("hdrh.histogram", reason="needs rtloop[export]")
    from hdrh.log import HistogramLogReader

    rng = np.random.default_rng(5)
    values = np.concatenate([rng.lognormal(10, 1, 19_998).astype(np.int64), [3, 2**39 + 12_345]])
    stats = replace(make(), latency=Histogram.from_values(values), interval=Histogram.empty())
    stats.save(tmp_path / "run.npz")
    assert run("export", tmp_path / "run.npz", "-o", tmp_path / "run.hlog") == 0
    reader = HistogramLogReader(str(tmp_path / "run.hlog"), hdr.HdrHistogram(1, 2**41, 3))
    found = {}
    while (histogram := reader.get_next_interval_histogram()) is not None:
        found[histogram.get_tag()] = histogram
    assert list(found) == ["latency", "execution", "response"], "an empty series has no line"
    for tag, histogram in found.items():
        ours: Histogram = getattr(stats, tag)
        assert histogram.get_total_count() == ours.count
        # Of 20,000 values these are whole ranks, of which both packages think alike.
        for q in (1, 50, 90, 99, 99.9, 100) if tag == "latency" else (50, 100):
            wanted = ours.percentile(q)
            assert histogram.values_are_equivalent(histogram.get_value_at_percentile(q), int(wanted)), (tag, q)
        assert histogram.values_are_equivalent(histogram.get_max_value(), ours.max)
        assert histogram.values_are_equivalent(histogram.get_min_value(), ours.min)
        assert histogram.get_end_time_stamp() - histogram.get_start_time_stamp() == 1000.0


@pytest.mark.parametrize(("clock", "seconds"), [("realtime", EPOCH * 1e-9), ("monotonic", 0.0), ("tai", 0.0)])
def test_hdr_log_is_written_as_by_the_package_s_own_writer(clock: str, seconds: float, tmp_path: Path) -> None:
    """Its head has the start time, its Interval_Max the unit, that readers take for granted."""
    hdr = pytest.importorskip("hdrh.histogram", reason="needs rtloop[export]")
    from hdrh.log import HistogramLogReader, HistogramLogWriter

    from rtloop.tools.export.hdr import to_hdr

    stats = make(clock=clock)
    text = to_hdr([Run("arm", stats)])
    (tmp_path / "run.hlog").write_text(text)
    reader = HistogramLogReader(str(tmp_path / "run.hlog"), hdr.HdrHistogram(1, 2**41, 3))
    assert reader.get_next_interval_histogram() is not None
    assert reader.get_start_time_sec() == pytest.approx(seconds, abs=1e-3)
    ours = next(line for line in text.splitlines() if line.startswith("Tag=response")).split(",")
    plain = hdr.HdrHistogram(1, 2**41, 3)
    plain.record_value(stats.response.max)
    with (tmp_path / "theirs.hlog").open("w") as file:
        HistogramLogWriter(file).output_interval_histogram(plain, 0, 1)
    theirs = (tmp_path / "theirs.hlog").read_text().splitlines()[-1].split(",")
    assert int(float(ours[3])) == float(theirs[2]), "milliseconds, as of any log in nanoseconds"


def test_a_strangers_name_cannot_break_a_tag_of_the_log() -> None:
    pytest.importorskip("hdrh.histogram", reason="needs rtloop[export]")
    from rtloop.tools.export.hdr import to_hdr

    text = to_hdr([Run("a,b\nTag=c d", make()), Run("leg", make("leg"))])
    lines = [line for line in text.splitlines() if line.startswith("Tag=")]
    assert len(lines) == 8
    assert all(line.count(",") == 4 for line in lines)
    assert lines[0].startswith("Tag=a_b_Tag_c_d.latency,0.000,1.000000000,") and lines[4].startswith("Tag=leg.latency,")


def test_trace_has_each_cycle_as_a_slice_and_no_nanosecond_is_lost() -> None:
    stats = make()
    text = to_trace([Run("arm", stats)])
    steps, waits = events(text, "X", name="step"), events(text, "X", name="latency")
    assert len(steps) == len(waits) == 6
    for step, wait, record in zip(steps, waits, stats.records, strict=True):
        release, start, end = (int(value) - EPOCH for value in record.item())
        assert (step["ts"] * 1000, step["dur"] * 1000) == (start, end - start)
        assert (wait["ts"] * 1000, wait["dur"] * 1000) == (release, start - release)
        # Readers hold times as doubles: what is written has to survive that.
        assert round(float(step["ts"]) * 1000) == start
    assert steps[0]["args"]["cycle"] == 100
    assert json.loads(text)["otherData"]["rtloop"][0]["origin_ns"] == EPOCH


def test_trace_marks_overruns_and_missed_releases() -> None:
    text = to_trace([Run("arm", make())])
    (overrun,), (missed,) = events(text, "i", name="overrun"), events(text, "i", name="missed")
    assert overrun["args"] == {"cycle": 102, "late_ns": 10_003 + 20_003 + 2_400_000 - PERIOD}
    assert overrun["ts"] * 1000 == 2 * PERIOD + 10_003 + 20_003 + 2_400_000
    assert missed["args"] == {"releases": 2}
    assert missed["ts"] * 1000 == 3 * PERIOD, "where the first of them was planned"


def test_trace_has_every_release_as_it_was_planned() -> None:
    stats = make()
    text = to_trace([Run("arm", stats), Run("leg", make("leg", has_own_wait=True))])
    releases = events(text, "i", name="release")
    assert [(e["pid"], round(e["ts"] * 1000)) for e in releases] == [
        (1, int(release) - EPOCH) for release in stats.records["release"]
    ], "and none of the loop that has a wait of its own"
    assert releases[0]["args"] == {"cycle": 100}


def test_the_loops_of_a_group_are_on_one_time_line_though_their_records_do_not_meet() -> None:
    def of_group(stats: Stats, origin_ns: int = EPOCH) -> Stats:
        return replace(stats, settings={**stats.settings, "group": "robot", "origin_ns": origin_ns})

    arm, leg = make(), make("leg", begin=EPOCH + 10**12)
    text = to_trace([Run("arm", of_group(arm)), Run("leg", of_group(leg))])
    assert [events(text, "i", pid=pid, name="release")[0]["ts"] for pid in (1, 2)] == [0, 10**9]
    assert [e["args"]["name"] for e in events(text, "M", name="process_name")] == ["robot/arm", "robot/leg"]
    text = to_trace([Run("arm", of_group(arm)), Run("leg", of_group(leg, EPOCH + 1))])
    assert [events(text, "i", pid=pid, name="release")[0]["ts"] for pid in (1, 2)] == [0, 0], "another run of the group"


@pytest.mark.parametrize("size", [-(10**12), 10**12, -PERIOD, 1])
def test_a_step_of_the_clock_moves_nothing_in_the_trace(size: int) -> None:
    plain = make()
    records = plain.records.copy()
    for name in ("release", "start", "end"):
        records[name][4:] += size
    step = {"clock_steps": 1, "clock_step_cycles": (104,), "clock_step_sizes": (size,)}
    stepped = replace(plain, records=records, **step)
    for phase in "iX":
        assert events(to_trace([Run("arm", stepped)]), phase) == events(to_trace([Run("arm", plain)]), phase)


def test_no_instant_is_hidden_at_the_beginning_of_a_slice() -> None:
    """Viewers draw a slice over an instant of its own track that has its time."""
    stats = make()
    text = to_trace([Run("arm", stats)])
    sliced = {(e["pid"], e["tid"]) for e in events(text, "X")}
    instants = events(text, "i")
    assert {e["name"] for e in instants} == {"release", "missed", "overrun"}
    assert not [e for e in instants if (e["pid"], e["tid"]) in sliced]
    for track in {e["tid"] for e in instants}:
        times = [e["ts"] for e in instants if e["tid"] == track]
        assert times == sorted(set(times)), "nor one behind another"


def test_trace_follows_the_documented_format() -> None:
    """Of the trace-event format: what each phase has to have, that slices of a track do not overlap, known tracks."""
    both = [Run("arm", make()), Run('leg "x"', make("leg", has_own_wait=True))]
    text = to_trace(both)
    trace = json.loads(text)
    assert trace["displayTimeUnit"] == "ns"
    ends: dict[tuple[int, int], float] = {}
    tracks = {(e["pid"], e["tid"]) for e in events(text, "M", name="thread_name")}
    for event in trace["traceEvents"]:
        assert event["ph"] in {"M", "X", "i"} and isinstance(event["pid"], int)
        if event["ph"] == "M":
            continue
        track = event["pid"], event["tid"]
        assert track in tracks
        if event["ph"] == "i":
            assert event["s"] == "t"
            continue
        assert event["dur"] >= 0 and round(event["ts"] * 1000) >= ends.get(track, 0)
        ends[track] = round((event["ts"] + event["dur"]) * 1000)
    names = [e["args"]["name"] for e in events(text, "M", name="process_name")]
    assert names == ["arm", 'leg "x"']
    assert not events(text, "X", pid=2, name="latency"), "a wait of its own has no planned time"


def test_trace_has_an_instant_at_the_first_cycle_of_each_new_step() -> None:
    swaps = (Swap(50, "Law", "Gone"), Swap(103, "Law", 'Other "x"'), Swap(105, 'Other "x"', "Law"))
    for own in (False, True):
        text = to_trace([Run("arm", replace(make(has_own_wait=own), swaps=swaps))])
        found = events(text, "i", name="swap")
        assert [one["args"]["successor"] for one in found] == ['Other "x"', "Law"], "of those that are recorded"
        steps = {one["args"]["cycle"]: one["ts"] for one in events(text, "X", name="step")}
        assert [one["ts"] for one in found] == [steps[103], steps[105]]
        assert "swaps" in [one["args"]["name"] for one in events(text, "M", name="thread_name")]
    assert "swaps" not in to_trace([Run("arm", make())])


def test_two_releases_that_wait_at_once_are_not_drawn_over_each_other() -> None:
    stats = make(cycles=3)
    stats.records.flags.writeable = True
    stats.records["release"] = EPOCH + np.array([0, 1, 2]) * PERIOD
    stats.records["start"] = EPOCH + np.array([5, 6, 7]) * PERIOD  # as overrun="catch-up" would run them
    stats.records["end"] = stats.records["start"] + 1000
    waits = events(to_trace([Run("arm", stats)]), "X", name="latency")
    assert [(w["ts"], w["dur"]) for w in waits] == [(0, 5000), (5000, 1000), (6000, 1000)]
    assert [w["args"]["latency_ns"] for w in waits] == [5 * PERIOD] * 3, "the figure is whole"


@pytest.mark.parametrize(("begin", "expected"), [(EPOCH + PERIOD, 1000), (EPOCH + 10**12, 0)])
def test_runs_that_overlap_keep_their_places_and_others_begin_at_0(begin: int, expected: int) -> None:
    text = to_trace([Run("arm", make()), Run("leg", make("leg", begin=begin))])
    first = [events(text, "X", pid=pid, name="latency")[0]["ts"] for pid in (1, 2)]
    assert first == [0, expected]


@pytest.mark.parametrize("form", ["csv", "json", "hdr", "perfetto"])
@pytest.mark.parametrize("cycles", [0, 1])
def test_a_run_without_cycles_or_with_one_is_exported_too(form: str, cycles: int, tmp_path: Path) -> None:
    if form == "hdr":
        pytest.importorskip("hdrh.histogram", reason="needs rtloop[export]")
    make(cycles=cycles).save(tmp_path / "run.npz")
    assert run("export", tmp_path / "run.npz", "-f", form, "-o", tmp_path / "out") == 0
    assert (tmp_path / "out").stat().st_size > 0


def test_the_output_replaces_a_file_as_a_whole_and_writes_into_a_pipe(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    make().save(tmp_path / "run.npz")
    (tmp_path / "run.csv").write_text("old " * 100_000)
    (tmp_path / "link.csv").symlink_to(tmp_path / "run.csv")
    assert run("export", tmp_path / "run.npz", "-o", tmp_path / "link.csv") == 0
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "run.csv").read_text() == records_to_csv(make())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.csv", "run.csv", "run.npz"]
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert run("export", tmp_path / "run.npz", "-f", "csv", "-o", tmp_path / "pipe") == 0
        assert (tmp_path / "pipe").is_fifo(), "a pipe or a device is written to, never replaced"
        assert os.read(reader, 65536).decode() == records_to_csv(make())
    finally:
        os.close(reader)
    assert run("export", tmp_path / "run.npz", "-f", "csv") == 0
    assert capfdbinary.readouterr().out.decode() == records_to_csv(make())


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (["{run}"], 2, "the format cannot be derived"),
        (["{run}", "-o", "x.dat"], 2, "the format cannot be derived from x.dat"),
        (["{run}", "{run}", "-f", "csv"], 2, "csv takes one run"),
        (["{run}", "-f", "xml"], 2, "xml"),
        ([], 2, "RUN.npz"),
        (["nowhere.npz", "-f", "csv"], 1, "nowhere.npz: No such file"),
        (["{bad}", "-f", "csv"], 1, "not a file that Stats.save wrote"),
        (["{run}", "-o", "/nowhere/x.csv"], 1, "cannot write /nowhere/x.csv: No such file or directory"),
    ],
)
def test_what_goes_wrong_is_an_exit_code_and_a_line(
    args: list[str], code: int, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make().save(tmp_path / "run.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK nothing")
    places = {"run": str(tmp_path / "run.npz"), "bad": str(tmp_path / "bad.npz")}
    assert run("export", *(arg.format(**places) for arg in args)) == code
    captured = capsys.readouterr()
    assert text in captured.err and captured.out == ""


def test_what_was_written_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make().save(tmp_path / "run.npz")
    for name, args, told in (
        ("run.csv", (), "the last 6 of 106 cycles"),
        ("bins.csv", ("--table", "histograms"), "histograms of 106 cycles"),
        ("run.trace.json", (tmp_path / "run.npz",), "2 runs, the last 12 of 212 cycles"),
    ):
        path = tmp_path / name
        assert run("export", tmp_path / "run.npz", "-o", path, *args) == 0
        said = capsys.readouterr()
        assert said.out == ""
        assert re.fullmatch(rf"wrote {path}: {told}, [\d.]+ (B|KiB)\n", said.err), said.err
    assert run("export", tmp_path / "run.npz", "-f", "csv") == 0
    assert capsys.readouterr().err == "", "a file on standard output needs no report"


def test_a_file_with_a_field_of_another_kind_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(period_ns="<b>").save(tmp_path / "run.npz")
    assert run("export", tmp_path / "run.npz", "-f", "csv") == 1
    assert "period_ns is '<b>', which is not a period" in capsys.readouterr().err
