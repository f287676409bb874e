"""Recording of several hosts' signals into one ``.mcap`` file on one time line."""

from __future__ import annotations

import json
import os
import queue
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rtloop.data.record_clock import infer_clock
from rtloop.data.record_files import json_schema, record_json
from rtloop.errors import ConfigError, PayloadError, RecorderError, RTSetupWarning
from rtloop.process.exit_hooks import RECORDERS, WeakObjects, at_end, watch
from rtloop.process.nap import nap
from rtloop.telemetry.description import clean
from rtloop.zenoh.frames import Frame, unpack
from rtloop.zenoh.host_clocks import Arrival, HostClocks, Jump
from rtloop.zenoh.session import Handlers, check_expression, close_session, open_session

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Channel", "Recording", "times_of"]

_MAX_NS = 1 << 63
#: Greatest size of payloads that wait for the disk; more are lost, and counted.
_MAX_WAITING = 10_000
_MAX_BYTES = 256 << 20
#: Greatest number of signals and types, so that a peer cannot fill the file with schemas.
_MAX_SCHEMAS = 4096
#: Bridges whose numbers are kept for each signal.
_MAX_SENDERS = 64
_TURN_S = 0.1
_TIME_FIELDS = ("time", "release", "start")


@dataclass
class Channel:
    """One signal in a recording.

    Attributes
    ----------
    records : int
        Records in the file.
    lost : int
        Records that are missing by the frames' numbers: lost on the way, or here.
    dropped : int
        Records that the full rings on the hosts dropped.
    senders : dict
        Next record's number and dropped records, by the identity of a bridge.
    clock : str or None
        Clock that the records' times can only be on.
    is_shared : bool
        Whether several bridges publish it at the same time: their records are mixed.
    """

    number: int
    dtype: np.dtype[Any]
    records: int = 0
    lost: int = 0
    dropped: int = 0
    senders: dict[str, tuple[int, int]] = field(default_factory=dict)
    clock: str | None = None
    is_shared: bool = False
    begun_ns: int | None = None
    _last_sender: str | None = None

    def count(self, sender: str, first: int, records: int, dropped: int) -> None:
        """Count a frame's records, and those missing before it."""
        next_first = self.senders.get(sender, (None, 0))[0]
        if next_first is not None and first > next_first:
            self.lost += first - next_first  # a smaller number: the bridge was restarted
        # A bridge that still publishes after another one was not replaced by it.
        self.is_shared |= next_first is not None and sender != self._last_sender
        self._last_sender = sender
        self.senders.pop(sender, None)
        self.senders[sender] = first + records, dropped
        if len(self.senders) > _MAX_SENDERS:
            del self.senders[next(iter(self.senders))]
        self.dropped = sum(number for _, number in self.senders.values())


