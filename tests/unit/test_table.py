"""The table of a Stats: its figures, and the claims that it avoids."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import termios
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from rtloop import Grant, Histogram, RTLoop, Stats
from rtloop.stats import table

REFUSED = Grant("policy", "fifo 80", "other", False, "EPERM: RLIMIT_RTPRIO is 0", "line of <limits.conf>", 1)
GRANTED = (
    Grant("memory_lock", "all", "all", ok=True),
    Grant("cpu", "1", "1", ok=True),
    Grant("policy", "fifo 80", "fifo 80", ok=True),
)


def make(**fields: Any) -> Stats:
    """A loop that never ran, with some of its fields made up."""
    return replace(RTLoop("250us", name="arm", policy="fifo", priority=80).stats, **fields)


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests print into is not the terminal of whoever runs them."""
    monkeypatch.setattr("sys.stdout", io.StringIO())


def cells(text: str, label: str) -> list[str]:
    """The nine cells of a row: min, five percentiles, max, mean, std."""
    row = next(line for line in text.splitlines() if line.startswith(label)).removeprefix(label)
    return [cell.strip() for cell in row.replace("-", " -  ").split("  ") if cell.strip()]


def test_the_first_line_says_what_ran_and_how() -> None:
    stats = make(cycles=12_000, duration_ns=3 * 10**9, state="stopped", grants=GRANTED)
    first = str(stats).splitlines()[0]
    assert first == "arm: 4 kHz (250 us), fifo 80, CPU 1, 12,000 cycles in 3 s, stopped"


def test_the_first_line_does_not_claim_a_policy_that_was_refused() -> None:
    assert "other instead of fifo 80, any CPU" in str(make(grants=(REFUSED,))).splitlines()[0]
    assert "4 kHz (250 us), fifo 80" in str(make()).splitlines()[0], "before it runs: what was asked for"


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0 ns"), (7, "7 ns"), (-3, "-3 ns"), (23.4, "23.4 ns"), (999, "999 ns"), (999.6, "1.00 us"),
        (1500, "1.50 us"), (22_143, "22.1 us"), (99_960, "100 us"), (999_998, "1.00 ms"), (1_000_000, "1.00 ms"),
        (59_999_999_999, "60.0  s"), (3e12, "3000  s"),
    ],
)  # fmt: skip
def test_a_cell_has_three_significant_digits_and_the_unit_that_fits(ns: float, text: str) -> None:
    cell = table._cell(ns)
    assert cell == text
    assert len(cell) <= 8


def test_units_stand_under_units() -> None:
    stats = make(latency=Histogram.from_values([9, 2_000, 3_000_000, 4 * 10**9]))
    head, row = (line for line in str(stats).splitlines() if " mean " in line or line.startswith("wake-up"))
    assert len(head) == len(row)
    for end in range(28, len(row) + 1, 10):
        assert row[end - 2 : end] in ("ns", "us", "ms", " s", " -")


@pytest.mark.parametrize(
    ("count", "dashes"),
    [(1, 5), (2, 4), (9, 4), (10, 3), (99, 3), (100, 2), (999, 2), (1000, 1), (9999, 1), (10_000, 0)],
)
def test_a_percentile_needs_a_value_beyond_it(count: int, dashes: int) -> None:
    row = cells(str(make(execution=Histogram.from_values(np.arange(count) + 300))), "execution time")
    assert len(row) == 9
    assert row[1:6].count("-") == dashes
    assert row[6 - dashes : 6] == ["-"] * dashes, "the highest ones go first"


def test_percentiles_rise_to_the_maximum() -> None:
    values = np.random.default_rng(5).lognormal(10, 1, 20_000).astype(np.int64)
    row = cells(str(make(response=Histogram.from_values(values))), "response time")
    scale = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}
    figures = [float(cell.split()[0]) * scale[cell.split()[1]] for cell in row[:7]]
    assert figures == sorted(figures)


def test_the_counters_are_all_there() -> None:
    text = str(
        make(
            cycles=1000, missed=10, overruns=5, late=20, stalls=1, warmup=10, page_faults=(3, 1),
            context_switches=(990, 4), forks=2, stack=(524288, 6144),
        )
    )  # fmt: skip
    for line in (
        "overruns          5 (0.5 %)",
        "missed releases   10 (0.99 %)",
        "late cycles       20 (2 %)",
        "stalls over 1 s   1",
        "page faults       3 minor, 1 major",
        "context switches  990 voluntary, 4 involuntary",
        "stack             6 KiB used of 512 KiB",
        "forks             2 in the life of the process",
        "warm-up           the first 10 cycles are not in the figures above",
    ):
        assert line in text.splitlines()


def test_what_there_is_nothing_to_say_about_is_left_out() -> None:
    text = str(make())
    for word in ("forks", "stack", "granted", "GRANTED"):
        assert word not in text
    assert "late cycles       0" in text and "missed releases   0" in text
    assert cells(text, "wake-up latency") == ["-"] * 9


def test_a_refusal_stands_out_with_its_reason() -> None:
    lines = str(make(grants=(*GRANTED[:2], REFUSED))).splitlines()
    assert "granted           memory_lock all; cpu 1" in lines
    assert "NOT GRANTED       policy: asked for fifo 80, granted other (EPERM: RLIMIT_RTPRIO is 0)" in lines


