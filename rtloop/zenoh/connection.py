"""RemoteConnection: the parameters, signals and statistics of a loop on another host."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any

from rtloop.errors import BridgeError, PayloadError, StateError
from rtloop.live.parameter_set import this_writer
from rtloop.live.parameters import Parameters
from rtloop.process.exit_hooks import RECORDERS, WeakObjects, at_end, watch
from rtloop.process.nap import nap
from rtloop.stats.stats import Stats
from rtloop.zenoh.answers import SET
from rtloop.zenoh.remote import RemoteLoop, Remotes, parse_stats
from rtloop.zenoh.remote_parameters import RemoteParameterSet
from rtloop.zenoh.remote_signals import RemoteSignals
from rtloop.zenoh.session import Handlers, engine, key_chunk
from rtloop.zenoh.tuning import make_set

__all__ = ["RemoteConnection", "connect", "find_loop"]

#: Longest wait for an answer, s.
_PATIENCE_S = 3.0


class RemoteConnection:
    """A connection to a loop on another host through its bridge, like that of `rtloop.connect` on one machine.

    The bridge sends changes of parameters and statistics, so that reading them does not wait for the network.

    Parameters
    ----------
    remotes : Remotes
        The session.
    loop : RemoteLoop
        The loop, from ``remotes.ask()``.

    Attributes
    ----------
    parameters : Parameters
        Its parameters, to read, and to change if its owner has allowed ``"set"``.
    host, key : str
        Its host, and the key of its bridge.

    Raises
    ------
    BridgeError
        If the bridge does not answer.
    PayloadError
        If the answer is not that of a bridge.
    """

    def __init__(self, remotes: Remotes, loop: RemoteLoop) -> None:
        self.name, self.pid, self.host, self.key = loop.stats.name, loop.pid, loop.host, loop.key
        self._at = f"{loop.key}/loops/{key_chunk(loop.stats.name)}"
        self._remotes, self._loop = remotes, loop
        self._owns_remotes = False
        self._pid = os.getpid()
        self._has_died = self._is_closed = False
        self._signals: RemoteSignals | None = None
        self._handlers = Handlers()
        self._set = RemoteParameterSet(self.name, self.ask_for)
        self.parameters = Parameters(self._set)
        try:
            take_all, session = self._handlers.take_all, remotes.session
            take_all(session, f"{self._at}/parameters", self._on_parameters)
            take_all(session, f"{self._at}/stats", self._on_stats)
            self._handlers.take_liveliness(session, f"{loop.key}/alive", self._on_liveliness)
            self._set.take(self._get(f"{self._at}/parameters"))
        except BaseException:
            self._handlers.close()
            raise
        _connections.add(self)
        watch()

    def _get(self, at: str) -> bytes:
        for key, payload, _ in self._remotes.get(at, _PATIENCE_S):
            if key == at:
                return payload
        raise BridgeError(f"{at}: its bridge has not answered, or its version of rtloop has no parameters")

    def _on_parameters(self, sample: Any) -> None:
        with suppress(PayloadError):
            self._set.take(sample.payload.to_bytes())

    def _on_stats(self, sample: Any) -> None:
        with suppress(PayloadError):
            found = parse_stats(sample.payload.to_bytes())
            if (found.bridge_id, found.pid) == (self._loop.bridge_id, self.pid):
                self._loop = found

    def _on_liveliness(self, sample: Any) -> None:
        self._has_died = sample.kind != engine().SampleKind.PUT

    @property
    def period_ns(self) -> int:
        """Period of the loop, ns."""
        return int(self._loop.stats.settings["period_ns"])

    @property
    def clock(self) -> str:
        """Clock of its releases."""
        return str(self._loop.stats.settings.get("clock", "monotonic"))

    @property
    def state(self) -> str:
        """``"running"``, ``"stopped"``, ``"failed"``, or ``"died"`` if its bridge is gone."""
        if self._has_died:
            return "died"
        return self._loop.stats.state if self._set.state == "running" else self._set.state

    @property
    def stats(self) -> Stats:
        """Newest statistics that its bridge has sent, without records."""
        return self._loop.stats

    def read(self, *, records: bool | int = True) -> Stats:
        """Return the newest statistics; a bridge sends no records."""
        return self._loop.stats

    @property
    def signals(self) -> RemoteSignals:
        """Samples of the loop's signals from the first use of this on.

        Raises
        ------
        StateError
            If the bridge does not publish signals of this loop.
        BridgeError, PayloadError
            As for the connection.
        """
        if self._is_closed:
            raise StateError(f"the connection to {self.name} is closed")
        if self._signals is None:
            described = self._described()
            loops, signals = described.get("loops"), described.get("signals")
            loop = loops.get(key_chunk(self.name)) if isinstance(loops, dict) else None
            at = loop.get("signals") if isinstance(loop, dict) else None
            listed = signals.values() if isinstance(signals, dict) else ()
            found = next((one for one in listed if isinstance(one, dict) and one.get("key") == at), None)
            if found is None or not str(at).startswith(f"{self.key}/signals/"):
                raise StateError(f"{self.name} on {self.host} has no signals, or its bridge does not publish them")
            made = RemoteSignals(self.name, {"units": {}, "every": 1, **found})
            self._handlers.take_all(self._remotes.session, str(at), lambda sample: made.take(sample.payload.to_bytes()))
            self._signals = made
        return self._signals

    def _described(self) -> dict[str, Any]:
        try:
            found = json.loads(self._get(f"{self.key}/describe"))
            if isinstance(found, dict):
                return found
        except (ValueError, RecursionError):
            pass
        raise PayloadError(f"{self.key}/describe is not the description of a bridge")

    def ask_for(self, values: Mapping[str, Any]) -> None:
        """Ask the bridge to set parameters.

        Raises
        ------
        StateError
            If it does not accept sets.
        BridgeError
            If it has refused this set, or has not answered.
        """
        if self._is_closed:
            raise StateError(f"the connection to {self.name} is closed")
        if not self._set.may_set:
            raise StateError(
                f"the parameters of {self.name} on {self.host} cannot be changed, because its owner has not allowed it "
                "with Bridge(commands=('set',)), or has created the loop with tunable=False"
            )
        payload = make_set(key_chunk(self.name), values, this_writer())
        said = self._remotes.order(f"{self.key}/commands/{SET}", _PATIENCE_S, payload)
        with suppress(PayloadError):
            self._set.take_document(said.get("parameters"))

    def close(self) -> None:
        """End the subscriptions. A second call does nothing."""
        if self._is_closed or self._pid != os.getpid():
            return  # the threads and the session are the parent's
        self._is_closed = True
        _connections.discard(self)
        self._handlers.close()
        if self._owns_remotes:
            self._remotes.close()

    def __enter__(self) -> RemoteConnection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<RemoteConnection to {self.name!r} in process {self.pid} on {self.host}>"


_connections: WeakObjects[RemoteConnection] = WeakObjects()


def _close_all() -> None:
    """Close the connections at the interpreter's end."""
    for connection in _connections:
        with suppress(Exception):
            connection.close()


