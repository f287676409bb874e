"""`rtloop top`: sampling, drawing, keys, and its output for programs."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import rtloop
from rtloop import Histogram
from rtloop.telemetry import live_grants

pytest.importorskip("rich", reason="rtloop top needs rtloop[top]")


from rtloop.tools.cli import main
from rtloop.tools.top import command, view
from rtloop.tools.top.sampler import Sample, Sampler, difference

PLAIN = {"policy": "other", "lock_memory": "off", "dma_latency": None, "record": 64}


@pytest.fixture
def pair() -> Iterator[tuple[rtloop.RTLoop, rtloop.RTLoop]]:
    """Two running loops of this process; the name of the second would be markup if it were taken for it."""
    with rtloop.RTLoop("2ms", name="alpha", **PLAIN) as alpha, rtloop.RTLoop("1ms", name="[red]beta", **PLAIN) as beta:
        yield alpha, beta


@pytest.fixture
def sampler() -> Iterator[Sampler]:
    """Samples the loops of this process."""
    made = Sampler(os.getpid())
    yield made
    made.close()


def wait_for_cycles(*loops: rtloop.RTLoop, cycles: int = 20) -> None:
    while not all(loop.stats.cycles > cycles for loop in loops):
        time.sleep(0.01)


# What is sampled.


def test_a_loop_whose_file_has_the_number_of_one_that_has_ended_is_found(sampler: Sampler) -> None:
    for name in ("first", "second", "third"):  # each gets the lowest free number
        with rtloop.RTLoop("1ms", name=name, **PLAIN):
            assert [row.reader.name for row in sampler.sample().rows] == [name]


def test_files_of_a_process_are_read_once_for_all_its_loops(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    read, paths = live_grants.read_text, []

    def counted(path: str) -> str:
        paths.append(path)
        return read(path)

    quiet = {**PLAIN, "core_dumps": False}
    with rtloop.RTLoop("2ms", name="a", **quiet), rtloop.RTLoop("2ms", name="b", **quiet):
        sampler.sample()
        monkeypatch.setattr(live_grants, "read_text", counted)
        for _ in range(2):
            paths.clear()
            assert len(sampler.sample().rows) == 2
            assert sum(path.endswith("/limits") for path in paths) == 1, "in each sample anew"


def test_a_sample_has_every_loop_and_the_next_one_what_happened_since(pair: Any, sampler: Sampler) -> None:
    wait_for_cycles(*pair)
    first = sampler.sample().rows
    assert [row.reader.name for row in first] == ["[red]beta", "alpha"]
    assert [row.rate for row in first] == [None, None]
    time.sleep(0.1)
    second = sampler.sample().rows
    for before, row in zip(first, second, strict=True):
        assert row.cycles == row.stats.cycles - before.stats.cycles > 5
        assert row.latency.count == row.execution.count == row.cycles, "all of them after the warm-up"
        assert row.seconds is not None and row.rate == row.cycles / row.seconds
        assert row.faults is not None and row.cpu is not None and row.cpus.startswith("any(")
        assert row.key == before.key and row.reader is before.reader, "it is not looked for again"
    assert [row.stats.settings["period_ns"] for row in second] == [1_000_000, 2_000_000]


def test_only_the_asked_for_row_has_records(pair: Any, sampler: Sampler) -> None:
    wait_for_cycles(*pair)
    beta, alpha = sampler.sample(records=7).rows
    assert (len(beta.stats.records), len(alpha.stats.records)) == (7, 7)
    beta, alpha = sampler.sample(records=7, records_of=alpha.key).rows
    assert (len(beta.stats.records), len(alpha.stats.records)) == (0, 7)


def test_loops_that_end_disappear_and_loops_that_begin_appear(pair: Any, sampler: Sampler) -> None:
    alpha, beta = pair
    assert len(sampler.sample().rows) == 2
    files = len(os.listdir("/proc/self/fd"))
    alpha.stop()
    assert [row.reader.name for row in sampler.sample().rows] == ["[red]beta"]
    alpha.start()
    assert [row.reader.name for row in sampler.sample().rows] == ["[red]beta", "alpha"]
    beta.stop(), alpha.stop()
    assert sampler.sample().rows == []
    assert len(os.listdir("/proc/self/fd")) < files


def test_a_reset_begins_the_comparison_anew(pair: Any, sampler: Sampler) -> None:
    alpha, _ = pair
    wait_for_cycles(alpha, cycles=100)
    sampler.sample()
    alpha.reset_stats()
    while alpha.stats.cycles > 90 or not alpha.stats.cycles:
        time.sleep(0.001)
    row = sampler.sample().rows[1]
    assert (row.rate, row.cycles, row.latency.count) == (None, 0, 0)


def test_a_name_that_is_asked_for_leaves_out_the_others(pair: Any) -> None:
    sampler = Sampler(os.getpid(), "alpha")
    assert [row.reader.name for row in sampler.sample().rows] == ["alpha"]
    sampler.close()


def test_the_difference_of_histograms_has_the_values_between() -> None:
    before = Histogram.from_values([10, 20, 1000])
    now = before + Histogram.from_values([15, 15, 5000, 40])
    between = difference(now, before)
    assert between.count == 4
    assert (between.min, between.max) == (15, 5000)
    assert between.mean == pytest.approx((15 + 15 + 5000 + 40) / 4)
    assert between.percentile(50) == 15
    assert difference(now, now).count == 0
    assert difference(Histogram.from_values([7]), Histogram.empty()).max == 7
    assert difference(before + Histogram.from_values([30]), before).max == 30, "less than the greatest since the start"


def test_the_difference_knows_the_overflow_bin() -> None:
    before = Histogram.from_values([10])
    assert difference(before + Histogram.from_values([1 << 50]), before).max == 1 << 50


# How it is written.


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (None, "-"), (float("nan"), "-"), (0, "0 ns"), (999, "999 ns"), (1000, "1.00 us"), (12_345, "12.3 us"),
        (999_600, "1.00 ms"), (123_456, "123 us"), (1_500_000_000, "1.50 s"), (-2000, "-2.00 us"),
    ],
)  # fmt: skip
def test_durations_are_short(ns: float | None, text: str) -> None:
    assert view.short(ns) == text


def test_a_histogram_is_as_wide_as_asked_and_shows_every_value() -> None:
    since = Histogram.from_values([1000] * 5000 + [2000] * 50 + [100_000])
    text = view.histogram(since, Histogram.from_values([2000]), 40, 4)
    lines = text.plain.splitlines()
    assert len(lines) == 5 and all(len(line) == 40 for line in lines[:4])
    assert [char != " " for char in lines[3]].count(True) == 3, "a single outlier is seen, too"
    assert lines[0][0] == "█" and lines[3][-1] != " "
    assert lines[4].startswith("1.00 us") and lines[4].endswith("100 us")
    coloured = {span.style: text.plain[span.start : span.end] for span in text.spans if "cyan" in str(span.style)}
    assert coloured and all("\n" not in part for part in coloured.values())


def test_a_histogram_of_nothing_says_so() -> None:
    assert "no values" in view.histogram(Histogram.empty(), None, 40, 4).plain
    assert view.histogram(Histogram.from_values([0]), None, 20, 3).plain


def records(latencies: list[int], execution: int = 10, period: int = 1000) -> Any:
    made = np.zeros(len(latencies), [("release", "<i8"), ("start", "<i8"), ("end", "<i8")])
    made["release"] = period * np.arange(len(latencies))
    made["start"] = made["release"] + latencies
    made["end"] = made["start"] + execution
    return made


def test_the_time_line_shows_the_worst_of_each_column_and_overruns_in_red() -> None:
    latencies = [2] * 40  # seen, however small beside the worst
    latencies[39] = 800
    latencies[7] = 995  # and 10 of execution: beyond the period of 1000
    text = view.timeline(records(latencies), 1000, 20, 4)
    lines = text.plain.splitlines()
    assert len(lines) == 5 and lines[4].strip().startswith("the last 40 cycles")
    bottom = lines[3][9:]
    assert len(bottom) == 20 and " " not in bottom
    top_line = lines[0][9:]
    assert [i for i, char in enumerate(top_line) if char != " "] == [3, 19]
    red = {text.plain[span.start : span.end].strip() for span in text.spans if "red" in str(span.style)}
    assert red == {"█"}
    assert lines[0].startswith("  995 ns")


@pytest.mark.parametrize("count", [1, 19, 20, 21, 1000])
def test_the_time_line_takes_any_number_of_cycles(count: int) -> None:
    assert len(view.timeline(records([50] * count), 1000, 20, 3).plain.splitlines()[0]) <= 9 + 20
    assert "no records" in view.timeline(records([]), 1000, 20, 3).plain


def test_counts_that_should_be_0_stand_out(pair: Any, sampler: Sampler) -> None:
    row = sampler.sample().rows[0]
    column = next(column for column in view.COLUMNS if column.head == "MISSED")
    some = SimpleNamespace(stats=SimpleNamespace(missed=3, device_missed=None))
    none = SimpleNamespace(stats=SimpleNamespace(missed=0, device_missed=None))
    assert "red" in view.cell(column, some).style  # type: ignore[arg-type]
    assert view.cell(column, none).style == ""  # type: ignore[arg-type]
    assert all(isinstance(view.cell(column, row).text, str) for column in view.COLUMNS)


@pytest.mark.parametrize(
    ("guard", "shown", "is_bad"),
    [
        ({}, "-", False),
        ({"page_faults": {"minor": 0, "major": 0}, "system_calls": 0, "allocations": None}, "0", False),
        ({"page_faults": {"minor": 1, "major": 1}, "system_calls": 1234, "allocations": None}, "1,236", True),
        ({"page_faults": None, "system_calls": None, "allocations": None}, "-", False),
    ],
)
def test_violations_of_a_guarded_step_are_a_column(guard: dict[str, Any], shown: str, is_bad: bool) -> None:
    """What nothing counted is not shown as 0."""
    column = next(column for column in view.COLUMNS if column.head == "GUARD")
    cell = view.cell(column, SimpleNamespace(stats=SimpleNamespace(guard=guard)))  # type: ignore[arg-type]
    assert cell.text == shown and ("red" in cell.style) == is_bad


def test_a_long_name_does_not_take_the_place_of_the_figures() -> None:
    column = view.COLUMNS[0]
    named = [SimpleNamespace(label=name) for name in ("x" * 24, "x" * 25)]
    assert [view.cell(column, row).text for row in named] == ["x" * 24, "x" * 23 + "…"]  # type: ignore[arg-type]


def test_a_narrow_screen_keeps_the_columns_that_matter_most(pair: Any, sampler: Sampler) -> None:
    rows = sampler.sample().rows
    needed = view.widths(rows)
    assert view.fitting(needed, 200) == list(view.COLUMNS)
    heads = [column.head for column in view.fitting(needed, 80)]
    assert heads == [head for head in (column.head for column in view.COLUMNS) if head in heads]
    assert {"NAME", "PID", "LAT 99%", "LAT MAX", "OVER", "MISSED", "FAULTS"} <= set(heads) and "EXEC 50%" not in heads


def test_a_line_has_its_cells_in_columns_of_the_given_widths() -> None:
    from rich.console import Console

    cells = [view.Cell("a", "", True), view.Cell("12", "bold red", False), view.Cell("much too long", "", True)]
    line = view.Line(lambda: cells, [3, 4, 6])
    console = Console(width=40, color_system=None)
    with console.capture() as capture:
        console.print(line)
    assert capture.get().rstrip("\n") == "a      12  much …"
    assert line.width == console.measure(line).maximum == len("a      12  much …")


def test_a_line_is_measured_without_making_its_cells() -> None:
    from rich.console import Console

    def make() -> list[view.Cell]:
        raise AssertionError("nobody has looked at it")

    assert Console().measure(view.Line(make, [3, 4])).maximum == 9


def test_a_column_is_as_wide_as_its_longest_cell(pair: Any, sampler: Sampler) -> None:
    wait_for_cycles(*pair)
    sampler.sample()
    rows = sampler.sample().rows
    needed = view.widths(rows)
    for column in view.COLUMNS:
        longest = max(len(view.cell(column, row).text) for row in rows)
        assert longest <= needed[column.head] and len(column.head) < needed[column.head]


@pytest.mark.parametrize("ns", [0, 1, 999, 999_499, 123_456_789, 9.99e14, -1, -999, -999_499, -123_456_789])
def test_no_duration_is_longer_than_its_column(ns: float) -> None:
    assert len(view.short(ns)) <= view.COLUMNS[7].most  # type: ignore[operator]


# The screen.


async def until(pilot: Any, condition: Callable[[], object]) -> None:
    """Let the application run until something is seen."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it has not come to pass"
        await pilot.pause(0.02)


