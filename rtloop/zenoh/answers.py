"""Answers of a bridge: its description, its loops' statistics, and the commands that its owner enabled."""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from rtloop.data.recorder import become_ordinary
from rtloop.errors import ConfigError
from rtloop.system.host import uname

__all__ = ["COMMANDS", "FRESH_NS", "SET", "Commands", "StatsText", "check_commands", "loops_of"]

COMMANDS = ("start", "stop", "reset")
#: The permission to change parameters; its queries have a payload.
SET = "set"
#: Greatest number of waiting commands; more are refused.
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


class Commands:
    """Execution of commands, one after the other, on its own thread because a start may take long.

    Attributes
    ----------
    obeyed, refused : int
        Numbers of commands.
    """

    def __init__(self, subject: Any, key: str, allowed: tuple[str, ...], thread_name: str) -> None:
        self._subject, self._key, self._allowed = subject, key, allowed
        self._waiting: queue.Queue[Any] = queue.Queue(_MAX_WAITING)
        self.obeyed = self.refused = 0
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
                self._waiting.put_nowait((query, name))
            except queue.Full:
                self._answer(query, f"{name}: {_MAX_WAITING} other commands are waiting")

    def _answer(self, query: Any, fault: str | None, state: str = "") -> None:
        self.obeyed += fault is None
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
        while True:
            try:
                query, name = self._waiting.get_nowait()
                self._answer(query, f"{name}: the bridge is closing")
            except queue.Empty:
                break
            except Exception:  # the session may be gone
                continue
        self._waiting.put(None)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(5.0)
