"""Answers of a bridge: its description, its loops' statistics, and the commands that its owner enabled."""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from rtloop.errors import ConfigError, StateError
from rtloop.process.signal_shield import become_ordinary
from rtloop.system.host import uname

__all__ = ["COMMANDS", "FRESH_NS", "SET", "Commands", "StatsText", "Waiting", "check_commands", "loops_of"]

COMMANDS = ("start", "stop", "reset")
#: The permission to change parameters; its queries have a payload.
SET = "set"
#: Greatest number of waiting queries of a kind; more are refused.
_MAX_WAITING = 8
#: A younger snapshot is reused, which bounds the cost of frequent queries.
FRESH_NS = 50_000_000


def loops_of(subject: Any) -> tuple[Any, ...]:
    """Return the loops of a loop or group.

    Raises
    ------
    ConfigError
        If it is neither.
    """
    loops = tuple(subject.loops) if hasattr(subject, "loops") else (subject,)
    wanted = ("name", "state", "stats", "settings", "start", "stop", "reset_stats")
    if not loops or not all(hasattr(loop, name) for loop in (subject, *loops) for name in wanted):
        raise ConfigError(f"{subject!r} is neither a loop nor a LoopGroup")
    return loops


def check_commands(commands: Iterable[str]) -> tuple[str, ...]:
    """Return the enabled commands.

    Raises
    ------
    ConfigError
        On any other than start, stop, reset and set.
    """
    wanted = (commands,) if isinstance(commands, str) else tuple(commands)
    known = (*COMMANDS, SET)
    if not {*wanted} <= {*known}:
        raise ConfigError(f"commands={commands!r} must be among {', '.join(known)}")
    return wanted


class StatsText:
    """Published document of a loop's statistics, renewed when it is no longer fresh."""

    def __init__(self, loop: Any, about: Callable[[], dict[str, Any]]) -> None:
        self._loop, self._about = loop, about
        self._lock = threading.Lock()
        self._made_s = -1.0
        self._text = b""
        self._sequence = 0

    def get(self) -> bytes:
        """Return it as JSON in UTF-8."""
        with self._lock:
            if time.monotonic() - self._made_s > FRESH_NS * 1e-9:
                self._sequence += 1
                self._made_s = time.monotonic()  # as old as time_ns, however long the snapshot takes
                document = {
                    "format": "rtloop-bridge-stats",
                    "version": 1,
                    "sequence": self._sequence,
                    "time_ns": time.time_ns(),
                    "host": uname().nodename,
                    "pid": os.getpid(),
                    **self._about(),
                    "stats": self._loop.stats.to_dict(),
                }
                self._text = json.dumps(document, separators=(",", ":")).encode()
            return self._text


class Waiting:
    """Queries that wait for the thread that executes them. Each one is taken, or refused, exactly once.

    Parameters
    ----------
    kind : str
        Word for several of them, in messages.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._lock = threading.Lock()
        self._queue: queue.Queue[Any] = queue.Queue(_MAX_WAITING + 1)  # the last place is for the end
        self._is_closed = False

    def __len__(self) -> int:
        return self._queue.qsize()

    def put(self, item: Any) -> None:
        """Let an item wait; from any thread.

        Raises
        ------
        StateError
            If too many wait already, or after `close`.
        """
        with self._lock:  # whatever is put in before the end of the queue is taken or refused
            if self._is_closed:
                raise StateError("the bridge is closing")
            if self._queue.qsize() >= _MAX_WAITING:
                raise StateError(f"{_MAX_WAITING} other {self._kind} are waiting")
            self._queue.put_nowait(item)

    def get(self) -> Any:
        """Wait for an item, and return it; None at the end."""
        return self._queue.get()

    def close(self) -> list[Any]:
        """Accept no more items, and return those that wait, which the caller refuses."""
        left = []
        with self._lock:
            self._is_closed = True
            with suppress(queue.Empty):
                while True:
                    left.append(self._queue.get_nowait())
            self._queue.put_nowait(None)
        return [one for one in left if one is not None]


class Commands:
    """Execution of commands, one after the other, on its own thread because a start may take long.

    Attributes
    ----------
    executed, refused : int
        Numbers of commands.
    """

    def __init__(self, subject: Any, key: str, allowed: tuple[str, ...], thread_name: str) -> None:
        self._subject, self._key, self._allowed = subject, key, allowed
        self._waiting = Waiting("commands")
        self.executed = self.refused = 0
        self._thread: threading.Thread | None = None
        if allowed:
            self._thread = threading.Thread(target=self._work, name=f"{thread_name}-commands", daemon=True)
            self._thread.start()

    def on_query(self, query: Any) -> None:
        """Accept a query on one of the command keys; from any thread."""
        # A query that matched by a wildcard did not ask for a command.
        exact = {f"{self._key}/commands/{name}": name for name in COMMANDS}
        name = exact.get(str(query.key_expr))
        if name is None:
            self._answer(query, f"{query.key_expr} is not a command; give {', '.join(exact)}")
        elif name not in self._allowed:
            on = ", ".join(self._allowed) or "none"
            self._answer(query, f"{name} is not enabled here; its owner enabled: {on}")
        else:
            try:
                self._waiting.put((query, name))
            except StateError as error:
                self._answer(query, f"{name}: {error}")

    def _answer(self, query: Any, fault: str | None, state: str = "") -> None:
        self.executed += fault is None
        self.refused += fault is not None
        if fault is None:
            query.reply(query.key_expr, json.dumps({"ok": True, "state": state}), encoding="application/json")
        else:
            query.reply_err(json.dumps({"ok": False, "error": fault}), encoding="application/json")
        query.drop()

    def _work(self) -> None:
        become_ordinary()
        calls = {"start": self._subject.start, "stop": self._subject.stop, "reset": self._subject.reset_stats}
        while (item := self._waiting.get()) is not None:
            query, name = item
            try:
                try:
                    calls[name]()
                except Exception as error:
                    self._answer(query, f"{name}: {error}")
                else:
                    self._answer(query, None, self._subject.state)
            except Exception:  # the caller has gone
                continue
            finally:
                del query, item

    def close(self) -> None:
        """Accept no more commands, and refuse those that wait."""
        self._allowed = ()
        for query, name in self._waiting.close():
            with suppress(Exception):  # the session may be gone
                self._answer(query, f"{name}: the bridge is closing")
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(5.0)