class Recording:
    """Write the signals of all bridges whose keys match to a file, until it is closed.

    The messages' times are the records' own, in the time of day of their host. They are only as good as the hosts'
    clocks are synchronised: a host whose clock disagrees with this host's, or jumps, is reported at once, in `problems`
    and in the file's metadata ``rtloop.clock``.

    Parameters
    ----------
    keys : str
        Zenoh key expression of the bridges' prefixes, ``rtloop/**``, or of signals.
    path : path
        An ``.mcap`` file; an existing one is replaced.
    config : None, path, dict or zenoh.Config
        Zenoh's own configuration.
    on_wait : callable, optional
        See :func:`open_session`.
    on_problem : callable, optional
        Called by :meth:`run` and :meth:`close` with a sentence on a clock that disagrees, or on bridges that share a
        key; by default it becomes an RTSetupWarning.

    Attributes
    ----------
    channels : dict of Channel
        By the signals' keys.
    clocks : HostClocks
        Differences between the hosts' clocks and this one's, and jumps.
    refused : int
        Payloads that were not frames; `reason` is the last one's fault.
    overflowed : int
        Payloads that came faster than the disk could take them; their records also count in `lost`.

    Raises
    ------
    BridgeError
        If no session can be opened.
    ConfigError
        On a path that does not end in ``.mcap``, and on keys that are not a Zenoh key expression.
    ModuleNotFoundError
        If ``mcap`` or Zenoh is missing.
    OSError
        If the file cannot be made.
    """

    def __init__(
        self,
        keys: str,
        path: str | os.PathLike[str],
        *,
        config: Any = None,
        on_wait: Callable[[str], None] | None = None,
        on_problem: Callable[[str], None] | None = None,
    ) -> None:
        from mcap.writer import Writer

        self.path = Path(path)
        if self.path.suffix != ".mcap":
            raise ConfigError(f"path={str(path)!r}: the name must end in .mcap")
        at = keys if "/signals/" in keys else f"{keys}/signals/*"
        check_expression(keys, at)
        self.channels: dict[str, Channel] = {}
        self.clocks = HostClocks()
        self._on_problem = on_problem
        self._told: set[str] = set()
        self.refused = self.overflowed = 0
        self.reason = ""
        self._waiting: queue.SimpleQueue[tuple[str, bytes, Arrival] | None] = queue.SimpleQueue()
        self._bytes_come = self._bytes_gone = 0  # each is written by one thread
        self._schemas = 0
        self._fault: Exception | None = None
        self._is_told = False
        self._pid = os.getpid()
        self._handlers = Handlers()
        self._session = open_session(config, on_wait=on_wait)
        try:
            self._file = self.path.open("wb")
        except BaseException:
            close_session(self._session)
            raise
        # Not on the thread that calls run(), where a KeyboardInterrupt could leave a message half-written or uncounted.
        self._thread = threading.Thread(target=self._work, name="rtloop-zenoh-recording", daemon=True)
        try:
            self._writer: Any = Writer(self._file)
            self._writer.start("", "rtloop")
            self._handlers.take_all(self._session, at, self._on_sample)
            self._thread.start()
        except BaseException:
            self._handlers.close()
            self._file.close()
            close_session(self._session)
            raise
        _recordings.add(self)
        watch()

    @property
    def records(self) -> int:
        """Number of records."""
        return sum(channel.records for channel in list(self.channels.values()))

    def _on_sample(self, sample: Any) -> None:
        payload, waiting = sample.payload.to_bytes(), self._waiting.qsize()
        if waiting >= _MAX_WAITING or (waiting and self._bytes_come - self._bytes_gone + len(payload) > _MAX_BYTES):
            self.overflowed += 1
        else:
            self._bytes_come += len(payload)
            self._waiting.put((str(sample.key_expr), payload, Arrival.now()))

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            self._bytes_gone += len(item[1])
            if self._fault is None:
                try:
                    self._take(*item)
                except Exception as error:
                    self._fault = error

    def run(self, seconds: float | None = None, *, on_turn: Callable[[], None] | None = None) -> None:
        """Record for a duration, or until KeyboardInterrupt; call `on_turn` now and then.

        Raises
        ------
        RecorderError
            If the disk refused a write.
        """
        limit = None if seconds is None else time.monotonic() + seconds
        while limit is None or time.monotonic() < limit:
            self._raise()
            nap(_TURN_S if limit is None else max(0.0, min(_TURN_S, limit - time.monotonic())))
            self._report(self.clocks.news())
            self._report(self._shared())
            if on_turn is not None:
                on_turn()

    @property
    def closed(self) -> bool:
        """True if the file is complete."""
        return bool(self._file.closed)

    @property
    def problems(self) -> list[str]:
        """A sentence for each host whose clock disagrees or jumped, and for each key that several bridges share."""
        return [*self.clocks.problems(), *self._shared()]

    def _shared(self) -> list[str]:
        found: dict[str, int] = {}
        for key, channel in list(self.channels.items()):
            if channel.is_shared:
                at = clean(key.rpartition("/signals/")[0])
                found[at] = max(found.get(at, 0), len(channel.senders))
        return [describe_shared(key, number) for key, number in found.items()]

    def _report(self, sentences: list[str]) -> None:
        for text in sentences:
            if text not in self._told:
                self._told.add(text)
                if self._on_problem is None:
                    warnings.warn(text, RTSetupWarning, stacklevel=3)
                else:
                    self._on_problem(text)

    def _raise(self) -> None:
        if self._fault is not None and not self._is_told:
            self._is_told = True
            number, reason = getattr(self._fault, "errno", None) or 0, getattr(self._fault, "strerror", None)
            text = f"{self.path}: {reason or repr(self._fault)}: recording ended after {self.records} records"
            raise RecorderError(number, text) from self._fault

    def _take(self, key: str, payload: bytes, arrival: Arrival | int) -> None:
        if isinstance(arrival, int):
            arrival = Arrival(arrival)
        try:
            frame = unpack(payload)
            channel = self._channel(key, frame)
            times = times_of(frame, channel, arrival.realtime)
            first, dropped = frame.about.get("first", 0), frame.about.get("dropped", 0)
            if not all(type(number) is int and 0 <= number < _MAX_NS for number in (first, dropped)):
                raise PayloadError("its record counts are not whole numbers")
            texts = [record_json(item, frame.records.dtype) for item in frame.records.tolist()]
        except (PayloadError, TypeError, ValueError, OverflowError, AttributeError) as error:
            self.refused += 1
            self.reason = f"{key}: {error}"
            return
        sender = frame.about.get("bridge_id")
        channel.count(sender if isinstance(sender, str) else "", first, len(texts), dropped)
        for jump in self.clocks.add(key.rpartition("/signals/")[0], frame.about, arrival):
            self._mark(jump)
        for time_ns, text in zip(times, texts, strict=True):
            self._writer.add_message(channel.number, time_ns, text.encode(), time_ns, channel.records & 0xFFFFFFFF)
            channel.records += 1

    def _mark(self, jump: Jump) -> None:
        """Write a jump into the file, between the messages before and after it."""
        about = {"event": "jump", "host": jump.host, "key": jump.key, "time_ns": jump.time_ns, "size_ns": jump.size_ns}
        self._writer.add_metadata("rtloop.clock", {name: str(value) for name, value in about.items()})

    def _channel(self, key: str, frame: Frame) -> Channel:
        channel, dtype = self.channels.get(key), frame.records.dtype
        if channel is None or channel.dtype != dtype:
            if self._schemas >= _MAX_SCHEMAS:
                raise PayloadError(f"there are {_MAX_SCHEMAS} signals and types in the file, which is the maximum")
            self._schemas += 1
            schema = json.dumps(json_schema(dtype)).encode()
            number = self._writer.register_schema(key.replace("/", "_"), "jsonschema", schema)
            made = Channel(self._writer.register_channel(f"/{key}", "json", number), dtype)
            if channel is not None:
                made.records, made.lost, made.is_shared = channel.records, channel.lost, channel.is_shared
            channel = self.channels[key] = made
        return channel

    def close(self) -> None:
        """Write what has arrived, and complete the file. Closing again does nothing.

        Raises
        ------
        RecorderError
            If the disk refused a write, and :meth:`run` has not raised it.
        """
        if self._file.closed or self._pid != os.getpid():
            return  # the threads, the session and the file are the parent's
        self._handlers.close()
        self._waiting.put(None)
        self._thread.join()
        if self._fault is None:
            try:
                self._complete()
            except Exception as error:
                self._fault = error
        with suppress(OSError):  # the rest of its buffer is refused again
            self._file.close()
        _recordings.discard(self)
        try:
            self._report(self.problems)
        finally:
            close_session(self._session)  # last, because over a cut link it can take as long as the lease
        self._raise()

    def _complete(self) -> None:
        for key, channel in self.channels.items():
            about = {"key": key, "records": channel.records, "lost": channel.lost, "dropped": channel.dropped}
            self._writer.add_metadata("rtloop", {name: str(value) for name, value in about.items()})
        for host in self.clocks.to_dict()["hosts"]:
            text = {name: json.dumps(value) if name == "jumps" else str(value) for name, value in host.items()}
            self._writer.add_metadata("rtloop.clock", {"event": "summary", **text})
        self._writer.finish()
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


