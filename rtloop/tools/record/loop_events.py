"""LoopEvents: events of a loop, such as overruns and page faults, as columns beside its samples."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rtloop.live.connect import Connection

__all__ = ["EVENTS", "QUANTITIES", "Happening", "LoopEvents", "Reading", "read_loop"]

#: Events by name, with a definition of each. The loop or the kernel counts all but the last.
EVENTS = {
    "overrun": "a cycle that ended after the next release",
    "missed": "a release without a cycle",
    "late": "a cycle whose release had passed before the loop waited for it",
    "stall": "an overrun of more than a second",
    "fault": "a page fault of the loop's thread",
    "violation": "a violation that a guard has found",
    "refused": "a set of parameters that the loop has refused",
    "clock_step": "a step of the clock",
    "swap": "a replacement of the step",
    "limit": "a signal outside of its limits",
}
#: Times of a sample's cycle, ns.
QUANTITIES = ("latency", "execution", "response")
#: Greatest number of happenings that are kept for the files of events.
_MOST = 100_000
#: Number of records that are copied at first; more are copied if needed.
_FEW = 1000


class Reading(NamedTuple):
    """Counters of a loop at one moment.

    Attributes
    ----------
    cycle : int
        Index of the cycle that is under way, or comes next.
    first : int
        First cycle that the counters include; a reset changes it.
    counts : dict
        Number of events of each kind since `first`, as far as known.
    records : numpy.ndarray
        ``release``, ``start`` and ``end`` of the last cycles before `cycle`, without a gap.
    swap_cycle : int
        First cycle of the present step.
    """

    cycle: int
    first: int
    counts: dict[str, int]
    records: NDArray[Any]
    swap_cycle: int = 0


class Happening(NamedTuple):
    """Events of one kind in one cycle.

    Attributes
    ----------
    event : str
        Kind, a key of `EVENTS`.
    number : int
        Number of events.
    cycle : int
        Index of the cycle, or of the last one in which they can have happened if it is not known.
    since : int
        First cycle in which they can have happened.
    """

    event: str
    number: int
    cycle: int
    since: int


def read_loop(loop: Connection, cycle: int | None = None) -> Reading:
    """Return the counters of a loop, with the records since a cycle and of the one before it."""
    wanted, now = 1, 0
    most = 1 if cycle is None else _FEW
    for _ in range(2):
        snapshot = loop.telemetry.snapshot(most)
        counters: dict[str, Any] = snapshot.counters
        first = int(counters["first_record"])
        now = first + int(counters["cycles"])
        wanted = 1 if cycle is None else max(0, now - cycle) + 1
        if wanted <= most:
            break
        most = wanted + _FEW
    swaps = loop.telemetry.swaps
    counts = {
        "overrun": counters["overruns"],
        "missed": counters["missed"],
        "late": counters["late"],
        "stall": counters["stalls"],
        "violation": sum(counters["guard"]),
        "clock_step": counters["clock_steps"],
        "swap": swaps[0],
    }
    with suppress(OSError):  # the parameters are being changed
        counts["refused"] = loop.parameters.refused
    minor, major = counters["usage"][:2]
    if minor is not None:
        counts["fault"] = minor + major
    return Reading(now, first, counts, snapshot.records[max(0, len(snapshot.records) - wanted) :], swaps[1])


class LoopEvents:
    """Attribute the events of a loop to the samples of its signals.

    Overruns, missed releases and late cycles are found in the times of the cycles, if the loop keeps them
    (``record=``). Other events are attributed to the last cycle before the reading that shows them. The sum of a column
    over all samples always equals the difference of the loop's counters.

    Parameters
    ----------
    reading : Reading
        Counters at the beginning. Earlier events do not count.
    period_ns : int
        Period of the loop.
    policy : str
        Its `overrun` policy.
    limits : mapping
        Name of a signal to its lowest and highest normal value, or None.
    """

    def __init__(
        self, reading: Reading, period_ns: int, policy: str, limits: Mapping[str, tuple[float | None, float | None]]
    ) -> None:
        self._last = reading
        self._period, self._policy = period_ns, policy
        self.limits = limits
        self.counts: dict[str, int] = dict.fromkeys(EVENTS, 0)
        self.happenings: deque[Happening] = deque(maxlen=_MOST)
        self._open: list[Happening] = []  # not yet attributed to a sample
        self._times: deque[tuple[int, NDArray[Any]]] = deque()  # first cycle, and the records from it on
        self._outside = 0.0  # signals outside of their limits at the last sample

    @property
    def cycle(self) -> int:
        """First cycle that is not known yet."""
        return self._last.cycle

    @property
    def counters(self) -> dict[str, int]:
        """Counters of the loop at the last reading, and the cycle that was under way."""
        return {"cycle": self._last.cycle, **self._last.counts}

    def change_step(self, limits: Mapping[str, tuple[float | None, float | None]]) -> None:
        """Go on with the signals and the parameters of another step, which has not refused any set yet."""
        self.limits, self._outside = limits, 0.0
        self._last.counts["refused"] = 0

    def take(self, reading: Reading) -> None:
        """Take the next reading."""
        last = self._last
        is_reset = reading.first != last.first or reading.cycle < last.cycle
        if not is_reset:
            reading = reading._replace(counts={**last.counts, **reading.counts})
        self._last = reading
        begin = reading.first if is_reset else last.cycle
        since = min(begin, reading.cycle)
        count = min(len(reading.records), reading.cycle - since)
        records = reading.records[len(reading.records) - count :]
        first = reading.cycle - count
        before = reading.records[-count - 1] if len(reading.records) > count else None
        found = self._locate(records, before)
        for name, total in reading.counts.items():
            before_count = 0 if is_reset and name not in ("refused", "swap") else last.counts.get(name, 0)
            new = max(0, total - before_count)
            if new:
                self._add(name, new, found.get(name), first, since, reading)
        if count:
            self._times.append((first, records))

    def _add(self, name: str, new: int, found: NDArray[Any] | None, first: int, since: int, reading: Reading) -> None:
        """Note `new` events in the cycles where they were found, and the rest in the last cycle."""
        newest = max(reading.cycle - 1, 0)
        if name == "swap":
            self._note(Happening(name, new, reading.swap_cycle, reading.swap_cycle if new == 1 else since))
            return
        if found is not None and int(found.sum()) <= new:
            for index in np.flatnonzero(found).tolist():
                self._note(Happening(name, int(found[index]), first + index, first + index))
            new -= int(found.sum())
        if new:
            self._note(Happening(name, new, newest, since))

    def _note(self, happening: Happening) -> None:
        self.counts[happening.event] += happening.number
        self._open.append(happening)
        self.happenings.append(happening)

    def _locate(self, records: NDArray[Any], before: Any) -> dict[str, NDArray[Any]]:
        """Return for each record the number of overruns, missed releases and late cycles."""
        if not len(records):
            return {}
        release, end = records["release"], records["end"]
        over = end - (release + self._period)
        overran = over > 0
        missed = np.zeros(len(records), np.int64)
        if self._policy == "catch-up":
            gaps = np.diff(release, append=release[-1] + self._period)
            missed[overran] = (gaps[overran] + self._period // 2) // self._period - 1
        elif self._policy != "shift":
            missed[overran] = -(-over[overran] // self._period)
        former = np.concatenate(([np.iinfo(np.int64).min if before is None else before["end"]], end[:-1]))
        return {"overrun": overran.astype(np.int64), "missed": missed, "late": (former > release).astype(np.int64)}

    def columns(self, samples: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the number of events of each kind, and the quantities, for samples of cycles before `cycle`, in order.

        An event of a cycle without a sample belongs to the next one.
        """
        cycles = samples["cycle"].astype(np.int64)
        found: dict[str, NDArray[Any]] = {name: np.zeros(len(samples)) for name in EVENTS}
        later = []
        for one in self._open:
            index = int(np.searchsorted(cycles, one.cycle))
            if index < len(cycles):
                found[one.event][index] += one.number
            else:
                later.append(one)
        self._open = later
        found["limit"] = self._count_outside(samples)
        found["latency"] = (samples["start"] - samples["release"]).astype(np.float64)
        for name in ("execution", "response"):
            found[name] = np.full(len(samples), np.nan)
        for first, records in self._times:
            inside = (cycles >= first) & (cycles < first + len(records))
            there = records[cycles[inside] - first]
            found["execution"][inside] = there["end"] - there["start"]
            found["response"][inside] = there["end"] - there["release"]
        if len(cycles):
            while self._times and self._times[0][0] + len(self._times[0][1]) <= cycles[-1]:
                self._times.popleft()
        return found

    def begin_after(self, sample: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Take the last sample before those whose events count, as an array of one; return its columns.

        A signal that is outside of its limits there has left them before.
        """
        self._outside = float(self._outside_of(sample)[-1])
        return self.columns(sample)

    def _outside_of(self, samples: NDArray[Any]) -> NDArray[Any]:
        """Return for each sample the number of signals outside of their limits."""
        outside = np.zeros(len(samples))
        for name, (low, high) in self.limits.items():
            values = samples[name].reshape(len(samples), math.prod(samples[name].shape[1:]))
            inside = np.ones(values.shape, bool)
            if low is not None:
                inside &= values >= low
            if high is not None:
                inside &= values <= high
            outside += ~inside.all(axis=1)
        return outside

    def _count_outside(self, samples: NDArray[Any]) -> NDArray[Any]:
        """Return the same, and note each signal that leaves its limits."""
        outside = self._outside_of(samples)
        if len(samples):
            more = np.diff(outside, prepend=self._outside)
            for index in np.flatnonzero(more > 0).tolist():
                cycle = int(samples["cycle"][index])
                self.counts["limit"] += int(more[index])
                self.happenings.append(Happening("limit", int(more[index]), cycle, cycle))
            self._outside = float(outside[-1])
        return outside

    def between(self, first: int, last: int) -> list[dict[str, Any]]:
        """Return what happened in these cycles, both included, for the file of an event."""
        return [
            {"event": one.event, "count": one.number, "cycle": one.cycle, "since": one.since}
            for one in self.happenings
            if first <= one.cycle <= last
        ]
