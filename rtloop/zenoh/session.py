"""Zenoh sessions: opening one, checking keys, and counting its links."""

from __future__ import annotations

import json
import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from rtloop.errors import BridgeError, ConfigError, RTSetupWarning
from rtloop.process.occasion import Occasion

__all__ = [
    "Handlers", "Links", "Opening", "check_expression", "check_key", "close_session", "engine", "is_patient",
    "key_chunk", "make_config", "open_session", "wait_for_close",
]  # fmt: skip

#: Zenoh's open cannot be interrupted, so it is called in slices of this length.
_SLICE_MS = 1000
#: Seconds that a close is waited for: Zenoh's lease, and what it takes besides.
_CLOSE_S = 15.0
#: Seconds that it may still take after Ctrl-C.
_GRACE_S = 0.5
_NO_CONNECTION = "Unable to connect"

#: Samples of a subscription that may wait inside Zenoh; beyond that it stops reading from its peers.
_QUEUE = 256
_CHUNK = re.compile(r"[^/*$?#]+")


def engine() -> Any:
    """Return the module ``zenoh``.

    Raises
    ------
    BridgeError
        If it is too old.
    ModuleNotFoundError
        If it is missing, with the command that installs it.
    """
    try:
        import zenoh
    except ModuleNotFoundError as error:
        if error.name != "zenoh":
            raise
        raise ModuleNotFoundError("rtloop.zenoh needs Zenoh: pip install 'rtloop[zenoh]'", name="zenoh") from error
    if not hasattr(zenoh.SessionInfo, "declare_transport_events_listener"):
        from importlib.metadata import version

        raise BridgeError(
            f"eclipse-zenoh {version('eclipse-zenoh')} is too old: rtloop.zenoh needs 1.9 or a later one. "
            "pip install --upgrade 'rtloop[zenoh]'"
        )
    return zenoh


def make_config(config: Any = None) -> Any:
    """Return Zenoh's own configuration.

    Parameters
    ----------
    config : None, path, dict or zenoh.Config
        None: Zenoh's defaults, or the file that ``ZENOH_CONFIG`` names; a path to such a file, JSON5 or YAML; a dict
        with the content of such a file.

    Raises
    ------
    ConfigError
        If Zenoh does not accept it.
    """
    zenoh = engine()
    try:
        if config is None:
            path = os.environ.get("ZENOH_CONFIG")
            return zenoh.Config.from_file(path) if path else zenoh.Config()
        if isinstance(config, Mapping):
            return zenoh.Config.from_json5(json.dumps(dict(config)))
        if isinstance(config, (str, os.PathLike)):
            return zenoh.Config.from_file(os.fspath(config))
    except (zenoh.ZError, OSError, TypeError, ValueError) as error:
        raise ConfigError(f"config={config!r} is not a Zenoh configuration: {error}") from None
    if isinstance(config, zenoh.Config):
        return config
    raise ConfigError(f"config={config!r} must be None, a path, a dict or a zenoh.Config")


def open_session(config: Any = None, *, on_wait: Callable[[str], None] | None = None) -> Any:
    """Open a session; its threads inherit the scheduling policy and the CPUs of the calling one.

    Parameters
    ----------
    config : None, path, dict or zenoh.Config
        Zenoh's own configuration. A client waits for its router as long as ``connect.timeout_ms`` says, -1: forever.
    on_wait : callable, optional
        Called about once a second while it waits, with what is missing; an exception from it ends the wait, as
        does Ctrl-C.

    Raises
    ------
    BridgeError
        If Zenoh cannot: an address is in use, or a client does not reach its router.
    ConfigError, ModuleNotFoundError
        As above.
    """
    settings = make_config(config)
    return _open(settings, _of_client(settings, "connect/timeout_ms", 0), on_wait)


def _open(settings: Any, wait_ms: int, on_wait: Callable[[str], None] | None) -> Any:
    """Open a session, in slices while a client has to wait; the configuration is left unchanged."""
    zenoh = engine()
    limit = time.monotonic() + (wait_ms / 1000 if wait_ms >= 0 else float("inf"))
    # Not on a copy, because Zenoh serialises a configuration without its secrets.
    before = settings.get_json("connect/timeout_ms")
    while True:
        left_ms = (limit - time.monotonic()) * 1000
        try:
            if wait_ms:  # Zenoh itself could not be interrupted before the router is there
                settings.insert_json5("connect/timeout_ms", str(int(max(1, min(left_ms, _SLICE_MS)))))
            return zenoh.open(settings)
        except zenoh.ZError as error:
            if left_ms <= _SLICE_MS or _NO_CONNECTION not in str(error):
                raise BridgeError(
                    f"no Zenoh session could be opened: {error}. See listen, connect and mode of its configuration"
                ) from None
        finally:
            if wait_ms:
                settings.insert_json5("connect/timeout_ms", before)
        if on_wait is not None:
            on_wait(f"waiting for {', '.join(json.loads(settings.get_json('connect/endpoints'))) or 'a router'}")