_recordings: WeakObjects[Recording] = WeakObjects()


def _close_all() -> None:
    """Complete the files at the interpreter's end."""
    for recording in _recordings:
        try:
            recording.close()
        except Exception as error:
            with suppress(Exception):
                warnings.warn(str(error), RTSetupWarning, stacklevel=1)


at_end(RECORDERS, _close_all, lambda: bool(_recordings))


def times_of(frame: Frame, channel: Channel, arrived_ns: int) -> list[int]:
    """Return each record's time, ns since 1970.

    An integer `time`, `release` or `start` belongs to the clock that the frame declares, or else to the one that
    :func:`infer_clock` infers; that clock and the time of day at the moment of sending place it. A float `t` counts
    seconds from a moment that the channel's first frame fixes. Without any of these, all records get the moment of
    sending, or of arrival if the frame does not have it.
    """
    said = frame.about.get("clocks")
    clocks = {name: value for name, value in said.items() if type(value) is int} if isinstance(said, dict) else {}
    sent = clocks.get("realtime", arrived_ns)
    if not 0 <= sent < _MAX_NS:
        sent = arrived_ns
    records = frame.records
    names = records.dtype.names or ()
    for name in _TIME_FIELDS:
        if name in names and clocks and len(records) and records[name].ndim == 1 and records[name].dtype.kind in "iu":
            values = records[name].tolist()
            clock, is_only = infer_clock(max(values), clocks, frame.about.get("clock"), channel.clock)
            channel.clock = clock if is_only else channel.clock
            return [_sane(sent + value - clocks[clock], sent) for value in values]
    if "t" in names and len(records) and records["t"].ndim == 1 and records["t"].dtype.kind == "f":
        values = np.nan_to_num(records["t"], nan=0.0, posinf=0.0, neginf=0.0).tolist()
        if channel.begun_ns is None:
            channel.begun_ns = sent - round(values[-1] * 1e9)
        return [_sane(channel.begun_ns + round(value * 1e9), sent) for value in values]
    return [sent] * len(records)


def describe_shared(key: str, number: int) -> str:
    """Return the sentence on several bridges with the same key."""
    return f"{number} bridges have the key {key} at the same time: give each bridge its own, Bridge(key=...)"


def _sane(time_ns: int, otherwise: int) -> int:
    return time_ns if 0 <= time_ns < _MAX_NS else otherwise
