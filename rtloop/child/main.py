"""Main function of the process of a ProcessLoop: it makes the loop, runs it, and reports to the parent."""

from __future__ import annotations

import dataclasses
import functools
import os
import pickle
import select
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from rtloop.child import child_process, target
from rtloop.child.carried_error import carry
from rtloop.child.channel import Channel
from rtloop.child.child_process import Order
from rtloop.child.safe_call import SafeCall
from rtloop.child.slack_collector import SlackCollector
from rtloop.errors import ConfigError, RTSetupWarning
from rtloop.loop import registry
from rtloop.units import format_duration

if TYPE_CHECKING:
    from rtloop.child.child_loop import ChildLoop
    from rtloop.loop.cycle import Cycle

__all__ = ["main"]

#: Interval at which the parent is looked for if the kernel gives no pidfd.
_LOOK_MS = 50


class Overseer:
    """Thread that executes the requests of the parent, and ends the loop and the process if the parent is gone.

    It sleeps in poll(2), without the GIL, until there is something to do.

    Attributes
    ----------
    may_go : threading.Event
        Set when the parent allows the loop to run, or has requested a stop before.
    """

    def __init__(self, channel: Channel, order: Order) -> None:
        self._channel, self._order = channel, order
        self._lock = threading.Lock()
        self.may_go = threading.Event()
        self._loop: ChildLoop | None = None
        self._is_withdrawn = False
        self._is_over = threading.Event()
        threading.Thread(target=self._work, name="rtloop-overseer", daemon=True).start()

    def watch(self, loop: ChildLoop) -> None:
        """Stop this loop on a request to stop, including one that has already arrived."""
        with self._lock:
            self._loop = loop

    def await_go(self) -> bool:
        """Wait until the parent lets the loop run. Returns False if the parent has requested a stop before that."""
        self.may_go.wait()
        return not self._is_withdrawn

    def finish(self) -> None:
        """End the process by force after a while, if threads of the step keep it from ending."""
        self._is_over.set()
        timer = threading.Timer(self._order.leave_timeout_ns / 1e9, os._exit, (0,))
        timer.daemon = True
        timer.start()

    def _work(self) -> None:
        waiting = select.poll()
        waiting.register(self._channel.fileno(), select.POLLIN)
        timeout: int | None = None
        try:
            waiting.register(os.pidfd_open(self._order.parent), select.POLLIN)
        except OSError:  # an old kernel, a filter, or the parent has gone already
            timeout = _LOOK_MS
        while os.getppid() == self._order.parent:
            waiting.poll(timeout)
            try:
                while (message := self._channel.receive()) is not None:
                    try:
                        self._obey(message[0])
                    except Exception as error:  # the next command may be the stop
                        registry.report_error(error)
            except EOFError:
                break
        self._end_orphan()

    def _obey(self, command: str) -> None:
        if command == "go":
            self.may_go.set()
        elif command == "stop":
            self._stop()
        elif command == "reset" and self._loop is not None:
            self._loop.reset_stats()

    def _stop(self) -> None:
        with self._lock:
            if not self.may_go.is_set():
                self._is_withdrawn = True
                self.may_go.set()
            elif self._loop is not None:  # which may not be released yet: it then enters, and ends at once
                self._loop.request_stop()

    def _end_orphan(self) -> None:
        """End the loop of a parent that is gone, then the process, even if the step does not return."""
        self._stop()
        if self._loop is None:
            os._exit(1)  # nothing has been acquired
        if not self._is_over.wait(self._order.leave_timeout_ns / 1e9):
            took = format_duration(self._order.leave_timeout_ns)
            text = f"rtloop: {self._order.name}: its parent has ended, and its step has not returned within {took}\n"
            os.write(2, text.encode())
            os._exit(1)


def main(number: int) -> None:
    """Run the loop that the parent describes through the socket with this number."""
    signal.signal(signal.SIGINT, lambda number, frame: None)  # Ctrl-C ends the loop through the parent
    os.set_inheritable(number, False)
    channel = Channel(socket.socket(fileno=number))
    try:
        _, order = channel.wait()
    except EOFError:
        return
    signal.pthread_sigmask(signal.SIG_SETMASK, order.mask)
    overseer = Overseer(channel, order)
    try:
        _run(channel, order, overseer)
    finally:
        overseer.finish()


def _run(channel: Channel, order: Order, overseer: Overseer) -> None:
    collector = SlackCollector()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RTSetupWarning)
            loop = _prepare(order, overseer, collector)
    except BaseException as error:
        channel.send("failed", carry(error))
        return
    channel.send("ready", [str(one.message) for one in caught if issubclass(one.category, RTSetupWarning)])
    for one in caught:
        if not issubclass(one.category, RTSetupWarning):
            warnings.showwarning(one.message, one.category, one.filename, one.lineno)
    if not overseer.await_go():
        loop.withdraw()
        channel.send("withdrawn")
        return
    failed = None
    try:
        loop.release()
        loop.join()
    except BaseException as error:
        failed = carry(error)
    stats = loop.stats
    grants = tuple(collector.grant() if grant.name == "collector" else grant for grant in stats.grants)
    if channel.send("end", (failed, dataclasses.replace(stats, grants=grants), dict(loop.parameters))):
        loop.note_reported()


def _prepare(order: Order, overseer: Overseer, collector: SlackCollector) -> ChildLoop:
    """Import the functions, call setup, and do all of the loop's start except releasing its thread."""
    from rtloop.child.child_loop import ChildLoop

    sys.argv = list(order.argv)
    if order.main is not None:
        with child_process.importing_main():
            target.run_main_script(order.main)
    step, setup, leave, safe, data = _load(order)
    if setup is not None:
        setup()
    safe_call = None if safe is None else SafeCall(safe, leave)
    settings: dict[str, Any] = dict(order.settings)
    loop = ChildLoop(
        step,
        order.period,
        leave=leave if safe_call is None else safe_call.leave,
        collector=collector,
        data=data,
        parameters=order.parameters,
        signals=order.signals,
        **settings,
    )
    loop.parameters.update(order.values)
    overseer.watch(loop)
    if safe_call is not None:
        safe_call.watch(loop, overseer.may_go)
    collector.freeze()
    loop.prepare(order.cycles, order.duration_ns, order.membership)
    return loop


class _Functions(NamedTuple):
    step: Callable[[Cycle], int | None]
    setup: Callable[[], object] | None
    leave: Callable[[], object] | None
    safe: Callable[[], object] | None
    data: Any


def _load(order: Order) -> _Functions:
    """Return the functions that the parent has named, with the data as their last argument if there is any."""
    try:
        targets, data = pickle.loads(order.pickled)
    except Exception as error:
        raise ConfigError(
            f"{order.name}: the functions, or their data, cannot be loaded in the loop's process: "
            f"{type(error).__name__}: {error}. Define them at the top level of their module, not below "
            "if __name__ == '__main__'"
        ) from error
    found = {keyword: target.find_target(named, keyword) for keyword, named in targets.items() if named is not None}
    step = found["step"]
    if data is None:
        return _Functions(step, found.get("setup"), found.get("leave"), found.get("safe"), None)

    @functools.wraps(step)
    def step_with_data(cycle: Cycle) -> int | None:
        return step(cycle, data)  # type: ignore[no-any-return]

    def with_data(function: Callable[..., object] | None) -> Callable[[], object] | None:
        return None if function is None else functools.partial(function, data)

    setup, leave, safe = (with_data(found.get(keyword)) for keyword in ("setup", "leave", "safe"))
    return _Functions(step_with_data, setup, leave, safe, data)
