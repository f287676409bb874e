"""Loops of other hosts, as their bridges report them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from rtloop.errors import BridgeError, ConfigError, PayloadError
from rtloop.stats.stats import Stats
from rtloop.telemetry.block import record_dtype
from rtloop.telemetry.description import clean
from rtloop.zenoh.answers import COMMANDS, FRESH_NS
from rtloop.zenoh.feeds import NUMBERED
from rtloop.zenoh.frames import pack
from rtloop.zenoh.session import check_expression, check_key, close_session, engine, open_session

if TYPE_CHECKING:
    from typing import Self

__all__ = ["RemoteLoop", "Remotes", "parse_stats"]

_MAX_DOCUMENT_BYTES = 4 << 20
#: Difference of two hosts' clocks that is not reported.
_TOLERANCE_NS = 50_000_000


@dataclass(frozen=True)
class RemoteLoop:
    """A loop of any host at one moment.

    Attributes
    ----------
    key : str
        Its bridge's key.
    host : str
        The host's name.
    pid : int
        Its process there.
    group : str or None
        The name of its group.
    time_ns : int
        Time at which the statistics were taken, ns since 1970 on that host.
    stats : Stats
        Its statistics, without `records`.
    bridge : dict
        Its bridge's own counters.
    bridge_id : str
        Identity of the bridge, different for each bridge and process.
    time_sync : dict
        State of its host's clock by adjtimex(2): `is_synchronised`, `estimated_error_ns`, `max_error_ns` and
        `tai_offset_s`; None for what is unknown.
    behind_ns : int
        How much its host's time of day is at least behind this host's, negative if it is ahead, ns; 0 if the round trip
        shows no difference.
    """

    key: str
    host: str
    pid: int
    group: str | None
    time_ns: int
    stats: Stats
    bridge: dict[str, Any]
    bridge_id: str = ""
    time_sync: dict[str, Any] = field(default_factory=dict)
    behind_ns: int = 0

    @property
    def label(self) -> str:
        """Name of the loop, after that of its group: ``"arm/motor"``; of a loop that runs alone, its name."""
        return self.stats.name if self.group is None else f"{self.group}/{self.stats.name}"

    def is_called(self, name: str) -> bool:
        """Return True if a user who writes this name may mean the loop: its name, with its group's or without."""
        return name in (self.stats.name, self.label)


def parse_stats(payload: bytes, asked: tuple[int, int] | None = None) -> RemoteLoop:
    """Return the content of a document of statistics.

    Parameters
    ----------
    payload : bytes
        The document.
    asked : tuple of int, optional
        This host's time of day before the question and after the answer, to compare with the other host's.

    Raises
    ------
    PayloadError
        If it is not one, or of another version.
    """
    try:
        if len(payload) > _MAX_DOCUMENT_BYTES:
            raise ValueError(f"{len(payload)} bytes are too many")
        said = _cleaned(json.loads(payload))
        if said["format"] != "rtloop-bridge-stats" or said["version"] != 1:
            raise ValueError(f"it is {said['format']!r} of version {said['version']!r}, and not rtloop-bridge-stats 1")
        values = {**said["stats"], "name": str(said["stats"]["name"])}
        stats = Stats._from_dict(values, np.empty(0, record_dtype))
        if not stats.settings.get("period_ns"):
            raise ValueError("its settings have no period_ns")
        names = [said["key"], said["host"], said["group"] or ""]
        if not all(isinstance(name, str) and name.isprintable() for name in names):
            raise ValueError("its key, host or group has unprintable characters")
        numbers = [int(said["pid"]), int(said["time_ns"])]
        if not all(0 <= number < 1 << 63 for number in numbers):
            raise ValueError("its pid or time_ns is out of range")
        key, host = names[:2]
        identity, sync = str(said.get("bridge_id", ""))[:64], said.get("time_sync")
        return RemoteLoop(
            key, host, numbers[0], said["group"] or None, numbers[1], stats, dict(said["bridge"]), identity,
            _parse_time_sync(sync), 0 if asked is None else _behind_ns(numbers[1], *asked),
        )  # fmt: skip
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise PayloadError(f"not the statistics of a loop: {error!r}"[:300]) from None


