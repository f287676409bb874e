"""FoxgloveBridge: signals and parameters of one loop for Foxglove and PlotJuggler, served by foxglove-sdk."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rtloop.data.record_clock import read_clocks
from rtloop.data.record_files import json_schema, record_json
from rtloop.errors import AttachError, RtloopError, StateError
from rtloop.live.connect import Connection, connect
from rtloop.process.nap import nap

if TYPE_CHECKING:
    import foxglove
    from foxglove.websocket import Client
    from numpy.typing import NDArray

    from rtloop.live.signals import SignalReader

__all__ = ["FoxgloveBridge"]

#: Time between two reads of the samples, and between two looks at the parameters and for a new run, s.
_READ_S, _LOOK_S = 0.02, 0.5
#: Messages that are kept for a slow client; the server drops the oldest beyond them.
_BACKLOG = 20_000
#: Identifier of the message on a refused change.
_STATUS = "rtloop-set"


class FoxgloveBridge:
    """Serve the signals and parameters of a loop, of its present run and of the next ones.

    Parameters
    ----------
    name, pid : str or None, int or None
        The loop, as for `connect`.
    host, port : str, int
        Address to listen on; port 0 takes a free one.
    can_set : bool
        Accept changes of parameters. The protocol has no password.
    say : callable
        Called with a sentence when a run begins or ends.

    Raises
    ------
    AttachError
        If no such loop runs.
    OSError, RuntimeError
        If the server cannot listen there.
    """

    def __init__(
        self, name: str | None, pid: int | None, host: str, port: int, *, can_set: bool, say: Callable[[str], None]
    ) -> None:
        import foxglove
        from foxglove.websocket import Capability

        self._foxglove = foxglove
        self._can_set, self._say = can_set, say
        self._lock = threading.Lock()  # clients change parameters on threads of the server
        self._loop: Connection | None = connect(name, pid)
        self.name = self._loop.name
        self._reader: SignalReader | None = None
        self._channel: foxglove.Channel | None = None
        self._schema: dict[str, Any] = {}
        self._shown: dict[str, Any] = {}
        self._offset = 0
        self._context = foxglove.Context()
        listener: Any = self  # with the methods that the capabilities need
        self._server = foxglove.start_server(
            name=f"rtloop {self.name}",
            host=host,
            port=port,
            capabilities=[Capability.Parameters],
            server_listener=listener,
            context=self._context,
            message_backlog_size=_BACKLOG,
        )
        self._begin(self._loop)

    @property
    def port(self) -> int:
        """Port that the server listens on."""
        return int(self._server.port)

    def run(self, has_ended: Callable[[], bool]) -> None:
        """Publish until `has_ended` returns True."""
        looked = 0.0
        while not has_ended():
            if time.monotonic() - looked >= _LOOK_S:
                looked = time.monotonic()
                self._look()
            self._publish()
            nap(_READ_S)

    def close(self) -> None:
        """Close the server and the connection."""
        self._server.stop()
        with self._lock:
            if self._loop is not None:
                self._loop.close()
                self._loop = None

    def _begin(self, loop: Connection) -> None:
        """Offer the signals and parameters of a run."""
        clocks = read_clocks()
        self._offset = clocks["realtime"] - clocks.get(loop.clock, clocks["realtime"])
        try:
            self._reader = loop.signals.reader()
        except StateError:
            self._reader = None
            self._say(f"{loop.name} has no signals; its parameters are served.")
        if self._reader is not None:
            schema = json_schema(self._reader.dtype)
            if schema != self._schema and self._channel is not None:
                self._channel.close()
                self._channel = None
            if self._channel is None:
                self._schema = schema
                named = {"title": loop.name, **schema}
                self._channel = self._foxglove.Channel(f"/{loop.name}", schema=named, context=self._context)
        self._say(f"{loop.name} runs in process {loop.pid}.")

    def _look(self) -> None:
        """Publish changed parameters; notice the end of a run and the begin of the next one."""
        # The server is called without the lock, which its own threads take.
        with self._lock:
            loop, changed = self._loop, []
            state = "running" if loop is None else loop.state
            try:
                if loop is not None and state == "running":
                    changed = self._find_changes(loop)
            except RtloopError as error:  # a damaged block
                state = str(error)
        if changed:
            self._server.publish_parameter_values(changed)
        if state != "running":
            self._publish()
            self._say(f"{self.name}: {state}; waiting for its next run.")
            with self._lock:
                self._loop = self._reader = None
            if loop is not None:
                loop.close()
        elif loop is None:
            try:
                found = connect(self.name)
            except (AttachError, OSError):
                return
            with self._lock:
                self._loop = found
            self._begin(found)

    def _find_changes(self, loop: Connection) -> list[foxglove.Parameter]:
        values = {name: _native(loop.parameters[name]) for name in loop.parameters}
        changed = [name for name, value in values.items() if self._shown.get(name) != value]
        self._shown = values
        return [self._parameter(name, values[name]) for name in changed]

    def _publish(self) -> None:
        reader, channel = self._reader, self._channel
        if reader is None or channel is None:
            return
        records: NDArray[Any] = reader.read()
        if not channel.has_sinks():
            return
        times = (records["release"] + self._offset).tolist()
        for time_ns, item in zip(times, records.tolist(), strict=True):
            channel.log(record_json(item, reader.dtype), log_time=time_ns)

    def _parameter(self, name: str, value: Any) -> foxglove.Parameter:
        kind = self._foxglove.ParameterType.Float64 if isinstance(value, float) else None
        return self._foxglove.Parameter(f"{self.name}.{name}", value=value, type=kind)

    def _all_parameters(self, names: list[str]) -> list[foxglove.Parameter]:
        loop = self._loop
        if loop is None:
            return []
        found = {f"{self.name}.{name}": (name, _native(loop.parameters[name])) for name in loop.parameters}
        return [self._parameter(*found[name]) for name in (names or found) if name in found]

    # Called by the server, on its threads.

    def on_get_parameters(
        self, client: Client, param_names: list[str], request_id: str | None = None
    ) -> list[foxglove.Parameter]:
        """Return the values of parameters."""
        with self._lock:
            return self._all_parameters(param_names)

    def on_set_parameters(
        self, client: Client, parameters: list[foxglove.Parameter], request_id: str | None = None
    ) -> list[foxglove.Parameter]:
        """Set parameters, all before the same step, and return their values; a refusal is shown to the clients."""
        names, refusal = [one.name for one in parameters], None
        with self._lock:
            try:
                if not self._can_set:
                    raise StateError("changes are not accepted: start rtloop scope with --allow-set")
                if self._loop is None:
                    raise StateError(f"{self.name} does not run")
                prefix = f"{self.name}."
                values = {one.name.removeprefix(prefix): one.get_value() for one in parameters}
                self._loop.parameters.update({name: self._converted(name, value) for name, value in values.items()})
            except (RtloopError, KeyError, OSError) as error:
                refusal = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
            found = self._all_parameters(names)
        if refusal is None:
            self._server.remove_status([_STATUS])
        else:
            self._server.publish_status(refusal, self._foxglove.StatusLevel.Error, _STATUS)
        return found

    def _converted(self, name: str, value: Any) -> Any:
        """Return a whole float as an integer for a parameter of whole numbers: a browser has one type of number."""
        declared = None if self._loop is None else self._loop.parameters.declared.get(name)
        is_whole = declared is not None and declared.dtype.kind in "iu" and not declared.shape
        return int(value) if is_whole and isinstance(value, float) and value.is_integer() else value

    def on_parameters_subscribe(self, param_names: list[str]) -> None:
        """Do nothing: changes are published to all subscribers."""

    def on_parameters_unsubscribe(self, param_names: list[str]) -> None:
        """Do nothing."""

    def on_subscribe(self, client: Client, channel: Any) -> None:
        """Do nothing: the channel knows its subscribers."""

    def on_unsubscribe(self, client: Client, channel: Any) -> None:
        """Do nothing."""


def _native(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value
