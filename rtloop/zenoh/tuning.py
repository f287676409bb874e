"""Parameters of a bridge's loops: their documents, and sets that peers request."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from rtloop.errors import ConfigError, PayloadError, RtloopError, StateError
from rtloop.live.parameter_block import Writer
from rtloop.live.parameter_set import acting_for
from rtloop.live.parameters import Parameters
from rtloop.live.value_text import plain_value
from rtloop.process.signal_shield import become_ordinary
from rtloop.system.host import uname
from rtloop.telemetry.description import clean
from rtloop.units import show
from rtloop.zenoh.answers import Waiting

__all__ = ["MAX_SET_BYTES", "Tuning", "make_set", "parameters_of"]

#: Greatest size of a set in JSON.
MAX_SET_BYTES = 1 << 20
#: Least time between two sets, s: the record of a run holds a limited number of changes.
_PACE_S = 0.005
_LONGEST_TEXT = 63
_LONGEST_REASON = 500
_NOBODY = {"host": "", "pid": 0, "program": ""}


def parameters_of(loop: Any) -> Parameters | None:
    """Return the parameters of a loop; None if it has none, or has another attribute of that name."""
    found = getattr(loop, "parameters", None)
    return found if isinstance(found, Parameters) and len(found) else None


def make_set(loop: str, values: Mapping[str, Any], writer: Writer) -> bytes:
    """Return the payload that requests a set."""
    by = {"host": writer.host, "pid": writer.pid, "program": writer.program}
    return json.dumps({"loop": loop, "values": dict(values), "by": by}, separators=(",", ":")).encode()


class Tuning:
    """Documents of parameters, and the execution of sets, one after the other, on its own thread.

    A set is checked like one of the loop's own program. The record of the run has it with the host, the process and the
    program that the peer has given, unverified.

    Parameters
    ----------
    loops : mapping
        The loops by their part of the key.
    key : str
        Key of sets.
    is_allowed : bool
        True if peers may change parameters.
    about : callable
        Returns the entries of every document.
    thread_name : str
        Name of the bridge's thread.

    Attributes
    ----------
    done, refused : int
        Numbers of sets.
    """

    def __init__(
        self,
        loops: Mapping[str, Any],
        key: str,
        is_allowed: bool,
        about: Callable[[], dict[str, Any]],
        thread_name: str,
    ) -> None:
        self._loops, self._key, self._about = loops, key, about
        self.is_allowed = is_allowed
        self.done = self.refused = 0
        self._sequence = 0
        self._published: dict[str, tuple[Any, ...]] = {}
        self._lock = threading.Lock()
        self._waiting = Waiting("sets")
        self._is_closing = threading.Event()
        self._thread: threading.Thread | None = None
        if is_allowed:
            self._thread = threading.Thread(target=self._work, name=f"{thread_name}-sets", daemon=True)
            self._thread.start()

    def document(self, name: str) -> dict[str, Any]:
        """Return the parameters of a loop: types, limits, units, and values."""
        loop = self._loops[name]
        with self._lock:
            self._sequence += 1
            sequence = self._sequence
        found = parameters_of(loop)
        applied = None if found is None else found.applied
        return {
            "format": "rtloop-bridge-parameters",
            "version": 1,
            "sequence": sequence,
            "time_ns": time.time_ns(),
            "host": uname().nodename,
            "pid": os.getpid(),
            **self._about(),
            "loop": loop.name,
            "state": loop.state,
            "may_set": self.is_allowed and bool(loop.settings.tunable),
            "parameters": [] if found is None else [_described(one) for one in found.declared.values()],
            "values": {} if found is None else _plain(dict(found)),
            "used": None if applied is None else _plain(applied.values),
            "cycle": None if applied is None else applied.cycle,
            "refused": 0 if found is None else found.refused,
        }

    def text(self, name: str) -> bytes:
        """Return the document as JSON in UTF-8."""
        return json.dumps(self.document(name), separators=(",", ":")).encode()

    def has_news(self, name: str) -> bool:
        """Return True if the values, or the state of the loop, have changed since the last call."""
        loop = self._loops[name]
        found = parameters_of(loop)
        applied = None if found is None else found.applied
        cycle = None if applied is None else applied.cycle
        now: tuple[Any, ...] = (loop.state, cycle)
        if found is not None:
            now = *now, _plain(dict(found)), tuple(found.declared.values())
        is_new = self._published.get(name) != now
        self._published[name] = now
        return is_new

    def on_query(self, query: Any) -> None:
        """Accept a query that requests a set; from any thread. Raises nothing."""
        try:
            if str(query.key_expr) != self._key:  # one that matched by a wildcard did not ask for this
                raise PayloadError(f"{query.key_expr} is not the key of a set; it is {self._key}")
            if not self.is_allowed:
                raise StateError("set is not enabled here; its owner has to allow it: Bridge(commands=('set',))")
            payload = query.payload
            if payload is None or len(payload) > MAX_SET_BYTES:
                size = "no" if payload is None else f"{len(payload):,}"
                raise PayloadError(f"it has {size} bytes of payload, and a set has 1 to {MAX_SET_BYTES:,}")
            self._waiting.put((query, payload.to_bytes()))
        except Exception as error:
            self._answer(query, str(error))

    def _work(self) -> None:
        become_ordinary()
        while (item := self._waiting.get()) is not None:
            query, payload = item
            try:
                name = self._set(payload)
            except (RtloopError, OSError) as error:
                self._answer(query, str(error))
            except Exception as error:  # a fault of this program must not end the bridge's thread
                self._answer(query, repr(error))
            else:
                self._answer(query, None, name)
            finally:
                del query, item
            self._is_closing.wait(_PACE_S)

    def _set(self, payload: bytes) -> str:
        name, values, writer = _parse_set(payload)
        loop = self._loops.get(name)
        if loop is None:
            raise ConfigError(f"there is no loop {show(name)} here; there is {', '.join(self._loops)}")
        if not loop.settings.tunable:
            raise StateError(f"{loop.name} was made with tunable=False, which refuses all changes from outside")
        found = parameters_of(loop)
        if found is None:
            raise ConfigError(f"{loop.name} has no parameters")
        try:
            with acting_for(writer):
                found.update(values)
        except KeyError as error:
            raise ConfigError(str(error.args[0])) from None
        return name

    def _answer(self, query: Any, fault: str | None, name: str = "") -> None:
        with self._lock:  # any thread of Zenoh refuses
            self.done += fault is None
            self.refused += fault is not None
        try:
            if fault is None:
                said = json.dumps({"ok": True, "parameters": self.document(name)}, separators=(",", ":"))
                query.reply(query.key_expr, said, encoding="application/json")
            else:
                query.reply_err(
                    json.dumps({"ok": False, "error": fault[:_LONGEST_REASON]}), encoding="application/json"
                )
            query.drop()
        except Exception:  # the caller has gone
            return

    def close(self) -> None:
        """Accept no more sets, and refuse those that wait."""
        self.is_allowed = False
        self._is_closing.set()
        for query, _ in self._waiting.close():
            self._answer(query, "the bridge is closing")
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(5.0)


def _parse_set(payload: bytes) -> tuple[str, dict[str, Any], Writer]:
    """Return the loop, the values and the writer of an untrusted set.

    Raises
    ------
    PayloadError
        If it is not one.
    """
    try:
        said = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise PayloadError(f"it is not JSON: {str(error)[:200]}") from None
    values = said.get("values") if isinstance(said, dict) else None
    if not isinstance(values, dict) or not isinstance(said.get("loop"), str) or not values:
        raise PayloadError('it is not a set: {"loop": "motor", "values": {"kp": 5}}')
    by = said.get("by", _NOBODY)
    by = by if isinstance(by, dict) else _NOBODY
    pid = by.get("pid")
    host, program = (_one_line(by.get(name)) for name in ("host", "program"))
    writer = Writer(
        pid if type(pid) is int and 0 <= pid < 1 << 31 else 0, 0, time.time_ns(), host or "unknown",
        f"zenoh: {program}" if program else "zenoh",
    )  # fmt: skip
    return said["loop"], values, writer


def _one_line(text: Any) -> str:
    return clean(text[:_LONGEST_TEXT]).replace("\n", " ") if isinstance(text, str) else ""


def _described(one: Any) -> dict[str, Any]:
    return {name: value for name, value in one.to_dict().items() if name != "offset"}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: plain_value(value) for name, value in values.items()}
