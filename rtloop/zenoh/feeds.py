"""Feeds of a bridge: signals from a ring to frames, and setpoints from frames to a Latest."""

from __future__ import annotations

import math
import struct
import threading
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from rtloop.data.ownership import claim_reader, claim_writer, release_reader, release_writer
from rtloop.data.record_clock import read_clocks
from rtloop.data.recorder import record_source
from rtloop.errors import ConfigError, PayloadError
from rtloop.settings import CLOCKS
from rtloop.system.host import uname
from rtloop.zenoh.frames import describe_dtype, find_fault, little, pack, parse_header, split
from rtloop.zenoh.host_clocks import published_state

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rtloop.live.signals import Signals

__all__ = ["NUMBERED", "Setpoint", "Signal", "Thinned", "thinning"]

#: Zenoh attachment that numbers a sender's setpoints: a random identity of the sender, and a number.
NUMBERED = struct.Struct("<QQ")
_MAX_SENDERS = 64
#: Greatest size of a frame, because a router may have to hold it.
_MAX_BATCH_BYTES = 1 << 20
#: Greatest size of a description of signals: it has to fit into the header of a frame, beside other entries.
_MAX_TYPE_BYTES = 60_000
_NUMBERS = "fiubc"


def thinning(period_ns: Fraction | int, every: int, least_ns: Fraction | None) -> int:
    """Return n such that every n-th sample of a loop's signals is at least a given time after the one before."""
    return 1 if least_ns is None else max(1, math.ceil(least_ns / (period_ns * every)))


class Thinned:
    """Every n-th sample of a loop's own signals, with the methods of a ring.

    Parameters
    ----------
    signals : Signals
        Those of the loop.
    every : int
        The n.

    Attributes
    ----------
    signals, every
        As above.
    units : dict
        Unit of each signal.
    limits : dict
        Lowest and highest normal value of each signal that has limits.
    """

    def __init__(self, signals: Signals, every: int) -> None:
        self.signals, self.every, self.units = signals, every, dict(signals.units)
        self.limits = dict(signals.limits)
        self._reader = signals.reader("oldest")
        self.dtype = self._reader.dtype
        self.capacity = self._reader.capacity
        self._skip = 0
        header = len(pack(np.empty(0, self.dtype)))
        if header > _MAX_TYPE_BYTES:
            raise ConfigError(f"the description of {len(self.units)} signals, {header:,} bytes, does not fit a frame")

    @property
    def dropped(self) -> int:
        """Number of samples that were overwritten before they were read."""
        return self._reader.lost

    def drain(self, most: int) -> NDArray[Any]:
        """Return the next samples, at most a number of them."""
        while True:
            records = self._reader.read(most * self.every)
            kept = records[self._skip :: self.every]
            self._skip = (self._skip - len(records)) % self.every
            if len(kept) or not len(records):
                return kept