def on_screen(play: Callable[[Any, Any], Awaitable[None]], *, interval: float = 0.1) -> None:
    """Run the application on a screen of 150 by 40 and play on it."""
    pytest.importorskip("textual", reason="the screen of rtloop top needs rtloop[top]")
    from rtloop.tools.top.app import TopApp

    async def run() -> None:
        app = TopApp(Sampler(os.getpid()), interval)
        async with app.run_test(size=(150, 40)) as pilot:
            await until(pilot, lambda: table(app).row_count == 2)
            await play(app, pilot)

    asyncio.run(run())


def table(app: Any) -> Any:
    return app.screen_stack[0].query_one("#loops")


def names(app: Any) -> list[str]:
    return [table(app).get_row_at(index)[0].plain for index in range(table(app).row_count)]


def shown(app: Any, index: int, number: int) -> str:
    """The text of a cell of the table."""
    name, others = table(app).get_row_at(index)
    return str([name.plain, *(cell.text for cell in others.cells)][number])


def text_of(app: Any, part: str) -> str:
    from rich.console import Console

    shown = app.screen.query_one(f"#{part}").content
    console = Console(width=150, color_system=None)
    with console.capture() as capture:
        console.print(shown)
    return capture.get()


def test_the_table_lists_the_loops_and_takes_names_as_they_are(pair: Any) -> None:
    async def play(app: Any, pilot: Any) -> None:
        assert names(app) == ["[red]beta", "alpha"]
        await until(pilot, lambda: shown(app, 1, 6) != "-")  # the rate of now
        assert "2 loops" in text_of(app, "status")
        assert not app.query_one("#empty").display

    on_screen(play)