at_end(RECORDERS, _close_all, lambda: bool(_connections))


def find_loop(remotes: Remotes, name: str | None, timeout: float | None = None) -> RemoteLoop:
    """Return the only loop of that name whose bridge answers.

    Raises
    ------
    BridgeError
        If there is none within `timeout` seconds, by default 3, or there are several; the message lists those that
        answer.
    """
    limit = time.monotonic() + (_PATIENCE_S if timeout is None else timeout)
    while True:
        found = remotes.ask()
        matching = [loop for loop in found if name is None or loop.is_called(name)]
        if len(matching) == 1:
            return matching[0]
        if matching or time.monotonic() > limit:
            break
        nap(0.1)
    listed = ", ".join(f"{loop.label!r} at {loop.key} on {loop.host}" for loop in (matching or found)[:20])
    if matching:
        raise BridgeError(
            f"{len(matching)} loops match, {listed}: choose one by its name, or by the keys of its bridge"
        )
    asked = "no loop" if name is None else f"no loop named {name!r}"
    raise BridgeError(f"{asked} has answered for {remotes.keys}; available: {listed or 'none'}")


def connect(name: str | None = None, keys: str = "rtloop/**", *, config: Any = None) -> RemoteConnection:
    """Connect to a loop on another host, to read its statistics and signals and change its parameters.

    Parameters
    ----------
    name : str, optional
        Name of the loop; without it, exactly one loop must match.
    keys : str
        Zenoh key expression that the bridges' keys match, to choose among hosts: ``rtloop/pi/**``.
    config : None, path, dict or zenoh.Config
        Zenoh's own configuration.

    Returns
    -------
    RemoteConnection
        With ``parameters``, ``signals``, ``stats`` and ``close()``; a context manager.

    Raises
    ------
    BridgeError
        If no loop matches, or more than one; the message lists those that answer.

    Examples
    --------
    ::

        with rtloop.zenoh.connect("motor", "rtloop/pi/**") as motor:
            motor.parameters.update(kp=8, kd=0.1)
            print(motor.signals.read()["angle"])
    """
    remotes = Remotes(keys, config=config)
    try:
        made = RemoteConnection(remotes, find_loop(remotes, name))
    except BaseException:
        remotes.close()
        raise
    made._owns_remotes = True
    return made