class Signal:
    """Ring whose records are published; the bridge is its only reader.

    Parameters
    ----------
    source : Signals, Ring, SignalLog, or a pair of one and the clock of its records' times
        For example ``loop.signals`` or ``(loop.log, "tai")``.
    bridge_id : str
        Identity of the bridge's process in the frames.
    clock : str, optional
        The loops' clock, which a field `release` or `start` is on unless the source says otherwise.

    Attributes
    ----------
    source
        As given; of Thinned samples, the signals that they are of.
    taken : int
        Records taken out of the ring so far.
    unheard : int
        Those of them that were not sent, because there was no subscriber or Zenoh failed.
    frames : int
        Frames that the others were sent in.
    """

    def __init__(self, name: str, source: Any, bridge_id: str = "", clock: str | None = None) -> None:
        source, declared = source if isinstance(source, tuple) and len(source) == 2 else (source, None)
        self.source = source.signals if isinstance(source, Thinned) else source
        if declared is not None and declared not in CLOCKS:
            raise ConfigError(f"signals[{name!r}]: {declared!r} is not a clock; give one of {', '.join(CLOCKS)}")
        ring = record_source(source)
        if not all(hasattr(ring, attribute) for attribute in ("drain", "dropped", "dtype")):
            raise ConfigError(f"signals[{name!r}] is {source!r}; give loop.signals, a Ring or a SignalLog")
        claim_reader(ring)
        self.name, self.ring = name, ring
        self.taken = self.unheard = self.frames = 0
        self._dropped_before = ring.dropped
        self._most = max(1, _MAX_BATCH_BYTES // ring.dtype.itemsize)
        # A program's own field `time` may be on another clock than its loops.
        names = ring.dtype.names or ()
        self.clock = declared or (clock if "time" not in names and {"release", "start"} & set(names) else None)
        self._about = {"host": uname().nodename, "bridge_id": bridge_id,
                       **({"clock": self.clock} if self.clock else {}),
                       **({"every": ring.every} if isinstance(ring, Thinned) else {})}  # fmt: skip

    @property
    def dropped(self) -> int:
        """Records that the full ring dropped since the bridge reads it."""
        dropped: int = self.ring.dropped - self._dropped_before
        return dropped

    def describe(self) -> dict[str, Any]:
        """Return the description for peers."""
        own: dict[str, Any] = {}
        if isinstance(self.ring, Thinned):
            own = {"every": self.ring.every, "units": self.ring.units, "limits": self.ring.limits}
        return {"dtype": describe_dtype(self.ring.dtype), "capacity": self.ring.capacity, "clock": self.clock, **own}

    def drain(self, publisher: Any) -> None:
        """Publish what is in the ring, if there is a publisher."""
        while True:
            try:
                records = self.ring.drain(self._most)
            except BufferError:
                return  # the ring's items are being viewed in place: try again next time
            if not len(records):
                return
            first, self.taken = self.taken, self.taken + len(records)
            is_sent = False
            try:
                if publisher is not None and publisher.matching_status.matching:
                    about = {**self._about, "clocks": read_clocks(), "time_sync": published_state()}
                    publisher.put(pack(records, first=first, dropped=self.dropped, **about))
                    is_sent = True
            finally:
                self.frames += is_sent
                self.unheard += 0 if is_sent else len(records)
            if len(records) < self._most:
                return

    def close(self) -> None:
        """Release the ring."""
        release_reader(self.ring)


class Setpoint:
    """Latest that is written by subscription; the bridge is its only writer.

    A payload must be a frame of exactly its type with one record of finite numbers that `check` accepts; others are
    refused.

    Attributes
    ----------
    accepted, refused : int
        Payloads.
    skipped : int
        Setpoints that were never read, by the senders' numbers.
    reason : str
        Why the last one was refused.
    """

    def __init__(self, name: str, target: Any) -> None:
        latest, check = target if isinstance(target, tuple) and len(target) == 2 else (target, None)
        if check is not None and not callable(check):
            raise ConfigError(f"setpoints[{name!r}]: {check!r} is not a function that takes a value and returns a bool")
        if not all(hasattr(latest, attribute) for attribute in ("write", "written", "dtype")):
            raise ConfigError(f"setpoints[{name!r}] is {latest!r}; give a Latest, or a Latest and a function")
        if not _is_numeric(latest.dtype):
            raise ConfigError(f"setpoints[{name!r}]: {latest.dtype} has fields that are not numbers")
        if latest.dtype != little(latest.dtype):
            raise ConfigError(f"setpoints[{name!r}]: {latest.dtype} is not little-endian")
        claim_writer(latest)
        self.name, self.latest = name, latest
        self.accepted = self.refused = self.skipped = 0
        self.reason = ""
        self._numbers: dict[int, int] = {}
        self._check: Callable[[Any], bool] | None = check
        self._described = describe_dtype(latest.dtype)
        self._known = b""
        self._lock = threading.Lock()
        self._is_closed = False

    def describe(self) -> dict[str, Any]:
        """Return the description for peers."""
        return {"dtype": self._described}

    def take(self, payload: bytes) -> None:
        """Make a payload the newest value, or count it as refused. Raises nothing."""
        try:
            value = self._read(payload)
            with self._lock:
                if self._is_closed:  # closed while the program's own check ran
                    raise PayloadError("the bridge is closed")
                self.latest.write(value)
        except Exception as error:  # the program's own check may raise anything
            self.refuse(str(error))
        else:
            self.accepted += 1

    def count(self, attachment: bytes) -> None:
        """Count a sender's missing setpoints by its numbers."""
        if len(attachment) != NUMBERED.size:
            return  # another program's attachment
        sender, number = NUMBERED.unpack(attachment)
        last = self._numbers.pop(sender, None)
        if last is not None and number > last:
            self.skipped += number - last - 1
        elif len(self._numbers) >= _MAX_SENDERS:
            del self._numbers[next(iter(self._numbers))]  # the sender that has been silent for longest
        self._numbers[sender] = number

    def refuse(self, reason: str) -> None:
        """Count a payload that is refused without being read."""
        self.refused += 1
        self.reason = reason

    def _read(self, payload: bytes) -> Any:
        size = self.latest.dtype.itemsize
        if len(payload) > size + (1 << 16):
            raise PayloadError(f"{len(payload)} bytes are more than a value of {size} bytes can take")
        text, begin = split(payload)
        if text != self._known:  # a frequent sender repeats its header
            dtype, count, _ = parse_header(text)
            if describe_dtype(dtype) != self._described or count != 1:
                raise PayloadError(f"it is {count} of {dtype}, and not one of {self.latest.dtype}")
            self._known = text
        if len(payload) - begin != size:
            raise PayloadError(f"it has {len(payload) - begin} bytes of value, and a value has {size}")
        value = np.frombuffer(payload, self.latest.dtype, 1, begin)
        fault = find_fault(value)
        if fault:
            raise PayloadError(fault)
        if self._check is not None and not self._check(value[0]):
            raise PayloadError("the program's own check refused it")
        return value

    def close(self) -> None:
        """Release the Latest; nothing is written from now on."""
        with self._lock:
            self._is_closed = True
        release_writer(self.latest)


def _is_numeric(dtype: np.dtype[Any]) -> bool:
    if dtype.subdtype is not None:
        return _is_numeric(dtype.subdtype[0])
    if dtype.names is not None:
        fields: Any = dtype.fields
        return all(_is_numeric(fields[name][0]) for name in dtype.names)
    return dtype.kind in _NUMBERS
