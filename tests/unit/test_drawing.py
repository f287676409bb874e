"""The plots: their content, and that no peak is lost."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rtloop import Histogram, RTLoop, Stats
from rtloop.stats import plots
from rtloop.stats.figures import Swap

PERIOD = 1_000_000


def make(cycles: int, *, overruns: tuple[int, ...] = (), execution: int = 20_000) -> Stats:
    """A run at 1 kHz, in which the cycles named took a period too long."""
    rng = np.random.default_rng(11)
    records = np.zeros(cycles, dtype=[("release", "<i8"), ("start", "<i8"), ("end", "<i8")])
    records["release"] = np.arange(cycles) * PERIOD
    records["start"] = records["release"] + rng.integers(10_000, 30_000, cycles)
    records["end"] = records["start"] + execution
    records["end"][list(overruns)] += PERIOD
    return replace(
        RTLoop(PERIOD, name="arm").stats,
        cycles=cycles,
        overruns=len(overruns),
        latency=Histogram.from_values(records["start"] - records["release"]),
        execution=Histogram.from_values(records["end"] - records["start"]),
        response=Histogram.from_values(records["end"] - records["release"]),
        records=records,
    )


@pytest.fixture
def _matplotlib() -> None:
    pytest.importorskip("matplotlib", reason="plots need matplotlib: pip install 'rtloop[plot]'")


draws = pytest.mark.usefixtures("_matplotlib")


def lines(axes: object) -> dict[str, np.ndarray]:
    return {line.get_label(): np.asarray(line.get_xydata()) for line in axes.get_lines()}  # type: ignore[attr-defined]


def test_the_wide_bins_hold_what_the_fine_ones_held() -> None:
    rng = np.random.default_rng(12)
    for values in ([0], [1], [2, 3, 9], [255, 256], [2**41], rng.lognormal(9, 2, 5000).astype(np.int64)):
        histogram = Histogram.from_values(values)
        edges, counts = plots.rebin(histogram)
        assert counts.sum() == histogram.count
        assert np.all(np.diff(edges) > 0) and len(edges) == len(counts) + 1
        low = np.maximum(histogram.edges[np.flatnonzero(histogram.counts)], 1)
        assert edges[0] <= low[0] and low[-1] < edges[-1]
        for edge, following, count in zip(edges, edges[1:], counts, strict=False):
            assert count == histogram.counts[np.flatnonzero(histogram.counts)][(edge <= low) & (low < following)].sum()


def test_a_smooth_distribution_is_drawn_without_holes() -> None:
    edges, counts = plots.rebin(Histogram.from_values(np.arange(1, 5000)))
    assert np.all(counts > 0), "every wide bin has a whole nanosecond in it"
    decade = (edges >= 100) & (edges < 1000)
    assert decade.sum() == 20


@draws
def test_the_picture_names_the_run_and_marks_the_overruns_at_their_place() -> None:
    figure = make(500, overruns=(100, 300)).plot()
    top, latency, bottom = figure.axes
    assert top.get_title(loc="left") == "arm: 1 kHz, 500 cycles, 0 missed, 2 overruns"
    assert (top.get_xscale(), top.get_yscale(), bottom.get_yscale()) == ("log", "log", "log")
    labels = [text.get_text() for text in top.get_legend().get_texts()]
    assert [label.partition(" (")[0] for label in labels] == ["wake-up latency", "execution time", "response time"]
    drawn = lines(bottom)
    assert drawn["overruns (2)"][:, 0] == pytest.approx([0.1, 0.3])
    assert np.all(drawn["overruns (2)"][:, 1] > PERIOD)
    assert np.all(drawn["period 1 ms"][:, 1] == PERIOD)
    assert len(lines(latency)["wake-up latency"]) == len(drawn["response time"]) == 500


@draws
def test_a_line_marks_the_first_cycle_of_each_new_step() -> None:
    swaps = (Swap(100, "Law", "Other"), Swap(300, "Other", "Third"))
    for own in (False, True):
        stats = replace(make(500), swaps=swaps, settings={**make(1).settings, "has_own_wait": own})
        alone = plots.new_figure(9, 3).subplots()
        plots.draw_time(alone, stats)
        for axes in (*stats.plot().axes[1:], alone):
            marks = [line.get_xdata()[0] for line in axes.get_lines() if line.get_label() == "_swap"]
            assert marks == pytest.approx([0.1, 0.3], abs=1e-4)
        assert {text.get_text() for text in stats.plot().axes[2].texts} == {"Other", "Third"}
    gone = replace(make(500), cycles=900, swaps=swaps)  # the records begin at cycle 400
    assert not [line for line in gone.plot().axes[2].get_lines() if line.get_label() == "_swap"]
    assert "_swap" not in [text.get_text() for text in stats.plot().axes[1].get_legend().get_texts()]


@draws
def test_a_latency_that_is_all_of_the_response_can_be_seen_beside_it() -> None:
    top, latency, response = make(500, execution=0).plot().axes
    handles = dict(zip(("latency", "execution", "response"), top.get_legend().legend_handles, strict=True))
    assert handles["latency"].get_linestyle() == "-" and handles["response"].get_linestyle() == "--"
    assert "response time" not in lines(latency) and "wake-up latency" not in lines(response)


@draws
def test_units_are_written_in_one_way() -> None:
    for stats in (make(20), replace(make(20), settings={"period_ns": PERIOD, "has_own_wait": True})):
        labels = [axes.get_xlabel() for axes in stats.plot().axes]
        assert [label[-4:] for label in labels if label] == [" (s)"]


@draws
def test_a_loop_with_its_own_wait_is_drawn_by_its_intervals() -> None:
    stats = make(50)
    own = replace(
        stats,
        settings=stats.settings | {"has_own_wait": True},
        interval=Histogram.from_values(np.diff(stats.records["start"])),
        latency=Histogram.empty(),
        response=Histogram.empty(),
    )
    top, upper, lower = own.plot().axes
    labels = [text.get_text().partition(" (")[0] for text in top.get_legend().get_texts()]
    assert labels == ["interval", "execution time"]
    assert lines(upper)["interval"][:, 1] == pytest.approx(np.diff(stats.records["start"]))
    assert len(lines(lower)["execution time"]) == 50
    assert upper.get_xlim() == lower.get_xlim(), "the same cycle stands under itself"
    for count in (0, 1):
        replace(own, records=stats.records[:count].copy()).plot()


@draws
def test_no_mark_of_an_overrun_without_one() -> None:
    drawn = lines(make(50).plot().axes[2])
    assert not any(label.startswith("overruns") for label in drawn)


@draws
def test_no_peak_is_lost_where_cycles_are_too_many_to_draw() -> None:
    late = (0, 12_345, 65_535)
    drawn = lines(make(65_536, overruns=late).plot().axes[2])
    times, response = drawn["response time"].T
    assert len(times) < 10_000
    assert times[response > PERIOD] == pytest.approx([k / 1000 for k in late])
    assert drawn["overruns (3)"][:, 0] == pytest.approx([k / 1000 for k in late])


@draws
def test_the_legend_covers_no_histogram() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    values = np.random.default_rng(13).integers(1000, 9000, 100_000)
    figure = plots.new_figure(9, 4)
    axes = figure.subplots()
    plots.draw_histograms(axes, dict.fromkeys(("plain", "rtloop", "spin"), Histogram.from_values(values)))
    FigureCanvasAgg(figure).draw()
    highest = plots.rebin(Histogram.from_values(values))[1].max()
    legend = axes.get_legend().get_window_extent()
    assert axes.transData.transform((1000, highest))[1] < legend.y0


@draws
def test_runs_are_drawn_over_each_other_in_the_colours_of_the_house() -> None:
    from matplotlib.colors import to_hex

    axes = plots.new_figure(4, 3).subplots()
    names = [f"run {n}" for n in range(8)]
    plots.draw_histograms(
        axes, dict.fromkeys(names, Histogram.from_values([500, 70_000])) | {"none": Histogram.empty()}
    )
    legend = axes.get_legend()
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels[0] == "run 0 (50 %: 501 ns, max: 70 us)" and labels[-1] == "none: none" and len(labels) == 9
    colours = [to_hex(handle.get_color()).upper() for handle in legend.legend_handles[:8]]
    assert colours == [*plots.COLOURS, *plots.COLOURS][:8]


@draws
@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_it_is_written_in_the_format_of_the_suffix(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"run.{suffix}"
    make(20).plot(path)
    assert path.stat().st_size > 1000


@draws
def test_a_single_cycle_no_records_and_no_cycles_are_drawn_too(tmp_path: Path) -> None:
    one = make(1)
    for stats in (one, replace(one, records=one.records[:0]), RTLoop(PERIOD).stats, replace(one, settings={})):
        stats.plot(tmp_path / "run.png")


@draws
def test_drawing_leaves_pyplot_and_the_display_alone() -> None:
    before = "matplotlib.pyplot" in sys.modules
    make(20).plot()
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_without_matplotlib_the_error_is_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'rtloop\[plot\]'"):
        make(5).plot()


@draws
def test_a_notebook_shows_the_picture_without_pyplot() -> None:
    figure = RTLoop("1ms").simulate(cycles=50).plot()
    assert figure._repr_png_().startswith(b"\x89PNG")
