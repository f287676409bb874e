"""Data of ``rtloop top --zenoh``: the loops of all hosts, as their bridges report them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from rtloop.errors import BridgeError
from rtloop.process.nap import nap
from rtloop.system.time_sync import read_time_sync
from rtloop.telemetry.description import clean
from rtloop.tools.options import say_once
from rtloop.tools.top.sampler import Row, Sample, Sampler
from rtloop.zenoh import RemoteConnection, RemoteLoop, Remotes
from rtloop.zenoh.host_clocks import compare, compare_tai

__all__ = ["RemoteRow", "RemoteSampler"]

#: Seconds that the first sample waits until a bridge is found.
_PATIENCE_S = 3.0


@dataclass(frozen=True)
class RemoteReader:
    """Attributes of a loop's reader that a row uses."""

    pid: int
    tid: int
    name: str
    policy: str
    started_ns: int


@dataclass(frozen=True)
class RemoteRow(Row):
    """A loop of any host at one moment."""

    host: str
    at: str
    place: str  # shown before the name: the host, or the key if the host is ambiguous
    bridge_id: str = ""
    clock: dict[str, Any] = field(default_factory=dict)  # state of the host's clock, and how far it is behind this one

    @property
    def key(self) -> str:
        """Key that identifies the loop."""
        return f"{self.at}:{self.bridge_id}:{self.reader.pid}:{self.reader.name}"

    @property
    def group(self) -> str | None:
        """The host, and the group there: loops of one host come together."""
        return self.place if super().group is None else f"{self.place}/{super().group}"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a dict that JSON can hold."""
        about = {"host": self.host, "key": self.at, "bridge_id": self.bridge_id, "clock": self.clock}
        return {**super().to_dict(), **about, "group": super().group}


class RemoteSampler(Sampler):
    """Samples of all bridges, taken repeatedly.

    Parameters
    ----------
    keys : str
        Key expression of the bridges' keys.
    config : path, optional
        Zenoh's own configuration.
    name : str, optional
        Only loops of this name.
    """

    def __init__(self, keys: str, config: str | None = None, name: str | None = None) -> None:
        super().__init__(None, name)
        self._remotes = Remotes(keys, config=config, on_wait=say_once())
        self._patience_s = _PATIENCE_S
        self._loops: dict[str, RemoteLoop] = {}  # those of the last sample, by the keys of their rows

    def sample(self, *, records: int = 0, records_of: str | None = None) -> Sample:
        """Ask all bridges once; they send no records."""
        found = self._remotes.ask()
        limit = time.monotonic() + self._patience_s
        self._patience_s = 0.0
        while time.monotonic() < limit:  # peers are found one after the other
            nap(0.2)
            before, found = len(found), self._remotes.ask()
            if found and len(found) == before:
                break
        loops = [loop for loop in found if self._name is None or loop.is_called(self._name)]
        made = [self._remote_row(loop) for loop in loops]
        self._loops = {row.key: loop for row, loop in zip(made, loops, strict=True)}
        rows = _told_apart(made)
        self._past.forget_others(map(_identity, loops))
        rows.sort(key=lambda row: (row.label, row.reader.pid))
        # Anybody on the network may choose a key, and its answer.
        faulty = {clean(key): clean(fault) for key, fault in self._remotes.faulty.items()}
        return Sample(rows, 0, faulty, list(dict.fromkeys(self._warnings(found))))

    def _warnings(self, found: list[RemoteLoop]) -> Iterator[str]:
        """Yield a sentence for each host whose clock disagrees with this one's, and each key of several bridges."""
        own = read_time_sync()
        furthest: dict[str, RemoteLoop] = {}
        for loop in found:
            before = furthest.setdefault(loop.host, loop)
            if abs(loop.behind_ns) > abs(before.behind_ns):
                furthest[loop.host] = loop
        for host, loop in furthest.items():
            if loop.behind_ns:
                yield compare(host, loop.behind_ns)
            offset = loop.time_sync.get("tai_offset_s")
            if own is not None and offset is not None and offset != own.tai_offset_s:
                yield compare_tai(host, offset, own.tai_offset_s)
        for key, loops in getattr(self._remotes, "shared", {}).items():
            where = ", ".join(f"process {loop.pid} on {loop.host}" for loop in loops[:8])
            yield f"{len(loops)} bridges have the key {key} ({where}): give each bridge its own, Bridge(key=...)"

    def connect(self, key: str) -> RemoteConnection:
        """Connect to the loop of the row with a key, over its bridge.

        Raises
        ------
        BridgeError, PayloadError
            If it has ended, or its bridge does not give a valid answer.
        """
        loop = self._loops.get(key)
        if loop is None:
            raise BridgeError("its bridge no longer answers")
        return RemoteConnection(self._remotes, loop)

    def describe_none(self) -> str:
        """Return the sentence that no bridge answers."""
        of = "" if self._name is None else f" of the name {self._name!r}"
        return f"No bridge of {self._remotes.keys} has answered for a loop{of}."

    def _remote_row(self, loop: RemoteLoop) -> RemoteRow:
        stats, now = loop.stats, loop.time_ns * 1e-9
        settings = stats.settings
        policy = str(settings.get("policy", "-"))
        if policy in ("fifo", "rr"):
            policy += f" {settings.get('priority', '')}"
        reader: Any = RemoteReader(loop.pid, 0, stats.name.replace("\n", "\N{REPLACEMENT CHARACTER}"), policy, 0)
        host, at, clock = loop.host, loop.key, {"behind_ns": loop.behind_ns, **loop.time_sync}
        changed = self._past.count_changes(_identity(loop), now, stats)
        return RemoteRow(reader, stats, None, *changed, host, at, host, loop.bridge_id, clock)

    def close(self) -> None:
        """Close the session."""
        super().close()
        self._remotes.close()  # may raise KeyboardInterrupt, over a cut link


def _identity(loop: RemoteLoop) -> tuple[str, str, str, int, str]:
    return loop.key, loop.bridge_id, loop.host, loop.pid, loop.stats.name


def _told_apart(found: list[RemoteRow]) -> list[Row]:
    """Show the key, or the process if that is the same, in place of the host if loops would have the same label."""
    keys: dict[str, set[str]] = {}
    bridges: dict[tuple[str, str], set[tuple[str, int]]] = {}
    for row in found:
        keys.setdefault(row.label, set()).add(row.at)
        bridges.setdefault((row.label, row.at), set()).add((row.bridge_id, row.reader.pid))

    def place(row: RemoteRow) -> str:
        at = row.at if len(keys[row.label]) > 1 else row.host
        return at if len(bridges[row.label, row.at]) == 1 else f"{at}:{row.reader.pid}"

    return [replace(row, place=place(row)) for row in found]
