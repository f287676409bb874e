"""RemoteSignals: samples of a loop's signals that arrive from another host, and independent readers of them."""

from __future__ import annotations

import threading
from collections import deque
from math import isfinite
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rtloop.errors import ConfigError, PayloadError
from rtloop.live.declared_parameters import parse_name, parse_unit
from rtloop.live.signal_set import HEAD
from rtloop.live.value_text import plain_value
from rtloop.zenoh.frames import parse_dtype, unpack

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["RemoteReader", "RemoteSignals"]

_MAX_FRAME_BYTES = 16 << 20
#: Greatest number of samples, and of their bytes, that are kept for slow readers.
_MOST_SAMPLES = 1 << 16
_MOST_SAMPLE_BYTES = 64 << 20


class RemoteReader:
    """Independent reader of the samples that arrive. Use it on one thread at a time."""

    def __init__(self, signals: RemoteSignals, position: int) -> None:
        self._signals = signals
        self.position = position
        self._overwritten = 0
        self._missing = signals.missing

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a record: ``cycle``, ``release`` and ``start``, and the signals."""
        return self._signals.dtype

    @property
    def capacity(self) -> int:
        """Number of samples that this reader may fall behind without losing any."""
        return self._signals.capacity

    @property
    def lost(self) -> int:
        """Number of samples that were lost on the way, or here because this reader was too slow."""
        return self._overwritten + self._signals.missing - self._missing

    def read(self, most: int | None = None) -> NDArray[Any]:
        """Return the samples that have arrived since the last read, oldest first, at most a number of them."""
        records, first = self._signals.since(self.position, most)
        self._overwritten += first - self.position
        self.position = first + len(records)
        return records


def _parse_limits(values: Any, names: tuple[str, ...]) -> dict[str, tuple[float | None, float | None]]:
    """Read the limits of signals as a bridge describes them.

    Raises
    ------
    ValueError, TypeError, AttributeError
        If they are not pairs of finite numbers, or of None.
    """
    found = {}
    for name, (low, high) in values.items():
        is_pair = all(one is None or (type(one) in (int, float) and isfinite(one)) for one in (low, high))
        if name not in names or not is_pair:
            raise ValueError("limits are not those of its signals")
        found[name] = (low, high)
    return found


class RemoteSignals:
    """Samples of a loop's signals that arrive from its bridge, with what `Signals` offers to readers.

    Attributes
    ----------
    names : tuple of str
        Names of the signals.
    units : mapping
        Unit of each signal.
    limits : mapping
        Lowest and highest normal value of each signal that has limits; None if it has none on that side.
    dtype : numpy.dtype
        Type of a record.
    every : int
        n, if the bridge sends every n-th sample.
    capacity : int
        Number of samples that are kept.
    missing : int
        Number of samples that were lost: on the way, and on the loop's host.
    refused : int
        Number of payloads that did not contain samples of these signals.
    """

    def __init__(self, name: str, described: Any) -> None:
        try:
            self.dtype = parse_dtype(described["dtype"])
            names = self.dtype.names or ()
            fields: Any = self.dtype.fields
            if [(one, fields[one][0].str) for one in names[:3]] != list(HEAD):
                raise ValueError("they do not begin with cycle, release and start")
            self.names = tuple(parse_name(one) for one in names[3:])
            self.units = MappingProxyType({one: parse_unit(described["units"].get(one, "")) for one in self.names})
            self.limits = MappingProxyType(_parse_limits(described.get("limits", {}), self.names))
            self.every = described["every"]
            if any(fields[one][0].base.kind not in "fiubc" for one in names):
                raise ValueError("they are not numbers")
            if type(self.every) is not int or not 0 < self.every < 1 << 40:
                raise ValueError("every is not a count")
        except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
            raise PayloadError(f"the signals of {name} are not those of a loop: {str(error)[:300]}") from None
        self.capacity = max(1, min(_MOST_SAMPLES, _MOST_SAMPLE_BYTES // self.dtype.itemsize))
        self.missing = self.refused = 0
        self._name = name
        self._kept: deque[NDArray[Any]] = deque()
        self._first = self._end = 0  # numbers of the oldest kept sample, and of the next one
        self._next: tuple[Any, int, int] | None = None  # the bridge, its next number, and what it has dropped
        self._lock = threading.RLock()  # a signal handler may read meanwhile
        self._own: RemoteReader | None = None

    def take(self, payload: bytes) -> None:
        """Take over the records of a frame, and count a malformed payload. Raises nothing."""
        try:
            if len(payload) > _MAX_FRAME_BYTES:
                raise PayloadError(f"{len(payload)} bytes are too many")
            frame = unpack(payload)
            first, dropped = frame.about.get("first", 0), frame.about.get("dropped", 0)
            if frame.records.dtype != self.dtype or not all(
                type(number) is int and 0 <= number < 1 << 62 for number in (first, dropped)
            ):
                raise PayloadError("it has no samples of these signals")
        except PayloadError:
            self.refused += 1
            return
        sender = frame.about.get("bridge_id")
        with self._lock:
            if self._next is not None and self._next[0] == sender:
                self.missing += max(0, first - self._next[1]) + max(0, dropped - self._next[2])
            self._next = sender, first + len(frame.records), dropped
            records = frame.records[-self.capacity :]
            self._kept.append(records)
            self._end += len(frame.records)
            kept = sum(map(len, self._kept))
            while kept - len(self._kept[0]) >= self.capacity:
                kept -= len(self._kept.popleft())
            self._first = self._end - kept

    def since(self, position: int, most: int | None = None) -> tuple[NDArray[Any], int]:
        """Return the kept samples from a number on, and the number of the first of them."""
        with self._lock:
            first = max(position, self._first)
            parts, at = [], self._first
            for part in self._kept:
                if at + len(part) > first:
                    parts.append(part[max(0, first - at) :])
                at += len(part)
        records = np.concatenate(parts) if parts else np.empty(0, self.dtype)
        return records if most is None else records[: max(0, most)], first

    @property
    def written(self) -> int:
        """Number of samples that have arrived."""
        return self._end

    @property
    def lost(self) -> int:
        """Number of samples that `read` has not returned and will not return."""
        return self._reader.lost

    @property
    def _reader(self) -> RemoteReader:
        if self._own is None:
            self._own = RemoteReader(self, 0)
        return self._own

    def read(self, most: int | None = None) -> NDArray[Any]:
        """Return the samples that have arrived since the last read, oldest first."""
        return self._reader.read(most)

    def reader(self, start: Literal["now", "oldest", "begin"] = "now") -> RemoteReader:
        """Return another reader; "oldest" and "begin" begin with the oldest sample that is kept."""
        return RemoteReader(self, self._end if start == "now" else self._first)

    def latest(self) -> dict[str, Any]:
        """Return the newest sample by name; empty before the first one arrives."""
        with self._lock:
            record = self._kept[-1][-1] if self._kept and len(self._kept[-1]) else None
        return {} if record is None else {name: plain_value(record[name]) for name in self.dtype.names or ()}

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __repr__(self) -> str:
        return f"<RemoteSignals of {self._name!r}: {', '.join(self.names)}>"