def test_a_loop_that_stops_leaves_the_table_and_the_cursor_stays(pair: Any) -> None:
    async def play(app: Any, pilot: Any) -> None:
        await pilot.press("down")
        assert app._selected().startswith(f"{os.getpid()}:")
        selected = app._selected()
        await pilot.pause(0.3)
        assert app._selected() == selected, "a refresh does not move the cursor"
        await pilot.press("R")
        assert app._selected() == selected and table(app).cursor_row == 0, "it goes with its loop"
        pair[1].stop()
        await until(pilot, lambda: names(app) == ["alpha"])
        pair[0].stop()
        await until(pilot, lambda: app.query_one("#empty").display)

    on_screen(play)


def test_enter_shows_one_loop_live_and_escape_leads_back(pair: Any) -> None:
    async def play(app: Any, pilot: Any) -> None:
        await pilot.press("j", "enter")
        await until(pilot, lambda: len(app.screen_stack) == 2 and "cycles in" in text_of(app, "title"))
        assert "alpha" in text_of(app, "title") and "500 Hz" in text_of(app, "title")
        await until(pilot, lambda: "█" in text_of(app, "latency") and "the last" in text_of(app, "timeline"))
        before = text_of(app, "title")
        await until(pilot, lambda: text_of(app, "title") != before)
        pair[0].stop()
        await until(pilot, lambda: "alpha has ended" in text_of(app, "title"))
        await pilot.press("escape")
        await until(pilot, lambda: len(app.screen_stack) == 1)

    on_screen(play)


