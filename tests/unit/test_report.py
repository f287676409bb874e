"""Reports and plots: their content, no worst cycle lost, and text from files of strangers escaped."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtloop import Grant, Histogram, RTLoop, Stats

pytest.importorskip("click", reason="the command line needs rtloop[cli]")

from rtloop.stats.findings import find
from rtloop.tools.cli import main
from rtloop.tools.report.charts import draw_histogram_chart, draw_time_line, envelope
from rtloop.tools.report.markup import Markup, tag, text
from rtloop.tools.report.page import make_page
from rtloop.tools.saved_runs import Run

PERIOD = 1_000_000
EVIL = "</style></title><script>alert(1)</script>\" onload='x' &amp; \x00\u202e\ud800"
VOID = {"meta", "br"}


def make(cycles: int = 2000, *, late: tuple[int, ...] = (), **fields: Any) -> Stats:
    """A run at 1 kHz in which the steps of some cycles took a period too long."""
    rng = np.random.default_rng(3)
    records = np.zeros(cycles, dtype=[("release", "<i8"), ("start", "<i8"), ("end", "<i8")])
    records["release"] = np.arange(cycles) * PERIOD
    records["start"] = records["release"] + rng.integers(10_000, 30_000, cycles)
    records["end"] = records["start"] + 20_000
    records["end"][list(late)] += PERIOD
    base: dict[str, Any] = {
        "cycles": cycles,
        "state": "stopped",
        "overruns": len(late),
        "latency": Histogram.from_values(records["start"] - records["release"]),
        "execution": Histogram.from_values(records["end"] - records["start"]),
        "response": Histogram.from_values(records["end"] - records["release"]),
        "interval": Histogram.from_values(np.diff(records["start"])),
        "records": records,
        "host": {"kernel": "6.1", "is_virtual": False},
    }
    return replace(RTLoop(PERIOD, name="arm").stats, **(base | fields))


class Page(HTMLParser):
    """Reads a page: its elements, its text, and whether each element is closed where it should be."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    def count(self, name: str) -> int:
        return sum(element == name for element, _ in self.elements)


def page(*stats: Stats, **options: Any) -> Page:
    runs = [Run(one.name if len(stats) == 1 else f"{one.name} {n}", one) for n, one in enumerate(stats)]
    return Page(make_page(runs, **options))


def run(*args: str | Path) -> int:
    with pytest.raises(SystemExit) as exit_:
        main([str(arg) for arg in args])
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


def guard_of(text: str = "malloc of 8 bytes", count: int = 3) -> dict[str, Any]:
    """The account of a guard that has found allocations."""
    violation = {
        "cycle": 12, "last_cycle": 31, "count": 2,
        "kind": "allocation", "detail": text, "address": 4096, "symbol": text, "through": [text, "brk"],
        "file": text, "line": 7, "note": text,
    }  # fmt: skip
    return {
        "mode": "count", "cycles": 1000, "page_faults": {"minor": 0, "major": 0}, "system_calls": None,
        "allocations": count, "unavailable": {"system_calls": text}, "violations": [violation],
        "unlisted": {"allocation": count - 2} if count > 2 else {},
    }  # fmt: skip


def levels(stats: Stats) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"bad": [], "note": [], "good": []}
    for level, sentence in find(stats):
        found[level].append(sentence)
    return found


def test_the_page_has_its_sections() -> None:
    grant = Grant("policy", "fifo 80", "other", False, "EPERM", "line of limits.conf", 1)
    shown = page(make(late=(700,), grants=(grant,), guard=guard_of()))
    for section in ("What to look at", "Figures", "Histograms", "Time line", "Worst cycles", "Guards",
                    "Grants: requests to the kernel, and its answers", "Settings", "Machine"):  # fmt: skip
        assert section in shown.texts
    assert shown.count("svg") == 5, "three histograms and two time lines"
    for phrase in (
        "NOT GRANTED",
        "fifo 80",
        "EPERM",
        "line of limits.conf",
        "1,000,000 (1 ms)",
        "6.1",
        "malloc of 8 bytes",
        "Counted at other places, which are not listed: 1 allocation.",
    ):
        assert phrase in shown.text
    assert "1 overruns" in shown.text and "99.9 %" in shown.text
    assert "Guards" not in page(make()).texts