def _parse_time_sync(said: Any) -> dict[str, Any]:
    """Return the state of a host's clock without values of other types than a bridge sends."""
    sync = said if isinstance(said, dict) else {}
    whole = {name: sync.get(name) for name in ("estimated_error_ns", "max_error_ns", "tai_offset_s")}
    is_synchronised = sync.get("is_synchronised")
    return {"is_synchronised": is_synchronised if type(is_synchronised) is bool else None,
            **{name: value if type(value) is int else None for name, value in whole.items()}}  # fmt: skip


def _behind_ns(taken_ns: int, before_ns: int, after_ns: int) -> int:
    """Return how much a host is at least behind this one (negative: ahead), ns; 0 if both may be right.

    Its statistics were taken between the question and the answer, or up to FRESH_NS before.
    """
    if taken_ns < before_ns - FRESH_NS - _TOLERANCE_NS:
        return before_ns - taken_ns
    return after_ns - taken_ns if taken_ns > after_ns + _TOLERANCE_NS else 0


class Remotes:
    """Queries to all bridges about their loops.

    Parameters
    ----------
    keys : str
        Zenoh key expression of the bridges' prefixes.
    config : None, path, dict or zenoh.Config
        Zenoh's own configuration.
    on_wait : callable, optional
        See :func:`open_session`.

    Raises
    ------
    BridgeError
        If no session can be opened.
    ConfigError
        On keys that are not a Zenoh key expression.

    Examples
    --------
    >>> with rtloop.zenoh.Remotes("rtloop/**") as remotes:
    ...     for loop in remotes.ask():
    ...         print(loop.host, loop.stats.name, loop.stats.missed)
    """

    def __init__(
        self, keys: str = "rtloop/**", *, config: Any = None, on_wait: Callable[[str], None] | None = None
    ) -> None:
        for pattern in ("alive", "describe", "loops/*/stats"):
            check_expression(keys, f"{keys}/{pattern}")
        self.keys = keys
        self.faulty: dict[str, str] = {}
        self.shared: dict[str, list[RemoteLoop]] = {}
        self._sender = int.from_bytes(os.urandom(8), "little")
        self._numbers: dict[str, int] = {}
        self._pid = os.getpid()
        self._session = open_session(config, on_wait=on_wait)

    @property
    def session(self) -> Any:
        """Its Zenoh session."""
        return self._session

    def ask(self, timeout: float = 1.0) -> list[RemoteLoop]:
        """Return all loops whose bridges answer within `timeout` seconds, by host and name.

        Bridges that exist but do not answer, or answer wrongly, are in `faulty`, with the reason.
        `shared` has the keys that several bridges use at the same time, with a loop of each.
        """
        found, faulty, answered = [], {}, set()
        for key, payload, asked in self.get(f"{self.keys}/loops/*/stats", timeout):
            answered.add(key.rpartition("/loops/")[0])
            try:
                found.append(parse_stats(payload, asked))
            except PayloadError as error:
                faulty[key] = str(error)
        alive = {key.removesuffix("/alive") for key in self._alive(timeout)}
        faulty |= dict.fromkeys(alive - answered, "its bridge exists but does not answer")
        self.faulty = faulty
        self.shared = _find_shared(found)
        return sorted(found, key=lambda loop: (loop.host, loop.group or "", loop.stats.name, loop.pid))

    def describe(self, timeout: float = 1.0) -> dict[str, dict[str, Any]]:
        """Return each bridge's description by its key: see ``Bridge.describe``."""
        described = {}
        for key, payload, _ in self.get(f"{self.keys}/describe", timeout):
            try:
                described[key.removesuffix("/describe")] = dict(json.loads(payload))
            except (ValueError, TypeError, RecursionError) as error:
                self.faulty[key] = f"no description: {error}"
        return described

    def command(self, key: str, command: str, timeout: float = 10.0) -> dict[str, Any]:
        """Order a loop or group to ``start``, ``stop`` or ``reset``, if its owner allows that.

        Raises
        ------
        BridgeError
            If it was refused, failed, or was not answered; the message is the bridge's.
        ConfigError
            On an invalid key or command.
        """
        if command not in COMMANDS:
            raise ConfigError(f"command={command!r} must be among {', '.join(COMMANDS)}")
        return self.order(f"{check_key(key)}/commands/{command}", timeout)

    def order(self, at: str, timeout: float, payload: bytes | None = None) -> dict[str, Any]:
        """Send a query to the key of a command, and return the answer.

        Raises
        ------
        BridgeError
            As :meth:`command`.
        """
        for reply in self._ask(at, timeout, payload):
            if reply.ok is not None:
                try:
                    return dict(json.loads(reply.ok.payload.to_bytes()))
                except (ValueError, TypeError, RecursionError) as error:
                    raise BridgeError(f"{at}: the answer is not a document: {error}") from None
            reason = _text_of(reply.err.payload.to_bytes())
            if reason == "Timeout":  # Zenoh's own word
                reason = f"its bridge has not answered within {timeout:g} s"
            raise BridgeError(f"{at}: {reason}")
        # Zenoh ends a query at once if nothing matches it.
        raise BridgeError(f"{at}: there is no bridge with this key, or Zenoh's access control hides it")

    def put(self, key: str, name: str, value: Any, dtype: Any) -> None:
        """Set a setpoint of a bridge, whose counters show whether it was accepted. From one thread.

        Raises
        ------
        BridgeError
            If Zenoh cannot send it: after :meth:`close`.
        ConfigError
            On an invalid key, or a value that does not fit the type.
        """
        at = check_key(f"{key}/setpoints/{name}")
        payload = pack(value, dtype)
        self._numbers[at] = number = self._numbers.get(at, 0) + 1
        try:
            self._session.put(at, payload, attachment=NUMBERED.pack(self._sender, number))
        except engine().ZError as error:
            raise BridgeError(f"{at}: {error}") from None

    def get(self, selector: str, timeout: float) -> list[tuple[str, bytes, tuple[int, int]]]:
        """Return the answers of all bridges, also those with the same key, and the time of day before and after."""
        zenoh, found, before = engine(), [], time.time_ns()
        try:
            replies = self._session.get(
                selector, timeout=timeout, target=zenoh.QueryTarget.ALL, consolidation=zenoh.ConsolidationMode.NONE
            )
            for reply in replies:
                if reply.ok is not None:
                    found.append((str(reply.ok.key_expr), reply.ok.payload.to_bytes(), (before, time.time_ns())))
        except zenoh.ZError as error:
            raise BridgeError(f"{selector}: {error}") from None
        return found

    def _ask(self, selector: str, timeout: float, payload: bytes | None) -> list[Any]:
        try:
            return list(self._session.get(selector, timeout=timeout, payload=payload))
        except engine().ZError as error:
            raise BridgeError(f"{selector}: {error}") from None

    def _alive(self, timeout: float) -> list[str]:
        replies = self._session.liveliness().get(f"{self.keys}/alive", timeout=timeout)
        return [str(reply.ok.key_expr) for reply in replies if reply.ok is not None]

    def close(self) -> None:
        """Close the session. Closing again, or in a forked child, does nothing."""
        if self._pid == os.getpid() and not self._session.is_closed():
            close_session(self._session)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _find_shared(found: list[RemoteLoop]) -> dict[str, list[RemoteLoop]]:
    """Return the keys that several bridges have, with a loop of each."""
    bridges: dict[str, dict[Any, RemoteLoop]] = {}
    for loop in found:
        bridges.setdefault(loop.key, {}).setdefault((loop.bridge_id, loop.host, loop.pid), loop)
    return {key: list(loops.values()) for key, loops in bridges.items() if len(loops) > 1}


def _cleaned(value: Any) -> Any:
    """Return a document without terminal control characters, because anybody on the network may have written it."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [_cleaned(one) for one in value]
    return {clean(name): _cleaned(one) for name, one in value.items()} if isinstance(value, dict) else value


def _text_of(payload: bytes) -> str:
    try:
        return str(json.loads(payload)["error"])
    except (ValueError, TypeError, KeyError):
        return payload[:200].decode(errors="replace")
