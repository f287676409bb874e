"""FoxgloveBridge: signals and parameters of loops for Foxglove, Lichtblick and PlotJuggler, served by foxglove-sdk."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any, Literal

from rtloop.data.record_clock import read_clocks
from rtloop.errors import AttachError, RtloopError, StateError
from rtloop.live.connect import Connection, connect
from rtloop.live.value_text import plain_value
from rtloop.process.nap import nap
from rtloop.tools.record.sample_stream import read_new
from rtloop.tools.scope.ros_messages import MessagePacker
from rtloop.tools.scope.sources import Machine

if TYPE_CHECKING:
    import foxglove
    from foxglove.websocket import Client
    from numpy.typing import NDArray

    from rtloop.live.signals import SignalReader

__all__ = ["FoxgloveBridge"]

#: Time between two reads of the samples, between two checks of the loops, and between two searches for more loops, s.
_READ_S, _LOOK_S, _SEARCH_S = 0.02, 0.5, 2.0
#: Messages that are kept for a slow client; the server drops the oldest beyond them.
_BACKLOG = 20_000
#: Identifier of the message on a refused change.
_STATUS = "rtloop-set"


class Types:
    """Names of message types. Clients remember the definition of a name, so each definition has a name of its own."""

    def __init__(self) -> None:
        self._definitions: dict[str, str] = {}

    def name(self, wanted: str, definition: str) -> str:
        """Return the name of a definition: the wanted one, with a version if another definition has it."""
        number, name = 1, wanted
        while self._definitions.setdefault(name, definition) != definition:
            number += 1
            name = f"{wanted}V{number}"
        return name


class Topic:
    """The channel of a loop's samples, which the next run of the loop uses as well if it has the same signals."""

    def __init__(self, name: str, context: foxglove.Context, types: Types) -> None:
        self.name, self._context, self._types = name, context, types
        self._channel: foxglove.Channel | None = None
        self._type_name = ""

    def describe(self, packer: MessagePacker) -> None:
        """Offer messages of this type to the clients."""
        from foxglove import Channel, Schema

        type_name = self._types.name(packer.type_name, packer.definition)
        if self._channel is not None and type_name == self._type_name:
            return
        self.close()
        self._type_name = type_name
        schema = Schema(name=type_name, encoding="ros2msg", data=packer.definition.encode())
        self._channel = Channel(self.name, schema=schema, message_encoding="cdr", context=self._context)

    @property
    def has_readers(self) -> bool:
        """True if a client has subscribed."""
        return self._channel is not None and self._channel.has_sinks()

    def log(self, messages: Iterable[bytes], times_ns: Iterable[int]) -> None:
        """Send messages of the described type."""
        if self._channel is not None:
            for message, time_ns in zip(messages, times_ns, strict=True):
                self._channel.log(message, log_time=time_ns)

    def close(self) -> None:
        """Withdraw it."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None


class ServedLoop:
    """One run of a loop.

    Attributes
    ----------
    loop : Connection
        The loop, with its present step.
    label : str
        Its name in topics and parameters: that of the loop, with the process if there are several.
    lost : int
        Samples of former steps that were overwritten before they were read.
    """

    def __init__(
        self, loop: Connection, label: str, topic: Topic, say: Callable[[str], None], lock: threading.Lock
    ) -> None:
        self.loop, self.label, self.topic, self._say, self._lock = loop, label, topic, say, lock
        self.lost = 0
        self._told = 0
        self._shown: dict[str, Any] = {}
        self._swaps = loop.telemetry.swaps[0]
        clocks = read_clocks()
        self._offset = clocks["realtime"] - clocks.get(loop.clock, clocks["realtime"])
        self._reader: SignalReader | None = None
        self._packer: MessagePacker | None = None
        self._open("now")

    def _open(self, start: Literal["now", "oldest"]) -> None:
        loop = self.loop
        try:
            signals = loop.signals
        except StateError:
            self._reader = self._packer = None
            self._say(f"{self.label} has no signals.")
            return
        self._reader = signals.reader(start)
        self._packer = MessagePacker(loop.name, signals.dtype, signals.units)
        renamed = {field: name for name, field in self._packer.names.items() if name != field}
        if renamed:
            self._say(f"{self.label}: {', '.join(f'{name} is {field}' for field, name in renamed.items())}.")
        self.topic.describe(self._packer)

    def publish(self) -> None:
        """Send what is new, if anybody has subscribed."""
        if self._reader is not None:
            self._send(self._reader.read())

    def _send(self, records: NDArray[Any]) -> None:
        if self._packer is not None and len(records) and self.topic.has_readers:
            times = records["release"] + self._offset
            self.topic.log(self._packer.pack(records, times), times.tolist())

    def follow_swap(self) -> None:
        """Go on with the signals and parameters of the present step if there has been a swap."""
        count, cycle = self.loop.telemetry.swaps
        if count == self._swaps:
            return
        try:
            successor = connect(self.loop.label, self.loop.pid)
        except AttachError:
            return  # it has ended
        self.publish()  # the last samples of the former step
        self.lost += 0 if self._reader is None else self._reader.lost
        with self._lock:  # threads of the server set parameters through it
            former, self.loop = self.loop, successor
        former.close()
        self._swaps = count
        self._open("oldest")
        if self._reader is not None:
            records, older = read_new(self._reader, cycle)
            self.lost -= older
            self._send(records)

    def tell_lost(self) -> None:
        """Report samples that this program was too slow for, each time that their number has doubled."""
        lost = self.lost + (0 if self._reader is None else self._reader.lost)
        if lost > 2 * self._told:
            self._told = lost
            self._say(f"{self.label}: {lost:,} samples were overwritten before they were read.")

    def find_changes(self) -> dict[str, Any]:
        """Return the parameters that have changed since the last call, with their values; at first all."""
        parameters = self.loop.parameters
        values = {name: plain_value(parameters[name]) for name in parameters}
        changed = {name: value for name, value in values.items() if self._shown.get(name) != value}
        self._shown = values
        return changed

    def convert(self, name: str, value: Any) -> Any:
        """Return a whole float as an integer for a parameter of whole numbers: a browser has one type of number."""
        declared = self.loop.parameters.declared.get(name)
        is_whole = declared is not None and declared.dtype.kind in "iu" and not declared.shape
        return int(value) if is_whole and isinstance(value, float) and value.is_integer() else value


class FoxgloveBridge:
    """Serve the signals and parameters of loops, of their present runs and of the next ones.

    Parameters
    ----------
    name, pid : str or None, int or None
        Only loops of this name, and of this process; by default all loops of the machine.
    host, port : str, int
        Address to listen on; port 0 takes a free one.
    can_set : bool
        Accept changes of parameters. The protocol has no token.
    say : callable
        Called with each message for the user, for example when a run begins or ends.

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
        self._name, self._pid = name, pid
        self._can_set, self._say = can_set, say
        self._lock = threading.Lock()  # clients change parameters on threads of the server
        self._served: dict[tuple[str, int], ServedLoop] = {}
        self._topics: dict[str, Topic] = {}
        self._types = Types()
        self._refused: set[tuple[str, int]] = set()
        self._searched = 0.0
        self._context = foxglove.Context()
        found = self._find()
        if not found and (name, pid) != (None, None):
            connect(name, pid).close()  # raises the reason
            found = self._find()
        listener: Any = self  # with the methods that the capabilities need
        self._server = foxglove.start_server(
            name="rtloop" if name is None else f"rtloop {name}",
            host=host,
            port=port,
            capabilities=[Capability.Parameters],
            server_listener=listener,
            context=self._context,
            message_backlog_size=_BACKLOG,
        )
        self._add(found)
        if not self._served:
            say("No running loop has signals or parameters; waiting for one.")

    @property
    def port(self) -> int:
        """Port that the server listens on."""
        return int(self._server.port)

    def run(self, has_ended: Callable[[], bool]) -> None:
        """Publish until `has_ended()` is True."""
        looked = 0.0
        while not has_ended():
            if time.monotonic() - looked >= _LOOK_S:
                looked = time.monotonic()
                self._look()
            for key, one in tuple(self._served.items()):
                try:
                    one.publish()
                except RtloopError as error:  # a damaged block
                    self._refused.add(key)
                    self._end(key, str(error))
            nap(_READ_S)

    def close(self) -> None:
        """Close the server and the connections."""
        self._server.stop()
        with self._lock:
            for one in self._served.values():
                one.loop.close()
            self._served.clear()

    def _find(self) -> list[tuple[str, int]]:
        """Return the names and processes of the loops to serve."""
        self._searched = time.monotonic()
        found = [(one["name"], one["pid"]) for one in Machine().search()[0] if self._name or _has_any(one)]
        return [(name, pid) for name, pid in found if self._is_asked_for(name) and self._pid in (None, pid)]

    def _is_asked_for(self, label: str) -> bool:
        return self._name in (None, label) or label.endswith(f"/{self._name}")

    def _add(self, found: Collection[tuple[str, int]]) -> None:
        """Offer the signals and parameters of runs that are not served yet."""
        self._refused.intersection_update(found)
        for key in found:
            if key in self._served or key in self._refused:
                continue
            try:
                loop = connect(*key)
            except (RtloopError, OSError):
                continue
            taken = {one.label for one in self._served.values()}
            label = loop.label if loop.name in taken else loop.name
            if label in taken:
                label = f"{label}-{loop.pid}"
            topic = self._topics.setdefault(label, Topic(f"/{label}", self._context, self._types))
            try:
                made = ServedLoop(loop, label, topic, self._say, self._lock)
            except RtloopError as error:  # a damaged block, or one of another version
                self._refused.add(key)
                self._say(f"{label}: {error}")
                loop.close()
                continue
            with self._lock:
                self._served[key] = made
            self._say(f"{label} runs in process {loop.pid}.")

    def _look(self) -> None:
        """Publish changed parameters; follow swaps; notice runs that have ended and runs that have begun."""
        # The server is called without the lock, which its own threads take.
        changed = []
        for key, one in tuple(self._served.items()):
            state = one.loop.state
            try:
                if state == "running":
                    one.follow_swap()
                    with self._lock:
                        values = one.find_changes()
                    changed += [self._parameter(f"{one.label}.{name}", value) for name, value in values.items()]
                else:
                    one.publish()
                one.tell_lost()
            except RtloopError as error:  # a damaged block
                self._refused.add(key)
                state = str(error)
            if state != "running":
                self._end(key, state)
        if changed:
            self._server.publish_parameter_values(changed)
        if not self._served or time.monotonic() - self._searched >= _SEARCH_S:
            self._add(self._find())

    def _end(self, key: tuple[str, int], state: str) -> None:
        """Forget a run that has ended. Its topic stays for the next one, unless it is named after the process."""
        with self._lock:
            one = self._served.pop(key)
        one.loop.close()
        if one.label != one.loop.name:
            self._topics.pop(one.label).close()
        self._say(f"{one.label}: {state}; waiting for its next run.")

    def _parameter(self, name: str, value: Any) -> foxglove.Parameter:
        kinds = self._foxglove.ParameterType
        kind = kinds.Float64 if isinstance(value, float) else None
        if isinstance(value, list) and value and all(isinstance(item, float) for item in value):
            kind = kinds.Float64Array
        return self._foxglove.Parameter(name, value=value, type=kind)

    def _parameters(self) -> dict[str, tuple[ServedLoop, str]]:
        """Return the loop of each parameter and its name there, by the name that clients see."""
        return {
            f"{one.label}.{name}": (one, name) for one in tuple(self._served.values()) for name in one.loop.parameters
        }

    def _values(self, names: list[str]) -> list[foxglove.Parameter]:
        found = self._parameters()
        chosen = [(name, *found[name]) for name in (names or found) if name in found]
        return [self._parameter(name, plain_value(one.loop.parameters[own])) for name, one, own in chosen]

    # Called by the server, on its threads.

    def on_get_parameters(
        self, client: Client, param_names: list[str], request_id: str | None = None
    ) -> list[foxglove.Parameter]:
        """Return the values of parameters."""
        with self._lock:
            return self._values(param_names)

    def on_set_parameters(
        self, client: Client, parameters: list[foxglove.Parameter], request_id: str | None = None
    ) -> list[foxglove.Parameter]:
        """Set parameters, those of a loop before the same step, and return their values.

        A refusal is shown to the clients.
        """
        with self._lock:
            refusal = self._set({one.name: one.get_value() for one in parameters})
            found = self._values([one.name for one in parameters])
        if refusal is None:
            self._server.remove_status([_STATUS])
        else:
            self._server.publish_status(refusal, self._foxglove.StatusLevel.Error, _STATUS)
        return found

    def _set(self, values: dict[str, Any]) -> str | None:
        """Set parameters; return why they are refused, or None."""
        if not self._can_set:
            return "changes are not accepted: start rtloop scope with --allow-set"
        known = self._parameters()
        unknown = [name for name in values if name not in known]
        if unknown:
            return f"no running loop has a parameter {', '.join(unknown)}"
        changes: dict[ServedLoop, dict[str, Any]] = {}
        for name, value in values.items():
            one, own = known[name]
            changes.setdefault(one, {})[own] = one.convert(own, value)
        for one, own_values in changes.items():
            try:
                one.loop.parameters.update(own_values)
            except (RtloopError, OSError) as error:
                return f"{one.label}: {error}"
        return None

    def on_parameters_subscribe(self, param_names: list[str]) -> None:
        """Do nothing: changes are published to all subscribers."""

    def on_parameters_unsubscribe(self, param_names: list[str]) -> None:
        """Do nothing."""

    def on_subscribe(self, client: Client, channel: Any) -> None:
        """Do nothing: the channel knows its subscribers."""

    def on_unsubscribe(self, client: Client, channel: Any) -> None:
        """Do nothing."""


def _has_any(loop: dict[str, Any]) -> bool:
    return bool(loop["has_signals"] or loop["has_parameters"])
