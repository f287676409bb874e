"""The measured schedule of several loops as a Gantt chart: releases, steps, overruns and missed releases."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rtloop.errors import ConfigError
from rtloop.loop.drawing import COLOURS, literal, new_figure, save_figure, tidy
from rtloop.loop.records import find_missed, find_overruns
from rtloop.units import format_duration, parse_duration, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from rtloop.loop.settings import Duration
    from rtloop.loop.stats import Stats

__all__ = ["Window", "choose_window", "draw_schedule"]

#: More cycles than this, of all loops together, are no picture any more: the window is cut.
_MOST_CYCLES = 300
_OVERRUN_COLOUR, _RELEASE_COLOUR = "#C00000", "#333333"
#: Of a row's height: the step's bar, and the wake-up latency before it.
_BAR, _WAIT = 0.5, 0.16


class Window(NamedTuple):
    """What is drawn, ns on the loops' clock, and how it came to be."""

    begin: int
    end: int
    origin: int
    what: str


def choose_window(
    every: Sequence[Stats],
    at: str | Duration = "last",
    duration: Duration | None = None,
    *,
    origin_ns: int | None = None,
) -> Window:
    """Choose what to draw: a hyperperiod, or so much of it as there are records of and a picture can hold.

    Parameters
    ----------
    every : sequence of Stats
        Of loops that ran together.
    at : {"last", "worst"} or duration
        The last one of which all loops have records, the one with the longest response in periods of its loop, or the
        one in which so much time has passed since the common origin.
    duration : duration, optional
        How long the window is, instead of a hyperperiod.
    origin_ns : int, optional
        The common origin, on the loops' clock; by default as the loop of the longest period tells it.

    Raises
    ------
    ConfigError
        Where a run has no records, or the runs have no time in common.
    """
    for stats in every:
        if not len(stats.records):
            raise ConfigError(f"{stats.name} has no records: run it first, with record= at least 1")
    clocks = sorted({str(stats.settings.get("clock")) for stats in every})
    if len(clocks) > 1:
        raise ConfigError(f"the runs are on the clocks {' and '.join(clocks)}: they have no time in common")
    first = max(min(int(s.records["release"][0]), int(s.records["start"][0])) for s in every)
    last = min(max(int(s.records["end"][-1]), int(s.records["release"][-1]) + _period(s)) for s in every)
    if first >= last:
        raise ConfigError("the records of these runs have no time in common: they did not run together")
    origin = _origin(every) if origin_ns is None else origin_ns
    hyperperiod = math.lcm(*(_period(stats) for stats in every))
    length = hyperperiod if duration is None else parse_duration(duration, "duration", minimum=1)
    room = _MOST_CYCLES * 10**9 // max(1, round(sum(10**9 / _period(stats) for stats in every)))
    shown = min(length, room, last - first)
    begin = origin + (last - origin - shown) // length * length  # the last that is whole
    if begin < first:
        begin = last - shown
    if at == "worst":
        worst = _worst(every, first, last)
        begin = _clamp(origin + (worst - origin) // length * length, worst, shown, first, last)
    elif at != "last":
        if isinstance(at, str) and not at[:1].isdigit():
            raise ConfigError(f"at={show(at)} must be 'last', 'worst', or a time since the origin such as '1.5s'")
        since = parse_duration(at, "at", minimum=0)
        if not first <= origin + since < last:
            kept = f"from {format_duration(first - origin)} to {format_duration(last - origin)} after the origin"
            raise ConfigError(f"at={show(at)}: the records that all loops have are {kept}; record= keeps more")
        begin = _clamp(origin + since // length * length, origin + since, shown, first, last)
    whole = "a hyperperiod" if duration is None and shown == hyperperiod else ""
    cut = f"of a hyperperiod of {format_duration(hyperperiod)}" if duration is None and shown < hyperperiod else ""
    return Window(begin, begin + shown, origin, whole or cut)


def _clamp(begin: int, instant: int, shown: int, first: int, last: int) -> int:
    """Return where a window of this length begins that has the instant in it, and records all over."""
    if instant >= begin + shown:
        begin = instant - shown // 2
    return max(first, min(begin, last - shown))


def _period(stats: Stats) -> int:
    period: int = stats.settings["period_ns"]
    return period


def _origin(every: Sequence[Stats]) -> int:
    """Return the common origin, as the loop of the longest period tells it: there the grids of harmonic ones meet."""
    slowest = max(every, key=_period)
    first = slowest.cycles + slowest.missed  # releases until now: the recorded ones are the last of them
    on_grid = int(slowest.records["release"][-1]) - (first - 1) * _period(slowest)
    return on_grid - int(slowest.settings.get("phase_ns", 0))


def _worst(every: Sequence[Stats], first: int, last: int) -> int:
    """Return the release with the longest response, in periods of its loop, among those of which all have records."""
    found = (-1.0, first)
    for stats in every:
        records = stats.records
        inside = (records["release"] >= first) & (records["end"] <= last)
        if stats.has_own_wait or not inside.any():
            continue
        responses = (records["end"] - records["release"])[inside]
        place = int(responses.argmax())
        found = max(found, (float(responses[place]) / _period(stats), int(records["release"][inside][place])))
    return found[1]


def draw_schedule(
    every: Sequence[Stats], window: Window, *, name: str = "", path: str | os.PathLike[str] | None = None
) -> Figure:
    """Draw a window of the measured schedule: a row for each loop, the highest priority on top.

    An arrow is a release as planned, the thin bar behind it the wake-up latency, the thick one the step, from its start
    to its end; where a loop of a higher priority ran on the same CPU meanwhile, it is pale. Overruns have a red edge,
    missed releases a red cross.

    Parameters
    ----------
    every : sequence of Stats
        Of loops that ran together.
    window : Window
        As :func:`choose_window` has it.
    name : str
        Written before the title.
    path : path, optional
        Where to write it, in the format of its suffix.
    """
    rows = sorted(every, key=lambda stats: (-_priority(stats), _period(stats)))
    figure = new_figure(12, 1.9 + 0.75 * len(rows))
    axes = figure.subplots()
    scale, unit = _unit(window.end - window.begin)
    for row, (stats, colour) in enumerate(zip(rows, cycle(COLOURS), strict=False)):
        above = [other for other in rows[:row] if _shares_cpu(other, stats) and _priority(other) > _priority(stats)]
        _draw_row(axes, row, stats, window, scale, colour, above)
    axes.set_yticks(range(len(rows)), [_label(stats) for stats in rows])
    axes.set_ylim(len(rows) - 0.45, -0.7)
    axes.set_xlim(0, (window.end - window.begin) / scale)
    axes.set_xlabel(f"{unit}; 0 is {format_duration(window.begin - window.origin)} after the origin")
    tidy(axes)
    axes.grid(visible=False, axis="y")
    what = f" ({window.what})" if window.what else ""
    shown = f"{format_duration(window.end - window.begin)}{what}"
    axes.set_title(f"{literal(name or 'Measured schedule')}: {shown}", loc="left")
    _draw_legend(figure)
    if path is not None:
        save_figure(figure, path)
    return figure


def _draw_row(
    axes: Axes, row: int, stats: Stats, window: Window, scale: float, colour: str, above: Sequence[Stats]
) -> None:
    """Draw one loop's cycles."""
    records = stats.records
    inside = (records["end"] > window.begin) & (np.minimum(records["release"], records["start"]) < window.end)
    release, start, end = (records[field][inside] for field in ("release", "start", "end"))
    late = find_overruns(stats)[inside]

    def bars(begin: NDArray[Any], until: NDArray[Any], height: float, **look: Any) -> None:
        begin, until = np.clip(begin, window.begin, window.end), np.clip(until, window.begin, window.end)
        if len(begin):
            axes.broken_barh(
                list(zip((begin - window.begin) / scale, (until - begin) / scale, strict=True)),
                (row - height / 2, height), **look,
            )  # fmt: skip

    if not stats.has_own_wait:
        bars(release, start, _WAIT, facecolor=colour, alpha=0.45, linewidth=0)
    bars(start, end, _BAR, facecolor=colour, edgecolor=colour, linewidth=0.6)  # or what is short is not seen
    for other in above:
        bars(*_overlaps(start, end, other), _BAR + 0.02, facecolor="white", alpha=0.65, linewidth=0)
    bars(start[late], end[late], _BAR, facecolor="none", edgecolor=_OVERRUN_COLOUR, linewidth=1.8, zorder=4)
    if stats.has_own_wait:
        return
    planned = release[(release >= window.begin) & (release < window.end)]
    at, top = (planned - window.begin) / scale, row - 0.42
    axes.vlines(at, top, row - _BAR / 2 - 0.03, color=_RELEASE_COLOUR, linewidth=0.8, zorder=3)
    axes.plot(at, np.full(len(at), top), "^", ms=4, color=_RELEASE_COLOUR, clip_on=False)
    gone = _dropped(stats, window)
    axes.plot((gone - window.begin) / scale, np.full(len(gone), row), "x", ms=7, mew=1.8, color=_OVERRUN_COLOUR)


def _dropped(stats: Stats, window: Window) -> NDArray[np.int64]:
    """Return the releases within the window that were missed; the next cycle, which tells it, may be beyond."""
    missed, period = find_missed(stats), _period(stats)
    after = np.flatnonzero(missed)
    found = [
        np.arange(release - count * period, release, period)
        for release, count in zip(stats.records["release"][after], missed[after], strict=True)
        if release - count * period < window.end and release > window.begin
    ]
    gone = np.concatenate([np.empty(0, np.int64), *found])
    return gone[(gone >= window.begin) & (gone < window.end)]


def _overlaps(start: NDArray[Any], end: NDArray[Any], other: Stats) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return where another loop's steps lie within these cycles."""
    begins, ends = other.records["start"], other.records["end"]
    pairs = [
        (max(s, b), min(e, f))
        for s, e in zip(start, end, strict=True)
        for b, f in zip(*(times[_between(begins, ends, s, e)] for times in (begins, ends)), strict=True)
    ]
    found = np.array(pairs, np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def _between(begins: NDArray[Any], ends: NDArray[Any], start: int, end: int) -> slice:
    return slice(int(np.searchsorted(ends, start, "right")), int(np.searchsorted(begins, end)))


def _draw_legend(figure: Figure) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    grey = "#777777"
    entries = {
        "release": Line2D([], [], color=_RELEASE_COLOUR, marker="^", ms=5, lw=0),
        "wake-up latency": Line2D([], [], color=grey, alpha=0.45, lw=3),
        "step": Patch(facecolor=grey),
        "a higher priority ran": Patch(facecolor=grey, alpha=0.35),
        "overrun": Patch(facecolor="none", edgecolor=_OVERRUN_COLOUR, linewidth=1.8),
        "missed release": Line2D([], [], color=_OVERRUN_COLOUR, marker="x", ms=7, mew=1.8, lw=0),
    }
    figure.legend(
        entries.values(), entries.keys(), loc="outside lower center", ncols=len(entries), fontsize="small",
        frameon=False, handlelength=1.4, columnspacing=1.6,
    )  # fmt: skip


def _label(stats: Stats) -> str:
    priority = _priority(stats)
    where = _pinned(stats)
    about = [format_duration(_period(stats)), *([f"priority {priority}"] if priority else [])]
    return f"{literal(stats.name)}\n" + ", ".join([*about, *([f"CPU {where}"] if where is not None else [])])


def _priority(stats: Stats) -> int:
    settings = stats.settings
    return int(settings.get("priority") or 0) if settings.get("policy") in ("fifo", "rr") else 0


def _pinned(stats: Stats) -> int | None:
    cpu = stats.settings.get("cpu")
    return int(cpu[0]) if isinstance(cpu, (list, tuple)) and len(cpu) == 1 else None


def _shares_cpu(one: Stats, other: Stats) -> bool:
    return _pinned(one) is not None and _pinned(one) == _pinned(other)


def _unit(length: int) -> tuple[float, str]:
    """Return how many ns the axis counts by, and what that is called."""
    units = {10**9: "s", 10**6: "ms", 10**3: "us", 1: "ns"}
    scale = next(ns for ns in units if length >= ns)
    return float(scale), units[scale]
