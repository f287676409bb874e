"""Text of ``rtloop top``: the columns of its table, a loop's histogram and time line in characters."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from rtloop.stats import guard_summary
from rtloop.units import format_duration, format_rate

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.console import Console, ConsoleOptions

    from rtloop.stats.histogram import Histogram
    from rtloop.tools.top.sampler import Row, Sample

__all__ = [
    "COLUMNS",
    "Cell",
    "Column",
    "Line",
    "cell",
    "details",
    "facts",
    "fitting",
    "histogram",
    "make_table",
    "notes",
    "short",
    "timeline",
    "title",
    "widths",
]

#: Columns that a narrow screen drops, in this order; the view of one loop has all.
_DISPENSABLE = ("EXEC 50%", "NOW Hz", "LAT 50%", "NOW MAX", "CPU", "EXEC MAX", "CYCLES", "POLICY", "GUARD")
#: Greatest length of a name in the table.
_NAME = 24
_BLOCKS = " ▁▂▃▄▅▆▇█"
#: The names of the figures of the detail view, and of the attributes of Stats.
_QUANTITIES = {
    "latency": "latency",
    "execution": "execution",
    "response": "response",
    "interval": "interval",
}
_PERCENTILES = (50.0, 99.0, 99.9)


class Column(NamedTuple):
    """A column of the table: its head, sort key, format and meaning.

    `most` is the greatest number of characters that `write` returns, for a value that takes long to compute.
    """

    head: str
    value: Callable[[Row], Any]
    write: Callable[[Any], str]
    meaning: str
    is_bad_above: float | None = None
    is_left: bool = False
    most: int | None = None


#: Most characters that `short` returns for less than eleven days.
_DURATION = 8


def short(ns: float | None) -> str:
    """Format a duration with three digits in as few characters as possible; ``-`` if there is none."""
    if ns is None or ns != ns:
        return "-"
    for scale, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "us")):
        if abs(ns) >= scale * 0.9995:
            value = ns / scale
            return f"{value:.{max(0, 2 - len(str(int(abs(value)))) + 1)}f} {unit}"
    return f"{ns:.0f} ns"


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _cut(name: str) -> str:
    return name if len(name) <= _NAME else name[: _NAME - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _planned(rate: float) -> str:
    return format_rate(round(1e9 / rate))


def _percentile(name: str, q: float, *, now: bool = False) -> Callable[[Row], float | None]:
    def value(row: Row) -> float | None:
        histogram: Histogram = getattr(row if now else row.stats, name)
        if not histogram.count:
            return None
        return float(histogram.max if q == 100 else histogram.percentile(q))

    return value


def _missed(row: Row) -> int:
    """Return the missed cycles; those of the device if one paces the loop, because its releases are then nominal."""
    return row.stats.missed if row.stats.device_missed is None else row.stats.device_missed


def _violations(row: Row) -> int | None:
    """Return the number of violations; None if nothing was watched, or nothing can be."""
    guard = row.stats.guard
    is_counted = any(guard.get(name) is not None for name in guard_summary.GRANTS)
    return guard_summary.count(guard) if is_counted else None


COLUMNS = (
    Column("NAME", lambda row: row.label, _cut, "name of the loop, after that of its group", is_left=True),
    Column("PID", lambda row: row.reader.pid, str, "its process"),
    Column("RATE", lambda row: 1e9 / row.stats.settings["period_ns"], _planned, "planned cycles per second"),
    Column("POLICY", lambda row: row.reader.policy, str, "scheduling policy and priority", is_left=True),
    Column("CPU", lambda row: row.cpus, str, "CPUs that it may run on; any(1): all, last seen on CPU 1"),
    Column("CYCLES", lambda row: row.stats.cycles, _count, "cycles since its start, or since a reset"),
    Column("NOW Hz", lambda row: row.rate, _rate, "cycles per second since the last refresh"),
    Column("LAT 50%", _percentile("latency", 50), short, "median wake-up latency, start - release", most=_DURATION),
    Column(
        "LAT 99%",
        _percentile("latency", 99),
        short,
        "wake-up latency that 99 % of the cycles did not exceed",
        most=_DURATION,
    ),
    Column("LAT MAX", _percentile("latency", 100), short, "greatest wake-up latency", most=_DURATION),
    Column("NOW MAX", _percentile("latency", 100, now=True), short, "the same since the last refresh", most=_DURATION),
    Column("EXEC 50%", _percentile("execution", 50), short, "median execution time, end - start", most=_DURATION),
    Column("EXEC MAX", _percentile("execution", 100), short, "greatest execution time", most=_DURATION),
    Column("OVER", lambda row: row.stats.overruns, _count, "cycles that ended after the next release", 0),
    Column("MISSED", _missed, _count, "releases without a cycle, or missed cycles of a device", 0),
    Column("FAULTS", lambda row: row.faults, _count, "page faults of the loop's thread since its warm-up", 0),
    Column("GUARD", _violations, _count, "violations that its guards have counted; - without guards", 0),
)


class Cell(NamedTuple):
    """Text of one figure of one loop, its style, and the side that it is aligned to."""

    text: str
    style: str
    is_left: bool


def cell(column: Column, row: Row) -> Cell:
    """Format one cell; a count that should be 0 and is not is highlighted."""
    value = column.value(row)
    bad = column.is_bad_above is not None and value is not None and value > column.is_bad_above
    return Cell(column.write(value), "bold red" if bad else "", column.is_left)


def widths(rows: Sequence[Row]) -> dict[str, int]:
    """Return the characters that each column needs for these rows, and for its head with the sort mark."""
    needed = {}
    for column in COLUMNS:
        most = column.most
        if most is None:
            most = max(map(cell_len, {column.write(column.value(row)) for row in rows}), default=0)
        needed[column.head] = max(len(column.head) + 1, most)
    return needed


def fitting(needed: Mapping[str, int], width: int) -> list[Column]:
    """Return the columns that fit, of these widths, with a space on each side of each."""
    shown = list(COLUMNS)
    for head in _DISPENSABLE:
        if sum(2 + needed[column.head] for column in shown) <= width:
            break
        shown = [column for column in shown if column.head != head]
    return shown


class Line:
    """Cells of some columns as one renderable, made when it is first shown: of many loops most are outside the screen.

    Parameters
    ----------
    make : callable
        Returns the cells.
    widths : sequence of int
        Width of each.
    """

    def __init__(self, make: Callable[[], Sequence[Cell]], widths: Sequence[int]) -> None:
        self._make, self._widths = make, widths

    @cached_property
    def cells(self) -> Sequence[Cell]:
        """The cells, not padded."""
        return self._make()

    @property
    def width(self) -> int:
        """Width of the whole, in characters."""
        return sum(self._widths) + 2 * max(0, len(self._widths) - 1)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        """Yield the line, without the objects of rich.text, which would take most of the time of a refresh."""
        plain = ""
        for number, (one, width) in enumerate(zip(self.cells, self._widths, strict=True)):
            plain += "  " if number else ""
            room = width - cell_len(one.text)
            text = one.text if room >= 0 else set_cell_size(one.text, width - 1) + "…"
            before, after = (0, room) if one.is_left else (room, 0)
            plain += " " * before
            if one.style:
                yield Segment(plain)
                yield Segment(text, console.get_style(one.style))
                plain = " " * after
            else:
                plain += text + " " * after
        yield Segment(plain)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Return the width, without making the cells."""
        return Measurement(self.width, self.width)


