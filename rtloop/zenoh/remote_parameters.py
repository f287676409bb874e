"""RemoteParameterSet: the parameters of a loop on another host, as sent by its bridge."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

from rtloop.errors import PayloadError
from rtloop.live.declared_parameters import Parameter, merge
from rtloop.live.parameter_block import MOST, MOST_BYTES, Used
from rtloop.live.value_text import plain_value

__all__ = ["RemoteParameterSet"]

_MAX_DOCUMENT_BYTES = 4 << 20


class RemoteParameterSet:
    """The parameters of a loop on another host, as last sent by its bridge; a source of `Parameters`.

    Parameters
    ----------
    name : str
        Name of the loop.
    ask_for : callable
        Sends a set to the bridge, and returns when it was accepted.

    Attributes
    ----------
    declared : dict
        The parameters by name.
    may_set : bool
        True if the bridge accepts sets.
    state : str
        State of the loop.
    """

    def __init__(self, name: str, ask_for: Callable[[Mapping[str, Any]], None]) -> None:
        self.name = name
        self._ask_for = ask_for
        self.declared: dict[str, Parameter] = {}
        self.may_set = False
        self.state = "running"
        self._values = b""
        self._used: Used | None = None
        self._sequence = -1
        self._bridge_id = ""
        self._lock = threading.RLock()  # a signal handler may read meanwhile

    def take(self, payload: bytes) -> None:
        """Take over a document, unless a newer one has already arrived.

        Raises
        ------
        PayloadError
            If it is not one that a bridge sends.
        """
        if len(payload) > _MAX_DOCUMENT_BYTES:
            raise PayloadError(f"{len(payload)} bytes are too many for parameters")
        try:
            self.take_document(json.loads(payload))
        except (ValueError, RecursionError) as error:
            raise PayloadError(f"the parameters of {self.name}: {str(error)[:200]}") from None

    def take_document(self, said: Any) -> None:
        """Take over the content of a document.

        Raises
        ------
        PayloadError
            If it is not one that a bridge sends.
        """
        try:
            if said["format"] != "rtloop-bridge-parameters" or said["version"] != 1:
                raise ValueError("it is not a document rtloop-bridge-parameters of version 1")
            declared = _parse_parameters(said["parameters"])
            sequence, identity, cycle, refused = said["sequence"], said["bridge_id"], said["cycle"], said["refused"]
            if not all(type(number) is int and 0 <= number < 1 << 63 for number in (sequence, cycle or 0, refused)):
                raise ValueError("sequence, cycle or refused is not a count")
            values = _pack(declared, said["values"])
            used = None if said["used"] is None else Used(0, cycle or 0, refused, _pack(declared, said["used"]))
            state = str(said["state"])[:16]
            may_set = said["may_set"] is True
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise PayloadError(f"the parameters of {self.name} are not those of a loop: {str(error)[:300]}") from None
        with self._lock:
            if identity == self._bridge_id and sequence <= self._sequence:
                return
            self._bridge_id, self._sequence = identity, sequence
            self.declared, self._values, self._used = declared, values, used
            self.state, self.may_set = state if state.isprintable() else "failed", may_set

    def asked(self) -> bytes:
        """Return the set that was requested last."""
        return self._values

    def used(self) -> Used | None:
        """Return the set that the loop uses."""
        return self._used

    def change(self, changes: Mapping[str, bytes]) -> None:
        """Ask the bridge for a set with some values changed.

        Raises
        ------
        StateError
            If the bridge does not accept sets.
        BridgeError
            If it has refused this set, or has not answered; the message is the bridge's.
        """
        declared = self.declared
        merged = merge(declared, self.asked(), changes)
        values = {name: plain_value(declared[name].unpack(merged)) for name in changes}
        self._ask_for(values)


def _parse_parameters(listed: Any) -> dict[str, Parameter]:
    """Parse an untrusted list of parameters, and lay them out in a set of this process.

    Raises
    ------
    ValueError
        If no bridge can have sent it.
    """
    if not isinstance(listed, list) or len(listed) > MOST:
        raise ValueError("it has no list of parameters")
    found: dict[str, Parameter] = {}
    offset = 0
    for values in listed:
        one = Parameter.from_dict({**values, "offset": 0})
        offset = -(-offset // one.dtype.itemsize) * one.dtype.itemsize
        if one.name in found or offset + one.size > MOST_BYTES:
            raise ValueError(f"{one.name} occurs twice, or does not fit")
        found[one.name] = one._replace(offset=offset)
        offset += one.size
    return found


def _pack(declared: Mapping[str, Parameter], values: Any) -> bytes:
    """Return a set with untrusted values.

    Raises
    ------
    ValueError
        If a value is missing, or does not fit its parameter.
    """
    if not isinstance(values, dict) or values.keys() != declared.keys():
        raise ValueError("the names of the values are not those of the parameters")
    size = max((one.offset + one.size for one in declared.values()), default=0)
    return merge(declared, bytes(size), {name: one.pack(values[name]) for name, one in declared.items()})
