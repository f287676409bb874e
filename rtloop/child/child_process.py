"""ChildProcess: the process of one run of a ProcessLoop, as its parent sees it."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from rtloop.child.carried_error import restore
from rtloop.child.channel import Channel
from rtloop.child.target import MainScript
from rtloop.errors import ProcessDiedError, RtloopError, SetupError, StateError, StopTimeoutError
from rtloop.loop import registry
from rtloop.process import ending_signals
from rtloop.process.environment import copy_environment
from rtloop.process.exit_hooks import LOOPS, at_end, watch
from rtloop.process.interpreter import python, search_path
from rtloop.process.signal_shield import look_with, shielded
from rtloop.units import format_duration

if TYPE_CHECKING:
    from rtloop.functions.fields import Fields, Tuning
    from rtloop.settings import Duration, Settings
    from rtloop.stats.stats import Stats

__all__ = ["ChildProcess", "Membership", "Order", "importing_main"]

_CODE = "import sys; sys.path[:] = sys.argv[2:]; from rtloop.child.main import main; main(int(sys.argv[1]))"
_SLICE_MS = 50
#: Time for the process to end after its loop, in addition to `leave_timeout`.
_GRACE_NS = 1_000_000_000
#: Time for a process to end that was killed: the kernel frees its memory, and on a busy machine later than others'.
_KILLED_NS = 10_000_000_000
#: Variables that limit the thread pools of libraries, which read them when they are loaded.
_POOLS = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)  # fmt: skip

_children: set[ChildProcess] = set()
_is_importing_main = False


class Membership(NamedTuple):
    """Part of a loop in a group of the parent: the group's name, the settings of the run, and two inherited files."""

    name: str
    settings: Settings
    state_file: int
    failure_file: int

    def is_running(self) -> bool:
        """Return False, because this process runs only one loop of the group."""
        return False


class Order(NamedTuple):
    """Message that describes the loop to its process. `pickled` contains the functions and their data."""

    name: str
    parent: int
    mask: tuple[int, ...]
    argv: tuple[str, ...]
    main: MainScript | None
    pickled: bytes
    period: Duration
    settings: dict[str, Any]
    parameters: Tuning
    signals: Fields
    values: dict[str, Any]
    cycles: int | None
    duration_ns: int | None
    leave_timeout_ns: int
    membership: Membership | None


@contextmanager
def importing_main() -> Iterator[None]:
    """Refuse all starts in the block, in which the process of a loop imports the script that has started it."""
    global _is_importing_main
    _is_importing_main = True
    try:
        yield
    finally:
        _is_importing_main = False