def test_keys_sort_and_turn_the_order_round(pair: Any) -> None:
    async def play(app: Any, pilot: Any) -> None:
        await pilot.press("R")
        assert names(app) == ["alpha", "[red]beta"]
        await pilot.press("I", "greater_than_sign", "greater_than_sign")
        assert "by RATE" in text_of(app, "status") and names(app) == ["alpha", "[red]beta"]  # the slower one first
        await pilot.press("less_than_sign")
        assert "by PID" in text_of(app, "status")
        await pilot.press("M")
        assert "by MISSED, falling" in text_of(app, "status")
        await pilot.press("N")
        assert names(app) == ["[red]beta", "alpha"]

    on_screen(play)


def test_p_stops_the_refresh_and_r_refreshes_in_spite_of_it(pair: Any) -> None:
    async def play(app: Any, pilot: Any) -> None:
        def cycles() -> str:
            return shown(app, 1, 5)

        await pilot.press("p")
        assert "PAUSED" in text_of(app, "status")
        await pilot.pause(0.2)
        before = cycles()
        await pilot.pause(0.4)
        assert cycles() == before
        await pilot.press("r")
        await until(pilot, lambda: cycles() != before)
        await pilot.press("space")
        assert "PAUSED" not in text_of(app, "status")

    on_screen(play)


def test_plus_and_minus_change_how_often(pair: Any) -> None:
    async def play(app: Any, pilot: Any) -> None:
        await pilot.press("plus", "plus")
        assert app.interval == 0.5 and "every 0.5 s" in text_of(app, "status")
        await pilot.press("minus", "minus", "minus", "minus")
        assert app.interval == 0.1

    on_screen(play)