def make_table(rows: Sequence[Row]) -> Table:
    """Return all loops as a table, for output that is not refreshed."""
    shown = [column for column in COLUMNS if not column.head.startswith("NOW")]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in shown:
        table.add_column(column.head, justify="left" if column.is_left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(text, style) for text, style, _ in (cell(column, row) for column in shown)))
    return table


def title(row: Row) -> Text:
    """Return a line that identifies a loop."""
    settings, stats = row.stats.settings, row.stats
    period = settings["period_ns"]
    parts = [
        f"process {row.reader.pid}, thread {row.reader.tid}",
        f"{format_rate(period)} ({format_duration(period)})",
        row.reader.policy,
        f"CPU {row.cpus}",
        f"overrun={settings.get('overrun', '-')}",
        f"{stats.cycles:,} cycles in {format_duration(stats.duration_ns, 0)}",
    ]
    return Text.assemble((row.label, "bold"), "  ", ", ".join(parts))


def details(row: Row) -> Table:
    """Return a loop's figures since its start, and since the last refresh."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("", no_wrap=True)
    heads = ("min", *(f"{q:g}%" for q in _PERCENTILES), "max", "now 50%", "now 99%", "now max")
    for head in heads:
        table.add_column(head, justify="right", min_width=7, no_wrap=True)
    for label, name in _QUANTITIES.items():
        since: Histogram = getattr(row.stats, name)
        now: Histogram | None = getattr(row, name, None)
        cells = [short(value) for value in _summary(since, (0, *_PERCENTILES, 100))]
        cells += [short(value) for value in _summary(now, (50, 99, 100))] if now is not None else ["", "", ""]
        table.add_row(label, *cells)
    return table


def _summary(histogram: Histogram, percentiles: Sequence[float]) -> list[float | None]:
    if not histogram.count:
        return [None] * len(percentiles)
    return [float(value) for value in histogram.percentile(percentiles)]


def facts(row: Row) -> Text:
    """Return a loop's counters and its refused grants."""
    stats = row.stats
    minor, major = stats.page_faults
    voluntary, involuntary = stats.context_switches
    missed: list[tuple[str, int, int | None, bool]] = [("missed", stats.missed, row.missed, True)]
    if stats.device_missed is not None:
        missed = [
            ("missed (device)", stats.device_missed, None, True),
            ("missed (nominal)", stats.missed, row.missed, False),
        ]
    counters = [
        ("overruns", stats.overruns, row.overruns, True),
        *missed,
        ("late", stats.late, None, False),
        ("stalls", stats.stalls, None, True),
        ("minor faults", minor, None, True),
        ("major faults", major, None, True),
        ("voluntary switches", voluntary, None, False),
        ("involuntary", involuntary, None, False),
    ]
    text = Text()
    for label, value, now, is_bad in counters:
        more = f" (+{now:,})" if now else ""
        text.append(f"{label} ").append(f"{_count(value)}{more}", "bold red" if is_bad and value else "bold")
        text.append("   ")
    if stats.guard:
        text.append(f"\n{stats.guard_sentence}", "bold red" if guard_summary.count(stats.guard) else "bold")
    for grant in stats.grants:
        if not grant.ok:
            text.append(f"\nNOT GRANTED {grant.name}: asked for {grant.requested}, granted {grant.granted}", "yellow")
            text.append(f" ({grant.detail})" if grant.detail else "", "dim")
    return text