def close_session(session: Any, timeout: float = _CLOSE_S) -> None:
    """Close a session, and wait until it is closed; Ctrl-C or the end of `timeout` ends the wait with a warning.

    Over a cut link Zenoh's close can take as long as the lease, and it cannot be interrupted. Therefore it runs on a
    thread of its own, which is left behind if the wait ends early.

    Parameters
    ----------
    session : zenoh.Session, or another object with ``close()``
        Its errors are ignored, because it is of no use any more.
    timeout : float
        Seconds.
    """
    ended = Occasion()

    def close() -> None:
        try:
            with suppress(Exception):
                session.close()
        finally:
            ended.set()

    closing = threading.Thread(target=close, name="rtloop-zenoh-closing", daemon=True)
    try:
        wait_for_close(ended, timeout, closing.start)
    except RuntimeError:  # no thread can be started any more: the interpreter is ending
        close()
    else:
        if ended.is_set():
            closing.join(_GRACE_S)


def wait_for_close(ended: Occasion, timeout: float, begin_close: Callable[[], None] | None = None) -> None:
    """Begin to close a session, and wait until that has ended, or `timeout` seconds are over.

    The rest of a wait that Ctrl-C or the limit ends is not waited for: the peers are told, or learn of it when the
    lease is over.
    """
    begin = time.monotonic()
    try:
        if begin_close is not None:
            begin_close()
        # For an event, because Thread.join takes a thread for ended after a Ctrl-C (CPython 3.11).
        while not ended.wait(0.05) and time.monotonic() < begin + timeout:
            pass  # in slices, so that Ctrl-C takes effect
    except KeyboardInterrupt:
        # A peer that ends by the same Ctrl-C completes the close in this time. It should not do so in the middle of the
        # interpreter's end, which aborts threads that return from native code then.
        if not ended.wait(_GRACE_S):
            _warn_unclosed(time.monotonic() - begin)
        raise
    if not ended.is_set():
        _warn_unclosed(time.monotonic() - begin)


def _warn_unclosed(seconds: float) -> None:
    warnings.warn(
        f"a Zenoh session was still closing after {seconds:.1f} s and was left: a cut link delays the close by up to "
        "the lease (transport/link/tx/lease, 10 s by default), after which peers regard the session as gone",
        RTSetupWarning,
        stacklevel=4,
    )


def is_patient(config: Any) -> bool:
    """Return whether it is a client's that carries on without a router: ``connect.exit_on_failure`` is false."""
    return _of_client(make_config(config), "connect/exit_on_failure", True) is False


def _of_client(settings: Any, entry: str, default: Any) -> Any:
    """Return an entry of a client's configuration, or the default if it is missing or the mode is peer."""
    if json.loads(settings.get_json("mode")) != "client":
        return default
    value = json.loads(settings.get_json(entry))
    if isinstance(value, dict):
        value = value.get("client")
    return default if value is None else value


class Opening:
    """Session that is being opened on its own thread, for as long as that takes.

    Attributes
    ----------
    session : zenoh.Session or None
        None until it is there.
    fault : Exception or None
        Why it could not be opened.
    """

    def __init__(self, config: Any) -> None:
        self.session: Any = None
        self.fault: Exception | None = None
        self._config, self._is_closing = config, False
        self._thread = threading.Thread(target=self._open, name="rtloop-zenoh-opening", daemon=True)
        self._thread.start()

    def _open(self) -> None:
        def on_wait(text: str) -> None:
            if self._is_closing:
                raise BridgeError("closed")

        try:
            self.session = _open(make_config(self._config), -1, on_wait)
        except Exception as error:
            self.fault = error

    def close(self) -> None:
        """Stop trying, which takes up to a second, and close the session."""
        self._is_closing = True
        self._thread.join()
        if self.session is not None:
            close_session(self.session)


def key_chunk(name: str) -> str:
    """Return a name as one part of a key: characters with a meaning to Zenoh become ``_``."""
    return re.sub(r"[/*$?#]", "_", name).lstrip("@") or "_"