def test_the_page_stands_alone() -> None:
    source = make_page([Run("arm", make())])
    shown = Page(source)
    assert not {"script", "link", "img", "iframe", "object", "base", "image", "use", "foreignobject"} & {
        name for name, _ in shown.elements
    }
    assert not re.search(r"https?:|url\(|@import|\bsrc=|\bhref=", source)
    policy = next(a["content"] for name, a in shown.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert "prefers-color-scheme: dark" in source and "@media print" in source


@pytest.mark.parametrize("others", [0, 1])
def test_a_strangers_text_stays_text(others: int) -> None:
    grant = Grant(EVIL, EVIL, EVIL, False, EVIL, EVIL, 1)
    evil = make(
        name=EVIL, state=EVIL, grants=(grant, grant._replace(ok=True)), guard=guard_of(EVIL), host={EVIL: [EVIL]},
        settings={"period_ns": PERIOD, "policy": EVIL, EVIL: EVIL, "clock": {EVIL: EVIL}},
    )  # fmt: skip
    shown, plain = page(evil, *[make()] * others), page(make(), *[make()] * others)
    allowed = {name for name, _ in plain.elements} | {"pre"}
    assert {name for name, _ in shown.elements} <= allowed
    assert not any(key.startswith("on") for _, attributes in shown.elements for key in attributes)
    assert "<script>alert(1)</script>" in shown.text, "and it can be read"
    assert not re.search("[\x00\u202a-\u202e\ud800-\udfff]", shown.text)


def test_an_element_escapes_all_but_elements() -> None:
    assert tag("b", '<i>"', tag("i", 1), class_="a\"'>", stroke_width=2) == (
        '<b class="a&quot;&#x27;&gt;" stroke-width="2">&lt;i&gt;&quot;<i>1</i></b>'
    )
    assert text(Markup("<b/>")) == "<b/>" and text(Markup("<b/>") + "<i/>") == "&lt;b/&gt;&lt;i/&gt;", (
        "what is added makes it text"
    )
    assert tag("p", None) == "<p></p>" and tag("rect", x=None) == "<rect/>"


@pytest.mark.parametrize("cycles", [0, 1, 2])
def test_a_run_of_hardly_any_cycles_is_shown(cycles: int) -> None:
    stats = make(cycles) if cycles else RTLoop(PERIOD).stats
    assert page(stats).count("svg") == (5 if cycles else 0)
    own = replace(stats, settings=stats.settings | {"has_own_wait": True}, latency=Histogram.empty())
    page(own)
    page(stats, own, replace(stats, settings={}))


def test_a_single_slow_cycle_among_many_reaches_to_its_place_in_the_time_line() -> None:
    rng = np.random.default_rng(4)
    values = rng.integers(1000, 2000, 300_000)
    values[[0, 123_457, 299_999]] = 9_000_000, 8_000_000, 7_000_000
    values[222_222] = 3
    t = np.arange(len(values)) * 1e-4
    used, low, high = envelope(t, values, 344, (0.0, float(t[-1])))
    assert {9_000_000, 8_000_000, 7_000_000} <= set(high.tolist()) and 3 in low
    assert high[np.flatnonzero(used == int(123_457 / 299_999 * 344))] == 8_000_000
    drawn = draw_time_line("latency", t, values)
    tops = [float(y) for y in re.findall(r"M\d+,([\d.]+)V", drawn)]
    assert sum(top < 80 for top in tops) == 3, "three columns stand out"


def test_overruns_and_missed_releases_are_marked_with_their_numbers() -> None:
    t = np.arange(10_000) * 1e-3
    overruns, missed = np.zeros(10_000, np.bool_), np.zeros(10_000, np.int64)
    overruns[[10, 11, 9000]] = True
    missed[12] = 40
    drawn = draw_time_line("r", t, np.full(10_000, 5000), period=PERIOD, overruns=overruns, missed=missed)
    assert sum(int(n) for n in re.findall(r"<title>(\d+) overruns</title>", drawn)) == 3
    assert "<title>40 missed releases</title>" in drawn
    assert ">3 overruns<" in drawn and ">40 missed releases<" in drawn and ">period<" in drawn


def test_percentiles_are_marked_where_there_are_cycles_enough_for_them() -> None:
    many = draw_histogram_chart("x", [("a", Histogram.from_values(np.arange(1000, 9000)))])
    assert all(f"<title>{q} %: " in many for q in ("50", "99", "99.9")) and "<title>max: 9 us" in many
    few = draw_histogram_chart("x", [("a", Histogram.from_values([1000, 9000]))])
    assert "<title>99 %" not in few and "<title>max: 9 us" in few


def test_several_runs_are_laid_side_by_side() -> None:
    shown = page(make(), make(late=(5,), settings={"period_ns": PERIOD, "spin_ns": 7}))
    for phrase in ("2 runs side by side", "arm 0", "arm 1", "Settings that differ", "spin_ns", "All are the same."):
        assert phrase in shown.text
    assert sum(attributes.get("class") == "run r1" for _, attributes in shown.elements) == 3, "overlaid thrice"


def test_what_went_wrong_is_said_in_a_sentence() -> None:
    bad = levels(make(late=(700, 701)))["bad"]
    assert bad == [
        "2 cycles of 2,000 (0.1 %) ended after the next release. The longest response was 1.05 ms, 1.05 periods."
        " Of the 2 that are recorded, 2 had a step that alone took longer than the period: look at its code and its"
        " waits."
    ]
    refused = Grant("policy", "fifo 80", "other", False, "EPERM")
    sentences = " ".join(levels(make(missed=3, stalls=1, page_faults=(4, 0), guard=guard_of(count=2), grants=(refused,),
                                     state="failed"))["bad"])  # fmt: skip
    for phrase in (
        "3 releases",
        "1 gap of more",
        "4 page faults",
        "2 violations, the first one in cycle 12: allocation malloc of 8 bytes in ",
        "policy: asked for fifo 80, granted other (EPERM)",
        "failed",
    ):
        assert phrase in sentences


def test_nothing_is_made_of_a_good_run() -> None:
    found = levels(make())
    assert found["bad"] == [] and found["note"] == []
    assert found["good"] == ["The loop has detected no fault. No cycle overran, and no release was missed."]


def test_a_late_wake_up_is_told_from_a_slow_step() -> None:
    stats = make()
    records = stats.records.copy()
    records["start"][50] += PERIOD
    records["end"][50] += PERIOD
    late = replace(stats, records=records, overruns=1)
    assert "1 began too late, though the step was short enough" in levels(late)["bad"][0]


def test_it_says_what_the_time_line_does_not_show() -> None:
    stats = make(5000)
    older = replace(stats, records=stats.records[-100:].copy(), latency=stats.latency + Histogram.from_values([90_000]))
    (note,) = levels(older)["note"]
    assert "the last 100 of 5,000 cycles" in note and "The worst wake-up of the run is older" in note
    kept = replace(older, latency=Histogram.from_values(older.records["start"] - older.records["release"]))
    assert not any("is older" in sentence for sentence in levels(kept)["note"])
    assert "Only 20 cycles measured" in levels(make(20))["note"][0]


def test_the_command_writes_the_page(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make().save(tmp_path / "run.npz")
    assert run("report", tmp_path / "run.npz", "-o", tmp_path / "out.html") == 0
    assert "out.html" in capfd.readouterr().err
    assert run("report", tmp_path / "run.npz", tmp_path / "run.npz", "-o", "-") == 0
    streamed = capfd.readouterr().out
    assert "arm (run)" in streamed and "arm (run) #2" in streamed, "each has a label of its own"
    Page(streamed)
    assert run("report", tmp_path / "none.npz") == 1


def test_the_page_is_made_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    make().save(tmp_path / "run.npz")
    assert run("report", tmp_path / "run.npz", "-o", tmp_path / "out.html") == 0


@pytest.fixture
def _matplotlib() -> None:
    pytest.importorskip("matplotlib", reason="plots need matplotlib: pip install 'rtloop[plot]'")


@pytest.mark.usefixtures("_matplotlib")
@pytest.mark.parametrize(
    ("kind", "count"), [(None, 1), (None, 2), ("main", 2), ("time", 2), ("response", 1), ("interval", 2)]
)
def test_every_kind_of_picture_is_drawn(kind: str | None, count: int, tmp_path: Path) -> None:
    make(late=(7,), name="_$\\frac$").save(tmp_path / "a.npz")
    RTLoop(PERIOD).stats.save(tmp_path / "b.npz")
    files = [tmp_path / "a.npz", tmp_path / "b.npz"][:count]
    code = run("plot", *files, "-o", tmp_path / "p.svg", *(["--kind", kind] if kind else []))
    if kind == "main" and count > 1:
        assert code == 2
    else:
        assert code == 0 and "<svg" in (tmp_path / "p.svg").read_text()


@pytest.mark.usefixtures("_matplotlib")
def test_runs_are_overlaid_and_a_name_is_no_formula() -> None:
    from rtloop.tools.plot import draw_runs

    figure = draw_runs([Run("_a$b$", make()), Run("x" * 99, make(late=(3,)))], "histograms")
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["Wake-up latency", "Execution time", "Response time"]
    labels = [entry.get_text() for entry in figure.axes[0].get_legend().get_texts()]
    assert labels[0].startswith(r" _a\$b\$ (50 %") and labels[1].startswith("x" * 39 + "… (50 %")


@pytest.mark.usefixtures("_matplotlib")
@pytest.mark.parametrize(
    ("args", "code", "phrase"),
    [
        (["-o", "p.docx"], 2, "must end in .png"),
        (["-o", "/nowhere/p.png"], 1, "cannot write"),
        (["--kind", "x"], 2, "x"),
    ],
)
def test_a_picture_that_cannot_be_written_is_an_exit_code(
    args: list[str], code: int, phrase: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make().save(tmp_path / "run.npz")
    assert run("plot", tmp_path / "run.npz", *args) == code
    assert phrase in capsys.readouterr().err
