"""Plots of a run, drawn with matplotlib, which is loaded only here."""

from __future__ import annotations

import os
from collections.abc import Container, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rtloop.errors import ConfigError
from rtloop.stats.histogram import Histogram
from rtloop.stats.records import recorded_swaps
from rtloop.units import format_duration, format_rate, format_rounded

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from rtloop.stats.figures import Figures

__all__ = [
    "COLOURS",
    "draw_histograms",
    "draw_stats",
    "draw_time",
    "literal",
    "mark_period",
    "new_figure",
    "rebin",
    "save_figure",
    "tidy",
]

#: Colours of Okabe and Ito, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_OVERRUN_COLOUR = "#C00000"
_PERIOD_COLOUR = "#555555"
_SWAP_COLOUR = "#7A5195"
#: Greatest number of swaps whose names are drawn; more would overlap.
_MOST_NAMES = 12
#: Lower end of the logarithmic axis of counts, so that a single cycle is visible.
_FLOOR = 0.5
#: A period of more than this many times the longest response would squeeze the histograms, and is not drawn.
_FAR = 100
_BINS_PER_DECADE = 20
_MAX_POINTS = 4000
#: A longer name does not fit into the picture.
_LONGEST_NAME = 40
_DASHES = (0, (4, 3))
#: Below this ratio of the largest to the smallest value, a logarithmic axis has too few labels.
_LINEAR_BELOW = 4


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure that needs no display.

    Raises
    ------
    ImportError
        If matplotlib is missing, with the command that installs it.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'rtloop[plot]'") from error

    class Picture(Figure):
        """A figure that notebooks show, without pyplot."""

        def _repr_png_(self) -> bytes:
            from io import BytesIO

            file = BytesIO()
            self.savefig(file, format="png")
            return file.getvalue()

    figure = Picture(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure in the format of the file's suffix.

    Raises
    ------
    ConfigError
        If matplotlib does not know the suffix.
    """
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:
        raise ConfigError(f"{os.fspath(path)}: {error}") from error


def rebin(histogram: Histogram) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum the fine bins into wider ones on a logarithmic axis; returns edges (n + 1) and counts (n)."""
    used = np.flatnonzero(histogram.counts)
    if used.size == 0:
        return np.array([1.0, 10.0]), np.zeros(1)
    values = np.maximum(histogram.edges[used], 1.0)
    first = int(np.floor(np.log10(values[0]) * _BINS_PER_DECADE))
    last = int(np.floor(np.log10(values[-1]) * _BINS_PER_DECADE))
    # Whole nanoseconds, each once: below 10 ns an empty bin would show a gap that is not in the data.
    edges = np.unique(np.floor(10 ** (np.arange(first, last + 8) / _BINS_PER_DECADE)))
    edges = edges[: np.searchsorted(edges, values[-1], side="right") + 1]
    where = np.searchsorted(edges, values, side="right") - 1
    return edges, np.bincount(where, histogram.counts[used].astype(float), len(edges) - 1).astype(np.float64)


def _duration_axis(axis: Any) -> None:
    """Label a logarithmic axis with durations, more of them if it spans little. Its limits must be set."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    if high / max(low, 1e-9) < 300:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda ns, _: format_duration(ns) if ns > 0 else "0"))
    axis.set_minor_formatter(NullFormatter())


def literal(text: str) -> str:
    """Return a text that matplotlib draws literally: no formula between dollars, no label left out."""
    plain = "".join(character if character.isprintable() else "?" for character in text)
    plain = (plain if len(plain) <= _LONGEST_NAME else plain[: _LONGEST_NAME - 1] + "…").replace("$", r"\$")
    return f" {plain}" if plain.startswith("_") else plain


def tidy(axes: Axes) -> None:
    """Give axes the common look: no frame above and to the right, a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, which="major", alpha=0.25, linewidth=0.7)
    axes.set_axisbelow(True)