def check_key(key: str) -> str:
    """Check and return a key: parts with ``/`` between them, none empty, and no wildcard.

    Raises
    ------
    ConfigError
        If it is not one.
    """
    if not isinstance(key, str) or not all(_CHUNK.fullmatch(part) for part in key.split("/")):
        raise ConfigError(f"key={key!r} must be parts with / between them, without * $ ? #, as in 'rtloop/host/name'")
    return key


def check_expression(keys: str, whole: str | None = None) -> None:
    """Refuse an invalid Zenoh key expression; `whole` is the expression made of it.

    Raises
    ------
    ConfigError
        If it is not one.
    """
    zenoh = engine()
    try:
        zenoh.KeyExpr(keys if whole is None else whole)
    except (zenoh.ZError, TypeError, ValueError) as error:
        reason = str(error).partition(" at /")[0]
        raise ConfigError(f"keys={keys!r} is not a Zenoh key expression, such as 'rtloop/**': {reason}") from None


class Handlers:
    """Callbacks and declarations of a session, which can be undeclared and waited for.

    Zenoh calls Python on its own threads. One that still needs the interpreter when it ends takes the process down:
    "FATAL: exception not rethrown".
    """

    def __init__(self) -> None:
        self._declared: list[Any] = []
        self._ends: list[tuple[threading.Event, list[threading.Thread]]] = []
        self._takers: list[threading.Thread] = []

    def callback(self, function: Any) -> Any:
        """Return a handler that calls a function."""
        ended = threading.Event()
        threads: list[threading.Thread] = []
        self._ends.append((ended, threads))

        def drop() -> None:
            threads.append(threading.current_thread())
            ended.set()

        return engine().handlers.Callback(function, drop)

    def take_newest(self, session: Any, key: str, function: Any) -> None:
        """Subscribe to a key, and call a function with its newest sample, on a thread of its own.

        A sample that arrives while the function is busy is replaced by a newer one inside Zenoh, without Python. In a
        callback's queue a flood of samples would be seconds old when its turn comes.
        """
        self._take(session.declare_subscriber(key, engine().handlers.RingChannel(1)), key, function)

    def take_all(self, session: Any, key: str, function: Any) -> None:
        """Subscribe to a key, and call a function with each sample, on a thread of its own; it must not take long.

        That thread is a daemon; the interpreter's end would wait forever for a callback thread of Zenoh.
        """
        self._take(session.declare_subscriber(key, engine().handlers.FifoChannel(_QUEUE)), key, function)

    def take_liveliness(self, session: Any, key: str, function: Any) -> None:
        """Do the same for the liveliness tokens of peers."""
        channel = engine().handlers.FifoChannel(_QUEUE)
        self._take(session.liveliness().declare_subscriber(key, channel), key, function)

    def _take(self, subscriber: Any, key: str, function: Any) -> None:
        self.keep(subscriber)

        def work() -> None:
            for sample in subscriber.handler:  # ends when it is undeclared
                function(sample)

        taker = threading.Thread(target=work, name=f"rtloop-zenoh-{key.rpartition('/')[2]}", daemon=True)
        self._takers.append(taker)
        taker.start()

    def keep(self, declared: Any) -> None:
        """Keep a declaration until :meth:`close`."""
        self._declared.append(declared)

    def close(self, timeout: float = 2.0) -> None:
        """Undeclare everything, and wait up to a timeout until none of its callbacks runs."""
        for declared in reversed(self._declared):
            with suppress(Exception):
                declared.undeclare()
        self._declared.clear()
        limit = time.monotonic() + timeout
        for ended, threads in self._ends:
            if ended.wait(max(0.0, limit - time.monotonic())) and threads[0] is not threading.current_thread():
                with suppress(RuntimeError):  # not a thread that Python started
                    threads[0].join(max(0.0, limit - time.monotonic()))
        self._ends.clear()
        for taker in self._takers:
            taker.join(max(0.0, limit - time.monotonic()))
        self._takers.clear()


class Links:
    """Counts of a session's links to peers and routers, and of restored links.

    Attributes
    ----------
    now : int
        Present links.
    lost : int
        Ended links.
    restored : int
        New links after a lost one: from the same peer, or from one restarted in its place.
    """

    def __init__(self, session: Any, handlers: Handlers) -> None:
        self._kind = engine().SampleKind.PUT
        self.now = self.lost = self.restored = 0
        on_event = handlers.callback(self._on_event)
        handlers.keep(session.info.declare_transport_events_listener(on_event, history=True))

    def _on_event(self, event: Any) -> None:
        if event.kind == self._kind:
            self.now += 1
            self.restored += self.restored < self.lost
        else:
            self.now -= 1
            self.lost += 1
