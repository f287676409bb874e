"""Session: one page in one browser, what it shows and what it asks for."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rtloop.errors import ConfigError, RtloopError, StateError
from rtloop.tools.scope.files import save_history
from rtloop.tools.scope.samples.trigger import Trigger
from rtloop.tools.scope.status import describe_loop, describe_status
from rtloop.tools.scope.tuning import Tuning, present_values
from rtloop.tools.scope.view import View, make_frame, parse_view

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rtloop.stats.figures import Swap
    from rtloop.tools.scope.samples.history import History
    from rtloop.tools.scope.samples.watch import Feed, Watch
    from rtloop.tools.scope.station import Station

__all__ = ["Session"]

Message = Mapping[str, Any]


class _Armed:
    """A trigger, and the feed whose samples it looks at."""

    def __init__(self, channel: str, feed: Feed, trigger: Trigger, done: Callable[[int], None]) -> None:
        self.channel, self.feed, self.trigger, self._done = channel, feed, trigger, done
        self._values = feed.history.channels[channel].values
        trigger.restart(feed.history.count)
        feed.listeners.append(self._take)
        feed.restarts.append(trigger.restart)

    def _take(self, number: int, records: NDArray[Any]) -> None:
        complete = self.trigger.take(self._values(records))
        if complete:
            self._done(complete[-1])

    def disarm(self) -> None:
        self.feed.listeners.remove(self._take)
        self.feed.restarts.remove(self.trigger.restart)


class Session:
    """One page: the loop that it shows, its view, its trigger and its changes.

    Parameters
    ----------
    station : Station
        What all pages share.
    send : callable
        Sends a text or a binary message; returns when the connection has taken it.
    """

    def __init__(self, station: Station, send: Callable[[str | bytes], Awaitable[None]]) -> None:
        self._station, self._send = station, send
        self.watch: Watch | None = None
        self._view = View()
        self._tuning = Tuning()
        self._frozen: dict[str, History] | None = None
        self._armed: _Armed | None = None
        self._capture: tuple[History, dict[str, Any]] | None = None
        self._captured_swaps: Sequence[Swap] = ()  # of the run of the capture
        self._swap_count = 0
        self._described: dict[str, Any] = {}
        self._is_ready = False  # the page has drawn the last frame
        self._is_busy = False  # a message has not been taken yet
        self._is_stale = True  # the page asks for something else than the last frame
        self._drawn = -1  # number of the newest sample in the last frame
        self._said: dict[str, str] = {}  # the last message of each kind

    # Messages to the page.

    async def _tell(self, kind: str, **content: Any) -> None:
        await self._send(json.dumps({"kind": kind, **content}))

    async def _tell_changes(self, kind: str, content: Mapping[str, Any]) -> None:
        """Send a message unless it says what the last one of its kind has said."""
        text = json.dumps({"kind": kind, **content})
        if self._said.get(kind) != text:
            self._said[kind] = text
            await self._send(text)

    async def tell_problem(self, text: str) -> None:
        """Send the reason why something could not be read, once."""
        await self._tell_changes("refused", {"of": "read", "message": text})

    async def tick(self) -> None:
        """Send a frame if the page is ready for one and there is something new to draw."""
        if self._is_busy:
            return  # the browser does not take what was sent: nothing is queued for it
        self._is_busy = True
        try:
            await self._follow_restart()
            await self._follow_swap()
            await self._tell_changes("trigger", self._describe_trigger())
            newest = self._newest()
            if self._is_ready and (self._is_stale or newest != self._drawn):
                self._is_ready = self._is_stale = False
                self._drawn = newest
                await self._send(make_frame(self._view, self._shown(), self._header(), self._swaps()))
        finally:
            self._is_busy = False

    async def report(self) -> None:
        """Send the loops, the figures of the chosen loop and the values of its parameters, if they have changed."""
        if self._is_busy:
            return
        self._is_busy = True
        try:
            await self._tell_changes("loops", {"loops": self._station.loops, "note": self._station.note})
            watch = self.watch  # the page may go, or choose another loop, while a message is sent
            if watch is not None:
                await self._tell_changes("status", describe_status(watch, self._station.recording_of(watch)))
                if watch is self.watch and not watch.has_ended:
                    await self._tell_values()
        finally:
            self._is_busy = False

    async def _tell_values(self) -> None:
        if self.watch is not None:
            values = present_values(self.watch.connection.parameters)
            await self._tell_changes("values", {"values": values, "undo": len(self._tuning)})

    def _header(self) -> dict[str, Any]:
        return {
            "is_live": self._frozen is None and not self._view.is_capture,
            "capture": self._capture[1] if self._view.is_capture and self._capture is not None else None,
        }

    def _newest(self) -> int:
        if self._view.is_capture:
            return -1 if self._capture is None else int(self._capture[1]["number"])
        return -1 if self._frozen is not None else sum(one.count for one in self._shown().values())

    def _shown(self) -> Mapping[str, History]:
        """Return the samples that are shown, by feed."""
        if self._view.is_capture:
            return {} if self._capture is None else {"capture": self._capture[0]}
        if self._frozen is not None:
            return self._frozen
        return {} if self.watch is None else {name: feed.history for name, feed in self.watch.feeds.items()}

    def _swaps(self) -> Sequence[Swap]:
        """Return the swaps of the run whose samples are shown."""
        if self._view.is_capture:
            return self._captured_swaps
        return () if self.watch is None else self.watch.swaps

    # Messages from the page.

    async def handle(self, message: Message) -> None:
        """Do what a page asks for; what cannot be done is answered with the reason."""
        kind = str(message.get("kind", ""))
        answer: Callable[[Message], Awaitable[None]] | None = {
            "next": self._on_next,
            "watch": self._on_watch,
            "view": self._on_view,
            "pause": self._on_pause,
            "set": self._on_set,
            "undo": self._on_undo,
            "arm": self._on_arm,
            "disarm": self._on_disarm,
            "cursors": self._on_cursors,
            "preset": self._on_preset,
            "record": self._on_record,
            "save": self._on_save,
        }.get(kind)
        try:
            if answer is None:
                raise ConfigError(f"the page asks for {kind!r}, which this version does not know: reload it")
            await answer(message)
        except (RtloopError, OSError, KeyError) as error:
            text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
            await self._tell("refused", of=kind, message=text, gesture=message.get("gesture"))
            if kind in ("set", "undo"):
                self._said.pop("values", None)
                await self._tell_values()

    async def _on_next(self, message: Message) -> None:
        self._is_ready = True
        await self.tick()  # samples that came while the page was drawing need not wait for the next look at the loops

    async def _on_watch(self, message: Message) -> None:
        name, pid = message["name"], message["pid"]
        if not isinstance(name, str) or not isinstance(pid, int):
            raise ConfigError("a loop is chosen by its name and its process")
        await self._show(name, pid)

    async def _on_view(self, message: Message) -> None:
        self._view = parse_view(message)
        self._is_stale = True

    async def _on_pause(self, message: Message) -> None:
        if not message.get("on"):
            self._frozen = None
        elif self._frozen is None and self.watch is not None:
            self._frozen = {name: feed.history.copy() for name, feed in self.watch.feeds.items()}
        self._is_stale = True

    async def _on_set(self, message: Message) -> None:
        watch, values, gesture = self._running(), message.get("values"), message.get("gesture")
        if not isinstance(values, dict) or not (gesture is None or isinstance(gesture, str)):
            raise ConfigError("the values to set are not a table of names and values")
        parameters = watch.connection.parameters
        async with watch.lock:
            await asyncio.to_thread(self._tuning.change, parameters, values, gesture)
        await self._tell("set", names=sorted(values), gesture=gesture)
        await self._tell_values()

    async def _on_undo(self, message: Message) -> None:
        watch = self._running()
        async with watch.lock:
            values = await asyncio.to_thread(self._tuning.undo, watch.connection.parameters)
        await self._tell("set", names=sorted(values), undone=True)
        await self._tell_values()

    async def _on_arm(self, message: Message) -> None:
        watch = self._running()
        try:
            channel, edge, level = str(message["channel"]), str(message["edge"]), float(message["level"])
            before, after, is_single = int(message["before"]), int(message["after"]), bool(message["is_single"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"the trigger needs a level, and the numbers of samples: {error}") from None
        found = watch.feed_of(channel)
        if found is None:
            raise ConfigError(f"{watch.name} has no signal {channel!r} to trigger on")
        most = found[1].history.capacity // 2
        if before + after > most:
            raise ConfigError(f"before={before} and after={after} are more than the {most:,} samples of a capture")
        trigger = Trigger(level, edge, before, after, is_single=is_single)
        self._disarm()
        self._armed = _Armed(channel, found[1], trigger, self._take_capture)

    def _take_capture(self, at: int) -> None:
        armed = self._armed
        if armed is None or self.watch is None:
            return
        history, trigger = armed.feed.history, armed.trigger
        capture = history.copy(at - trigger.before, at + trigger.after)
        edge = history.records(at, at + 1)
        capture.origin = int(edge["release"][0])
        facts = {
            "loop": self.watch.name,
            "channel": armed.channel,
            "edge": trigger.edge,
            "level": trigger.level,
            "before": trigger.before,
            "after": trigger.after,
            "cycle": int(edge["cycle"][0]),
            "trigger_release": capture.origin,
            "number": trigger.found,
        }
        self._capture, self._captured_swaps = (capture, facts), self.watch.swaps

    async def _on_disarm(self, message: Message) -> None:
        self._disarm()

    def _disarm(self) -> None:
        if self._armed is not None:
            self._armed.disarm()
            self._armed = None

    def _describe_trigger(self) -> dict[str, Any]:
        armed, capture = self._armed, self._capture
        return {
            "state": "off" if armed is None else armed.trigger.state,
            "channel": None if armed is None else armed.channel,
            "level": None if armed is None else armed.trigger.level,
            "found": 0 if armed is None else armed.trigger.found,
            "capture": None if capture is None else capture[1],
        }

    async def _on_cursors(self, message: Message) -> None:
        times = message.get("times")
        if not isinstance(times, list) or len(times) > 2:
            raise ConfigError("two cursors are possible")
        steps = message.get("steps", [0] * len(times))
        if not isinstance(steps, list) or len(steps) != len(times) or not all(step in (-1, 0, 1) for step in steps):
            raise ConfigError("a cursor moves by one sample, to either side")
        found = []
        for seconds, step in zip(times, steps, strict=True):
            is_number = isinstance(seconds, (int, float)) and math.isfinite(seconds)
            found.append(self._values_at(float(seconds), int(step)) if is_number else None)
        await self._tell("cursors", cursors=found)

    def _values_at(self, seconds: float, steps: int) -> dict[str, Any] | None:
        """Return the time, cycle and drawn values of the sample nearest to a time, or of a neighbour of it."""
        result: dict[str, Any] = {"values": {}}
        for history in self._shown().values():
            number = history.nearest(seconds, steps)
            names = [name for name in self._view.channels if name in history.channels]
            if number is None or not names:
                continue
            if "time" not in result:
                cycle = int(history.records(number, number + 1)["cycle"][0])
                result.update(time=history.time(number), cycle=cycle)
                seconds, steps = history.time(number), 0  # of the other channels, the sample at this time
            for name in names:
                value = float(history.values(name, number, number + 1)[0])
                result["values"][name] = value if math.isfinite(value) else str(value)
        return result if "time" in result else None

    async def _on_preset(self, message: Message) -> None:
        watch, action, name = self._chosen(), message.get("action"), message.get("name")
        presets = self._station.presets
        if action in ("save", "delete"):
            if not isinstance(name, str):
                raise ConfigError("a preset needs a name")
            if action == "save":
                values = present_values(watch.connection.parameters)
                await asyncio.to_thread(presets.save, watch.name, name.strip(), values)
            else:
                await asyncio.to_thread(presets.delete, watch.name, name)
        await self._tell("presets", presets=await asyncio.to_thread(presets.of, watch.name))

    async def _on_record(self, message: Message) -> None:
        watch = self._chosen()
        if not message.get("on"):
            done = await self._station.stop_recording(watch)
            if done is not None:
                await self._tell("done", message=done)
            return
        if watch.has_ended:
            raise StateError(f"{watch.name} has ended: there is nothing to record")
        path = self._station.start_recording(watch, str(message.get("format")))
        await self._tell("done", message=f"Recording to {path}.")

    async def _on_save(self, message: Message) -> None:
        if self._capture is None:
            raise StateError("there is no capture to save: arm the trigger first")
        history, facts = self._capture
        path = self._station.free_path(str(facts["loop"]), "-capture", str(message.get("format")))
        count = await asyncio.to_thread(save_history, history, path, facts)
        await self._tell("done", message=f"{count:,} samples saved to {path}.")

    # The loop.

    def _chosen(self) -> Watch:
        if self.watch is None:
            raise StateError("no loop is chosen")
        return self.watch

    def _running(self) -> Watch:
        watch = self._chosen()
        if watch.has_ended:
            raise StateError(f"{watch.name} has ended")
        return watch

    async def _show(self, name: str, pid: int) -> None:
        """Watch another loop, or the next run of the same one."""
        watch = await self._station.open(name, pid)
        former, self.watch = self.watch, watch
        if former is not None and former.name != watch.name:
            self._capture, self._tuning = None, Tuning()
        if former is None or former is not watch:
            self._rearm(watch)
            self._frozen = None
        if former is not None:
            await self._station.release(former)
        self._is_stale = True
        self._said.clear()
        await self._describe(watch)
        await self._tell("presets", presets=await asyncio.to_thread(self._station.presets.of, watch.name))

    async def _describe(self, watch: Watch) -> None:
        self._swap_count, self._described = watch.swap_count, describe_loop(watch, self._station.keep_s)
        await self._tell("loop", **self._described)
        await self._tell_values()

    async def _follow_swap(self) -> None:
        """Show the new step of the loop, if it has other signals or parameters than the former one."""
        watch = self.watch
        if watch is None or watch.swap_count == self._swap_count:
            return
        self._swap_count, self._is_stale = watch.swap_count, True
        if describe_loop(watch, self._station.keep_s) != self._described:
            self._rearm(watch)
            self._frozen = None
            await self._describe(watch)

    def _rearm(self, watch: Watch) -> None:
        """Let a trigger that waits wait for the same signal of another run."""
        armed = self._armed
        if armed is None:
            return
        armed.disarm()
        self._armed = None
        found = watch.feed_of(armed.channel)
        trigger = armed.trigger
        if found is not None and trigger.state != "done" and self._capture_fits(trigger, found[1]):
            self._armed = _Armed(armed.channel, found[1], trigger, self._take_capture)

    @staticmethod
    def _capture_fits(trigger: Trigger, feed: Feed) -> bool:
        return trigger.before + trigger.after <= feed.history.capacity // 2

    async def _follow_restart(self) -> None:
        if self.watch is None or not self.watch.has_ended:
            return
        successor = self._station.successor_of(self.watch)
        if successor is not None:
            try:
                await self._show(*successor)
            except RtloopError:
                self._station.look_soon()  # it has ended already

    async def close(self) -> None:
        """Forget everything, after the page has gone."""
        self._disarm()
        watch, self.watch = self.watch, None
        if watch is not None:
            await self._station.release(watch)
