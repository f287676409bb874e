"""Watch: one run of a loop, read continuously for all pages that show it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from rtloop.errors import AttachError, RtloopError, StateError
from rtloop.live.connect import connect
from rtloop.stats.records import first_index
from rtloop.tools.record.sample_stream import read_new
from rtloop.tools.scope.samples.channels import (
    INTERVAL_DTYPE,
    INTERVALS,
    TIMING_DTYPE,
    signal_channels,
    timing_channels,
)
from rtloop.tools.scope.samples.history import History

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rtloop.live.connect import Connection
    from rtloop.live.signals import SignalReader
    from rtloop.stats.figures import Swap
    from rtloop.stats.histogram import Histogram
    from rtloop.stats.stats import Stats
    from rtloop.tools.scope.sources import Source
    from rtloop.zenoh.connection import RemoteConnection
    from rtloop.zenoh.remote_signals import RemoteReader

__all__ = ["Feed", "Watch"]

#: Polls of the signals between two of the loop's own times, which cost a system call and more copying.
_TIMING_EVERY = 4
#: Least time between two statistics of a loop of another host that are kept, s.
_LEAST_INTERVAL_S = 0.05
#: Records of the loop's own times that one poll copies at most.
_MOST_TIMING = 1 << 15


class Feed:
    """One source of samples, its history, and those who look at every sample of it.

    Attributes
    ----------
    history : History
        The last samples.
    period : float
        Time between two samples, s.
    listeners : list of callable
        Called with the number of the first new sample and with the samples.
    """

    def __init__(self, history: History, period: float) -> None:
        self.history, self.period = history, period
        self.listeners: list[Callable[[int, NDArray[Any]], None]] = []
        self.restarts: list[Callable[[int], None]] = []

    def take(self, records: NDArray[Any], *, is_gap: bool) -> None:
        """Add samples. After a gap they do not follow those before."""
        if not len(records):
            return
        release = records["release"]
        if self.history.count > self.history.first and release[0] < self.history.last_release:
            self.history.forget()  # the clock was set back
            is_gap = True
        number = self.history.count
        if is_gap:
            for restart in tuple(self.restarts):
                restart(number)
        self.history.append(records)
        for listener in tuple(self.listeners):
            listener(number, records)


#: Number of the last swaps that are kept of a loop on another host.
_MOST_SWAPS = 64


class Watch:
    """One run of a loop.

    Attributes
    ----------
    connection : Connection or RemoteConnection
        To the loop.
    signals, timing : Feed or None
        Its signals, if it has some, and the times of its cycles.
    swaps : list of Swap
        Known swaps of the run.
    swap_count : int
        Number of swaps that this has followed.
    has_ended : bool
        True once the run has ended and all its samples have been read.
    stats : Stats or None
        Latest statistics.
    lock : asyncio.Lock
        Held while parameters are changed on another thread.
    """

    def __init__(self, connection: Connection | RemoteConnection, keep_s: float, name: str | None = None) -> None:
        self.connection = connection
        self.name, self.pid = name or connection.name, connection.pid
        self.period_ns = connection.period_ns
        self.has_ended = False
        self.state = "running"
        self.stats: Stats | None = None
        self.problem = ""
        self.lock = asyncio.Lock()
        self._polls = 0
        self._lost = 0
        self._lost_before = 0  # by readers of former steps
        self._keep_s = keep_s
        self._reader: SignalReader | RemoteReader | None = None
        self.signals: Feed | None = None
        self._open_signals()
        rate = 1e9 / self.period_ns
        self._is_remote = hasattr(connection, "host")  # then the times of single cycles are not known
        if self._is_remote:
            self.timing = Feed(History(INTERVAL_DTYPE, INTERVALS, int(keep_s / _LEAST_INTERVAL_S)), _LEAST_INTERVAL_S)
        else:
            timing = timing_channels(self.period_ns)
            self.timing = Feed(History(TIMING_DTYPE, timing, int(keep_s * rate)), 1 / rate)
        self._cycles: int | None = None
        self._origin: int | None = None
        self.swaps: list[Swap] = []
        self.swap_count = 0
        if not self._is_remote:
            self._note_swaps()

    def _open_signals(self) -> None:
        """Make the feed of the connection's signals."""
        connection, rate = self.connection, 1e9 / self.period_ns
        try:
            signals = connection.signals
            self._reader = signals.reader("oldest")
            channels = signal_channels(signals.dtype, signals.units)
            every = int(connection.read(records=0).settings.get("signals_every", 1)) * getattr(signals, "every", 1)
            self.signals = Feed(History(signals.dtype, channels, int(self._keep_s * rate / every)), every / rate)
        except StateError:
            pass  # it has none
        except RtloopError as error:
            self.problem = str(error)

    @classmethod
    def open(cls, source: Source, name: str, pid: int, keep_s: float) -> Watch:
        """Connect to a running loop.

        Raises
        ------
        AttachError, AttachPrivilegeError, BridgeError
            If there is no such loop, or it may not be inspected.
        """
        connection = source.connect(name, pid)
        try:
            return cls(connection, keep_s, name)
        except BaseException:
            connection.close()
            raise

    @property
    def feeds(self) -> dict[str, Feed]:
        """The feeds by name."""
        return {"timing": self.timing} if self.signals is None else {"signals": self.signals, "timing": self.timing}

    @property
    def lost(self) -> int:
        """Number of samples that this program was too slow for."""
        return self._lost_before + (0 if self._reader is None else self._reader.lost)

    def feed_of(self, channel: str) -> tuple[str, Feed] | None:
        """Return the name of a channel's feed and the feed, None if there is no such channel."""
        return next(((name, feed) for name, feed in self.feeds.items() if channel in feed.history.channels), None)

    def poll(self) -> None:
        """Read what is new. Once the loop has ended, read the rest and set `has_ended`."""
        if self.has_ended:
            return
        try:
            is_running = self.connection.state == "running"
            self._poll_signals()
            if self._polls % _TIMING_EVERY == 0 or not is_running:
                if is_running and not self._is_remote and not self.lock.locked():
                    self._follow_swap()
                (self._poll_interval if self._is_remote else self._poll_timing)()
            self._polls += 1
            if not is_running:
                self.state = self.connection.state
                self.has_ended = True
        except RtloopError as error:  # a damaged block, or a loop that was killed while it wrote
            self.problem = str(error)
            self.state = "died"
            self.has_ended = True

    def _poll_signals(self) -> None:
        if self._reader is not None and self.signals is not None:
            records = self._reader.read()
            is_gap, self._lost = self._reader.lost != self._lost, self._reader.lost
            self._set_origin(records)
            self.signals.take(records, is_gap=is_gap)

    def _note_swaps(self) -> int:
        """Note the swaps that are new, and return the first cycle of the present step."""
        telemetry = cast("Connection", self.connection).telemetry
        self.swap_count, cycle = telemetry.swaps
        known = self.swaps[-1].cycle if self.swaps else -1
        self.swaps += [one for one in telemetry.last_swaps if one.cycle > known]
        return cycle

    def _follow_swap(self) -> None:
        """Go on with the signals and the parameters of the present step, if it has taken the place of another one."""
        if cast("Connection", self.connection).telemetry.swaps[0] == self.swap_count:
            return
        cycle = self._note_swaps()
        try:
            successor = connect(cast("Connection", self.connection).label, self.pid)
        except AttachError:
            return  # it has ended
        self._poll_signals()  # the last samples of the former step
        former, lost = self.signals, self.lost
        self.connection.close()
        self.connection, self._reader, self.signals = successor, None, None
        self._open_signals()
        if self.signals is not None and self._reader is not None:
            self.signals.history.origin = self._origin or 0
            if former is not None and _are_alike(former.history, self.signals.history):
                self.signals = former
                cycle = max(cycle, former.history.last_cycle + 1)
            records, older = read_new(cast("SignalReader", self._reader), cycle)
            self._lost, self._lost_before = self._reader.lost, lost - older
            self._set_origin(records)
            self.signals.take(records, is_gap=self._lost > older)
        else:
            self._lost_before = lost

    def _poll_timing(self) -> None:
        wanted = min(256 + int(0.5e9 / self.period_ns), _MOST_TIMING)
        stats = self.stats = self.connection.read(records=wanted)
        records, first = stats.records, first_index(stats)
        if self._cycles is not None and stats.cycles < self._cycles:
            self._cycles = None  # the statistics were reset
        skip = 0 if self._cycles is None else max(0, min(self._cycles - first, len(records)))
        new = records[skip:]
        if not len(new):
            return
        is_gap = self._cycles is not None and first > self._cycles
        self._cycles = first + len(records)
        made = np.empty(len(new), TIMING_DTYPE)
        made["cycle"] = np.arange(first + skip, first + len(records), dtype=np.uint64)
        for name in ("release", "start", "end"):
            made[name] = new[name]
        self._set_origin(made)
        self.timing.take(made, is_gap=is_gap)

    def _poll_interval(self) -> None:
        """Take what the loop did since the last statistics, at the time of its newest sample."""
        former, stats = self.stats, self.connection.read(records=0)
        self.stats = stats
        swaps = stats.swaps or ()
        if len(swaps) != self.swap_count:  # the bridge continues with the signals of the new step by itself
            self.swaps, self.swap_count = list(swaps[-_MOST_SWAPS:]), len(swaps)
        if former is None or former is stats or stats.cycles <= former.cycles:
            return
        latency, execution = (
            _percentiles_between(getattr(former, name), getattr(stats, name)) for name in ("latency", "execution")
        )
        history = None if self.signals is None else self.signals.history
        if history is not None and history.count == history.first:
            return  # its clock is not known yet
        release = time.monotonic_ns() if history is None else history.last_release
        overruns = max(0, stats.overruns - former.overruns)
        made = np.array([(stats.cycles, release, *latency, execution[1], overruns)], INTERVAL_DTYPE)
        self._set_origin(made)
        self.timing.take(made, is_gap=False)

    def _set_origin(self, records: NDArray[Any]) -> None:
        if self._origin is None and len(records):
            self._origin = int(records["release"][0])
            for feed in self.feeds.values():
                feed.history.origin = self._origin

    async def close(self) -> None:
        """Close the connection, after a change that is under way."""
        async with self.lock:
            await asyncio.to_thread(self.connection.close)


def _are_alike(former: History, latter: History) -> bool:
    """Return True if both have samples of the same type, and channels of the same names and units."""
    names = [[(one.name, one.unit) for one in history.channels.values()] for history in (former, latter)]
    return former.dtype == latter.dtype and names[0] == names[1]


def _percentiles_between(former: Histogram, latter: Histogram) -> tuple[float, float]:
    """Return the median and the 99th percentile of what a histogram has counted since an earlier state of it, ns."""
    counts = latter.counts.astype(np.int64) - former.counts.astype(np.int64)
    total = int(counts.sum())
    if total <= 0 or counts.min() < 0:
        return float("nan"), float("nan")
    median, late = np.searchsorted(np.cumsum(counts), np.array((0.5, 0.99)) * total) + 1
    return float(latter.edges[median]), float(latter.edges[late])
