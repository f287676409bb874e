"""Data of ``rtloop top``: the running loops, sampled repeatedly, and their changes between two samples."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from rtloop.errors import AttachError
from rtloop.live.connect import Connection
from rtloop.stats.histogram import Histogram
from rtloop.stats.table import is_any_cpu
from rtloop.telemetry.denied import describe_skipped
from rtloop.telemetry.loop_reader import LoopReader
from rtloop.telemetry.scan import scan

if TYPE_CHECKING:
    from rtloop.sharing.block_files import BlockFile
    from rtloop.stats.stats import Stats
    from rtloop.zenoh.connection import RemoteConnection

__all__ = ["History", "Row", "Sample", "Sampler", "difference"]

#: Blocks of one other user that may be found unreadable in a sample: each is waited for, a tenth of a second.
_MOST_TORN = 3
#: Samples until an unreadable block is looked at again, at most.
_MOST_PAUSE = 64


@dataclass(frozen=True)
class Row:
    """One loop at one moment: its figures since the start or the last reset, and since the sample before.

    Attributes
    ----------
    seconds : float or None
        Between the two samples; None without an earlier one.
    cycles, missed, overruns : int
        Since the sample before.
    before : Stats or None
        The sample before; None without one, and after a reset.
    """

    reader: LoopReader
    stats: Stats
    cpu: int | None
    seconds: float | None
    cycles: int
    missed: int
    overruns: int
    before: Stats | None

    @cached_property
    def latency(self) -> Histogram:
        """Latency since the sample before; its `min` and `max` are those of bins."""
        return Histogram.empty() if self.before is None else difference(self.stats.latency, self.before.latency)

    @cached_property
    def execution(self) -> Histogram:
        """Execution time since the sample before; its `min` and `max` are those of bins."""
        return Histogram.empty() if self.before is None else difference(self.stats.execution, self.before.execution)

    @property
    def key(self) -> str:
        """Key that identifies the loop."""
        return key_of(self.reader)

    @property
    def group(self) -> str | None:
        """The name of the loop's group, None for a loop that runs alone."""
        group = self.stats.settings.get("group")
        return None if group is None else str(group)

    @property
    def label(self) -> str:
        """The loop's name, after that of its group; so the loops of a group come together."""
        return self.reader.name if self.group is None else f"{self.group}/{self.reader.name}"

    @property
    def rate(self) -> float | None:
        """Cycles per second since the sample before; None without one."""
        return self.cycles / self.seconds if self.seconds else None

    @property
    def cpus(self) -> str:
        """CPUs that the loop may run on, or ``any`` and the one that it ran on last if it may run on all."""
        for grant in self.stats.grants:
            if grant.name == "cpu" and not is_any_cpu(grant, self.stats.host.get("cpus")):
                return str(grant.granted)
        return "any" if self.cpu is None else f"any({self.cpu})"

    @property
    def faults(self) -> int | None:
        """Page faults of both kinds since the warm-up; None if unknown."""
        minor, major = self.stats.page_faults
        return None if minor is None or major is None else minor + major

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a dict that JSON can hold."""
        return {
            "pid": self.reader.pid,
            "tid": self.reader.tid,
            "name": self.reader.name,
            "group": self.group,
            "state": self.stats.state,
            "period_ns": self.stats.settings["period_ns"],
            "policy": self.reader.policy,
            "cpus": self.cpus,
            "last_cpu": self.cpu,
            "started_ns": self.reader.started_ns,
            "stats": self.stats.to_dict(),
        }


@dataclass(frozen=True)
class _Fault:
    """Block that could not be read: its fault, and the number of the sample that looks at it again."""

    text: str
    pause: int
    retry: int


@dataclass(frozen=True)
class Sample:
    """All loops at one moment, those that could not be read, and warnings, a sentence each."""

    rows: list[Row] = field(default_factory=list)
    denied: int = 0
    faulty: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


class History:
    """The last sample of each loop, since which the changes in its next row are counted."""

    def __init__(self) -> None:
        self._last: dict[Hashable, tuple[float, Stats]] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._last

    def count_changes(
        self, key: Hashable, now: float, stats: Stats
    ) -> tuple[float | None, int, int, int, Stats | None]:
        """Remember a sample, and return the fields of a row from `seconds` on.

        Parameters
        ----------
        key : hashable
            Key that identifies the loop.
        now : float
            Time of the sample, seconds; one that is not later than the last sample's is the first of a new count.
        stats : Stats
            The sample.
        """
        then, before = self._last.get(key, (now, None))
        self._last[key] = now, stats
        if before is None or now <= then or _was_reset(before, stats):
            return None, 0, 0, 0, None
        return (
            now - then,
            stats.cycles - before.cycles,
            stats.missed - before.missed,
            stats.overruns - before.overruns,
            before,
        )

    def forget(self, key: Hashable) -> None:
        """Forget a loop that has ended. Does nothing if it is unknown."""
        self._last.pop(key, None)

    def forget_others(self, keys: Iterable[Hashable]) -> None:
        """Forget all loops but these."""
        self._last = {key: self._last[key] for key in keys if key in self._last}


class Sampler:
    """Readers of all running loops: finds new loops, and drops those that have ended.

    Parameters
    ----------
    pid, name
        Only loops of this process, and of this name.
    """

    def __init__(self, pid: int | None = None, name: str | None = None) -> None:
        self._pid, self._name = pid, name
        self._readers: dict[BlockFile, LoopReader] = {}
        self._past = History()
        self._faults: dict[BlockFile, _Fault] = {}
        self._number = 0

    def sample(self, *, records: int = 0, records_of: str | None = None) -> Sample:
        """Sample all loops once.

        Parameters
        ----------
        records : int
            Number of last cycles to copy.
        records_of : str, optional
            The key of the row whose cycles to copy; all rows by default.
        """
        self._number += 1
        waiting = {file: one.text for file, one in self._faults.items() if self._number < one.retry}
        found = scan(self._pid, known=self._readers.keys() | waiting.keys())
        for reader in found.loops:
            if self._name is None or reader.is_called(self._name):
                self._readers[reader.file] = reader
        faulty = {file: text for file, text in waiting.items() if file.is_open()}
        for file, text in found.faulty.items():
            self._note_fault(file, text)
            faulty[file] = text
        rows = []
        files: dict[str, str] = {}
        torn: Counter[int] = Counter()
        for file, reader in list(self._readers.items()):
            wanted = records if records_of in (None, key_of(reader)) else 0
            # Each block that is never whole is waited for: of another user, only for some in each sample.
            is_late = reader.is_foreign and torn[file.uid] >= _MOST_TORN and file not in self._past
            if (file in waiting or is_late) and reader.state == "running":
                faulty.setdefault(file, "not looked at, because other blocks of its user could not be read")
                continue
            try:
                row = self._row(reader, wanted, files)
            except AttachError as error:
                row = None
                if reader.state == "running":
                    torn[file.uid] += 1
                    self._note_fault(file, str(error))
                    faulty[file] = str(error)
                    continue
            if row is None:
                self._forget(file)
            else:
                rows.append(row)
                self._faults.pop(file, None)
        rows.sort(key=lambda row: (row.label, row.reader.pid, row.reader.tid))
        self._faults = {file: one for file, one in self._faults.items() if file in faulty}
        texts = {file.path: text for file, text in faulty.items()}
        return Sample(rows, len(found.denied), texts, [describe_skipped(uid) for uid in found.skipped])

    def connect(self, key: str) -> Connection | RemoteConnection:
        """Connect to the loop of the row with a key, for its signals and parameters.

        Raises
        ------
        AttachError
            If it has ended, or cannot be read.
        """
        reader = next((reader for reader in tuple(self._readers.values()) if key_of(reader) == key), None)
        if reader is None:
            raise AttachError("the loop has ended")
        chosen: LoopReader | None = None
        for one in scan(reader.pid).loops:
            if one.file == reader.file and one.is_described:
                chosen = one
            else:
                one.close()
        if chosen is None:
            raise AttachError(f"{reader.name} has ended, or has not written its description yet")
        try:
            return Connection(chosen)
        except BaseException:
            chosen.close()
            raise

    def _note_fault(self, file: BlockFile, text: str) -> None:
        """Look at a block that could not be read less and less often."""
        before = self._faults.get(file)
        pause = 1 if before is None else min(2 * before.pause, _MOST_PAUSE)
        self._faults[file] = _Fault(text, pause, self._number + pause)

    def describe_none(self) -> str:
        """Return the sentence that no such loop runs."""
        asked = [f"of the name {self._name!r}"] if self._name is not None else []
        asked += [f"in process {self._pid}"] if self._pid is not None else []
        return f"No loop {' '.join([*asked, 'runs'])}."

    def _row(self, reader: LoopReader, records: int, files: dict[str, str]) -> Row | None:
        (stats, cpu), now = reader.sample(records, files), time.monotonic()
        if stats.state != "running":
            return None
        return Row(reader, stats, cpu, *self._past.count_changes(reader.file, now, stats))

    def _forget(self, file: BlockFile) -> None:
        self._past.forget(file)
        self._readers.pop(file).close()

    def close(self) -> None:
        """Close all readers."""
        for file in list(self._readers):
            self._forget(file)


def key_of(reader: LoopReader) -> str:
    """Return the key that identifies a loop."""
    return f"{reader.pid}:{reader.file.inode}"


def _was_reset(before: Stats, now: Stats) -> bool:
    """Return True if the statistics were reset between two samples."""
    return now.cycles < before.cycles or any(
        bool((getattr(now, name).counts < getattr(before, name).counts).any()) for name in ("latency", "execution")
    )


def difference(now: Histogram, before: Histogram) -> Histogram:
    """Return the values that a histogram got between two samples; their limits are those of bins."""
    counts = now.counts - before.counts
    used = np.flatnonzero(counts)
    if not used.size:
        return Histogram.empty()
    edges = now.edges
    low = max(int(edges[used[0]]), now.min)
    high = now.max if np.isinf(edges[used[-1] + 1]) else min(int(edges[used[-1] + 1]) - 1, now.max)
    total = now.mean * now.count - (before.mean * before.count if before.count else 0)
    return Histogram(counts, total=round(total), minimum=min(low, high), maximum=high)
