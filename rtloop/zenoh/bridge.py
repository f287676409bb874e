"""Bridge: a loop, or a group of them, on a Zenoh network."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from rtloop.data.record_clock import read_clocks
from rtloop.errors import ConfigError, StateError
from rtloop.live.signals import Signals
from rtloop.process.exit_hooks import RECORDERS, WeakObjects, at_end, watch
from rtloop.process.occasion import Occasion
from rtloop.process.signal_shield import become_ordinary
from rtloop.system.host import uname
from rtloop.units import parse_duration, parse_period
from rtloop.zenoh.answers import COMMANDS, SET, Commands, StatsText, check_commands, loops_of
from rtloop.zenoh.feeds import Setpoint, Signal, Thinned, thinning
from rtloop.zenoh.host_clocks import published_state
from rtloop.zenoh.session import (
    Handlers,
    Links,
    Opening,
    check_key,
    close_session,
    engine,
    is_patient,
    key_chunk,
    open_session,
    wait_for_close,
)
from rtloop.zenoh.tuning import Tuning

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Bridge", "BridgeStats"]

_MIN_INTERVAL_NS = 1_000_000
#: Seconds that a thread that has done its work may take to end.
_JOIN_S = 5.0


@dataclass(frozen=True)
class BridgeStats:
    """Counters of a bridge.

    Attributes
    ----------
    published : int
        Messages: documents of statistics, and frames of records.
    records : int
        Records taken out of rings.
    unheard : int
        Those of them that were not sent, because there was no subscriber or Zenoh failed.
    dropped : int
        Records that full rings dropped.
    accepted, refused : int
        Payloads that became a setpoint, and those that did not.
    skipped : int
        Setpoints that were never read: replaced by newer ones, or lost on the way. They are counted if their sender
        numbers them, as :meth:`Remotes.put` does.
    commands, commands_refused : int
        Commands that were executed, and those that were refused.
    sets, sets_refused : int
        Sets of parameters, from peers, that the loops got, and those that were refused.
    links, links_lost, reconnects : int
        Connections to peers and routers: present ones, ended ones, and restored ones.
    errors : int
        Failed calls of Zenoh; `last_error` is the last one's text.
    """

    published: int
    records: int
    unheard: int
    dropped: int
    accepted: int
    refused: int
    skipped: int
    commands: int
    commands_refused: int
    sets: int
    sets_refused: int
    links: int
    links_lost: int
    reconnects: int
    errors: int
    last_error: str

    def to_dict(self) -> dict[str, Any]:
        """Return it as a dict that JSON can hold."""
        return asdict(self)


class Bridge:
    """Publish a loop to other hosts, and let them set what its owner allows, until it is closed.

    Statistics, and the parameters and signals that the loop has declared, are published to all subscribers without
    further arguments.

    The bridge runs on ordinary threads, its own and Zenoh's. The loop never waits for it, whatever the network does.
    Zenoh restores lost links; messages published meanwhile are lost, and their numbers let a peer count them.

    Parameters
    ----------
    loop : RTLoop or LoopGroup
        The loop or group to publish.
    config : None, path, dict or zenoh.Config
        Zenoh's own configuration: where to listen and to connect, TLS, users, access control. A client with
        ``exit_on_failure: false`` under `connect` opens without its router, and keeps trying.
    key : str, optional
        Prefix of all its keys; ``rtloop/<host>/<name>`` by default.
    interval : duration
        Interval at which statistics are published. A snapshot copies the loop's `record` cycles.
    signals : mapping of Ring or SignalLog, optional
        Further rings by name, whose records are published. The bridge is their only reader. Instead of a ring, give a
        pair of a ring and the clock of its records' times, such as ``(loop.log, "tai")``. Without a clock, fields
        `release` and `start` are on the loops' clock, and a recorder infers the clock of a field `time`.
    batch : duration
        Interval at which rings are emptied. A ring must hold the records of several intervals.
    setpoints : mapping of Latest, optional
        Values by name that peers may set. The bridge is their only writer. Instead of a Latest, give a pair of a Latest
        and a function that returns whether a value may be set. Values are stamped with their arrival, on the Latest's
        own clock.
    commands : iterable of {"start", "stop", "reset", "set"}
        Commands that peers may give; "set" lets them change the loops' parameters. None by default.
    signal_rate : rate or None
        Greatest rate at which samples of the loops' own signals are published. Of a faster loop only every n-th sample
        is published, with n as ``every`` in the frames. None: the signals are not published.

    Raises
    ------
    BridgeError
        If no session can be opened.
    ConfigError
        On values that can never work.
    ModuleNotFoundError
        If Zenoh is missing: ``pip install 'rtloop[zenoh]'``.
    StateError
        If a ring or a Latest already belongs to another recorder or bridge.

    Notes
    -----
    Real-time contract: for ordinary threads only; nothing here may be called from ``step``.

    Examples
    --------
    >>> with rtloop.zenoh.Bridge(loop, setpoints={"angle": loop.angle}), loop:
    ...     loop.join()
    """

    def __init__(
        self,
        loop: Any,
        *,
        config: Any = None,
        key: str | None = None,
        interval: Any = "1s",
        signals: Mapping[str, Any] | None = None,
        batch: Any = "50ms",
        setpoints: Mapping[str, Any] | None = None,
        commands: Iterable[str] = (),
        signal_rate: Any = "1kHz",
    ) -> None:
        engine()
        self._loops = loops_of(loop)
        self._subject = loop
        default = f"rtloop/{key_chunk(uname().nodename)}/{key_chunk(loop.name)}"
        self._key = check_key(default if key is None else key)
        self._interval_s = parse_duration(interval, "interval", minimum=_MIN_INTERVAL_NS) * 1e-9
        self._batch_s = parse_duration(batch, "batch", minimum=_MIN_INTERVAL_NS) * 1e-9
        self._allowed = check_commands(commands)
        self._least_ns = None if signal_rate is None else parse_period(signal_rate, "signal_rate")
        self._publishes_signals = signal_rate is not None
        if SET in self._allowed and not any(one.settings.tunable for one in self._loops):
            raise ConfigError("commands: 'set' cannot be allowed, because the loop was made with tunable=False")
        self._config = config
        self._pid = os.getpid()
        self._id = os.urandom(8).hex()  # tells apart what two bridges with the same key send
        self._documents = self._errors = 0
        self._last_error = ""
        self._links: Links | None = None
        self._publishers: dict[str, Any] = {}
        self._handlers = Handlers()
        self._signals: dict[str, Signal] = {}
        self._setpoints: dict[str, Setpoint] = {}
        self._texts = {key_chunk(one.name): StatsText(one, self._about) for one in self._loops}
        if len(self._texts) < len(self._loops):
            names = ", ".join(repr(one.name) for one in self._loops)
            raise ConfigError(f"the loops are called {names}: in keys, with _ for / * $ ? #, two are the same")
        self._own: dict[str, Any] = {}  # the loops' own signals that were processed, by the name of the loop
        self._session: Any = None
        self._fault: BaseException | None = None
        self._is_open, self._wake, self._has_ended = Occasion(), Occasion(), Occasion()
        self._is_closing = self._is_released = False
        self._thread = threading.Thread(target=self._work, name=f"rtloop-zenoh-{loop.name}", daemon=True)
        kept = {one.settings.clock for one in self._loops}
        shared = kept.pop() if len(kept) == 1 else None
        try:
            for name, source in (signals or {}).items():
                _check_name("signals", name)
                self._signals[name] = Signal(name, source, self._id, shared)
            for name, target in (setpoints or {}).items():
                _check_name("setpoints", name)
                self._setpoints[name] = Setpoint(name, target)
            named = dict(zip(self._texts, self._loops, strict=True))
            about = {"key": self._key, "bridge_id": self._id}
            is_allowed = SET in self._allowed
            allowed = tuple(one for one in self._allowed if one != SET)
            self._tuning = Tuning(named, self._at("commands", SET), is_allowed, lambda: about, self._thread.name)
            self._commands = Commands(loop, self._key, allowed, self._thread.name)
            self._thread.start()
            while not self._is_open.wait(0.05):
                pass  # in slices, so that a Ctrl-C just before the wait takes effect
            if self._fault is not None:
                raise self._fault
        except BaseException:
            self._is_closing = True
            self._wake.set()
            self._release_exchanges()
            raise
        _bridges.add(self)
        watch()

    @property
    def key(self) -> str:
        """Prefix of all its keys."""
        return self._key

    @property
    def closed(self) -> bool:
        """True if it has ended."""
        return not self._thread.is_alive() or self._pid != os.getpid()

    @property
    def stats(self) -> BridgeStats:
        """Its counters until now."""
        signals, setpoints, links = tuple(self._signals.values()), self._setpoints.values(), self._links
        return BridgeStats(
            published=self._documents + sum(signal.frames for signal in signals),
            records=sum(signal.taken for signal in signals),
            unheard=sum(signal.unheard for signal in signals),
            dropped=sum(signal.dropped for signal in signals),
            accepted=sum(setpoint.accepted for setpoint in setpoints),
            refused=sum(setpoint.refused for setpoint in setpoints),
            skipped=sum(setpoint.skipped for setpoint in setpoints),
            commands=self._commands.executed,
            commands_refused=self._commands.refused,
            sets=self._tuning.done,
            sets_refused=self._tuning.refused,
            links=links.now if links else 0,
            links_lost=links.lost if links else 0,
            reconnects=links.restored if links else 0,
            errors=self._errors,
            last_error=self._last_error,
        )

    def describe(self) -> dict[str, Any]:
        """Return what a peer needs to talk to it: its keys, and the types of their payloads."""
        return {
            "format": "rtloop-bridge",
            "version": 1,
            "key": self._key,
            "host": uname().nodename,
            "pid": self._pid,
            "bridge_id": self._id,
            "clocks": read_clocks(),
            "time_sync": published_state(),
            "loops": {
                name: {"name": loop.name, "state": loop.state, "period_ns": loop.settings.period_ns,
                       "clock": loop.settings.clock, "key": self._at("loops", name, "stats"),
                       "parameters": self._at("loops", name, "parameters"), "signals": self._signals_key(loop)}
                for name, loop in zip(self._texts, self._loops, strict=True)
            },
            "signals": {name: {"key": self._at("signals", name), **one.describe()}
                        for name, one in tuple(self._signals.items())},
            "setpoints": {name: {"key": self._at("setpoints", name), **one.describe(), "refused": one.refused,
                                 "last_reason": one.reason}
                          for name, one in self._setpoints.items()},
            "commands": {name: self._at("commands", name) for name in self._allowed},
        }  # fmt: skip

    def close(self) -> None:
        """Publish what is left, undeclare everything, and end. A second call does nothing.

        Over a cut link that can take as long as Zenoh's lease, 10 s; Ctrl-C ends the wait with an RTSetupWarning.
        """
        if self._pid != os.getpid() or self not in _bridges:
            return  # the threads and the session are the parent's, or it was closed before
        try:
            if self._thread is threading.current_thread():
                self._begin_close()
            else:
                wait_for_close(self._has_ended, float("inf"), self._begin_close)
                self._thread.join(_JOIN_S)
        finally:
            _bridges.discard(self)  # the end of the interpreter does not wait for it again

    def _begin_close(self) -> None:
        self._is_closing = True
        self._wake.set()

    def _release_exchanges(self) -> None:
        """Release the rings and setpoints, once: afterwards they may belong to others."""
        if self._is_released:
            return
        self._is_released = True
        for signal in self._signals.values():
            signal.close()
        for setpoint in self._setpoints.values():
            setpoint.close()
        for part in ("_commands", "_tuning"):
            if hasattr(self, part):
                getattr(self, part).close()

    def _at(self, *parts: str) -> str:
        return "/".join((self._key, *parts))

    def _about(self) -> dict[str, Any]:
        group = self._subject.name if len(self._loops) > 1 or self._subject is not self._loops[0] else None
        return {"key": self._key, "group": group, "interval_ns": round(self._interval_s * 1e9),
                "bridge_id": self._id, "time_sync": published_state(), "bridge": self.stats.to_dict()}  # fmt: skip

    def _work(self) -> None:
        try:
            self._open_and_publish()
        finally:
            self._has_ended.set()

    def _open_and_publish(self) -> None:
        opening: Opening | None = None
        session: Any = None
        try:
            become_ordinary()  # the session's threads inherit it
            if is_patient(self._config):
                opening = Opening(self._config)
            else:
                session = open_session(self._config)
                self._publishers = self._declare(session)
                if self._is_closing:  # its creator has not waited: the rings may have another reader now
                    raise StateError(f"the bridge of {self._key} was closed while it opened")
        except BaseException as error:
            self._fault = error
            self._session = None
            if session is not None:
                self._handlers.close()
                close_session(session)
            self._is_open.set()
            return
        self._is_open.set()
        try:
            self._publish_all(opening)
        finally:
            self._handlers.close()
            self._release_exchanges()
            self._session = None
            if session is not None:
                close_session(session)
            elif opening is not None:
                opening.close()

    def _declare_late(self, opening: Opening) -> None:
        if opening.fault is not None:
            raise opening.fault
        self._publishers = self._declare(opening.session)

    def _declare(self, session: Any) -> dict[str, Any]:
        self._session = session
        drop = {"congestion_control": engine().CongestionControl.DROP}
        self._links = Links(session, self._handlers)
        publishers = {}
        for name in self._texts:
            at = self._at("loops", name, "stats")
            publishers[at] = session.declare_publisher(at, encoding="application/json", **drop)
            at = self._at("loops", name, "parameters")
            publishers[at] = session.declare_publisher(at, encoding="application/json", **drop)
        for name in self._signals:
            publishers[self._at("signals", name)] = self._declare_signal(session, name)
        keep, callback = self._handlers.keep, self._handlers.callback
        for publisher in publishers.values():
            keep(publisher)  # one that outlives its session keeps the session's memory and descriptor
        for name, setpoint in self._setpoints.items():
            at = self._at("setpoints", name)
            self._handlers.take_newest(session, at, _Taker(at, setpoint))
        for name, text in self._texts.items():
            at = self._at("loops", name, "stats")
            keep(session.declare_queryable(at, callback(_Answer(at, text.get))))
            at = self._at("loops", name, "parameters")
            keep(session.declare_queryable(at, callback(_Answer(at, partial(self._tuning.text, name)))))
        at = self._at("describe")
        keep(session.declare_queryable(at, callback(_Answer(at, lambda: json.dumps(self.describe()).encode()))))
        for name in COMMANDS:
            keep(session.declare_queryable(self._at("commands", name), callback(self._commands.on_query)))
        keep(session.declare_queryable(self._at("commands", SET), callback(self._tuning.on_query)))
        keep(session.liveliness().declare_token(self._at("alive")))
        return publishers

    def _declare_signal(self, session: Any, name: str) -> Any:
        drop = engine().CongestionControl.DROP
        at = self._at("signals", name)
        return session.declare_publisher(at, encoding="application/octet-stream", congestion_control=drop)

    def _signals_key(self, loop: Any) -> str | None:
        """Return the key of a loop's own signals, None if they are not published."""
        found = getattr(loop, "signals", None)
        return next((self._at("signals", at) for at, one in tuple(self._signals.items()) if one.source is found), None)

    def _follow_signals(self) -> None:
        """Publish the loops' own signals as soon as they are fixed; after a swap, those of the new step."""
        for name, loop in zip(self._texts, self._loops, strict=True):
            found = getattr(loop, "signals", None)
            if not isinstance(found, Signals) or found is self._own.get(name) or loop.state == "new" or not len(found):
                continue
            self._own[name] = found  # even if the rest fails, so that the error is counted only once
            former = self._signals.get(name)
            if any(one.source is found for one in self._signals.values()) or not (
                former is None or isinstance(former.ring, Thinned)
            ):
                continue  # its owner publishes these signals, or something else by this name
            settings, at = loop.settings, self._at("signals", name)
            every = thinning(settings.period, settings.signals_every, self._least_ns)
            made = Signal(name, Thinned(found, every), self._id, settings.clock)
            if former is not None:
                former.drain(self._publishers.get(at))
                former.close()
            self._signals[name] = made
            if self._session is not None and at not in self._publishers:
                self._publishers[at] = self._declare_signal(self._session, name)
                self._handlers.keep(self._publishers[at])

    def _publish_parameters(self) -> None:
        for name in self._texts:
            publisher = self._publishers.get(self._at("loops", name, "parameters"))
            if publisher is not None and publisher.matching_status.matching and self._tuning.has_news(name):
                publisher.put(self._tuning.text(name))
                self._documents += 1

    def _publish_all(self, opening: Opening | None) -> None:
        next_stats = next_batch = time.monotonic()
        while True:
            is_last = self._is_closing
            now = time.monotonic()
            if opening is not None and (opening.session is not None or opening.fault is not None):
                self._try(lambda found=opening: self._declare_late(found))
                opening = None
            if now >= next_batch or is_last:
                next_batch = max(next_batch + self._batch_s, now)
                if self._publishes_signals:
                    self._try(self._follow_signals)
                self._try(self._publish_parameters)
                for name, signal in self._signals.items():
                    publisher = self._publishers.get(self._at("signals", name))
                    self._try(lambda signal=signal, publisher=publisher: signal.drain(publisher))
            if now >= next_stats or is_last:
                next_stats = max(next_stats + self._interval_s, now)
                for name, text in self._texts.items():
                    publisher = self._publishers.get(self._at("loops", name, "stats"))
                    self._try(lambda text=text, publisher=publisher: self._put(publisher, text))
            if is_last:
                return
            self._wake.wait(max(0.0, min(next_stats, next_batch) - time.monotonic()))

    def _try(self, call: Any) -> None:
        try:
            call()
        except Exception as error:
            self._errors += 1
            self._last_error = str(error)

    def _put(self, publisher: Any, text: StatsText) -> None:
        if publisher is not None and publisher.matching_status.matching:
            publisher.put(text.get())
            self._documents += 1

    def __enter__(self) -> Self:
        if self.closed:
            raise StateError(f"the bridge of {self._key} is closed: make a new one")
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Bridge {self._key}, {'closed' if self.closed else 'open'}>"