@pytest.mark.parametrize("key", ["h", "question_mark", "f1"])
def test_help_tells_the_keys_and_the_columns(pair: Any, key: str) -> None:
    async def play(app: Any, pilot: Any) -> None:
        await pilot.press(key)
        await until(pilot, lambda: len(app.screen_stack) == 2)
        text = app.export_screenshot()
        assert "sort" in text and "FAULTS" in text
        await pilot.press("escape")
        await until(pilot, lambda: len(app.screen_stack) == 1)
        await pilot.press("q")
        await until(pilot, lambda: not app.is_running)

    on_screen(play)


def test_a_tick_after_the_end_shows_nothing(pair: Any) -> None:
    """A timer may expire while the program ends, when it has no screens any more."""
    kept: list[Any] = []

    async def play(app: Any, pilot: Any) -> None:
        kept.append(app)

    on_screen(play)
    assert not kept[0].screen_stack
    asyncio.run(kept[0]._tick())


# The command.


def run(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "rtloop", "top", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)


def test_json_has_everything_and_nothing_else(pair: Any) -> None:
    wait_for_cycles(*pair)
    done = run("--json", "--pid", str(os.getpid()))
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document["command"] == "top" and document["rtloop"] == rtloop.__version__
    beta, alpha = document["loops"]
    assert (beta["name"], alpha["name"]) == ("[red]beta", "alpha")
    assert alpha["pid"] == os.getpid() and alpha["period_ns"] == 2_000_000 and alpha["policy"] == "other"
    assert alpha["stats"]["cycles"] > 20 and alpha["stats"]["latency"]["p99_ns"] > 0
    assert alpha["stats"]["page_faults"]["major"] == 0


def test_json_without_a_loop_is_a_document_too_and_what_was_asked_for_by_name_is_an_exit_code() -> None:
    done = run("--name", "nobody of this name")
    assert done.returncode == 1 and "No loop of the name 'nobody of this name' runs." in done.stdout
    done = run("--json", "--name", "nobody of this name")
    assert done.returncode == 1 and json.loads(done.stdout)["loops"] == []
    assert run("--json").returncode == 0


def test_without_a_terminal_the_table_is_printed_once(pair: Any) -> None:
    done = run("--pid", str(os.getpid()))
    assert done.returncode == 0
    head, beta, alpha = done.stdout.splitlines()
    assert head.split()[:3] == ["NAME", "PID", "RATE"] and "NOW" not in head
    assert beta.startswith("[red]beta ") and "1 kHz" in beta
    assert alpha.startswith("alpha ") and "500 Hz" in alpha
    assert "--json" in done.stderr


def test_an_interval_too_short_is_refused() -> None:
    done = run("--interval", "10ms")
    assert done.returncode == 2 and "0.1s" in done.stderr


def test_the_extra_is_named_where_textual_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "_is_terminal", lambda: True)
    monkeypatch.delitem(sys.modules, "rtloop.tools.top.app", raising=False)
    monkeypatch.setitem(sys.modules, "textual", None)
    monkeypatch.setitem(sys.modules, "textual.app", None)
    with pytest.raises(SystemExit) as told:
        main(["top"])
    assert "pip install 'rtloop[top]'" in str(told.value)


def test_missed_cycles_of_a_device_take_the_place_of_nominal_ones(probes: Any, sampler: Sampler) -> None:
    loop = probes.Device("10ms", **PLAIN)
    with loop:
        wait_for_cycles(loop, cycles=30)
        (row,) = sampler.sample().rows
    column = next(column for column in view.COLUMNS if column.head == "MISSED")
    assert column.value(row) == row.stats.device_missed > 0
    text = view.facts(row).plain
    assert f"missed (device) {row.stats.device_missed:,} " in text and "missed (nominal) " in text


def test_many_blocks_of_one_process_with_one_fault_are_one_line() -> None:
    fault = "it is of version 3, and this rtloop reads version 4"
    faulty = {f"/proc/7/fd/{number}": fault for number in range(11)} | {"/proc/8/fd/3": "it is damaged"}
    assert view.notes(Sample([], 0, faulty, [])) == [
        f"process 7: 11 blocks are not readable: {fault}",
        "/proc/8/fd/3: not readable: it is damaged",
    ]