def test_many_grants_are_folded_under_each_other() -> None:
    grants = tuple(Grant(f"resource_{n}", "a", "something or other", ok=True) for n in range(12))
    lines = str(make(grants=grants)).splitlines()
    folded = lines[next(i for i, line in enumerate(lines) if line.startswith("granted")) :]
    assert len(folded) > 2 and max(map(len, folded)) <= 108
    assert all(line.strip().startswith(("granted", "resource_")) for line in folded), "no grant is torn apart"
    assert "\N{NO-BREAK SPACE}" not in "".join(lines)
    assert all(line.startswith(" " * 18) for line in folded[1:])


LONG = REFUSED._replace(detail="RLIMIT_MEMLOCK is 8388608 bytes and CAP_IPC_LOCK is missing: " + "no more memory " * 9)


@pytest.mark.parametrize("width", [80, 100, 108])
def test_nothing_is_wider_than_the_terminal_and_no_figure_is_left_out(width: int) -> None:
    latency = Histogram.from_values(np.arange(10_000) + 2_000_000)
    stats = make(
        latency=latency, name="a loop of the left arm", grants=(*GRANTED, LONG), cycles=10_000, stack=(524288, 9)
    )
    lines = table.to_text(stats, width).splitlines()
    assert max(map(len, lines)) <= width
    shown = " ".join(lines)
    for text in (*table.cells_of(latency), *(label for _, label, _ in table.ROWS), *table.HEAD):
        assert text in shown
    start = next(i for i, line in enumerate(lines) if line.startswith("NOT GRANTED"))
    assert len(lines) > start + 2 and all(line.startswith(" " * 18) for line in lines[start + 1 :])
    assert " ".join(" ".join(lines[start:]).split()).count("no more memory") == 9


@pytest.mark.parametrize(("columns", "widest"), [(80, 80), (40, 80), (100, 100), (200, 108), (0, 108)])
def test_the_width_is_that_of_the_terminal_within_reason(
    columns: int, widest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(follower, "w") as terminal, os.fdopen(leader):
        monkeypatch.setattr("sys.stdout", terminal)
        assert table._terminal_width() == widest
    monkeypatch.setattr("sys.stdout", None)
    assert table._terminal_width() == 108, "a service has no output at all"


def test_a_loop_with_its_own_wait_says_why_there_is_no_latency() -> None:
    own = make(interval=Histogram.from_values([250_000] * 100), settings={"period_ns": 250_000, "has_own_wait": True})
    text = " ".join(str(own).split())
    assert "4 kHz (250 us), own wait" in text and "no planned time to be late against" in text
    assert cells(str(own), "wake-up latency") == cells(str(own), "response time") == ["-"] * 9
    assert cells(str(own), "interval")[0] == "250 us"
    assert "no planned time" in own._repr_html_() and "no planned time" not in str(make())


def test_a_single_cycle_has_no_standard_deviation() -> None:
    row = cells(str(make(execution=Histogram.from_values([500]))), "execution time")
    assert row[-2:] == ["500 ns", "-"]
    assert cells(str(make(execution=Histogram.from_values([500, 500]))), "execution time")[-1] == "0 ns"


class Checker(HTMLParser):
    """Fails on a tag that is not closed in order, and collects what is loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elsewhere: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.elsewhere += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "class")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_needs_nothing_else_and_escapes_what_it_shows() -> None:
    odd = REFUSED._replace(detail="<script>alert(1)</script>", fix='"><script>')
    stats = make(name="<b>&", latency=Histogram.from_values([5_000] * 100), grants=(GRANTED[0], odd))
    page = stats._repr_html_()
    checker = Checker()
    checker.feed(page)
    assert checker.open == [] and checker.elsewhere == []
    assert "<script" not in page and "<b>&:" not in page
    assert "<b>&: 4 kHz" in checker.text and "5.00 us" in checker.text
    assert "not granted" in checker.text and "memory_lock all" in checker.text
    assert page.count("<svg") == 1, "one picture for each histogram that is not empty"


def test_the_page_follows_the_theme_of_the_notebook() -> None:
    page = make(latency=Histogram.from_values([5_000]))._repr_html_()
    assert "currentColor" in page
    for word in ("background", "#000", "#fff", "black", "white;"):
        assert word not in page


def test_the_notebook_shows_the_time_line_with_its_worst_cycle() -> None:
    records = np.zeros(10_000, dtype=[("release", "<i8"), ("start", "<i8"), ("end", "<i8")])
    records["release"] = np.arange(10_000) * 250_000
    records["start"] = records["release"] + 20_000
    records["start"][7_777] += 180_000
    html = make(records=records)._repr_html_()
    points = html.partition('<polyline points="')[2].partition('"')[0].split()
    heights = [float(point.partition(",")[2]) for point in points]
    assert len(points) == 240 and min(heights) < 10 and sum(height < 30 for height in heights) == 1
    assert "wake-up latency of the last 10,000 cycles, the worst of each column, up to 200 us" in html
    assert "stroke-dasharray" not in html, "the period is beyond the picture"
    records = records.copy()
    records["start"][5_000] += 900_000
    assert "stroke-dasharray" in make(records=records)._repr_html_()
    for count in (0, 1):
        assert "polyline" not in make(records=records[:count].copy())._repr_html_()
