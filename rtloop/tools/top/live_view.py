"""Text of a loop's signals in ``rtloop top``: a sparkline, the newest value and the range of each."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rtloop.live.value_text import format_value
from rtloop.tools.top.view import short

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rtloop.tools.top.loop_watch import LoopView, Trace

__all__ = ["signal_table", "sparkline"]

_LEVELS = "▁▂▃▄▅▆▇█"
_FLAT = "▄"
#: Columns that the names, values and units take beside a sparkline.
_BESIDE = 64
_NARROWEST = 12


def sparkline(values: NDArray[np.float64], width: int) -> str:
    """Draw numbers, newest to the right; each column shows the one of its numbers that is farthest from the median.

    So a single outlier among thousands of samples is always visible. A column without a finite number is blank.
    """
    if not len(values):
        return ""
    finite = np.where(np.isfinite(values), values, np.nan)
    if np.isnan(finite).all():
        return " " * min(width, len(values))
    low, high, middle = float(np.nanmin(finite)), float(np.nanmax(finite)), float(np.nanmedian(finite))
    ends = np.linspace(0, len(values), min(width, len(values)) + 1).astype(int)
    line = []
    for begin, end in pairwise(ends):
        part = finite[begin:end]
        part = part[~np.isnan(part)]
        if not len(part):
            line.append(" ")
            continue
        value = float(part[np.argmax(np.abs(part / 2 - middle / 2))])  # halves, because a difference may overflow
        place = 0.5 if high == low else (value / 2 - low / 2) / (high / 2 - low / 2)
        line.append(_FLAT if high == low else _LEVELS[min(7, int(place * 8))])
    return "".join(line)


def signal_table(view: LoopView, width: int) -> RenderableType:
    """Return the signals of a loop: name, newest value, unit, sparkline, and the least and greatest value in it."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim", show_edge=False)
    columns = max(_NARROWEST, width - _BESIDE)
    table.add_column("", no_wrap=True, max_width=24)
    table.add_column("now", justify="right", min_width=11, no_wrap=True)
    table.add_column("", no_wrap=True, max_width=10)
    table.add_column("", no_wrap=True, width=columns)
    table.add_column("min", justify="right", no_wrap=True)
    table.add_column("max", justify="right", no_wrap=True)
    for trace in view.traces:
        now = _number(trace.values[-1]) if len(trace.values) else "-"
        table.add_row(
            Text(trace.name, overflow="ellipsis"), Text(now, "bold"), Text(trace.unit, overflow="ellipsis"),
            Text(sparkline(trace.values, columns), "green"), *(Text(one, "dim") for one in _range(trace)),
        )  # fmt: skip
    note = f"the last {view.samples:,} samples, {short(view.span_ns)}" if view.samples else "no samples yet"
    note += f"; {view.lost:,} lost" if view.lost else ""
    note += f"; {view.hidden} more are not shown" if view.hidden else ""
    return Group(Text.assemble(("signals", "bold"), (f"  {note}", "dim")), table)


def _range(trace: Trace) -> tuple[str, str]:
    finite = trace.values[np.isfinite(trace.values)]
    return (_number(finite.min()), _number(finite.max())) if len(finite) else ("-", "-")


def _number(value: float) -> str:
    """Format a number with up to five digits."""
    number = float(value)
    return format_value(int(number)) if number.is_integer() and abs(number) < 1e9 else f"{number:.5g}"
