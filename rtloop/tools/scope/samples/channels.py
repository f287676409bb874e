"""Channels: single numbers of a loop's samples, as they are plotted and triggered on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["INTERVALS", "INTERVAL_DTYPE", "TIMING_DTYPE", "Channel", "signal_channels", "timing_channels"]

#: Fields of a sample that are not signals.
_HEAD = ("cycle", "release", "start")
#: Most channels of one loop; the items of large arrays beyond them are not offered.
_MOST = 512

#: A cycle of the loop's own times, ns.
TIMING_DTYPE = np.dtype([("cycle", "<u8"), ("release", "<i8"), ("start", "<i8"), ("end", "<i8")])

#: Channels of a loop of another host, between two of its statistics: latency and execution in ns, and counts.
INTERVAL_DTYPE = np.dtype(
    [("cycle", "<u8"), ("release", "<i8"), ("median", "<f8"), ("late", "<f8"), ("long", "<f8"), ("overruns", "<i8")]
)


class Channel(NamedTuple):
    """One number of a sample.

    Attributes
    ----------
    name : str
        Name: of a signal, of an item of an array (``force[0]``), or of a part of a complex number (``wave.real``).
    unit : str
        Unit, or an empty string.
    values : callable
        Takes records, returns the numbers as float64.
    """

    name: str
    unit: str
    values: Callable[[NDArray[Any]], NDArray[np.float64]]


def signal_channels(dtype: np.dtype[Any], units: Mapping[str, str]) -> tuple[Channel, ...]:
    """Return the channels of a loop's signals, in the order of their declaration."""
    found: list[Channel] = []
    fields: Any = dtype.fields
    for name in dtype.names or ():
        if name in _HEAD:
            continue
        kind = fields[name][0]
        unit = units.get(name, "")
        for index in np.ndindex(*kind.shape):
            label = name + (f"[{','.join(map(str, index))}]" if index else "")
            if kind.base.kind == "c":
                found.append(Channel(f"{label}.real", unit, partial(_part, name, index, "real")))
                found.append(Channel(f"{label}.imag", unit, partial(_part, name, index, "imag")))
            else:
                found.append(Channel(label, unit, partial(_item, name, index)))
            if len(found) >= _MOST:
                return tuple(found[:_MOST])
    return tuple(found)


def _item(name: str, index: tuple[int, ...], records: NDArray[Any]) -> NDArray[np.float64]:
    place: Any = (slice(None), *index)
    return np.asarray(records[name][place], np.float64)


def _part(name: str, index: tuple[int, ...], part: str, records: NDArray[Any]) -> NDArray[np.float64]:
    place: Any = (slice(None), *index)
    return np.asarray(getattr(records[name][place], part), np.float64)


def _microseconds(later: str, earlier: str, records: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(records[later] - records[earlier], np.float64) / 1e3


def _overran(period_ns: int, records: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(records["end"] - records["release"] > period_ns, np.float64)


def _scaled(name: str, scale: float, records: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(records[name], np.float64) / scale


def timing_channels(period_ns: int) -> tuple[Channel, ...]:
    """Return the channels of the times of a loop's cycles. No signal has such a name, which is not an identifier."""
    return (
        Channel("loop.latency", "µs", partial(_microseconds, "start", "release")),
        Channel("loop.execution", "µs", partial(_microseconds, "end", "start")),
        Channel("loop.overrun", "", partial(_overran, period_ns)),
    )


#: Channels of a loop of another host, which sends no times of single cycles.
INTERVALS = (
    Channel("loop.latency.median", "µs", partial(_scaled, "median", 1e3)),
    Channel("loop.latency.p99", "µs", partial(_scaled, "late", 1e3)),
    Channel("loop.execution.p99", "µs", partial(_scaled, "long", 1e3)),
    Channel("loop.overruns", "", partial(_scaled, "overruns", 1)),
)
