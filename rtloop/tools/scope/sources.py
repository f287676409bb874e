"""Sources of the scope's loops: this machine, or the bridges of a Zenoh network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from rtloop.errors import AttachError, BridgeError, RtloopError
from rtloop.live.connect import Connection, connect
from rtloop.telemetry.description import clean
from rtloop.telemetry.scan import scan
from rtloop.units import format_rate

if TYPE_CHECKING:
    from rtloop.zenoh.connection import RemoteConnection
    from rtloop.zenoh.remote import RemoteLoop, Remotes

__all__ = ["Machine", "Network", "Source"]


class Source(Protocol):
    """Source of running loops. All methods may block, and are not called on the server's thread."""

    def search(self) -> tuple[list[dict[str, Any]], str]:
        """Return the running loops for the page, and a note on those that may be missing; usually empty."""

    def connect(self, name: str, pid: int) -> Connection | RemoteConnection:
        """Connect to a loop of the last search; raise an RtloopError if that is not possible."""

    def close(self) -> None:
        """End the search."""


class Machine:
    """The loops of this machine."""

    def search(self) -> tuple[list[dict[str, Any]], str]:
        """Return the running loops, and a sentence on processes of other users."""
        try:
            found = scan()
        except AttachError as error:
            return [], str(error)
        loops = []
        for reader in found.loops:
            with reader:
                period = int(reader.settings["period_ns"])
                group = reader.settings.get("group")
                loops.append(
                    {
                        "name": reader.label,
                        "pid": reader.pid,
                        "rate": format_rate(period),
                        "group": None if group is None else str(group),
                        "has_signals": "signals" in reader.blocks,
                        "has_parameters": "parameters" in reader.blocks,
                    }
                )
        denied = len(found.denied)
        note = f"{denied} processes belong to other users and were not inspected." if denied else ""
        return loops, note

    def connect(self, name: str, pid: int) -> Connection:
        """Connect to a running loop.

        Raises
        ------
        AttachError, AttachPrivilegeError
            If there is no such loop, or it may not be inspected.
        """
        return connect(name, pid)

    def close(self) -> None:
        """Do nothing."""


class Network:
    """The loops of all hosts whose bridges answer. Their names on the page begin with the host.

    Parameters
    ----------
    remotes : Remotes
        The session, which is closed by `close`.
    name : str, optional
        Only loops of this name.
    """

    def __init__(self, remotes: Remotes, name: str | None = None) -> None:
        self._remotes, self._name = remotes, name
        self._loops: dict[tuple[str, int], RemoteLoop] = {}

    def search(self) -> tuple[list[dict[str, Any]], str]:
        """Return the running loops, and a sentence on bridges that do not answer."""
        try:
            found = self._remotes.ask()
            described = self._remotes.describe()
        except RtloopError as error:
            return [], str(error)
        found = [
            one for one in found if one.stats.state == "running" and (self._name is None or one.is_called(self._name))
        ]
        labels = [_label(one, one.host) for one in found]
        named: dict[tuple[str, int], RemoteLoop] = {}
        loops = []
        for one, label in zip(found, labels, strict=True):
            name = label if labels.count(label) == 1 else _label(one, one.key)
            if (name, one.pid) in named:
                continue  # two bridges with the same key, which Remotes.shared names
            named[name, one.pid] = one
            signals = described.get(one.key, {}).get("signals")
            loops.append(
                {
                    "name": name,
                    "pid": one.pid,
                    "rate": format_rate(int(one.stats.settings["period_ns"])),
                    "group": None if one.group is None else str(one.group),
                    "has_signals": bool(signals),
                    "has_parameters": True,
                }
            )
        self._loops = named
        silent = len(self._remotes.faulty)
        note = f"{silent} bridges did not answer, or sent an invalid answer." if silent else ""
        return loops, note

    def connect(self, name: str, pid: int) -> RemoteConnection:
        """Connect to a loop of the last search.

        Raises
        ------
        BridgeError, PayloadError
            If there is no such loop, or its bridge does not give a valid answer.
        """
        from rtloop.zenoh.connection import RemoteConnection

        loop = self._loops.get((name, pid))
        if loop is None:
            raise BridgeError(f"no bridge has answered for a running loop {name} in process {pid}")
        made = RemoteConnection(self._remotes, loop)
        if made.state != "running":
            made.close()
            raise BridgeError(f"{name} in process {pid} has ended")
        return made

    def close(self) -> None:
        """Close the session."""
        self._remotes.close()


def _label(loop: RemoteLoop, place: str) -> str:
    return clean(f"{place}/{loop.label}").replace("\n", " ")