class ChildProcess:
    """Process of one run, from its start until it is reaped.

    The process communicates with this one only through a channel. If the other end of the channel is gone, it ends its
    loop and itself. All methods may be called by any thread.

    Parameters
    ----------
    settings : Settings
        Settings of the loop.

    Attributes
    ----------
    phase : str
        ``"starting"``; ``"ready"`` when only the release of the loop's thread is missing; ``"running"``; ``"over"``
        when the loop has ended, or will not run.
    has_ended : bool
        True if the process has ended and was reaped.
    error : BaseException or None
        Reason for which the loop, or its start, has failed.
    messages : list of str
        Warnings of the start.
    stats, values : Stats or None, dict or None
        Statistics and parameters at the loop's end; None if the process died.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.phase = "starting"
        self.has_ended = False
        self.error: BaseException | None = None
        self.messages: list[str] = []
        self.stats: Stats | None = None
        self.values: dict[str, Any] | None = None
        self.has_left: Callable[[], bool | None] = lambda: None
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._pidfd = -1
        self._is_silent = self._is_stop_wanted = False
        self._over_ns = 0
        self._armed = ending_signals.Armed()
        self._owner = os.getpid()

    @property
    def pid(self) -> int:
        """Number of the process; 0 before it is started."""
        return 0 if self._process is None else self._process.pid

    def is_in_child(self) -> bool:
        """Return True if this is a forked copy of the process that has started it."""
        return self._owner != os.getpid()

    def spawn(self, order: Order) -> None:
        """Start the process.

        Raises
        ------
        SetupError
            If the kernel refuses it.
        StateError
            If it was stopped before, or the program is ending.
        """
        if _is_importing_main:
            raise StateError(
                f"{order.name} cannot be started while the loop's process imports the script that has started it: "
                "start loops only below if __name__ == '__main__':"
            )
        try:
            program = python()
        except RtloopError as error:
            raise SetupError(f"{order.name}: {error}") from error
        shielded(lambda: self._spawn(order, program))
        registry.check_not_ending(order.name)  # an end of all loops that began before this start has missed this one
        assert self._channel is not None
        self._channel.send("order", order)

    def _spawn(self, order: Order, program: str) -> None:
        """Start the process on a thread that no signal handler interrupts."""
        with self._lock:
            if self._is_stop_wanted:
                raise StateError(f"{order.name} was stopped before it was started")
            ours, theirs = socket.socketpair()
            number = theirs.fileno()
            files = [] if order.membership is None else [order.membership.state_file, order.membership.failure_file]
            flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
            try:
                self._process = subprocess.Popen(
                    [program, *flags, "-c", _CODE, str(number), *search_path()],
                    env=copy_environment(**dict.fromkeys(_POOLS, "1")),
                    stdin=subprocess.DEVNULL,
                    pass_fds=(number, *files),
                )
            except OSError as error:
                ours.close()
                reason = f"its process cannot be started: {program!r}: {error.strerror}"
                raise SetupError(error.errno, f"{order.name}: {reason}") from error
            finally:
                theirs.close()
            self._channel = Channel(ours)
            with suppress(OSError):
                self._pidfd = os.pidfd_open(self._process.pid)
            _children.add(self)
            self._armed = ending_signals.arm()
            if self._is_stop_wanted:
                self._send("stop")  # the request found no process yet
        watch()

    def go(self) -> bool:
        """Let the loop run. Returns False if a stop was requested, or the process has died."""
        with self._lock:
            if self.phase != "ready" or self._is_stop_wanted:
                return False
            self.phase = "running"
            self._send("go")
            return True

    def request_stop(self) -> None:
        """Ask the loop to end, without waiting for it."""
        if self.is_in_child():
            return
        self._is_stop_wanted = True
        # Without waiting for the lock: a signal handler may have interrupted its holder, and wait for this thread.
        if not self._lock.acquire(blocking=False):
            self._send("stop")
            return
        try:
            if self._process is None:
                self.phase, self.has_ended = "over", True  # it will not be started any more
            self._send("stop")
        finally:
            self._lock.release()

    def reset_stats(self) -> None:
        """Restart the statistics."""
        with self._lock:
            self._send("reset")

    def _send(self, command: str) -> None:
        if self._channel is not None and not self.has_ended:
            self._channel.send(command)

    def look(self) -> bool:
        """Read what the process has sent, and reap it if it has ended. Returns True if it has."""
        if self.is_in_child():
            return True
        if not self._lock.acquire(timeout=_SLICE_MS / 1000):
            return self._has_exited()  # a signal handler may have interrupted the holder, and wait for this thread
        try:
            self._look()
            return self.has_ended
        finally:
            self._lock.release()

    def _has_exited(self) -> bool:
        """Return True if the process has ended, whether or not it has been reaped."""
        if self.has_ended or self._pidfd < 0:
            return self.has_ended
        waiting = select.poll()
        waiting.register(self._pidfd, select.POLLIN)
        return bool(waiting.poll(0))

    def glance(self) -> None:
        """Look, unless another thread is doing something with the process: this may be the one that it waits for."""
        if self._lock.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._lock.release()

    def _look(self) -> None:
        if self._process is None or self.has_ended:
            return
        code = self._process.poll()
        self._read()
        if code is not None:
            self._finish(code)
        elif self.phase == "over" and time.monotonic_ns() > self._over_ns:
            self._process.kill()  # its loop has ended, but a thread of the step keeps the process

    def _read(self) -> None:
        assert self._channel is not None
        while not self._is_silent:
            try:
                message = self._channel.receive()
            except EOFError:
                self._is_silent = True
                return
            if message is None:
                return
            self._take(*message)

    def _take(self, kind: str, content: Any) -> None:
        if kind == "ready":
            self.phase, self.messages = "ready", content
            return
        if kind == "failed":
            self.error = restore(content, self.settings.name)
        elif kind == "withdrawn":
            self.error = StateError(f"{self.settings.name} was stopped before it had started")
        else:
            failed, self.stats, self.values = content
            self.error = None if failed is None else restore(failed, self.settings.name)
        self.phase = "over"
        self._over_ns = time.monotonic_ns() + self.settings.leave_timeout_ns + _GRACE_NS

    def _finish(self, code: int) -> None:
        assert self._channel is not None
        if self.phase != "over":
            self.error = self._died(code)
            self.phase = "over"
        self.has_ended = True
        self._channel.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
        _children.discard(self)
        ending_signals.disarm_at_once(self._armed)

    def _died(self, code: int) -> BaseException:
        if self._is_stop_wanted and self.phase != "running":
            return StateError(f"{self.settings.name} was stopped before it had started")
        how = f"ended with exit code {code}"
        if code < 0:
            with suppress(ValueError):
                how = f"was ended by {signal.Signals(-code).name}"
        has_left = self.has_left() if self.phase == "running" else None
        rest = {True: "; its leave() has run", False: "; its leave() has not run", None: ""}[has_left]
        if self.phase == "starting" and code >= 0:
            rest = ", before it could report why: see its output on stderr"
        text = f"{self.settings.name}: its process {self.pid} {how}{rest}"
        return ProcessDiedError(text, self.settings.name, self.pid, code, has_left)

    def wait(self, deadline_ns: int | None, is_done: Callable[[], bool] = lambda: False) -> bool:
        """Wait until the process has ended, or `is_done` is true. Returns False at the deadline on the monotonic clock.

        An exception of a signal handler is raised at once.
        """
        while not self.look() and not is_done():
            left = _SLICE_MS
            if deadline_ns is not None:
                left = min(left, -((time.monotonic_ns() - deadline_ns) // 1_000_000))
                if left <= 0:
                    return False
            waiting = select.poll()
            if self._channel is not None and not self._is_silent and self._channel.fileno() >= 0:
                waiting.register(self._channel.fileno(), select.POLLIN)
            if self._pidfd >= 0:
                waiting.register(self._pidfd, select.POLLIN)
            waiting.poll(left)
        return True

    def end_run(self, timeout_ns: int, interrupts: list[BaseException]) -> bool:
        """Ask the loop to end and wait for the end of the process. Returns True if it has ended.

        Exceptions of signal handlers are added to the list `interrupts`.
        """
        deadline = time.monotonic_ns() + timeout_ns
        self.request_stop()
        while True:
            try:
                return self.wait(deadline)
            except BaseException as interrupt:
                if not interrupts:
                    deadline = min(deadline, time.monotonic_ns() + self.settings.leave_timeout_ns)
                interrupts.append(interrupt)

    def end(self) -> bool:
        """Ask the process to end, and kill it after `leave_timeout`. Returns False if it was killed."""
        if self.end_run(self.settings.leave_timeout_ns, []):
            return True
        self.kill()
        return False

    def kill(self) -> None:
        """Kill the process, and wait for its end."""
        if self._process is not None and not self.has_ended:
            self._process.kill()
        self.end_run(_KILLED_NS, [])

    def end_file(self) -> tuple[int, int]:
        """Return a new file that becomes ready when the process ends, and the events of poll(2) to wait for."""
        with self._lock:
            if self.has_ended:
                assert self.error is not None
                raise self.error.with_traceback(None)
            if self._pidfd >= 0:
                return os.dup(self._pidfd), select.POLLIN
            assert self._channel is not None
            return os.dup(self._channel.fileno()), select.POLLRDHUP

    def forget(self) -> None:
        """Close the files that a forked child of this process has inherited from it."""
        if self._channel is not None:
            self._channel.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


def _look_at_all() -> bool:
    """Reap processes that have ended. The keeper, which a signal handler may wait for that has interrupted a look."""
    for child in list(_children):
        child.glance()
    return bool(_children)


def _end_all() -> str:
    """End all processes when the program ends. Returns a summary."""
    every = list(_children)
    for child in every:
        child.request_stop()
    for child in every:
        if not child.end():
            took = format_duration(child.settings.leave_timeout_ns)
            text = (
                f"{child.settings.name} did not stop within {took}: a function has not returned. Its process was killed"
            )
            registry.report_error(StopTimeoutError(text))
    return f"stopped {len(every)} process loop{'s' * (len(every) != 1)}" if every else ""


def _reset_after_fork() -> None:
    for child in _children:
        child.forget()
    _children.clear()


at_end(LOOPS, _end_all, lambda: bool(_children))
look_with(_look_at_all)
os.register_at_fork(after_in_child=_reset_after_fork)