def draw_histograms(axes: Axes, histograms: Mapping[str, Histogram], *, dashed: Container[str] = ()) -> None:
    """Draw histograms over each other on logarithmic axes; a triangle marks the largest value of each.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Axes to draw into.
    histograms : mapping of str to Histogram
        By label, in the order of `COLOURS`; empty ones appear in the legend only.
    dashed : container of str, optional
        Labels of those drawn as a dashed line without a fill, so that what lies behind stays visible.
    """
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_xscale("log")
    axes.set_yscale("log")
    peak = 1.0
    for (label, histogram), colour in zip(histograms.items(), cycle(COLOURS), strict=False):
        name = literal(label)
        if not histogram.count:
            axes.plot([], [], color=colour, label=f"{name}: none")
            continue
        edges, counts = rebin(histogram)
        peak = max(peak, float(counts.max()))
        outline = np.where(counts > 0, counts, _FLOOR)
        if label not in dashed:
            axes.stairs(outline, edges, baseline=_FLOOR, fill=True, color=colour, alpha=0.13)
        axes.stairs(
            outline, edges, baseline=_FLOOR, color=colour, linewidth=1.5, linestyle=_DASHES if label in dashed else "-",
            label=f"{name} (50 %: {format_rounded(histogram.percentile(50))}, max: {format_rounded(histogram.max)})",
        )  # fmt: skip
        axes.plot([max(histogram.max, 1)], [_FLOOR], "v", color=colour, markersize=8, clip_on=False, zorder=5)
    # Room above the highest bin for the legend.
    share = min(0.5, 0.06 + 0.07 * len(histograms))
    axes.set_ylim(_FLOOR, _FLOOR * (peak / _FLOOR) ** (1 / (1 - share)))
    if not any(histogram.count for histogram in histograms.values()):
        axes.set_xlim(1e3, 1e6)
    _duration_axis(axes.xaxis)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.0f}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("cycles")
    tidy(axes)
    axes.legend(loc="upper right", fontsize="small", frameon=False)


def mark_period(axes: Axes, period: int, longest: int) -> None:
    """Draw the period into the histograms: a response beyond it is an overrun."""
    if not period or not 0 < longest >= period / _FAR:
        return
    axes.axvline(period, ymax=0.68, color=_PERIOD_COLOUR, linewidth=1, linestyle="--")  # up to the legend
    axes.annotate(
        "period", (period, 0.68), (-4, 0), xycoords=axes.get_xaxis_transform(), textcoords="offset points",
        rotation=90, ha="right", va="top", fontsize="small", color=_PERIOD_COLOUR,
    )  # fmt: skip


def _draw_time_line(
    axes: Axes, t: NDArray[Any], values: NDArray[Any], label: str, colour: str, *, period: int, late: NDArray[Any]
) -> None:
    """Draw one quantity of every cycle over time, with the period and the overruns if they apply to it."""
    from matplotlib.ticker import FuncFormatter

    values = np.maximum(values, 1)
    shown, step = _worst_of(values)
    axes.plot(t[shown], values[shown], ".", ms=3, mew=0, color=colour, label=label, rasterized=True)
    axes.set_yscale("log")
    low, high = float(values.min()), float(values.max())
    if period:
        axes.axhline(
            period, color=_PERIOD_COLOUR, linewidth=1, linestyle="--", label=f"period {format_duration(period)}",
            zorder=4,
        )  # fmt: skip
        low, high = min(low, period), max(high, period)
    if late.size:
        marked = late[_worst_of(values[late])[0]]
        axes.plot(
            t[marked], values[marked], "x", ms=5 if late.size < 100 else 3, color=_OVERRUN_COLOUR,
            label=f"overruns ({late.size:,})", rasterized=True,
        )  # fmt: skip
    if high < _LINEAR_BELOW * low:  # such as intervals, which hardly differ
        axes.set_yscale("linear")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda ns, _: format_rounded(ns)))
        axes.margins(y=0.1)
    else:
        axes.set_ylim(low / 1.4, high * 1.4)
        _duration_axis(axes.yaxis)
    axes.margins(x=0.01)
    tidy(axes)
    sample = f", the worst of every {step}" if step > 1 else ""
    axes.set_title(f"{label.capitalize()} of the last {len(t):,} cycles{sample}", loc="left", fontsize="medium")
    if period:
        # Above the axes, because within them it would cover the overruns.
        legend = axes.legend(
            *_without(axes, label), loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize="small", frameon=False,
            borderpad=0.2, handletextpad=0.3, handlelength=1.5, columnspacing=1.2,
        )  # fmt: skip
        for handle in legend.legend_handles:
            if handle is not None:
                handle.set(markersize=7)


def _without(axes: Axes, label: str) -> tuple[list[Any], list[str]]:
    """Return the handles and labels of a legend, without the one that the title names."""
    pairs = [pair for pair in zip(*axes.get_legend_handles_labels(), strict=True) if pair[1] != label]
    return [handle for handle, _ in pairs], [text for _, text in pairs]


