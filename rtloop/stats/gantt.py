"""Gantt chart of the measured schedule of several loops: releases, steps, overruns and missed releases."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rtloop.errors import ConfigError
from rtloop.settings import exact_phase
from rtloop.stats.plots import COLOURS, literal, new_figure, save_figure, tidy
from rtloop.stats.records import (
    exact_period_of,
    find_missed,
    find_overruns,
    have_one_origin,
    on_one_clock,
    period_of,
)
from rtloop.units import format_duration, lcm_of, parse_duration, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from rtloop.settings import Duration
    from rtloop.stats.stats import Stats

__all__ = ["Window", "choose_window", "draw_schedule"]

#: The window is cut if it has more cycles than this, of all loops together.
_MOST_CYCLES = 300
#: Number of cycles drawn if all periods are equal, because a hyperperiod of one cycle shows nothing.
_EQUAL_CYCLES = 10
_FAULT_COLOUR, _RELEASE_COLOUR = "#C00000", "#333333"
#: Shares of a row's height: the step's bar, the wake-up latency before it, and the head of a release's arrow.
_BAR, _WAIT, _HEAD = 0.5, 0.16, 0.42
_HATCH = "/////"
_MACHINE = ("kernel_version", "cpu", "cpus")


class Window(NamedTuple):
    """Window of time that is drawn, ns on the loops' clock, and its description."""

    begin: int
    end: int
    origin: int
    what: str


