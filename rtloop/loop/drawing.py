"""Pictures of what a loop did, drawn with matplotlib, which is loaded only here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rtloop.data.histogram import Histogram
from rtloop.errors import ConfigError
from rtloop.units import format_duration, format_rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from rtloop.loop.stats import Stats

__all__ = ["COLOURS", "draw_histograms", "draw_stats", "new_figure", "save_figure"]

#: Okabe and Ito's colours, which the colour-blind can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_OVERRUN_COLOUR = "#C00000"
_BINS_PER_DECADE = 20
_MAX_POINTS = 4000


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure that needs no display.

    Raises
    ------
    ImportError
        Where matplotlib is missing, with the command that installs it.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'rtloop[plot]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure in the format of the file's suffix.

    Raises
    ------
    ConfigError
        Where matplotlib does not know the suffix.
    """
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:
        raise ConfigError(f"{os.fspath(path)}: {error}") from error


def _rebin(histogram: Histogram) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum the fine bins into wider ones on a logarithmic axis; returns edges (n + 1) and counts (n)."""
    used = np.flatnonzero(histogram.counts)
    if used.size == 0:
        return np.array([1.0, 10.0]), np.zeros(1)
    values = np.maximum(histogram.edges[used], 1.0)
    first = np.floor(np.log10(values[0]) * _BINS_PER_DECADE)
    last = np.floor(np.log10(max(values[-1], histogram.max, 1)) * _BINS_PER_DECADE)
    edges = 10 ** (np.arange(first, last + 2) / _BINS_PER_DECADE)
    where = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    return edges, np.bincount(where, histogram.counts[used].astype(float), len(edges) - 1).astype(np.float64)


def _duration_axis(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda ns, _: format_duration(ns) if ns > 0 else "0"))
    axis.set_minor_formatter(NullFormatter())


def draw_histograms(axes: Axes, histograms: Mapping[str, Histogram]) -> None:
    """Draw histograms over each other, on logarithmic axes; a tick marks each one's largest value.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Where to draw.
    histograms : mapping of str to Histogram
        By label; empty ones are named in the legend, and not drawn.
    """
    axes.set_xscale("log")
    axes.set_yscale("log")
    for (label, histogram), colour in zip(histograms.items(), COLOURS * 3, strict=False):
        if not histogram.count:
            axes.plot([], [], color=colour, label=f"{label}: none")
            continue
        edges, counts = _rebin(histogram)
        text = f"{label}  (50 %: {format_duration(histogram.percentile(50))}, max: {format_duration(histogram.max)})"
        outline = np.where(counts > 0, counts, 0.5)
        axes.stairs(outline, edges, baseline=0.5, fill=True, color=colour, alpha=0.18)
        axes.stairs(outline, edges, baseline=0.5, color=colour, linewidth=1.5, label=text)
        axes.plot([max(histogram.max, 1)], [1], marker="|", markersize=14, markeredgewidth=2, color=colour)
    axes.set_ylim(bottom=0.5)
    _duration_axis(axes.xaxis)
    axes.set_ylabel("cycles")
    axes.grid(True, which="major", alpha=0.25)
    axes.legend(loc="upper right", fontsize="small", framealpha=0.9)


def _draw_time_line(axes: Axes, stats: Stats) -> None:
    records = stats.records
    period = stats.settings.get("period_ns", 0)
    if not len(records):
        axes.text(0.5, 0.5, "no records were kept", ha="center", va="center", transform=axes.transAxes)
        return
    t = (records["release"] - records["release"][0]) * 1e-9
    latency = np.maximum(records["start"] - records["release"], 1)
    response = np.maximum(records["end"] - records["release"], 1)
    t, latency, response = _thin(t, latency, response)
    axes.plot(t, latency, ".", markersize=2.5, color=COLOURS[0], label="wake-up latency", rasterized=True)
    axes.plot(t, response, ".", markersize=2.5, color=COLOURS[2], label="response time", rasterized=True, alpha=0.6)
    late = records["end"] > records["release"] + period
    if period:
        axes.axhline(period, color="#666666", linewidth=1, linestyle="--", label=f"period {format_duration(period)}")
        if late.any():
            overrun = records[late]
            axes.plot(
                (overrun["release"] - records["release"][0]) * 1e-9,
                overrun["end"] - overrun["release"],
                "x", color=_OVERRUN_COLOUR, markersize=5, label=f"overruns ({int(late.sum())})",
            )  # fmt: skip
    axes.set_yscale("log")
    _duration_axis(axes.yaxis)
    axes.set_xlabel(f"time of release, s (the last {len(records):,} cycles)")
    axes.grid(True, which="major", alpha=0.25)
    axes.legend(loc="upper right", fontsize="small", ncols=2, framealpha=0.9, markerscale=3)


def _thin(t: NDArray[Any], latency: NDArray[Any], response: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Keep the worst of each stretch of cycles, so that no peak is lost where points would lie over each other."""
    step = -(-len(t) // _MAX_POINTS)
    if step == 1:
        return t, latency, response
    full = len(t) // step * step
    worst = latency[:full].reshape(-1, step).argmax(axis=1) + np.arange(0, full, step)
    slowest = response[:full].reshape(-1, step).argmax(axis=1) + np.arange(0, full, step)
    keep = np.unique(np.concatenate([worst, slowest, np.arange(full, len(t))]))
    return t[keep], latency[keep], response[keep]


def draw_stats(stats: Stats, path: str | os.PathLike[str] | None = None) -> Figure:
    """Draw the main picture: three histograms, and the time line of the last cycles with its overruns.

    Parameters
    ----------
    stats : Stats
        What to draw.
    path : path, optional
        Where to write it, in the format of its suffix.
    """
    figure = new_figure(9, 7)
    top, bottom = figure.subplots(2, 1)
    draw_histograms(
        top,
        {"wake-up latency": stats.latency, "execution time": stats.execution, "response time": stats.response},
    )
    period = stats.settings.get("period_ns", 0)
    rate = f"{format_rate(period)}, " if period else ""
    top.set_title(
        f"{stats.name}: {rate}{stats.cycles:,} cycles, {stats.missed:,} missed, {stats.overruns:,} overruns",
        loc="left",
    )
    _draw_time_line(bottom, stats)
    if path is not None:
        save_figure(figure, path)
    return figure
