"""Data of ``rtloop top --zenoh``: the loops of all hosts, as their bridges report them."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rtloop.telemetry.description import clean
from rtloop.tools.options import say_once
from rtloop.tools.top.data import Row, Sample, Sampler, changes, was_reset
from rtloop.zenoh import RemoteLoop, Remotes

if TYPE_CHECKING:
    from rtloop.stats.stats import Stats

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

    @property
    def key(self) -> str:
        """Key that identifies the loop."""
        return f"{self.at}:{self.reader.name}"

    @property
    def group(self) -> str | None:
        """The host, and the group there: loops of one host come together."""
        return self.place if super().group is None else f"{self.place}/{super().group}"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a dict that JSON can hold."""
        return {**super().to_dict(), "host": self.host, "key": self.at, "group": super().group}


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
        self._past: dict[str, tuple[float, Stats]] = {}
        self._patience_s = _PATIENCE_S

    def sample(self, *, records: int = 0, records_of: str | None = None) -> Sample:
        """Ask all bridges once; they send no records."""
        found = self._remotes.ask()
        limit = time.monotonic() + self._patience_s
        self._patience_s = 0.0
        while time.monotonic() < limit:  # peers are found one after the other
            time.sleep(0.2)
            before, found = len(found), self._remotes.ask()
            if found and len(found) == before:
                break
        rows = _told_apart([self._remote_row(loop) for loop in found if self._name in (None, loop.stats.name)])
        rows.sort(key=lambda row: (row.label, row.reader.pid))
        # Anybody on the network may choose a key, and its answer.
        return Sample(rows, 0, {clean(key): clean(fault) for key, fault in self._remotes.faulty.items()})

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
        key = f"{loop.key}:{stats.name}"
        then, before = self._past.get(key, (now, None))
        self._past[key] = now, stats
        host, at = loop.host, loop.key
        if before is not None and (now <= then or was_reset(before, stats)):
            before = None
        elapsed = None if before is None else now - then
        return RemoteRow(reader, stats, None, elapsed, *changes(stats, before), host, at, host)

    def close(self) -> None:
        """Close the session."""
        super().close()
        self._remotes.close()


def _told_apart(found: list[RemoteRow]) -> list[Row]:
    """Show the key in place of the host if loops of several keys would have the same label."""
    keys: dict[str, set[str]] = {}
    for row in found:
        keys.setdefault(row.label, set()).add(row.at)
    return [replace(row, place=row.at) if len(keys[row.label]) > 1 else row for row in found]