def choose_window(every: Sequence[Stats], at: str | Duration = "last", duration: Duration | None = None) -> Window:
    """Choose the window: a hyperperiod, or as much of it as was recorded and fits in a picture.

    If all periods are equal it is ten hyperperiods, because one would be a single cycle.

    Parameters
    ----------
    every : sequence of Stats
        Of loops that ran together.
    at : {"last", "worst"} or duration
        The last one that all loops have records of; the one with the longest response in periods of its loop, and as
        many more as that response takes; or the one at this time since the common origin.
    duration : duration, optional
        Length of the window, instead of a hyperperiod. If `at` is a time, the window begins there.

    Raises
    ------
    ConfigError
        If a run has no records, or the runs have no time in common.
    """
    every = [on_one_clock(stats) for stats in every]
    _check(every)
    origin, hyperperiod = _origin(every), round(lcm_of(exact_period_of(stats) for stats in every))
    first, latest = max((_begin(stats, origin), stats.name) for stats in every)
    last, earliest = min(
        (max(int(s.records["end"][-1]), int(s.records["release"][-1]) + period_of(s)), s.name) for s in every
    )
    if first >= last:
        raise ConfigError(
            f"the records of {earliest} end {format_duration(first - last)} before those of {latest} begin: they did "
            f"not run together, or {latest} needs a greater record="
        )
    room = _MOST_CYCLES * 10**9 // max(1, round(sum(10**9 / period_of(stats) for stats in every)))
    is_equal = len({period_of(stats) for stats in every}) == 1
    wanted = hyperperiod * (_EQUAL_CYCLES if is_equal else 1)
    if duration is not None:
        wanted = parse_duration(duration, "duration", minimum=1)
    grid = wanted if duration is not None else hyperperiod
    shown = _whole(min(wanted, room, last - first), grid)

    def from_grid(instant: int) -> int:
        return origin + (instant - origin) // grid * grid

    if at == "worst":
        release, end = _worst(every, first, last)
        if duration is None:
            begin = from_grid(release) - (shown // grid - 1) // 2 * grid
            shown = _whole(min(max(shown, -(-(end - begin) // grid) * grid), room, last - first), grid)
        if duration is not None or end > begin + shown:
            begin = release - max(0, shown - (end - release)) // 4
    elif at == "last":
        begin = from_grid(last - shown)
        begin = begin if begin >= first else last - shown
    else:
        instant = origin + _since(at, first - origin, last - origin)
        begin = from_grid(instant) if duration is None else instant
        begin = begin if instant < begin + shown else instant - shown // 2
    begin = max(first, min(begin, last - shown))
    return Window(begin, begin + shown, origin, _describe(shown, wanted, None if duration is not None else hyperperiod))


def _check(every: Sequence[Stats]) -> None:
    """Refuse runs that have no common schedule."""
    for stats in every:
        if not len(stats.records):
            raise ConfigError(f"{stats.name} has no records: run it first, with record= at least 1")
        if not period_of(stats):
            raise ConfigError(f"{stats.name} has no period in its settings")
    clocks = sorted({str(stats.settings.get("clock")) for stats in every})
    if len(clocks) > 1:
        raise ConfigError(f"the runs are on the clocks {' and '.join(clocks)}: they have no time in common")
    if clocks == ["monotonic"] and len({tuple(str(stats.host.get(key)) for key in _MACHINE) for stats in every}) > 1:
        raise ConfigError("the runs are of different machines, whose monotonic clocks have no time in common")


def _whole(length: int, unit: int) -> int:
    """Round a length down to whole units; a length below one unit stays as it is."""
    return length // unit * unit or length


def _describe(shown: int, wanted: int, hyperperiod: int | None) -> str:
    """Return the relation of the window to the requested one, as text."""
    if hyperperiod is None:
        return "" if shown == wanted else f"of {format_duration(wanted)}"
    if shown < hyperperiod:
        return f"of a hyperperiod of {format_duration(hyperperiod)}"
    return "a hyperperiod" if shown == hyperperiod else f"{shown // hyperperiod} hyperperiods"


def _since(at: str | Duration, first: int, last: int) -> int:
    """Return the requested time after the origin, which must have been recorded."""
    if isinstance(at, str) and not at[:1].isdigit():
        raise ConfigError(f"at={show(at)} must be 'last', 'worst', or a time since the origin such as '1.5s'")
    since = parse_duration(at, "at", minimum=0)
    if not first <= since < last:
        kept = f"from {format_duration(first)} to {format_duration(last)} after the origin"
        raise ConfigError(f"at={show(at)}: the records that all loops have are {kept}; record= keeps more")
    return since


def _begin(stats: Stats, origin: int) -> int:
    """Return the beginning of what was recorded of a loop: the origin, if its first cycle is among the records."""
    release, start = int(stats.records["release"][0]), int(stats.records["start"][0])
    is_all = abs(release - exact_phase(stats.settings) - origin) < 2  # both are rounded
    return min(origin if is_all else release, start)


def _origin(every: Sequence[Stats]) -> int:
    """Return the common origin, on the clock as it was at the end: the group's, or else that of the slowest loop."""
    slowest = max(every, key=period_of)
    if have_one_origin(every):
        return int(slowest.settings["origin_ns"])
    releases = slowest.cycles + slowest.missed  # so far: the recorded ones are the last of them
    since = exact_phase(slowest.settings) + (releases - 1) * exact_period_of(slowest)
    return int(slowest.records["release"][-1]) - round(since)


def _worst(every: Sequence[Stats], first: int, last: int) -> tuple[int, int]:
    """Return release and end of the longest response, in periods of its loop, that all loops have records of."""
    found = (-1.0, first, first)
    for stats in every:
        records = stats.records
        inside = (records["release"] >= first) & (records["end"] <= last)
        if stats.has_own_wait or not inside.any():
            continue
        releases, ends = records["release"][inside], records["end"][inside]
        place = int((ends - releases).argmax())
        release, end = int(releases[place]), int(ends[place])
        found = max(found, ((end - release) / period_of(stats), release, end))
    return found[1:]


def draw_schedule(
    every: Sequence[Stats], window: Window, *, name: str = "", path: str | os.PathLike[str] | None = None
) -> Figure:
    """Draw a window of the measured schedule: a row for each loop, the highest priority on top.

    An arrow is a planned release, the thin bar after it the wake-up latency, the thick bar the step from start to end.
    The bar is pale while a loop of a higher priority ran on the same CPU. An overrun has a red edge, hatching from the
    next release on, and a diamond under its end; a missed release is a cross instead of an arrow. Faults differ by
    form as well as by colour.

    Parameters
    ----------
    every : sequence of Stats
        Of loops that ran together.
    window : Window
        Result of :func:`choose_window`.
    name : str
        Text before the title; by default the name of the group, if the runs are of one.
    path : path, optional
        File to write it to, in the format of its suffix.
    """
    rows = sorted(map(on_one_clock, every), key=lambda stats: (-_priority(stats), period_of(stats)))
    figure = new_figure(12, 1.9 + 0.75 * len(rows))
    axes = figure.subplots()
    scale, unit = _unit(window.end - window.begin)
    for row, (stats, colour) in enumerate(zip(rows, cycle(COLOURS), strict=False)):
        above = [other for other in rows[:row] if _shares_cpu(other, stats) and _priority(other) > _priority(stats)]
        _draw_row(axes, row, stats, window, scale, colour, above)
    axes.set_yticks(range(len(rows)), [_label(stats) for stats in rows])
    axes.set_ylim(len(rows) - 0.4, -0.7)
    axes.set_xlim(0, (window.end - window.begin) / scale)
    axes.set_xlabel(f"{unit}; 0 is {format_duration(window.begin - window.origin)} after the origin")
    tidy(axes)
    axes.grid(visible=False, axis="y")
    what = f" ({window.what})" if window.what else ""
    shown = f"{format_duration(window.end - window.begin)}{what}"
    axes.set_title(f"{literal(name or _group(every) or 'Measured schedule')}: {shown}", loc="left")
    _draw_legend(figure)
    if path is not None:
        save_figure(figure, path)
    return figure


def _draw_row(
    axes: Axes, row: int, stats: Stats, window: Window, scale: float, colour: str, above: Sequence[Stats]
) -> None:
    """Draw one loop's cycles."""
    records = stats.records
    inside = (records["end"] >= window.begin) & (np.minimum(records["release"], records["start"]) < window.end)
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
    bars(start, end, _BAR, facecolor=colour, edgecolor=colour, linewidth=0.6)  # the edge makes short steps visible
    for other in above:
        bars(*_overlaps(start, end, other), _BAR + 0.02, facecolor="white", alpha=0.65, linewidth=0)
    if late.any():
        due, until = release[late] + period_of(stats), end[late]
        bars(np.maximum(due, start[late]), until, _BAR, facecolor="none", edgecolor="white", hatch=_HATCH, linewidth=0)
        bars(start[late], until, _BAR, facecolor="none", edgecolor=_FAULT_COLOUR, linewidth=1.8, zorder=4)
        until = until[until <= window.end]
        _mark(axes, (until - window.begin) / scale, row + _BAR / 2 + 0.09, "D", 4.5)
    if stats.has_own_wait:
        return
    planned = release[(release >= window.begin) & (release < window.end)]
    at, top = (planned - window.begin) / scale, row - _HEAD
    axes.vlines(at, top, row - _BAR / 2 - 0.03, color=_RELEASE_COLOUR, linewidth=0.8, zorder=3)
    axes.plot(at, np.full(len(at), top), "^", ms=4, color=_RELEASE_COLOUR, clip_on=False)
    _mark(axes, (_dropped(stats, window) - window.begin) / scale, top, "x", 6.5)


def _mark(axes: Axes, at: NDArray[Any], height: float, marker: str, size: float) -> None:
    """Draw the marks of faults."""
    if len(at):
        axes.plot(
            at, np.full(len(at), height), marker, ms=size, mew=1.8, color=_FAULT_COLOUR, clip_on=False, zorder=5
        )  # fmt: skip


def _dropped(stats: Stats, window: Window) -> NDArray[np.int64]:
    """Return the missed releases within the window; the cycle that reveals them may lie beyond it."""
    missed, period = find_missed(stats), exact_period_of(stats)
    found = [np.empty(0, np.int64)]
    for number in np.flatnonzero(missed).tolist():
        release = int(stats.records["release"][number])
        # Only the visible ones, because a process that was stopped for a day has missed millions.
        most = min(int(missed[number]), int((release - window.begin) // period))
        if most > 0:
            least = max(0, int((release - window.end) // period))
            dropped = release - np.rint(np.arange(most, least, -1) * float(period)).astype(np.int64)
            found.append(dropped[dropped < window.end])
    return np.concatenate(found)


def _overlaps(start: NDArray[Any], end: NDArray[Any], other: Stats) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the intervals in which another loop's steps overlap these cycles."""
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
    from matplotlib.legend_handler import HandlerTuple
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    grey = "#777777"
    overrun = (
        Patch(facecolor=grey, edgecolor="white", hatch=_HATCH, linewidth=0),
        Line2D([], [], color=_FAULT_COLOUR, marker="D", ms=4.5, lw=0),
    )
    entries: dict[str, Any] = {
        "release": Line2D([], [], color=_RELEASE_COLOUR, marker="^", ms=5, lw=0),
        "wake-up latency": Line2D([], [], color=grey, alpha=0.45, lw=3),
        "step": Patch(facecolor=grey),
        "a loop of higher priority ran": Patch(facecolor=grey, alpha=0.35),
        "overrun": overrun,
        "missed release": Line2D([], [], color=_FAULT_COLOUR, marker="x", ms=6.5, mew=1.8, lw=0),
    }
    figure.legend(
        list(entries.values()), list(entries), loc="outside lower center", ncols=len(entries), fontsize="small",
        frameon=False, handlelength=1.6, columnspacing=1.6, handler_map={tuple: HandlerTuple(ndivide=None)},
    )  # fmt: skip


def _group(every: Sequence[Stats]) -> str:
    """Return the name of the group, if all loops ran in one."""
    names = {stats.settings.get("group") for stats in every}
    return str(names.pop() or "") if len(names) == 1 else ""


def _label(stats: Stats) -> str:
    priority = _priority(stats)
    where = _pinned(stats)
    about = [format_duration(period_of(stats)), *([f"priority {priority}"] if priority else [])]
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
    """Return the unit of the axis, in ns, and its name."""
    units = {10**9: "s", 10**6: "ms", 10**3: "us", 1: "ns"}
    scale = next(ns for ns in units if length >= ns)
    return float(scale), units[scale]