def _bars(values: Sequence[float], height: int) -> list[str]:
    """Draw values from 0 to 1 as columns of `height` lines; a value above 0 is always visible."""
    eighths = [0 if value <= 0 else max(1, round(value * height * 8)) for value in values]
    return ["".join(_BLOCKS[min(8, max(0, e - 8 * level))] for e in eighths) for level in range(height - 1, -1, -1)]


def _colour(text: Text, line: str, marks: NDArray[np.bool_], marked: str, other: str) -> None:
    """Add a line in two colours, a span for each stretch of one."""
    for mark, stretch in groupby(zip(line, marks.tolist(), strict=True), key=lambda pair: pair[1]):
        text.append("".join(char for char, _ in stretch), marked if mark else other)
    text.append("\n")


def histogram(since: Histogram, now: Histogram | None, width: int, height: int) -> Text:
    """Draw a histogram with two logarithmic axes; bins that grew since the last refresh are brighter.

    Parameters
    ----------
    width, height : int
        Of the columns, in characters; a line with the axis comes below them.
    """
    used = np.flatnonzero(since.counts)
    if not used.size:
        return Text("no values yet", "dim")
    low = max(1.0, float(since.edges[used[0]]))
    high = max(low * 1.5, float(since.max) + 1)

    def columns(of: Histogram) -> Any:
        bins = np.flatnonzero(of.counts)
        at = np.log(np.maximum(of.edges[bins], low) / low) / np.log(high / low) * width
        return np.bincount(np.clip(at.astype(int), 0, width - 1), of.counts[bins].astype(float), width)

    counts = columns(since)
    recent = columns(now) if now is not None and now.count else np.zeros(width)
    lines = _bars((np.log1p(counts) / np.log1p(counts.max())).tolist(), height)
    text = Text(no_wrap=True)
    for line in lines:
        _colour(text, line, recent > 0, "cyan", "blue")
    left, middle, right = short(low), short((low * high) ** 0.5), short(since.max)
    gap = max(1, width // 2 - len(left) - len(middle) // 2)
    axis = f"{left}{' ' * gap}{middle}"
    return text.append(axis + " " * max(1, width - len(axis) - len(right)) + right, "dim")


def timeline(records: Any, period_ns: int, width: int, height: int) -> Text:
    """Draw the wake-up latency of the last cycles, newest to the right; each column shows the worst of its cycles.

    A column with an overrun, a cycle that ended later than the next release, is red.
    """
    if not len(records):
        return Text("no records", "dim")
    start, release, end = records["start"], records["release"], records["end"]
    group = -(-len(records) // width)
    records_shown = len(records) // group * group
    shape = (records_shown // group, group)
    latency = np.maximum(0, start - release)[-records_shown:].reshape(shape).max(axis=1)
    overran = ((end - release) > period_ns)[-records_shown:].reshape(shape).any(axis=1)
    top = max(1, int(latency.max()))
    text = Text(no_wrap=True)
    scale = [short(top), *[""] * (height - 2), "0"] if height > 1 else [short(top)]
    for label, line in zip(scale, _bars((latency / top).tolist(), height), strict=True):
        text.append(f"{label:>8} ", "dim")
        _colour(text, line, overran, "bold red", "green")
    span = short(float(release[-1] - release[-records_shown]))
    return text.append(f"{'':>9}the last {records_shown:,} cycles, {span}; worst of {group:,} in a column", "dim")


#: Faults that are shown; of more, the number.
_MOST_FAULTS = 5


def notes(sample: Sample) -> list[str]:
    """Return a sentence for each loop that could not be read, and the warnings."""
    from rtloop.telemetry.denied import describe_denied_count

    alike: dict[tuple[str, str], list[str]] = {}  # a process may have many blocks with one fault, as another version
    for path, fault in sample.faulty.items():
        process = re.match(r"/proc/(\d+)/fd/", path)
        fault = fault.removeprefix(f"{path}: ")
        alike.setdefault((f"process {process[1]}" if process else path, fault), []).append(path)
    lines = []
    for (place, fault), paths in list(alike.items())[:_MOST_FAULTS]:
        lines.append(
            f"{paths[0]}: not readable: {fault}"
            if len(paths) == 1
            else f"{place}: {len(paths)} blocks are not readable: {fault}"
        )
    more = sum(map(len, list(alike.values())[_MOST_FAULTS:]))
    lines += [f"{more} more could not be read."] if more else []
    lines += [describe_denied_count(sample.denied) + "."] if sample.denied else []
    return [*lines, *(f"warning: {text}." for text in sample.warnings)]
