"""Waiting for an exchange in asyncio, and in whatever waits for files: a thread sleeps in the place of the caller."""

from __future__ import annotations

import os
import queue
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, Protocol

from rtloop.errors import SetupError, StateError
from rtloop.sharing.helper_threads import start_helper
from rtloop.units import parse_timeout

__all__ = ["Notifier", "find_notifier", "wait_in_thread"]

#: How often a waiting thread looks whether it is still needed.
_SLICE = "50ms"
#: Time for which an idle thread is kept.
_IDLE_S = 10.0


class _Exchange(Protocol):
    def wait(self, timeout: int | str | timedelta | None = None) -> bool:
        """Wait until there is something."""


async def wait_in_thread(
    wait: Callable[[int | str | timedelta | None], bool], timeout: int | str | timedelta | None
) -> bool:
    """Call an exchange's `wait` on another thread for the running event loop; a cancellation ends the wait.

    The threads are not those of the event loop's executor, which has few threads and may need them for other work.

    Raises
    ------
    SetupError
        If no thread can be created.
    """
    import asyncio  # here, because its import takes long, and callers of this function have imported it already

    until = None if timeout is None else time.monotonic_ns() + parse_timeout(timeout)
    is_cancelled = threading.Event()

    def sleep() -> bool:
        while not is_cancelled.is_set():
            if wait(_SLICE):
                return True
            if until is not None and time.monotonic_ns() >= until:
                return False
        return False

    if wait("0ns"):
        return True
    loop = asyncio.get_running_loop()
    future: asyncio.Future[bool] = loop.create_future()

    def settle(has_news: bool, error: BaseException | None) -> None:
        if future.done():
            return  # cancelled
        if error is None:
            future.set_result(has_news)
        else:
            future.set_exception(error)

    def work() -> None:
        has_news, raised = False, None
        try:
            has_news = sleep()
        except BaseException as error:
            raised = error
        with suppress(RuntimeError):  # the event loop has been closed
            loop.call_soon_threadsafe(settle, has_news, raised)

    _threads.run(work)
    try:
        return await future
    finally:
        is_cancelled.set()


class _Threads:
    """Threads that wait, one for each wait in progress; idle threads are kept for later waits."""

    def __init__(self) -> None:
        self._idle: list[queue.SimpleQueue[Callable[[], None]]] = []

    def run(self, job: Callable[[], None]) -> None:
        """Call a function on an idle thread, or on a new one."""
        try:
            jobs = self._idle.pop()
        except IndexError:
            jobs = queue.SimpleQueue()
            start_helper(self._work, (jobs,), "ready() of an exchange")
        jobs.put(job)

    def _work(self, jobs: queue.SimpleQueue[Callable[[], None]]) -> None:
        while True:
            try:
                job = jobs.get(timeout=_IDLE_S)
            except queue.Empty:
                try:
                    self._idle.remove(jobs)
                except ValueError:
                    job = jobs.get()  # another thread is about to put it in
                else:
                    return
            job()
            del job
            self._idle.append(jobs)


_threads = _Threads()


def _forget_after_fork() -> None:
    global _threads
    _threads = _Threads()


os.register_at_fork(after_in_child=_forget_after_fork)


class Notifier:
    """A file that can be read as long as there may be something in an exchange, for select(2) and event loops.

    Attributes
    ----------
    fd : int
        The file, an eventfd(2), which nobody but this object reads; -1 after :meth:`close`.
    """

    def __init__(self, exchange: _Exchange) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._pid = os.getpid()
        self._lock = threading.RLock()  # a signal handler may take something out meanwhile
        # Not an Event, whose lock a handler would wait for that has interrupted set().
        self._armed: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._is_asked = False
        arguments = (weakref.ref(self), weakref.ref(exchange), self._armed)
        try:
            start_helper(_notify, arguments, "fileno() of an exchange")
        except SetupError:
            self.close()
            raise

    def rearm(self) -> None:
        """Make the file unreadable until the thread has looked again. After something was taken out."""
        with self._lock:
            if self.fd >= 0 and self._pid == os.getpid():
                with suppress(BlockingIOError):
                    os.eventfd_read(self.fd)
                if not self._is_asked:  # one request is enough
                    self._is_asked = True
                    self._armed.put(None)

    def notify(self, exchange: _Exchange) -> bool:
        """Make the file readable, unless what there was has been taken out meanwhile. Returns True if it is."""
        with self._lock:  # whoever takes something out calls rearm() afterwards, and waits for this
            if self.fd < 0 or not exchange.wait("0ns"):
                return False
            while not self._armed.empty():  # requests from before
                self._armed.get_nowait()
            self._is_asked = False
            os.eventfd_write(self.fd, 1)
            return True

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        with self._lock:
            fd, self.fd = self.fd, -1
            if fd >= 0:
                os.close(fd)

    def __del__(self) -> None:
        self.close()


def find_notifier(exchange: _Exchange, owner: Any) -> Notifier:
    """Return the notifier of an exchange, one for all threads, which its owner keeps from the first call on."""
    found: Notifier | None = owner.notifier
    return vars(owner).setdefault("notifier", Notifier(exchange)) if found is None else found


def _notify(
    notifier_of: weakref.ref[Notifier], exchange_of: weakref.ref[Any], armed: queue.SimpleQueue[None]
) -> None:  # the thread, which keeps neither of the two
    is_armed = True
    while True:
        try:
            if not is_armed:
                armed.get(timeout=0.5)
                is_armed = True
        except queue.Empty:
            if notifier_of() is None:
                return
            continue
        exchange = exchange_of()
        if exchange is None:
            return
        try:
            has_news = exchange.wait(_SLICE)
            notifier = notifier_of()
            if notifier is None or notifier.fd < 0:
                return
            if has_news:
                is_armed = not notifier.notify(exchange)
        except StateError:
            return  # it has been closed
        del exchange, notifier