class _Taker:
    """Handler of a setpoint's samples. Raises nothing."""

    def __init__(self, key: str, setpoint: Setpoint) -> None:
        self._key, self._setpoint = key, setpoint
        self._put = engine().SampleKind.PUT

    def __call__(self, sample: Any) -> None:
        if sample.attachment is not None:
            self._setpoint.count(sample.attachment.to_bytes())
        if str(sample.key_expr) != self._key or sample.kind != self._put:
            self._setpoint.refuse(f"a {sample.kind} of {sample.key_expr} is not a value for {self._key}")
        else:
            self._setpoint.take(sample.payload.to_bytes())


class _Answer:
    """Callback of a queryable that answers with a document."""

    def __init__(self, key: str, make: Any) -> None:
        self._key, self._make = key, make

    def __call__(self, query: Any) -> None:
        try:
            query.reply(self._key, self._make(), encoding="application/json")
        except Exception as error:
            query.reply_err(json.dumps({"error": str(error)}), encoding="application/json")
        finally:
            query.drop()


def _check_name(kind: str, name: Any) -> None:
    if not isinstance(name, str) or "/" in name or key_chunk(name) != name:
        raise ConfigError(f"{kind}: {name!r} must be a name without / * $ ? # in it")


_bridges: WeakObjects[Bridge] = WeakObjects()


def _close_all() -> None:
    """Close the bridges at the interpreter's end, after the loops, so that peers learn of it."""
    for bridge in _bridges:
        with suppress(Exception):
            bridge.close()


at_end(RECORDERS, _close_all, lambda: bool(_bridges))
