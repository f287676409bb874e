"""LoopGroup: several loops as one system, with a common origin, start and end, and a common reaction to failures."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from rtloop.errors import RtloopError, StateError, StopTimeoutError
from rtloop.group import ending, member, watchdog_plan
from rtloop.group.chain import check_chains
from rtloop.group.group_parameters import GroupParameters
from rtloop.group.group_signals import GroupSignals
from rtloop.group.plan import check_loops, check_wcet, place, rate_monotonic
from rtloop.group.results import ages_of, analyze_loops, draw, save_all, stats_of
from rtloop.group.run import Run
from rtloop.loop import interrupted_wait
from rtloop.loop.outcome import failure, run_warnings
from rtloop.process import ending_signals
from rtloop.settings import Duration, Settings, parse_align, parse_choice, parse_name, parse_run_duration
from rtloop.system.grant import Grant
from rtloop.system.grant_errors import import_errors
from rtloop.units import format_rate, lcm_of, parse_timeout

if TYPE_CHECKING:
    from datetime import timedelta
    from pathlib import Path

    from matplotlib.figure import Figure

    from rtloop.analysis.results import Analysis
    from rtloop.child.process_loop import ProcessLoop
    from rtloop.group.chain import Chain
    from rtloop.group.data_age import Ages
    from rtloop.loop.loop import RTLoop
    from rtloop.stats.stats import Stats

__all__ = ["LoopGroup", "rate_monotonic"]

_DEFAULT_STOP_TIMEOUT = "2s"
_serial = itertools.count(1)
_T = TypeVar("_T")


class LoopGroup:
    """Several loops as one system: started on one origin, stopped together.

    Release k of a loop is at origin + its phase + k * its period. The origin is the same for all loops, so the grids of
    harmonic periods coincide to the nanosecond. Each loop has its own thread.

    Parameters
    ----------
    loops : iterable of RTLoop or ProcessLoop
        In the order of their start; they are stopped in reverse. They must not be running, must have different names
        and the same clock, and must not have their own ``align``.
    priorities : {"rate-monotonic", "as-given"}
        ``rate-monotonic``: a shorter period gets a higher priority, from 79 down, and equal periods get equal ones;
        loops with the policy ``other`` or ``deadline`` get none. ``as-given``: each loop keeps its own.
    align : duration, optional
        Makes the origin a multiple of this on the clock, so that groups that start at different times are on one grid.
        It must be a whole number of periods of every loop.
    name : str, optional
        ``"LoopGroup-1"`` and so on by default.
    on_failure : {"stop-all", "keep", "hook"}
        Reaction of the other loops when one fails. ``stop-all``: they end at their next release; the failed loop's own
        thread notifies them, without the GIL. ``keep``: they continue. ``hook``: each calls its ``on_peer_failure`` on
        its own thread before its next step, and does what that returns. A loop whose step returns RT_STOP has not
        failed, and the others continue.
    cpus : sequence or "partition", optional
        The ``cpu=`` of each loop: ``[2, 3, 3]``. By default each loop keeps its own. ``"partition"`` assigns each loop
        one of the isolated CPUs, or of those that this process may use if none is isolated: by falling utilisation,
        each to the first CPU that has room. A loop that is pinned to one CPU stays there.
    wcet : mapping, optional
        Worst-case CPU time of a step, by the loop's name, for ``"partition"`` and :meth:`analyze`. The default is the
        longest measured step.
    chains : iterable of Chain, optional
        Paths of data through the loops; :meth:`ages` returns how old the data becomes.
    watchdog : int or duration, optional
        N, the number of its own periods without a completed cycle after which a loop is stuck; at least 2. Or a time,
        such as ``"200ms"``, the same for every loop and at least two periods of the slowest one. A thread
        with a priority above all loops watches them. It calls the ``safe`` of a stuck loop, ends that loop, and
        notifies the others as for any failure. It acts no sooner than N periods after the last completed cycle, and
        later by at most two check intervals plus its own wake-up latency. The check interval is an eighth of the
        shortest N periods, from 100 us to 10 ms.

    Raises
    ------
    ConfigError
        If the loops cannot form a group.
    StateError
        If one of them is running.

    Notes
    -----
    Priorities and CPUs apply to the group's runs. The group's `settings` have them, and so have the ``settings`` and
    ``stats`` of each loop during and after such a run. A loop that is started alone uses its own again.

    A ProcessLoop is a member like any other: its thread is in another process, and its state in memory that both map.
    If it fails, or its process is killed, a thread of this process notifies the others, without the GIL. If it hangs,
    a thread of its own process calls its `safe`, while the others are notified.

    A loop leaves the common grid if its step calls ``shift``, if it has ``overrun="shift"``, or if it overrides
    ``wait``. Being late for the origin counts as in any other cycle.

    Real-time contract: call the methods on control threads only, never from ``step``. A cycle costs no more in a group
    than alone.
    """

    def __init__(
        self,
        loops: Iterable[RTLoop | ProcessLoop],
        *,
        priorities: str = "rate-monotonic",
        align: Duration | None = None,
        name: str | None = None,
        on_failure: str = "stop-all",
        cpus: Sequence[Any] | str | None = None,
        wcet: Mapping[str, Duration] | None = None,
        chains: Iterable[Chain] = (),
        watchdog: int | str | timedelta | None = None,
    ) -> None:
        self._loops = check_loops(loops)
        self._chains = check_chains(chains, self._loops)
        self._controls = tuple(member.control_of(loop) for loop in self._loops)
        self._on_failure = parse_choice(on_failure, "on_failure", ("stop-all", "keep", "hook"))
        self._name = f"LoopGroup-{next(_serial)}" if name is None else parse_name(name)
        self._wcet = check_wcet(wcet)
        is_monotonic = parse_choice(priorities, "priorities", ("rate-monotonic", "as-given")) == "rate-monotonic"
        self._settings = place(self._loops, is_monotonic, cpus, self._wcet)
        self._align_ns = None if align is None else parse_align(align, [s.period for s in self._settings])
        self._watchdog = watchdog_plan.check_watchdog(watchdog, self._settings)
        if self._watchdog is not None:
            with import_errors(self._name):  # now, because at its start no file descriptor may be free
                import rtloop.group.watchdog  # noqa: F401
        self._run: Run | None = None
        self._origin_ns: int | None = None
        self._is_starting = self._is_stop_wanted = False
        self._blocks: list[tuple[int, ending_signals.Armed]] = []
        self._pid = os.getpid()

    @property
    def name(self) -> str:
        """The group's name."""
        return self._name

    @property
    def loops(self) -> tuple[RTLoop | ProcessLoop, ...]:
        """The loops, in the order of their start."""
        return self._loops

    @property
    def settings(self) -> Mapping[str, Settings]:
        """Settings of each loop in this group, by its name: its own, with the group's priority and CPUs."""
        return self._by_name(self._settings)

    @property
    def hyperperiod(self) -> Fraction:
        """Time after which the pattern of releases repeats, in s: the least common multiple of the periods."""
        return lcm_of(settings.period for settings in self._settings) / 10**9

    @property
    def hyperperiod_ns(self) -> int:
        """`hyperperiod` in ns, rounded to the nearest int."""
        return round(self.hyperperiod * 10**9)

    @property
    def origin_ns(self) -> int | None:
        """Origin of the current run, or of the last one, on the loops' clock; None before the first."""
        return self._origin_ns

    @property
    def state(self) -> Literal["new", "running", "stopped", "failed"]:
        """``"new"``; ``"running"`` while any loop runs; then ``"failed"`` if one has failed, else ``"stopped"``."""
        if self._run is None:
            return "new"
        states = [control.state for control in self._controls]
        if "running" in states:
            return "running"
        return "failed" if "failed" in states else "stopped"

    @property
    def grants(self) -> Mapping[str, tuple[Grant, ...]]:
        """Grants of each loop, by its name, and of the watchdog, as ``"watchdog"``."""
        grants = self._by_name([loop.grants for loop in self._loops])
        if self._watchdog is None:
            return grants
        return MappingProxyType({**grants, "watchdog": () if self._run is None else self._run.watchdog_grants})

    @property
    def parameters(self) -> GroupParameters:
        """Parameters of all loops: ``group.parameters["motor.kp"] = 5``."""
        return GroupParameters(self.loops)

    @property
    def signals(self) -> GroupSignals:
        """Signals of all loops: ``group.signals.latest()["motor.angle"]``, ``group.signals["motor"].read()``."""
        return GroupSignals(self.loops)

    def start(self) -> None:
        """Start all loops, or none.

        First everything is acquired, loop by loop, in the given order. Then each thread runs its ``enter``. When all of
        these have returned, the origin is set a few milliseconds ahead, or to the next multiple of `align`. If anything
        fails before that, everything is released in reverse, and no ``step`` has run.

        Raises
        ------
        SetupError
            If the kernel refused a request of a strict loop. A note names the loop.
        CallbackError
            If an ``enter`` has failed.
        StateError
            If one of the loops is already running, or closed.
        """
        self._start(None)

    def stop(self, timeout: Duration = _DEFAULT_STOP_TIMEOUT) -> None:
        """Stop all loops one after the other, in reverse.

        If that takes longer than 100 ms, all remaining loops are asked to stop at once.

        Parameters
        ----------
        timeout : duration
            Longest time to wait for all of them, such as ``"2s"``; a bare int is nanoseconds.

        Raises
        ------
        StopTimeoutError
            If a callback has not returned by then; all other loops have been stopped nevertheless.

        Warns
        -----
        RTSetupWarning
            Once, if a loop had failed and neither :meth:`join` nor :meth:`run` has raised the reason.
        """
        timeout_ns = parse_timeout(timeout)
        self._is_stop_wanted = self._is_starting
        self._end(timeout_ns)
        for error in self._unreported():
            run_warnings.warn_failed(error)

    def wait(self, timeout: Duration | None = None) -> bool:
        """Wait until all loops have ended, for whatever reason.

        The wait for a loop that the watchdog has found stuck ends two seconds after that. The wait for a loop whose
        step does not return although the duration of :meth:`run` is over ends after its ``leave_timeout``, or a longer
        period.

        Parameters
        ----------
        timeout : duration, optional
            Longest time to wait; no limit by default.

        Returns
        -------
        bool
            True if all have ended; False after a timeout, or if a loop does not end.

        Raises
        ------
        KeyboardInterrupt
            On Ctrl-C, which stops all loops.
        StateError
            If the group was never started, or on the thread of one of its loops.
        """
        return self._wait(timeout)[0]

    def _wait(self, timeout: Duration | None) -> tuple[bool, StopTimeoutError | None]:
        """Wait as :meth:`wait` does. Returns its result, and the exception for a loop that is overdue, if any."""
        deadline = None if timeout is None else time.monotonic_ns() + parse_timeout(timeout)
        if self._run is None or any(member.is_own_thread(loop) for loop in self._loops):
            what = "has not been started" if self._run is None else "runs on this very thread"
            raise StateError(f"{self._name} {what}")
        armed = ending_signals.arm_wait()
        try:
            have_ended, overdue = ending.wait_all(self._controls, deadline)
            if have_ended:
                self._run.is_running()  # waits for the watchdog
            return have_ended, overdue
        except BaseException as interrupt:
            # Ctrl-C, or another exception of a signal handler: without this wait nothing would stop the loops.
            self._end_after(interrupt)
            raise
        finally:
            ending_signals.disarm(armed)

    def join(self, timeout: Duration | None = None) -> bool:
        """Wait as :meth:`wait` does, and raise an exception if a loop has failed or is stuck.

        If several have failed, it is that of the first one, in the order of the loops, with notes about the others.

        Parameters
        ----------
        timeout : duration, optional
            Longest time to wait; no limit by default.

        Returns
        -------
        bool
            True if all have ended; False only after a timeout.

        Raises
        ------
        CallbackError, OverrunError, ClockStepError, GuardError, ProcessDiedError, WatchdogError
            The reason for which a loop failed, when all have ended. A WatchdogError is also raised if the loop is still
            stuck; a note then reports that. A step in Python raises its own exception.
        StopTimeoutError
            If the duration of :meth:`run` is over, and then no cycle of a loop ends within its ``leave_timeout`` or its
            period, whichever is longer.
        KeyboardInterrupt
            On Ctrl-C, which stops all loops.
        StateError
            If the group was never started.

        Warns
        -----
        RTSetupWarning
            Once per run, if a chain's data was older than its `max_age`.
        """
        has_ended, overdue = self._wait(timeout)
        if has_ended:
            self._raise_failure(self._unreported())
            self._warn_of_stale_data()
        elif hung := ending.hung_error(self._controls):
            raise hung
        elif overdue is not None:
            raise overdue
        return has_ended

    def run(self, duration: Duration | None = None) -> Mapping[str, Stats]:
        """Start, wait for the end, and return the statistics of all loops, by name.

        Parameters
        ----------
        duration : duration, optional
            Run all releases of each loop within this time. Without it, run until every ``step`` has returned RT_STOP,
            or until Ctrl-C.

        Returns
        -------
        Mapping of str to Stats
            As :attr:`stats`.

        Raises
        ------
        BaseException
            As :meth:`start` and :meth:`join`.
        """
        duration_ns = None
        if duration is not None:
            duration_ns = parse_run_duration(duration, min(settings.period_ns for settings in self._settings))
        former = self._run
        armed = ending_signals.arm_wait()
        try:
            self._start(duration_ns)
            self.join()
        except BaseException as interrupt:
            # An exception of a signal handler may come between start and join, where neither ends the loops.
            if self._run is not former and self.state == "running" and not isinstance(interrupt, RtloopError):
                self._end_after(interrupt)
            raise
        finally:
            ending_signals.disarm(armed)
        return self.stats

    @property
    def stats(self) -> Mapping[str, Stats]:
        """Statistics of each loop, by its name, of the current run or of the last one.

        After a run of the group their `settings` contain ``group``, the group's name, and ``origin_ns``.
        """
        return stats_of(self._loops)

    def analyze(self, wcet: Mapping[str, Duration] | None = None, *, percentile: float | None = None) -> Analysis:
        """Determine whether all loops meet their deadlines, with the group's priorities and CPUs: `rtloop.analyze`.

        Parameters
        ----------
        wcet : mapping, optional
            Worst-case CPU time of a step, by the loop's name, instead of the group's own. The default is the longest
            measured step.
        percentile : float, optional
            Use this percentile instead of the longest step and the largest wake-up latency. The result is then not a
            bound, and a note in it states that.

        Raises
        ------
        ConfigError
            If a loop has neither run nor a `wcet`, or the loops' policies or CPUs cannot be analysed together.
        """
        return analyze_loops(self.settings, self.stats, {**self._wcet, **check_wcet(wcet)}, percentile)

    def ages(self, wcet: Mapping[str, Duration] | None = None, *, percentile: float | None = None) -> Ages:
        """Return the age of the data that the last loop of each chain acts on: as recorded, and its upper bound.

        The age is the time from the release of the first loop's cycle that sensed the data to the end of the last
        loop's step. It is traced through the records of all loops, and the true age is never greater. The bound follows
        from the worst response times of :meth:`analyze`, and holds if no release is missed.

        Parameters
        ----------
        wcet, percentile
            As for :meth:`analyze`.
        """
        times = {**self._wcet, **check_wcet(wcet)}
        return ages_of(self._chains, self.settings, self.stats, times, percentile, self._origin_ns)

    def plot(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        at: str | Duration = "last",
        duration: Duration | None = None,
    ) -> Figure:
        """Draw the measured schedule of all loops over a hyperperiod as a Gantt chart, from their records.

        Parameters
        ----------
        path : path, optional
            File to write, in the format of its suffix.
        at : {"last", "worst"} or duration
            Which hyperperiod to draw. ``"last"``: the last one for which all loops have records. ``"worst"``: the one
            with the longest response, relative to the period of its loop, until that response has ended. A duration:
            the one at this time after the origin.
        duration : duration, optional
            Length of the window instead of a hyperperiod; if `at` is a time, the window begins there. By default ten
            hyperperiods if all periods are equal. After 300 cycles the picture is cut, and its title states that.

        Raises
        ------
        ConfigError
            If a loop has no records, or none of that time.
        ImportError
            If matplotlib is missing: ``pip install 'rtloop[plot]'``.
        """
        return draw(self._name, self.stats, path, at, duration)

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write each loop's :attr:`stats` to ``folder/NAME.npz``, for ``rtloop plot``, ``export`` and ``analyze``.

        Parameters
        ----------
        folder : path
            Created if missing. Files with these names are replaced, others stay.

        Returns
        -------
        list of pathlib.Path
            The files, in the order of the loops. Spaces, slashes and the like in a name become ``_``.
        """
        return save_all(self.stats, folder)

    def reset_stats(self) -> None:
        """Restart the statistics of all loops, each with its next cycle."""
        for loop in self._loops:
            loop.reset_stats()

    def __enter__(self) -> LoopGroup:
        self._blocks.append((os.getpid(), ending_signals.arm_wait()))
        try:
            self.start()
        except BaseException:
            ending_signals.disarm(self._blocks.pop()[1])
            raise
        return self

    def __exit__(self, kind: object, value: BaseException | None, traceback: object) -> None:
        pid, armed = self._blocks.pop()
        if pid != os.getpid():  # in a forked child: the loops are the parent's
            return
        try:
            if not isinstance(value, KeyboardInterrupt) or self.state != "running":
                self._end(self._leave_timeout_ns)
            elif not self._end_after(value):
                return
            unreported = self._unreported()  # before stop(), which would warn
            self.stop()  # a subclass's own
            if value is None:
                self._raise_failure(unreported)
                self._warn_of_stale_data()
            else:
                for error in unreported:
                    failure.note_failed(value, error)
        finally:
            ending_signals.disarm(armed)

    def _warn_of_stale_data(self) -> None:
        """Warn, once per run, of chains whose data was older than intended."""
        if self._run is not None and not self._run.is_told and any(c.max_age_ns is not None for c in self._chains):
            self._run.is_told = True
            run_warnings.warn_stale(
                self._name, [f"{age.name}: {age.stale_note}" for age in self.ages().values() if age.stale]
            )

    def __repr__(self) -> str:
        rates = ", ".join(f"{s.name!r} {format_rate(s.period_ns)}" for s in self._settings)
        return f"<LoopGroup {self._name!r}, {rates}, {self.state}>"

    def _by_name(self, values: Iterable[_T]) -> Mapping[str, _T]:
        return MappingProxyType({loop.name: value for loop, value in zip(self._loops, values, strict=True)})

    def _start(self, duration_ns: int | None) -> None:
        run = Run(self._name, self._loops)
        self._pid = os.getpid()
        self._is_stop_wanted, self._is_starting = False, True
        try:
            self._origin_ns = run.start(self._settings, duration_ns, self._align_ns, self._on_failure, self._watchdog)
            self._run = run
        except BaseException as error:
            run.withdraw(error)
            raise
        finally:
            self._is_starting = False
        if self._is_stop_wanted:
            self.stop()

    def _end(self, timeout_ns: int) -> None:
        ending.end(self._name, self._controls, timeout_ns)
        if self._run is not None:
            self._run.is_running()  # waits for the watchdog

    def _end_after(self, interrupt: BaseException) -> bool:
        """End all loops because a wait for them was interrupted. Returns whether they have ended.

        In a forked child it does nothing.
        """
        if self._pid != os.getpid():
            return True
        if not interrupted_wait.mark_handled(interrupt, self):  # by a wait within this block
            return self.state != "running"
        have_ended = interrupted_wait.end_after(self._controls[::-1], self._name, interrupt, self._leave_timeout_ns)
        if self._run is not None:
            self._run.is_running()  # waits for the watchdog
        return have_ended

    @property
    def _leave_timeout_ns(self) -> int:
        return max(control.leave_timeout_ns for control in self._controls)

    def _unreported(self) -> list[BaseException]:
        """Return, once, the exceptions of failed loops that nothing has raised yet."""
        return [error for control in self._controls if (error := control.unreported_error()) is not None]

    def _raise_failure(self, unreported: list[BaseException]) -> None:
        """Raise the exception of the first failed loop, if any, with notes about the others."""
        failed = next((control for control in self._controls if control.state == "failed"), None)
        if failed is None:
            return
        try:
            failed.join()
        except BaseException as error:
            for other in unreported:
                if other is not error:
                    failure.note_failed(error, other)
            raise
