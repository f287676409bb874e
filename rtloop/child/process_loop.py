"""ProcessLoop: a loop whose step is a Python function in a process of its own."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self, Unpack

from rtloop.child.child_member import ChildMember
from rtloop.child.child_process import ChildProcess, Membership, Order
from rtloop.child.signals_of_runs import SignalsOfRuns
from rtloop.child.target import check_target, main_script, pack
from rtloop.errors import AttachError, StateError, warn_of_setup
from rtloop.functions.python_loop import PyLoop
from rtloop.live.connect import Connection, connect
from rtloop.live.parameters import Parameters
from rtloop.loop import interrupted_wait, registry
from rtloop.loop.outcome import failure, run_warnings
from rtloop.process import ending_signals
from rtloop.settings import Duration, LoopKeywords, Settings, check_call, parse_count, parse_name, parse_run_duration
from rtloop.units import format_rate, parse_timeout

if TYPE_CHECKING:
    from rtloop.functions.fields import Fields, Tuning
    from rtloop.live.declared_parameters import Parameter
    from rtloop.live.parameter_block import Used
    from rtloop.live.parameters import ParameterBackend
    from rtloop.live.signals import Signals
    from rtloop.stats.stats import Stats
    from rtloop.system.grant import Grant
    from rtloop.telemetry.foreign_block import ForeignBlock

__all__ = ["ProcessLoop"]

_DEFAULT_STOP_TIMEOUT = "2s"
_serial = itertools.count(1)


def _do_nothing(cycle: object) -> None:
    """Step of the PyLoop that holds the settings and the parameters between runs. It is never called."""


class ProcessLoop:
    """Loop whose step is a Python function in a process of its own, with its own GIL.

    Threads, garbage collection and imports of this process do not hold the step up. The other process runs only the
    loop: its memory is locked, its thread has a real-time priority, libraries such as NumPy use one thread, and the
    garbage collector runs only between two cycles, if there is time until the next release.

    The functions are called with `data` as their last argument if it is given: ``step(cycle, data)``, ``setup(data)``,
    ``leave(data)``, ``safe(data)``. Otherwise they are called as ``step(cycle)``, ``setup()``, ``leave()`` and
    ``safe()``. Each start creates a new process, which imports them again.

    Parameters
    ----------
    step : str or callable
        Function to call at every release: its place, ``"module:function"``, or a function that another process can
        import: one at the top level of a module, or of the script if that starts its loops below
        ``if __name__ == "__main__":``. It is called with a :class:`Cycle`, and returns the same as the step of a
        :class:`PyLoop`. An exception fails the loop; :meth:`join` and :meth:`run` raise it in this process, and its
        cause contains the traceback of the other.
    period : duration
        As for :class:`RTLoop`, like all other keywords. The default of ``stack_size`` is 4M.
    setup : str or callable, optional
        Function to call once in the process before its memory is locked: it opens devices and exchanges.
    leave : str or callable, optional
        Function that the loop's thread calls after the last cycle, to bring the actuators to rest. It runs however the
        loop ends, unless the loop's process is killed (SIGKILL) or crashes.
    safe : str or callable, optional
        Function to call if the watchdog of a :class:`LoopGroup` finds the loop stuck, while its step hangs. Another
        thread of the loop's process calls it, at a priority above the loop's, and `leave` waits for it. It returns None
        or an int, which becomes the error's ``safe_code``. It needs the GIL, so it cannot run while the step hangs in
        compiled code that keeps the GIL.
    data : object, optional
        Object that can be pickled; the process gets a copy. For parameters and signals, one struct in a NumPy array:
        ``np.zeros((), [("kp", "f8"), ("angle", "f8")])``.
    parameters, signals : sequence of str, or dict, optional
        Fields of `data` to declare, as for :class:`PyLoop`. Use them through `parameters` and `signals`, or
        :func:`connect`.

    Raises
    ------
    ConfigError
        If another process cannot import a function, `data` cannot be pickled, or a keyword can never work.
    TypeError
        If a function is neither callable nor a str.

    Notes
    -----
    The loop ends, and `leave` runs, on :meth:`stop`, on Ctrl-C in a terminal, if either process gets SIGTERM, at the
    end of this program, and if this process is killed. A process whose step does not return within
    ``leave_timeout`` is killed at the end of the program.

    A :class:`LoopGroup` takes it beside compiled loops: one origin, one end, one reaction to failures.

    Real-time contract: call the methods on control threads only, never from a ``step``.
    """

    def __init__(
        self,
        step: str | Callable[..., int | None],
        period: Duration,
        *,
        setup: str | Callable[..., object] | None = None,
        leave: str | Callable[..., object] | None = None,
        safe: str | Callable[..., object] | None = None,
        data: Any = None,
        parameters: Tuning = (),
        signals: Fields = (),
        **settings: Unpack[LoopKeywords],
    ) -> None:
        check_call(type(self), (period,), dict(settings))
        self._targets = {"step": step, "setup": setup, "leave": leave, "safe": safe}
        for keyword, one in self._targets.items():
            if keyword == "step" or one is not None:
                check_target(one, keyword)
        name = settings.get("name")
        given: dict[str, Any] = {"stack_size": "4M", **settings}
        given["name"] = f"{type(self).__name__}-{next(_serial)}" if name is None else parse_name(name)
        self._period, self._given = period, given
        self._data, self._declared = data, (parameters, signals)
        fields = copy.copy(data) if parameters or signals else None  # the values for the next run are in the copy
        self._model = PyLoop(_do_nothing, period, data=fields, parameters=parameters, signals=signals, **given)
        pack(data, "data")
        self._settings = self._model.settings
        self._own_settings = self._settings
        self._lock = threading.RLock()
        self._child: ChildProcess | None = None
        self._starting: ChildProcess | None = None
        self._connection: Connection | None = None
        self._refused: AttachError | None = None
        self._opened: tuple[Connection | None, AttachError | None] = (None, None)
        self._signals = SignalsOfRuns(self._model.signals._source)
        self._is_reported = self._is_closed = False
        self._blocks: list[tuple[int, ending_signals.Armed]] = []
        self._parameters = Parameters(_CurrentParameters(self))
        self._pid = os.getpid()
        self._member = ChildMember(self)

    @property
    def name(self) -> str:
        """The loop's name."""
        return self._settings.name

    @property
    def settings(self) -> Settings:
        """Settings, resolved: those of a group during and after its runs."""
        return self._settings

    @property
    def pid(self) -> int | None:
        """Process of the present run, or of the last one; None before the first."""
        return None if self._child is None else self._child.pid

    @property
    def state(self) -> Literal["new", "running", "stopped", "failed"]:
        """``"new"``, ``"running"``, ``"stopped"`` or ``"failed"``."""
        child = self._child
        if child is None:
            return "new"
        child.look()
        if child.phase != "over":
            return "failed" if child.is_in_child() else "running"
        return "stopped" if child.error is None else "failed"

    @property
    def grants(self) -> tuple[Grant, ...]:
        """Requests to the kernel for the loop's process, and what it granted; empty before the first run."""
        return () if self._child is None else self.stats.grants

    @property
    def parameters(self) -> Parameters:
        """Parameters of the loop, to read and to change, while it runs and between its runs."""
        return self._parameters

    @property
    def signals(self) -> Signals:
        """Samples of the loop's signals, in all its runs; none before the first.

        A reader, also that of a :class:`Recorder`, goes on with the next run when it has read the samples of one. The
        last two runs are kept; samples of earlier ones that a reader has not begun to read count as lost.

        Raises
        ------
        AttachError
            If those of the present run cannot be read.
        """
        if self._refused is not None and len(self._signals):
            raise self._refused
        return self._signals

    @property
    def stats(self) -> Stats:
        """Snapshot of the present run, or the statistics of the last one. Reading it does not delay the loop.

        Raises
        ------
        AttachError
            If the loop runs, and this process may not read the other's memory.
        """
        self._settle()
        child = self._child
        if child is not None and child.stats is not None:
            return child.stats
        if self._connection is not None:
            return self._connection.stats
        if self._refused is not None and self.state == "running":
            raise self._refused
        return dataclasses.replace(self._model.stats, state=self.state)

    def _settle(self) -> None:
        """Keep the statistics of a run that has ended, and close the connection to it."""
        child, connection = self._child, self._connection
        if child is None or not child.look():
            return
        with self._lock:
            if self._connection is not connection or connection is None:
                return
            values = dict(connection.parameters) if child.values is None else child.values
            if child.stats is None:
                try:
                    child.stats = connection.stats
                except AttachError:  # killed in the middle of writing its figures
                    child.stats = dataclasses.replace(self._model.stats, state="died")
            self._model.parameters.update(values)
            self._connection = None
            connection.close()

    def start(self) -> None:
        """Start the process and its loop, and wait until the loop runs.

        Raises
        ------
        SetupError
            If the kernel refused a request and ``strict`` is on; also a PermissionError if a privilege is missing.
        ConfigError
            If the process cannot import a function.
        StateError
            If the loop is already running, or closed; or was stopped before it ran.
        ProcessDiedError
            If the process ended before the loop ran.
        BaseException
            An exception of `setup`, or of the import of a function.
        """
        self._start(None, None)

    def _start(self, cycles: int | None, duration_ns: int | None) -> None:
        self._claim(None, self._own_settings)
        try:
            self._launch(cycles, duration_ns, None)
            self._release()
        except BaseException:
            self._abandon()
            raise

    def _launch(self, cycles: int | None, duration_ns: int | None, membership: Membership | None) -> None:
        """Start the process of a claimed run, which does everything except releasing its thread."""
        child = self._starting
        assert child is not None
        child.spawn(self._order(cycles, duration_ns, membership))
        child.wait(None, lambda: child.phase != "starting")
        if child.phase != "ready":
            self._raise_why_not(child)
        self._opened = self._connect(child)
        for message in child.messages:
            warn_of_setup(message)

    def _release(self) -> None:
        """Let the process release its thread: the loop runs."""
        child = self._starting
        assert child is not None
        with self._lock:
            if is_running := child.go():
                self._child, self._is_reported = child, False
                self._connection, self._refused = self._opened
                self._opened, self._starting = (None, None), None
                self._signals.add_run(None if self._connection is None else self._connection._mapped_signals)
        if not is_running:
            self._raise_why_not(child)

    def _raise_why_not(self, child: ChildProcess) -> NoReturn:
        child.wait(None)
        assert child.error is not None
        raise child.error.with_traceback(None)

    def _abandon(self) -> None:
        """Undo a start that has not released the thread."""
        child = self._starting
        if child is None:  # an exception of a signal handler, after the release
            self._stop(self._settings.leave_timeout_ns)
            return
        try:
            child.end()
        finally:
            connection, self._opened = self._opened[0], (None, None)
            if connection is not None:
                connection.close()
            self._settings, self._starting = self._own_settings, None

    def foreign_block(self) -> ForeignBlock:
        """Return the telemetry of a process that waits for its release, as mapped here.

        Raises
        ------
        AttachError
            If this process may not read it.
        """
        connection, refused = self._opened
        if refused is not None:
            raise refused
        assert connection is not None
        return connection.telemetry.block

    def _claim(self, run: Any, settings: Settings) -> None:
        """Begin a start: alone, or as a part of a group's run with these settings.

        If several threads start the loop at once, all but one get a StateError.
        """
        self._check_not_in_child()
        registry.check_not_ending(self.name)
        former = self._member.run
        if former is not None and former is not run and former.is_running():
            raise StateError(f"{self.name} is a loop of {former.name}, which is running: stop the group first")
        with self._lock:
            self._settle()
            is_running = self._child is not None and not self._child.look()
            if self._is_closed or self._starting is not None or is_running:
                what = "is closed" if self._is_closed else "is already running"
                what = what if self._starting is None else "is already being started"
                advice = "create a new one" if self._is_closed else "wait until it has ended, or stop it first"
                raise StateError(f"{self.name} {what}: {advice}")
            self._starting, self._settings, self._member.run = ChildProcess(settings), settings, run

    def _order(self, cycles: int | None, duration_ns: int | None, membership: Membership | None) -> Order:
        pickled = pack((self._targets, self._data), "data")
        return Order(
            name=self.name,
            parent=os.getpid(),
            mask=tuple(int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])),
            argv=tuple(sys.argv),
            main=main_script() if b"__main__" in pickled else None,
            pickled=pickled,
            period=self._period,
            settings=self._given,
            parameters=self._declared[0],
            signals=self._declared[1],
            values=dict(self._model.parameters),
            cycles=cycles,
            duration_ns=duration_ns,
            leave_timeout_ns=self._settings.leave_timeout_ns,
            membership=membership,
        )

    def _connect(self, child: ChildProcess) -> tuple[Connection | None, AttachError | None]:
        """Map the telemetry and the signals of the loop, whose thread waits for its release."""
        try:
            connection = connect(self.name, child.pid)
        except AttachError as error:
            return None, error
        try:
            connection._map_signals()  # now: they cannot be found any more when the process has ended
        except AttachError as error:
            connection.close()
            return None, error
        child.has_left = lambda: connection.state != "died"
        return connection, None

    def stop(self, timeout: Duration = _DEFAULT_STOP_TIMEOUT) -> None:
        """Ask the loop to end after its present cycle, and wait for the end of its process.

        Do nothing if the loop is not running. A start that is under way in another thread fails with a StateError.

        Parameters
        ----------
        timeout : duration
            Longest time to wait, such as ``"2s"``; a bare int is nanoseconds.

        Raises
        ------
        StopTimeoutError
            If a function has not returned by then. The process ends when it returns; :meth:`kill` ends it now.

        Warns
        -----
        RTSetupWarning
            Once, if the loop had failed and neither :meth:`join` nor :meth:`run` has raised the reason.
        """
        self._stop(parse_timeout(timeout))
        run_warnings.warn_failed(self._unreported())

    def _stop(self, timeout_ns: int) -> None:
        child = self._starting or self._child
        if child is None or child.is_in_child() or child.look():
            return
        interrupts: list[BaseException] = []
        armed = ending_signals.arm()
        try:
            has_ended = child.end_run(timeout_ns, interrupts)
        finally:
            ending_signals.disarm(armed)
        late = None if has_ended else failure.stop_timeout_error(self.name, timeout_ns)
        if interrupts:
            if late is not None:
                failure.add_note(interrupts[0], str(late))
            raise interrupts[0]
        if late is not None:
            raise late

    def kill(self) -> None:
        """End the process at once (SIGKILL), without `leave`, and wait until it is gone: for a step that hangs."""
        child = self._starting or self._child
        if child is not None and not child.is_in_child():
            child.kill()

    def join(self, timeout: Duration | None = None) -> bool:
        """Wait until the loop and its process have ended.

        Parameters
        ----------
        timeout : duration, optional
            Longest time to wait, such as ``"2s"``; a bare int is nanoseconds. No limit by default.

        Returns
        -------
        bool
            True if it has ended; False only after a timeout.

        Raises
        ------
        BaseException
            If the loop has failed: the exception of the step or of `leave`, a CallbackError, OverrunError, or
            GuardError, as for :class:`RTLoop`.
        ProcessDiedError
            If the process was killed, or crashed.
        KeyboardInterrupt
            On Ctrl-C, which stops the loop. On another thread than the main one the method returns instead.
        StateError
            If the loop was never started.
        """
        timeout_ns = None if timeout is None else parse_timeout(timeout)
        self._check_not_in_child()
        child = self._child
        if child is None:
            raise StateError(f"{self.name} has not been started: call start() first")
        armed = ending_signals.arm_wait()
        try:
            has_ended = child.wait(None if timeout_ns is None else time.monotonic_ns() + timeout_ns)
        except BaseException as interrupt:
            # Ctrl-C, or another exception of a signal handler: without this wait nothing would stop the loop.
            self._end_after(child, interrupt)
            raise
        finally:
            ending_signals.disarm(armed)
        if has_ended:
            self._settle()
            self._raise_if_failed(child)
        return has_ended

    def _end_after(self, child: ChildProcess, interrupt: BaseException) -> bool:
        if not interrupted_wait.mark_handled(interrupt, self):
            return child.has_ended
        return interrupted_wait.end_after([child], self.name, interrupt, self._settings.leave_timeout_ns)

    def _raise_if_failed(self, child: ChildProcess) -> None:
        if child.error is not None:
            self._is_reported = True
            raise child.error.with_traceback(None)

    def _unreported(self) -> BaseException | None:
        """Return the exception of a failed run once, if join() has not raised it; otherwise None."""
        child = self._child
        if child is None or self._is_reported or child.is_in_child() or not child.look() or child.error is None:
            return None
        self._is_reported = True
        return child.error

    def run(self, duration: Duration | None = None, cycles: int | None = None) -> Stats:
        """Start, wait for the end, and return the statistics.

        Parameters
        ----------
        duration : duration, optional
            Run all releases within this time: ``"10s"``, ``"500 ms"``.
        cycles : int, optional
            Run this many cycles. Without `duration` and `cycles` the loop runs until the step returns RT_STOP, or until
            Ctrl-C.

        Returns
        -------
        Stats
            Of the whole run.

        Raises
        ------
        BaseException
            As :meth:`start` and :meth:`join`.
        """
        count = None if cycles is None else parse_count(cycles, "cycles")
        length = None if duration is None else parse_run_duration(duration, self._settings.period_ns)
        self._enter_block()
        try:
            self._start(count, length)
            child = self._child
            try:
                self.join()
            except BaseException as interrupt:
                if child is not None and not child.look():  # an exception of a signal handler, just before join()
                    self._end_after(child, interrupt)
                raise
        finally:
            self._leave_block()
        return self.stats

    def reset_stats(self) -> None:
        """Restart the statistics at one of the next cycles."""
        self._check_not_in_child()
        child = self._child
        if child is None:
            return
        if child.look():
            self._settle()
            child.stats = None
        else:
            child.reset_stats()

    def close(self) -> None:
        """Stop the loop as :meth:`stop` does, and refuse to start it again. Its last statistics stay available."""
        self._is_closed = True
        self._stop(self._settings.leave_timeout_ns)
        run_warnings.warn_failed(self._unreported())
        self._settle()

    def _check_not_in_child(self) -> None:
        if self._pid != os.getpid():
            raise StateError(
                f"{self.name} was made by process {self._pid}, and this process ({os.getpid()}) is a fork of it: loops "
                "do not survive a fork; create a new one here"
            )

    def _enter_block(self) -> None:
        self._blocks.append((os.getpid(), ending_signals.arm_wait()))

    def _leave_block(self) -> None:
        ending_signals.disarm(self._blocks.pop()[1])

    def __enter__(self) -> Self:
        self._enter_block()
        try:
            self.start()
        except BaseException:
            self._leave_block()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        child = self._child
        try:
            if child is None or child.is_in_child() or self._blocks[-1][0] != os.getpid():
                return  # a forked child: the loop is the parent's
            if isinstance(value, KeyboardInterrupt) and not child.look():
                if not self._end_after(child, value):
                    return
            else:
                self._stop(self._settings.leave_timeout_ns)
            error = self._unreported()
            self._settle()
            if value is not None:
                failure.note_failed(value, error)
            elif child.error is not None:
                self._raise_if_failed(child)
        finally:
            self._leave_block()

    def __reduce_ex__(self, protocol: object) -> Any:
        raise TypeError(f"{type(self).__name__} objects cannot be copied or pickled: each has a process of its own")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}, {format_rate(self._settings.period_ns)}, {self.state}>"


class _CurrentParameters:
    """Backend of the parameters: the running loop, or the values for its next run."""

    def __init__(self, loop: ProcessLoop) -> None:
        self._loop = loop
        self.name = loop.name

    def _backend(self) -> ParameterBackend:
        self._loop._settle()
        connection = self._loop._connection
        mapping = self._loop._model.parameters if connection is None else connection.parameters
        return mapping._backend

    @property
    def declared(self) -> Mapping[str, Parameter]:
        """The parameters by name."""
        return self._backend().declared

    def asked(self) -> bytes:
        """Return the set that was requested last."""
        return self._backend().asked()

    def used(self) -> Used | None:
        """Return the set that the loop uses."""
        return self._backend().used()

    def change(self, changes: Mapping[str, bytes]) -> None:
        """Request other values."""
        self._backend().change(changes)
