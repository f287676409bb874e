"""LoopGroup: several loops as one system, on one origin, with one start, one end and one word for a failure."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from rtloop.errors import StateError
from rtloop.group import member, watchdog_plan
from rtloop.group.chain import check_chains
from rtloop.group.plan import check_loops, place, rate_monotonic
from rtloop.group.results import ages_of, analyze_loops, draw, save_all, stats_of
from rtloop.group.run import Run, end
from rtloop.loop import failure
from rtloop.settings import Duration, Settings, parse_align, parse_choice, parse_name, parse_run_duration
from rtloop.system import ending_signals
from rtloop.system.grant import Grant
from rtloop.units import format_rate, lcm_of, parse_timeout

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

    from rtloop.analysis.results import Analysis
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

    Release k of a loop is at origin + its phase + k * its period, with the same origin for all of them, so that the
    grids of harmonic periods coincide, to the nanosecond. Every loop keeps a thread of its own.

    Parameters
    ----------
    loops : iterable of RTLoop
        In the order in which they are started; they are stopped in reverse. None of them runs, each is there once,
        their names differ, and they have one clock and no ``align`` of their own.
    priorities : {"rate-monotonic", "as-given"}
        ``rate-monotonic``: the shorter the period, the higher the priority, from 79 down, and equal for equal periods;
        loops whose policy is ``other`` or ``deadline`` have none. ``as-given``: each loop's own.
    align : duration, optional
        The origin is a multiple of this on the clock: a whole number of periods of every loop, so that groups that
        start at different times are on one grid.
    name : str, optional
        ``"LoopGroup-1"`` and so on by default.
    on_failure : {"stop-all", "keep", "hook"}
        What the others do when a loop fails: end at their next release, for the failed loop's own thread tells them,
        without the GIL; go on; or what the ``on_peer_failure`` of each says, called on its own thread at its next
        release. A loop whose step returns RT_STOP has not failed: the others go on.
    cpus : sequence or "partition", optional
        For each loop what its ``cpu=`` would be: ``[2, 3, 3]``. By default each loop's own. ``"partition"`` gives each
        loop one CPU: of the isolated ones, or where there are none of those that this process may use, the first that
        has room, the greatest utilisation first; a loop that is on one CPU stays there.
    wcet : mapping, optional
        The most CPU time of a step, by the loop's name, for ``"partition"`` and :meth:`analyze`. A loop without one
        gets its longest measured step.
    chains : iterable of Chain, optional
        Through which loops data goes: :meth:`ages` tells how old it becomes.
    watchdog : int, optional
        The number of its periods without a completed cycle after which a loop is stuck, at least 2. A thread above all
        loops looks for such a one; it calls the ``safe`` of that loop, ends it, and tells the others as any failure
        does. It acts when at least N periods have passed since the last completed cycle, and at most two intervals of
        its checks and its wake-up latency more; an interval is an eighth of the shortest N periods, from 100 us to
        10 ms.

    Raises
    ------
    ConfigError
        Where the loops cannot be a group.
    StateError
        Where one of them runs.

    Notes
    -----
    Priorities and CPUs hold for the group's runs: `settings`, and the loop's own ``settings`` and ``stats`` during such
    a run and after it, tell them. A loop that is started alone has its own again.

    A loop leaves the common grid where its step calls ``shift``, where it has ``overrun="shift"``, and where it has a
    ``wait`` of its own. One that is late at the origin is late as in any other cycle.

    Real-time contract: for the control thread only; nothing here may be called from ``step``. A cycle costs nothing
    more in a group than alone.
    """

    def __init__(
        self,
        loops: Iterable[RTLoop],
        *,
        priorities: str = "rate-monotonic",
        align: Duration | None = None,
        name: str | None = None,
        on_failure: str = "stop-all",
        cpus: Sequence[Any] | str | None = None,
        wcet: Mapping[str, Duration] | None = None,
        chains: Iterable[Chain] = (),
        watchdog: int | None = None,
    ) -> None:
        self._loops = check_loops(loops)
        self._chains = check_chains(chains, self._loops)
        self._controls = tuple(member.control_of(loop) for loop in self._loops)
        self._on_failure = parse_choice(on_failure, "on_failure", ("stop-all", "keep", "hook"))
        self._name = f"LoopGroup-{next(_serial)}" if name is None else parse_name(name)
        self._wcet = dict(wcet or {})
        is_monotonic = parse_choice(priorities, "priorities", ("rate-monotonic", "as-given")) == "rate-monotonic"
        self._settings = place(self._loops, is_monotonic, cpus, self._wcet)
        self._align_ns = None if align is None else parse_align(align, [s.period for s in self._settings])
        self._watchdog = watchdog_plan.check_watchdog(watchdog, self._settings)
        self._run: Run | None = None
        self._origin_ns: int | None = None
        self._is_starting = self._is_stop_wanted = False
        self._blocks: list[list[int]] = []
        self._interrupt = 0

    @property
    def name(self) -> str:
        """The group's name."""
        return self._name

    @property
    def loops(self) -> tuple[RTLoop, ...]:
        """The loops, in the order of their start."""
        return self._loops

    @property
    def settings(self) -> Mapping[str, Settings]:
        """What each loop asks for in this group, by its name: its own settings, with the group's priority and CPUs."""
        return self._by_name(self._settings)

    @property
    def hyperperiod(self) -> Fraction:
        """The time after which the pattern of all releases repeats, in s: the least common multiple of the periods."""
        return lcm_of(settings.period for settings in self._settings) / 10**9

    @property
    def hyperperiod_ns(self) -> int:
        """`hyperperiod` in ns, rounded to the nearest int."""
        return round(self.hyperperiod * 10**9)

    @property
    def origin_ns(self) -> int | None:
        """The origin of the present run, or of the last one, on the loops' clock; None before the first."""
        return self._origin_ns

    @property
    def state(self) -> Literal["new", "running", "stopped", "failed"]:
        """``"new"``; ``"running"`` while any loop runs; ``"failed"`` where one has failed; else ``"stopped"``."""
        if self._run is None:
            return "new"
        states = [control.state for control in self._controls]
        if "running" in states:
            return "running"
        return "failed" if "failed" in states else "stopped"

    @property
    def grants(self) -> Mapping[str, tuple[Grant, ...]]:
        """What each loop was granted, by its name, and what the watchdog was, as ``"watchdog"``."""
        grants = self._by_name([loop.grants for loop in self._loops])
        if self._watchdog is None:
            return grants
        return MappingProxyType({**grants, "watchdog": () if self._run is None else self._run.watchdog_grants})

    def start(self) -> None:
        """Start all loops, or none.

        First everything is acquired, loop by loop, in the order given; then each thread runs its ``enter``; when all of
        these have returned, the origin is set, a few milliseconds ahead, or at the next multiple of `align`. Where
        anything fails before that, all is given back, in reverse, and no ``step`` has run.

        Raises
        ------
        SetupError
            Where the kernel refused a strict loop something. A note says which loop.
        CallbackError
            Where an ``enter`` has failed.
        StateError
            Where one of the loops runs already, or is closed.
        """
        self._start(None)

    def stop(self, timeout: Duration = _DEFAULT_STOP_TIMEOUT) -> None:
        """Stop all loops, in reverse, each when the thread of the one before it has ended.

        If that takes longer than 100 ms, all that are left are asked at once.

        Parameters
        ----------
        timeout : duration
            How long to wait for all of them, ``"2s"``; a bare int is nanoseconds.

        Raises
        ------
        StopTimeoutError
            Where a callback has not returned by then; all other loops have been stopped nevertheless.

        Warns
        -----
        RTSetupWarning
            Once, where a loop had failed and neither :meth:`join` nor :meth:`run` has raised what ended it.
        """
        timeout_ns = parse_timeout(timeout)
        self._is_stop_wanted = self._is_starting
        self._end(timeout_ns)
        for error in self._unreported():
            failure.warn_failed(error)

    def wait(self, timeout: Duration | None = None) -> bool:
        """Wait until all loops have ended, well or not. Ctrl-C stops them, and raises KeyboardInterrupt.

        A loop that the watchdog has found stuck, and that has not ended two seconds later, is not waited for.

        Parameters
        ----------
        timeout : duration, optional
            How long to wait; for ever by default.

        Returns
        -------
        bool
            Whether all have ended; False only after a timeout, or where a loop is stuck.

        Raises
        ------
        StateError
            Where the group was never started.
        """
        deadline = None if timeout is None else time.monotonic_ns() + parse_timeout(timeout)
        if self._run is None or any(member.is_own_thread(loop) for loop in self._loops):
            what = "has not been started" if self._run is None else "runs on this very thread"
            raise StateError(f"{self._name} {what}")
        armed = ending_signals.arm()
        try:
            if have_ended := watchdog_plan.wait_all(self._controls, deadline):
                self._run.is_running()  # waits for the watchdog
            return have_ended
        except BaseException as interrupt:
            # Ctrl-C, or whatever a signal handler raised: the loops must not outlive their keeper.
            self._end_after(interrupt)
            raise
        finally:
            ending_signals.disarm(armed)

    def join(self, timeout: Duration | None = None) -> bool:
        """Wait as :meth:`wait` does, and raise what ended a loop that failed, or that it is stuck.

        Where several have failed, what is raised is the first's, in the order of the loops, with notes of the others.

        Raises
        ------
        CallbackError, OverrunError, GuardError, WatchdogError
            What ended a loop that failed, when all have ended. A WatchdogError also where the loop has not ended yet,
            which a note says.
        KeyboardInterrupt
            On Ctrl-C, which stops all loops.
        StateError
            Where the group was never started.

        Warns
        -----
        RTSetupWarning
            Once a run, where a chain's data was older than its `max_age`.
        """
        has_ended = self.wait(timeout)
        if has_ended:
            self._raise_failure(self._unreported())
            self._warn_of_stale_data()
        elif hung := watchdog_plan.hung_error(self._controls):
            raise hung
        return has_ended

    def run(self, duration: Duration | None = None) -> Mapping[str, Stats]:
        """Start, wait for the end, and return the statistics of all loops, by name.

        Parameters
        ----------
        duration : duration, optional
            Run the releases of this long, of each loop. Without, until every ``step`` has returned RT_STOP, or Ctrl-C.

        Raises
        ------
        SetupError, CallbackError, OverrunError, GuardError, WatchdogError, KeyboardInterrupt
            As :meth:`start` and :meth:`join`.
        """
        duration_ns = None
        if duration is not None:
            duration_ns = parse_run_duration(duration, min(settings.period_ns for settings in self._settings))
        armed = ending_signals.arm()
        try:
            self._start(duration_ns)
            self.join()
        finally:
            ending_signals.disarm(armed)
        return self.stats

    @property
    def stats(self) -> Mapping[str, Stats]:
        """Each loop's statistics by its name, of the present run or of the last one.

        After a run of the group their `settings` tell ``group``, its name, and ``origin_ns``.
        """
        return stats_of(self._loops)

    def analyze(self, wcet: Mapping[str, Duration] | None = None, *, percentile: float | None = None) -> Analysis:
        """Find out whether all loops meet their deadlines, with the group's priorities and CPUs: `rtloop.analyze`.

        Parameters
        ----------
        wcet : mapping, optional
            The most CPU time of a step, by the loop's name, in place of the group's own. A loop without one gets its
            longest measured step.
        percentile : float, optional
            Instead of the longest step and the latest wake-up, this percentile: the answer is then no bound, and says
            so.

        Raises
        ------
        ConfigError
            Where a loop has neither run nor a `wcet`, or the loops' policies or CPUs cannot be analysed together.
        """
        return analyze_loops(self.settings, self.stats, {**self._wcet, **(wcet or {})}, percentile)

    def ages(self, wcet: Mapping[str, Duration] | None = None, *, percentile: float | None = None) -> Ages:
        """Tell how old the data is that the last loop of each chain acts on: as recorded, and at most.

        The age of a cycle is from the release of the first loop's cycle that has sensed to the end of its own step.
        It is traced through the records of all loops, and never less than the true one; the bound follows from the
        worst response times of :meth:`analyze`, and holds where no release is missed.

        Parameters
        ----------
        wcet, percentile
            As for :meth:`analyze`.
        """
        times = {**self._wcet, **(wcet or {})}
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
            Where to write it, in the format of its suffix.
        at : {"last", "worst"} or duration
            Which hyperperiod: the last of which all loops have records, the one with the longest response in periods
            of its loop (and as many more as that takes to end), or the one so much time after the origin.
        duration : duration, optional
            How long the picture's window is, instead of a hyperperiod; with a time as `at` it begins there. By default
            ten hyperperiods where all periods are equal. Beyond 300 cycles it is cut, and says so.

        Raises
        ------
        ConfigError
            Where a loop has no records, or there are none of that time.
        ImportError
            Where matplotlib is missing: ``pip install 'rtloop[plot]'``.
        """
        return draw(self._name, self.stats, path, at, duration)

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write each loop's :attr:`stats` to ``folder/NAME.npz``, for ``rtloop plot``, ``export`` and ``analyze``.

        Parameters
        ----------
        folder : path
            Made where there is none. Files of these names are replaced, others stay.

        Returns
        -------
        list of pathlib.Path
            The files, in the order of the loops. Where a name has a space or a slash, the file's has ``_``.
        """
        return save_all(self.stats, folder)

    def reset_stats(self) -> None:
        """Begin the statistics of all loops anew, each from its next cycle on."""
        for loop in self._loops:
            loop.reset_stats()

    def __enter__(self) -> LoopGroup:
        self._blocks.append(ending_signals.arm())
        try:
            self.start()
        except BaseException:
            ending_signals.disarm(self._blocks.pop())
            raise
        return self

    def __exit__(self, kind: object, value: BaseException | None, traceback: object) -> None:
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
            ending_signals.disarm(self._blocks.pop())

    def _warn_of_stale_data(self) -> None:
        """Warn, once a run, of chains whose data was older than intended."""
        if self._run is not None and not self._run.is_told and any(c.max_age_ns is not None for c in self._chains):
            self._run.is_told = True
            failure.warn_stale(
                self._name, [f"{age.name}: {age.stale_note}" for age in self.ages().values() if age.stale]
            )

    def __repr__(self) -> str:
        rates = ", ".join(f"{s.name!r} {format_rate(s.period_ns)}" for s in self._settings)
        return f"<LoopGroup {self._name!r}, {rates}, {self.state}>"

    def _by_name(self, values: Iterable[_T]) -> Mapping[str, _T]:
        return MappingProxyType({loop.name: value for loop, value in zip(self._loops, values, strict=True)})

    def _start(self, duration_ns: int | None) -> None:
        run = Run(self._name, self._loops)
        self._is_stop_wanted, self._is_starting, self._interrupt = False, True, 0
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
        end(self._name, self._controls, timeout_ns)
        if self._run is not None:
            self._run.is_running()  # waits for the watchdog

    def _end_after(self, interrupt: BaseException) -> bool:
        """End all loops because a wait for them was interrupted. Returns whether they have ended."""
        if self._interrupt == id(interrupt):  # of the wait in this block: it has had its time
            return self.state != "running"
        self._interrupt = id(interrupt)
        have_ended = failure.end_after(self._controls[::-1], self._name, interrupt, self._leave_timeout_ns)
        if self._run is not None:
            self._run.is_running()  # waits for the watchdog
        return have_ended

    @property
    def _leave_timeout_ns(self) -> int:
        return max(control.leave_timeout_ns for control in self._controls)

    def _unreported(self) -> list[BaseException]:
        """Return, once, what ended the loops that have failed, as far as nobody was told."""
        return [error for control in self._controls if (error := control.unreported_error()) is not None]

    def _raise_failure(self, unreported: list[BaseException]) -> None:
        """Raise what ended the first loop that has failed, if any has, with notes of the others."""
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