def _draw_time_lines(upper: Axes, lower: Axes, stats: Figures) -> None:
    """Draw the last cycles over time: latency and response, or interval and execution with an own wait."""
    records = stats.records
    period = stats.settings.get("period_ns", 0)
    if len(records) <= stats.has_own_wait:  # an interval takes two
        for axes in (upper, lower):
            axes.text(0.5, 0.5, "no records were kept", ha="center", va="center", transform=axes.transAxes)
            axes.set_axis_off()
        return
    none = np.empty(0, np.intp)
    release, start, end = (records[name] for name in ("release", "start", "end"))
    if stats.has_own_wait:
        t = (start - start[0]) * 1e-9
        _draw_time_line(upper, t[1:], np.diff(start), "interval", COLOURS[0], period=period, late=none)
        _draw_time_line(lower, t, end - start, "execution time", COLOURS[1], period=0, late=none)
        lower.set_xlabel("time of start (s)")
        _mark_swaps((lower, upper), stats, t)
        return
    t = (release - release[0]) * 1e-9
    late = np.flatnonzero(end - release > period) if period else none
    _draw_time_line(upper, t, start - release, "wake-up latency", COLOURS[0], period=0, late=none)
    _draw_time_line(lower, t, end - release, "response time", COLOURS[2], period=period, late=late)
    lower.set_xlabel("time of release (s)")
    _mark_swaps((lower, upper), stats, t)


def _mark_swaps(every: Sequence[Axes], stats: Figures, t: NDArray[Any]) -> None:
    """Draw a line at the first cycle of each step that the loop went on with, with its name in the first axes."""
    swaps = recorded_swaps(stats)
    for index, swap in swaps:
        for axes in every:
            axes.axvline(t[index], color=_SWAP_COLOUR, linewidth=1, linestyle=":", zorder=1, label="_swap")
        if len(swaps) <= _MOST_NAMES:
            every[0].annotate(
                literal(swap.successor), (t[index], 0), (2, 3), xycoords=every[0].get_xaxis_transform(),
                textcoords="offset points", fontsize="small", color=_SWAP_COLOUR,
            )  # fmt: skip


def draw_time(axes: Axes, stats: Figures, *, name: str = "", number: int = 0) -> None:
    """Draw the wake-up latency of the last cycles, or their intervals for a loop with its own wait.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Axes to draw into.
    stats : Figures
        Figures of the run.
    name : str
        Text before the title, if there are several.
    number : int
        Index into `COLOURS`.
    """
    records, none = stats.records, np.empty(0, np.intp)
    if len(records) <= stats.has_own_wait:
        axes.text(0.5, 0.5, "no records were kept", ha="center", va="center", transform=axes.transAxes)
        axes.set_axis_off()
    else:
        colour, start = COLOURS[number % len(COLOURS)], records["start"]
        if stats.has_own_wait:
            t = (start - start[0]) * 1e-9
            _draw_time_line(axes, t[1:], np.diff(start), "interval", colour, period=0, late=none)
        else:
            release = records["release"]
            t = (release - release[0]) * 1e-9
            _draw_time_line(axes, t, start - release, "wake-up latency", colour, period=0, late=none)
        _mark_swaps([axes], stats, t)
        axes.set_xlabel("time (s)")
    if name:
        axes.set_title(f"{literal(name)}: {axes.get_title(loc='left').lower()}", loc="left", fontsize="medium")


def _worst_of(*values: NDArray[Any]) -> tuple[NDArray[np.intp], int]:
    """Return the indices of the largest value of each stretch, so that no peak is lost, and the stretch's length."""
    count = len(values[0])
    step = -(-count // _MAX_POINTS)
    starts = np.arange(0, count, step)
    full = count // step * step
    worst = [one[:full].reshape(-1, step).argmax(axis=1) + starts[: full // step] for one in values]
    return np.unique(np.concatenate([*worst, np.arange(full, count)])), step


def draw_stats(stats: Figures, path: str | os.PathLike[str] | None = None) -> Figure:
    """Draw the main picture: histograms, and two time lines of the last cycles with their overruns.

    Parameters
    ----------
    stats : Figures
        Figures to draw. For a loop with its own wait, which has no release to be late against, the interval replaces
        wake-up latency and response time.
    path : path, optional
        File to write it to, in the format of its suffix.
    """
    figure = new_figure(9, 9)
    top, upper, lower = figure.subplots(3, 1, height_ratios=(4, 3, 3))
    lower.sharex(upper)
    histograms = {"execution time": stats.execution}
    if stats.has_own_wait:
        histograms = {"interval": stats.interval} | histograms
    else:
        histograms = {"wake-up latency": stats.latency} | histograms | {"response time": stats.response}
    # If a step takes no time, response and latency coincide: dashes over a line show both.
    draw_histograms(top, histograms, dashed=("response time",))
    period = stats.settings.get("period_ns", 0)
    mark_period(top, period, max(histogram.max for histogram in histograms.values()))
    rate = f"{format_rate(period)}, " if period else ""
    how = "simulated, " if stats.is_simulated else ""
    top.set_title(
        f"{literal(stats.name)}: {how}{rate}{stats.cycles:,} cycles, {stats.missed:,} missed,"
        f" {stats.overruns:,} overruns",
        loc="left",
    )
    _draw_time_lines(upper, lower, stats)
    if path is not None:
        save_figure(figure, path)
    return figure
