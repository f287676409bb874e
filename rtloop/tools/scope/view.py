"""View: which samples a page shows, and the frame that it draws of them."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from rtloop.errors import ConfigError
from rtloop.units import show

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rtloop.stats.figures import Swap
    from rtloop.tools.scope.samples.history import History

__all__ = ["MODES", "View", "make_frame", "name_swap", "pack_frame", "parse_view"]

MODES = ("time", "xy", "histogram")
_MOST_CHANNELS, _MOST_COLUMNS = 64, 4096
#: Points of an XY view, and samples of a histogram.
_MOST_POINTS, _MOST_COUNTED, _BINS = 4000, 1_000_000, 80


@dataclass(frozen=True)
class View:
    """Selection that a page shows: a mode, its channels and its span.

    Attributes
    ----------
    mode : str
        One of `MODES`.
    channels : tuple of str
        Channels to draw; in mode ``"xy"`` the first one is on the x axis.
    window : float
        Time that is shown, s, up to the newest sample.
    span : (float, float) or None
        Begin and end of a zoomed view, s; None shows the window.
    columns : int
        Width of the plot, pixels.
    is_capture : bool
        Show the last capture of the trigger. Its times are relative to the edge.
    """

    mode: str = "time"
    channels: tuple[str, ...] = ()
    window: float = 10.0
    span: tuple[float, float] | None = None
    columns: int = 800
    is_capture: bool = False
    number: int = field(default=0, compare=False)


def parse_view(message: Mapping[str, Any]) -> View:
    """Return the view that a page asks for.

    Raises
    ------
    ConfigError
        If it is invalid.
    """
    try:
        mode, channels = str(message["mode"]), tuple(map(str, message["channels"]))
        window, columns = float(message["window"]), int(message["columns"])
        span = message.get("span")
        pair = None if span is None else (float(span[0]), float(span[1]))
        number = int(message.get("number", 0))
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise ConfigError(f"the view is invalid: {error!r}") from None
    numbers = [window, *(pair or ())]
    if mode not in MODES or not all(map(math.isfinite, numbers)) or window <= 0 or (pair and pair[0] >= pair[1]):
        raise ConfigError(f"the view is invalid: {show(dict(message))}")
    columns = max(16, min(columns, _MOST_COLUMNS))
    return View(mode, channels[:_MOST_CHANNELS], window, pair, columns, bool(message.get("is_capture")), number)


def make_frame(
    view: View, histories: Mapping[str, History], header: dict[str, Any], swaps: Sequence[Swap] = ()
) -> bytes:
    """Return the frame of a view.

    Parameters
    ----------
    view : View
        What to show.
    histories : mapping
        By feed, the samples to show.
    header : dict
        Further facts for the page.
    swaps : sequence of Swap, optional
        Swaps of the run, which are marked at the first sample of the new step.
    """
    filled = [one for one in histories.values() if one.count > one.first]
    first = next((one for one in histories.values() if one.count > one.first), None)
    newest = 0.0 if first is None else first.time(first.count - 1)
    oldest = min((one.time(one.first) for one in filled), default=0.0)
    begin, end = view.span if view.span is not None else (newest - view.window, newest)
    if view.is_capture and view.span is None:
        begin, end = oldest, newest
    header = {**header, "kind": "frame", "mode": view.mode, "begin": begin, "end": end, "newest": newest,
              "oldest": oldest, "view": view.number}  # fmt: skip
    if view.mode == "time":
        header["marks"] = _marks(swaps, histories, begin, end)
    arrays: list[NDArray[np.float64]] = []
    groups = {"time": _lines, "xy": _points, "histogram": _counts}[view.mode](view, histories, (begin, end), arrays)
    return pack_frame({**header, "groups": groups}, arrays)


def _places(history: History, begin: float, end: float) -> tuple[int, int]:
    """Return the samples to draw: one more on each side, so that lines reach the edge of the plot."""
    return history.find(begin) - 1, history.find(end) + 2


def _marks(swaps: Sequence[Swap], histories: Mapping[str, History], begin: float, end: float) -> list[dict[str, Any]]:
    """Return the times and the names of the steps that begin in a span."""
    marks = []
    for swap in swaps:
        for history in histories.values():
            number = history.find_cycle(swap.cycle)
            if number is not None:
                time = history.time(number)
                if begin <= time <= end:
                    marks.append({"time": time, "cycle": swap.cycle, "name": name_swap(swap)})
                break
    return marks


def name_swap(swap: Swap) -> str:
    """Return the name of the new step, or of the former one and the reason for which the loop went back to it."""
    return swap.successor if swap.reason is None else f"back to {swap.successor}: {swap.reason}"


def _chosen(view: View, history: History) -> list[str]:
    return [name for name in view.channels if name in history.channels]


def _lines(
    view: View, histories: Mapping[str, History], span: tuple[float, float], arrays: list[NDArray[np.float64]]
) -> list[dict[str, Any]]:
    groups = []
    for history in histories.values():
        names = _chosen(view, history)
        if names and history.count > history.first:
            line = history.line(names, *_places(history, *span), view.columns)
            arrays += [line.times, *line.values]
            groups.append({"channels": names, "samples": line.samples})
    return groups


def _points(
    view: View, histories: Mapping[str, History], span: tuple[float, float], arrays: list[NDArray[np.float64]]
) -> list[dict[str, Any]]:
    """Return the values themselves of one feed, so that those of one cycle stay together; not all if they are many."""
    for history in histories.values():
        names = _chosen(view, history)
        if len(names) > 1 and names[0] == view.channels[0]:
            begin, end = history.find(span[0]), history.find(span[1]) + 1
            records = history.records(begin, end)
            step = -(-len(records) // _MOST_POINTS) if len(records) else 1
            arrays += [history.channels[name].values(records[::step]) for name in names]
            return [{"channels": names, "samples": step}]
    return []


def _counts(
    view: View, histories: Mapping[str, History], span: tuple[float, float], arrays: list[NDArray[np.float64]]
) -> list[dict[str, Any]]:
    groups = []
    for history in histories.values():
        begin, end = history.find(span[0]), history.find(span[1]) + 1
        for name in _chosen(view, history):
            values = history.values(name, max(begin, end - _MOST_COUNTED), end)
            values = values[np.isfinite(values)]
            if len(values):
                low, high = float(values.min()), float(values.max())
                room = (high - low) * 1e-9 or abs(low) * 1e-9 or 1e-9  # all values are equal
                counts, edges = np.histogram(values, _BINS, (low - room, high + room))
                arrays += [edges.astype(np.float64), counts.astype(np.float64)]
                facts = {"mean": float(values.mean()), "deviation": float(values.std()), "low": low, "high": high}
                groups.append({"channels": [name], "samples": len(values), **facts})
    return groups


def pack_frame(header: dict[str, Any], arrays: Sequence[NDArray[np.float64]]) -> bytes:
    """Return a message: the length of the header, the header as JSON, padding to 8 bytes, and the arrays.

    The header gets the length of each array as `lengths`.
    """
    text = json.dumps({**header, "lengths": [len(one) for one in arrays]}, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 4) % 8)
    parts = [struct.pack("<I", len(text)), text]
    parts += [np.ascontiguousarray(one, "<f8").tobytes() for one in arrays]
    return b"".join(parts)
