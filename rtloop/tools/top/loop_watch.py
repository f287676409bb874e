"""LoopWatch: the signals and parameters of the loop that ``rtloop top`` shows alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from rtloop.errors import ConfigError, RtloopError, StateError
from rtloop.live.value_text import format_value, plain_value
from rtloop.tools.parameters import parse_value
from rtloop.tools.scope.samples.channels import signal_channels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rtloop.live.connect import Connection
    from rtloop.live.declared_parameters import Parameter
    from rtloop.live.signals import SignalReader
    from rtloop.zenoh.connection import RemoteConnection
    from rtloop.zenoh.remote_signals import RemoteReader

__all__ = ["LoopView", "LoopWatch", "Trace"]

#: Number of last samples that are drawn.
_SAMPLES = 4096
#: Greatest number of signals, or of array items, that are drawn.
MOST_TRACES = 64
#: Longest wait for the loop to use new values, besides three of its periods, s.
_PATIENCE_S = 1.0


@dataclass(frozen=True)
class Trace:
    """The last samples of one number among a loop's signals."""

    name: str
    unit: str
    values: NDArray[np.float64]


@dataclass(frozen=True)
class LoopView:
    """Signals and parameters of a loop at one moment.

    Attributes
    ----------
    traces : list of Trace
        The first signals.
    hidden : int
        Number of further signals.
    samples : int
        Number of samples in each trace.
    lost : int
        Number of samples that were overwritten before they were read.
    span_ns : int
        Time between the first and the last sample of the traces.
    declared : mapping
        Type, limits and unit of each parameter.
    values : mapping
        Value of each parameter that was set last.
    problem : str
        Reason for which they could not be read; usually empty.
    """

    traces: list[Trace] = field(default_factory=list)
    hidden: int = 0
    samples: int = 0
    lost: int = 0
    span_ns: int = 0
    declared: Mapping[str, Parameter] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""


class LoopWatch:
    """Connection to one loop, made by the first poll.

    All methods may block for a moment and are therefore called on other threads than the screen's.

    Parameters
    ----------
    connect : callable
        Returns a connection to the loop, or raises an RtloopError.
    """

    def __init__(self, connect: Callable[[], Connection | RemoteConnection]) -> None:
        self._connect = connect
        self._connection: Connection | RemoteConnection | None = None
        self._reader: SignalReader | RemoteReader | None = None
        self._units: Mapping[str, str] = {}
        self._kept: NDArray[Any] | None = None
        self._is_closed = False
        self._lock = threading.Lock()

    def poll(self) -> LoopView:
        """Return the new samples together with the last ones before."""
        with self._lock:
            try:
                return self._poll(self._opened())
            except RtloopError as error:
                return LoopView(problem=str(error))

    def _opened(self) -> Connection | RemoteConnection:
        if self._is_closed:
            raise StateError("this view is closed")
        if self._connection is None:
            made = self._connect()
            try:
                signals = made.signals
                self._reader, self._units = signals.reader("oldest"), signals.units
            except StateError:
                self._reader = None  # it has no signals
            except BaseException:
                made.close()
                raise
            self._connection = made
        return self._connection

    def _poll(self, connection: Connection | RemoteConnection) -> LoopView:
        parameters = connection.parameters
        values = {name: plain_value(value) for name, value in parameters.items()}
        if self._reader is None:
            return LoopView(declared=parameters.declared, values=values)
        lost, records = self._reader.lost, self._reader.read()
        is_gap = self._reader.lost != lost or self._kept is None
        kept = records if is_gap or self._kept is None else np.concatenate((self._kept, records))
        self._kept = kept = kept[-_SAMPLES:]
        channels = signal_channels(kept.dtype, self._units)
        with np.errstate(all="ignore"):  # a signal may be infinite or not a number
            traces = [Trace(one.name, one.unit, one.values(kept)) for one in channels[:MOST_TRACES]]
        span = int(kept["release"][-1] - kept["release"][0]) if len(kept) else 0
        return LoopView(
            traces, len(channels) - len(traces), len(kept), self._reader.lost, span, parameters.declared, values
        )

    def set(self, texts: Mapping[str, str]) -> list[str]:
        """Set parameters to values that were typed, all before the same step, and return a sentence on each.

        Raises
        ------
        ConfigError
            If a text is not a value of the parameter's type, or is outside of its limits; nothing is changed then.
        RtloopError, KeyError, OSError
            As for `Parameters.update`.
        """
        with self._lock:
            connection = self._opened()
            parameters = connection.parameters
            declared, before = parameters.declared, dict(parameters)
            try:
                values = {name: parse_value(declared[name], text.strip()) for name, text in texts.items()}
            except click.BadParameter as error:
                raise ConfigError(error.message) from None
            parameters.update(values)
        is_used = parameters.wait(_PATIENCE_S + 3e-9 * connection.period_ns)
        applied = parameters.applied
        since = f"from cycle {applied.cycle:,} on" if is_used and applied is not None else "NOT YET USED by the loop"
        return [
            f"{name}: {format_value(before[name])} -> {format_value(parameters[name])}"
            f"{' ' * bool(declared[name].unit)}{declared[name].unit}, {since}"
            for name in values
        ]

    def close(self) -> None:
        """Close the connection. A second call does nothing."""
        with self._lock:
            self._is_closed = True
            connection, self._connection = self._connection, None
            self._reader = self._kept = None
            if connection is not None:
                connection.close()
