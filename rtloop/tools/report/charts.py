"""Pictures of the report: inline SVG, logarithmic axes, colours from the page's style sheet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rtloop.stats.plots import rebin
from rtloop.tools.report.markup import join, tag
from rtloop.units import format_duration, format_rounded

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from rtloop.stats.histogram import Histogram
    from rtloop.tools.report.markup import Markup

__all__ = ["draw_histogram_chart", "draw_time_line", "envelope"]

_MARKS = (50.0, 99.0, 99.9)
_FAR = 20


class _Log:
    """A logarithmic scale from values to pixels that ends at whole steps of 1, 2, 5."""

    def __init__(self, low: float, high: float, begin: float, end: float) -> None:
        low = max(low, 1e-3)
        high = max(high, low * 1.0001)
        ladder = [m * 10.0**e for e in range(-3, 20) for m in (1, 2, 5)]
        self.low = max(step for step in ladder if step <= low * 1.0000001)
        self.high = min(step for step in ladder if step >= high * 0.9999999)
        if self.high <= self.low:
            self.high = self.low * 10
        self._begin, self._size = begin, end - begin

    def __call__(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        inside = np.clip(values, self.low, self.high)
        place: NDArray[np.float64] = self._begin + self._size * np.log(inside / self.low) / np.log(self.high / self.low)
        return place

    def at(self, value: float) -> float:
        return float(self(np.array([value], dtype=np.float64))[0])

    def ticks(self, most: int) -> list[float]:
        """Return the values to label: all steps of 1, 2, 5, or decades, or some of them."""
        decades = np.log10(self.high / self.low)
        steps = (1, 2, 5) if decades * 3 <= most else (1,)
        first, last = int(np.floor(np.log10(self.low))), int(np.ceil(np.log10(self.high)))
        every = max(1, int(np.ceil(decades / most)))
        found = [m * 10.0**e for e in range(first, last + 1) for m in steps if e % every == 0]
        return [value for value in found if self.low * 0.999 <= value <= self.high * 1.001]


def draw_histogram_chart(title: str, rows: Sequence[tuple[str, Histogram]], *, period: int = 0) -> Markup:
    """Draw histograms into one picture; a single one gets marks at its percentiles.

    Parameters
    ----------
    title : str
        The quantity.
    rows : sequence of (str, Histogram)
        By label; empty ones are not drawn.
    period : int
        ns; marked if it is on the scale.
    """
    width, height, left, right, top, bottom = 480, 270, 62, 468, 44, 232
    drawn = [(number, label, histogram) for number, (label, histogram) in enumerate(rows) if histogram.count]
    if not drawn:
        return _empty(title, width, 90)
    wide = [rebin(histogram) for _, _, histogram in drawn]
    longest = max(max(histogram.max, 1) for _, _, histogram in drawn)
    # Room beyond the greatest value for its mark and for the period.
    reach = period if period and longest * _FAR >= period else 0
    x = _Log(min(edges[0] for edges, _ in wide), max(longest * 1.02, reach), left, right)
    y = _Log(0.5, max(counts.max() for _, counts in wide) * 1.1, bottom, top)
    parts = [*_axes(x, y, left, right, top, bottom, vertical=_count_label)]
    if reach:
        parts.append(_vertical(x.at(period), top, bottom, "period", f"period {format_duration(period)}"))
    for (number, label, histogram), (edges, counts) in zip(drawn, wide, strict=True):
        # The last wide bin may end beyond the greatest value.
        edge, level = x(np.minimum(edges, max(longest * 1.02, 1))), y(np.where(counts > 0, counts, 0.5))
        path = f"M{edge[0]:.1f},{bottom}" + "".join(f"V{h:.1f}H{e:.1f}" for h, e in zip(level, edge[1:], strict=True))
        median, most = format_rounded(histogram.percentile(50)), format_rounded(histogram.max)
        note = f"{label}: {histogram.count:,} cycles, 50 % {median}, max {most}"
        parts.append(tag("path", tag("title", note), d=f"{path}V{bottom}Z", class_=f"run r{number % 6}"))
        at = x.at(max(histogram.max, 1))
        parts.append(
            tag("polygon", tag("title", note),
                points=f"{at:.1f},{bottom} {at - 5:.1f},{bottom - 9} {at + 5:.1f},{bottom - 9}",
                class_=f"mark r{number % 6}")
        )  # fmt: skip
    if len(drawn) == 1:
        parts += _percentile_marks(drawn[0][2], x, top, bottom)
    middle = (left + right) / 2
    parts.append(tag("text", "duration, logarithmic", x=middle, y=height - 4, class_="small", text_anchor="middle"))
    return _svg(title, f"cycles by {title}, both axes logarithmic", width, height, parts)


def _count_label(value: float) -> str:
    return f"{value:,.0f}" if value < 10_000 else f"{value / 1000:,.0f}k" if value < 1e7 else f"{value / 1e6:,.0f}M"


def _percentile_marks(histogram: Histogram, x: _Log, top: float, bottom: float) -> Iterable[Markup]:
    """Mark the percentiles that the count supports; labels that would touch alternate in height."""
    marks = [(f"{q:g} %", float(histogram.percentile(q))) for q in _MARKS if histogram.count * (100 - q) >= 100 - 1e-6]
    marks.append(("max", float(histogram.max)))
    last = [-1e9, -1e9]
    for label, ns in marks:
        at = x.at(max(ns, 1))
        row = 0 if at - last[0] >= 34 else 1
        if at - last[row] < 34:  # no room in either row: only the line, with its title
            row = -1
        else:
            last[row] = at
        line = tag(
            "line",
            tag("title", f"{label}: {format_rounded(ns)}"),
            x1=f"{at:.1f}",
            x2=f"{at:.1f}",
            y1=top,
            y2=bottom,
            class_="percentile",
        )
        name = (
            tag("text", label, x=f"{min(at, 458):.1f}", y=top - 4 - 13 * row, class_="small", text_anchor="middle")
            if row >= 0
            else None
        )
        yield join(line, name)


def envelope(
    t: NDArray[np.float64], values: NDArray[np.int64], columns: int, span: tuple[float, float]
) -> tuple[NDArray[np.intp], NDArray[np.int64], NDArray[np.int64]]:
    """Return the number, the least and the greatest value of each column of the picture that has a cycle.

    Nothing is averaged or left out: whatever the column's width, its worst cycle is its top.
    """
    begin, end = span
    place = np.clip(((t - begin) / max(end - begin, 1e-12) * columns).astype(np.intp), 0, columns - 1)
    lowest = np.full(columns, np.iinfo(np.int64).max)
    highest = np.full(columns, np.iinfo(np.int64).min)
    np.minimum.at(lowest, place, values)
    np.maximum.at(highest, place, values)
    used = np.unique(place)
    return used, lowest[used], highest[used]


def draw_time_line(
    title: str,
    t: NDArray[np.float64],
    values: NDArray[np.int64],
    *,
    colour: int = 0,
    period: int = 0,
    overruns: NDArray[np.bool_] | None = None,
    missed: NDArray[np.int64] | None = None,
) -> Markup:
    """Draw a quantity over time as the band from the least to the greatest value in each column of pixels.

    Parameters
    ----------
    title : str
        The quantity.
    t : array of float
        Times, seconds.
    values : array of int
        ns.
    colour : int
        Number of the run.
    period : int
        ns; drawn as a line if given.
    overruns, missed : array, optional
        Cycles that ended late, and releases dropped before each cycle: marked above.
    """
    width, height, left, right, top, bottom = 760, 240, 62, 750, 48, 200
    if not len(values):
        return _empty(title, width, 90)
    columns, span = (right - left) // 2, (float(t.min()), float(t.max()))
    used, low, high = envelope(t, values, columns, span)
    reach = [period] if period else []
    y = _Log(max(1, min(int(low.min()), *reach, int(high.max()))), max(int(high.max()), 1, *reach) * 1.05, bottom, top)
    axis = _Log(1, 10, left, right)
    parts = [*_axes(axis, y, left, right, top, bottom, vertical=format_duration, horizontal=False)]
    parts += _seconds(span, left, right, top, bottom)
    x = left + used * 2.0 + 1
    upper, lower = y(np.maximum(high, 1).astype(np.float64)), y(np.maximum(low, 1).astype(np.float64))
    # A few cycles are drawn as visible dots.
    half = 3.0 if len(values) < 100 else 0.75
    path = "".join(f"M{at:.0f},{a - half:.1f}V{max(b, a) + half:.1f}" for at, a, b in zip(x, upper, lower, strict=True))
    parts.append(
        tag("path", d=path, class_=f"band r{colour % 6}", style="stroke-width:6px" if len(values) < 100 else None)
    )
    if period:
        at = y.at(period)
        parts.append(tag("line", x1=left, x2=right, y1=f"{at:.1f}", y2=f"{at:.1f}", class_="period"))
        parts.append(tag("text", "period", x=left + 4, y=f"{at - 4:.1f}", class_="small"))
    above = [(overruns, "overrun", "overruns", top - 9), (missed, "missed", "missed releases", top - 19)]
    edge = float(right)
    for counts, kind, name, level in above:
        if counts is not None and counts.any():
            parts.append(_events(t, counts.astype(np.int64), kind, name, level, columns, span, left))
            total = f"{int(counts.sum()):,} {name}"
            parts.append(tag("text", total, x=edge, y=13, class_=f"small {kind}", text_anchor="end"))
            edge -= 7.0 * len(total) + 14
    parts.append(
        tag(
            "text",
            "time since the first recorded release (s)",
            x=(left + right) / 2,
            y=height - 4,
            class_="small",
            text_anchor="middle",
        )
    )
    return _svg(
        title, f"{title} over time, logarithmic; the band is from the least to the greatest", width, height, parts
    )


def _events(
    t: NDArray[np.float64],
    counts: NDArray[np.int64],
    kind: str,
    name: str,
    y: float,
    columns: int,
    span: tuple[float, float],
    left: int,
) -> Markup:
    """Mark events in one row, each column with its count."""
    place = np.clip(((t - span[0]) / max(span[1] - span[0], 1e-12) * columns).astype(np.intp), 0, columns - 1)
    numbers = np.bincount(place, counts, columns)
    marks = [
        tag(
            "rect",
            tag("title", f"{int(numbers[i]):,} {name}"),
            x=left + 2 * int(i) - 1,
            y=y,
            width=4,
            height=7,
            class_=kind,
        )
        for i in np.flatnonzero(numbers)
    ]
    return join(*marks)


def _seconds(span: tuple[float, float], left: int, right: int, top: int, bottom: int) -> Iterable[Markup]:
    begin, end = span
    if end <= begin:
        return
    raw = (end - begin) / 7
    step = next(m * 10.0**e for e in range(-9, 12) for m in (1, 2, 5) if m * 10.0**e >= raw)
    for number in range(int(np.ceil(begin / step)), int(np.floor(end / step)) + 1):
        value = number * step
        at = left + (right - left) * (value - begin) / (end - begin)
        yield tag("line", x1=f"{at:.1f}", x2=f"{at:.1f}", y1=top, y2=bottom, class_="grid")
        anchor = "middle" if at < right - 24 else "end"
        yield tag("text", f"{value:.10g}", x=f"{at:.1f}", y=bottom + 16, text_anchor=anchor)


def _axes(
    x: _Log, y: _Log, left: int, right: int, top: int, bottom: int, *, vertical: object, horizontal: bool = True
) -> Iterable[Markup]:
    assert callable(vertical)
    for value in x.ticks(6) if horizontal else ():
        at = x.at(value)
        yield tag("line", x1=f"{at:.1f}", x2=f"{at:.1f}", y1=top, y2=bottom, class_="grid")
        anchor = "middle" if at < right - 12 else "end"
        yield tag("text", format_duration(value), x=f"{at:.1f}", y=bottom + 16, text_anchor=anchor)
    for value in y.ticks(6):
        at = y.at(value)
        if value < 1:
            continue
        yield tag("line", x1=left, x2=right, y1=f"{at:.1f}", y2=f"{at:.1f}", class_="grid")
        yield tag("text", vertical(value), x=left - 6, y=f"{at + 4:.1f}", text_anchor="end")
    yield tag("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis")


def _vertical(at: float, top: float, bottom: float, label: str, title: str) -> Markup:
    line = tag("line", tag("title", title), x1=f"{at:.1f}", x2=f"{at:.1f}", y1=top, y2=bottom, class_="period")
    turned = f"rotate(-90 {at - 4:.1f} {top + 4})"
    return join(
        line, tag("text", label, x=f"{at - 4:.1f}", y=top + 4, text_anchor="end", transform=turned, class_="small")
    )


def _empty(title: str, width: int, height: int) -> Markup:
    nothing = tag("text", "nothing was recorded", x=width / 2, y=height / 2 + 10, text_anchor="middle")
    return _svg(title, f"{title}: nothing was recorded", width, height, [nothing])


def _svg(title: str, description: str, width: int, height: int, parts: Iterable[Markup]) -> Markup:
    heading = tag("text", title, x=0, y=15, class_="heading")
    return tag("svg", tag("title", description), heading, *parts, viewBox=f"0 0 {width} {height}", role="img")
