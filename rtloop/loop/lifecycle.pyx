"""Control: the life of one loop, with start, stop and join, and the results of its runs.

The loop object (:mod:`rtloop.loop.loop`) owns its control, and the control owns the C state and the thread
(:mod:`rtloop.loop.thread`).
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport INT64_MAX, int64_t, uint32_t
from posix.unistd cimport getpid

from rtloop.headers.loop cimport RT_COMMAND_RESET, RT_COMMAND_STOP, RT_END_NORMAL, RT_PHASE_DONE
from rtloop.loop.thread cimport SLICE_NS, LoopThread

import os
import sys
import threading
import time

from rtloop.errors import StateError, StopTimeoutError
from rtloop.loop import interrupted_wait, registry
from rtloop.loop.outcome import run_stats, run_warnings
from rtloop.loop.outcome.failure import RunFailure, add_note, describe, overdue_error, stop_timeout_error
from rtloop.loop.overdue import Overdue
from rtloop.process import ending_signals
from rtloop.process.nap import nap
from rtloop.process.signal_shield import ShieldedLock, shielded

# Time that a reaper waits for the keeper while the keeper is busy with another loop.
_PATIENCE_S = 0.05


cdef class Control:
    """Life of one loop.

    Its activity is one variable, and the outcome of its last run another::

        idle --claim--> starting --release_thread--> running --reap--> ending --> idle
                           \\--withdraw--> idle

    ``idle``: no thread, nothing acquired. ``starting``: setup() runs, or a thread waits to be released. ``running``:
    the thread calls enter(), step() and leave(), or has ended and was not reaped. ``ending``: one caller, the reaper,
    joins the thread and releases what the run has acquired. The outcome is ``new``, ``stopped`` or ``failed``; a start
    that does not succeed leaves it as it was. A closed loop is never claimed again.

    All changes are made under a lock, and the loser of a race gets a StateError. Properties only read. A run that has
    ended is reaped by :meth:`reap`, which :meth:`wait`, :meth:`stop`, the next start and the keeper call.

    Attributes
    ----------
    thread : LoopThread
        The C state and the thread.
    run : object or None
        Run of the group that the present or last run belongs to; it has a ``name`` and ``is_running()``.
    runs : int
        Number of runs that have begun.
    step : RTLoop or None
        Object whose step the loop has since a swap; None: the one that the loop was made as.
    step_own, acting : Control or None, RTLoop or None
        The control that `step` had before, and the object in front of it that the callbacks get.
    change : StepChange or None
        Swap that is under way.
    trial_error : BaseException or None
        Exception that a step on trial has raised.
    is_releasing : bool
        True while a swap has given this back to its step and has not released what the step had as another loop's.
    kept : list
        Former steps that the watchdog may still be calling.
    swapping : threading.Lock
        Held during a swap.
    """

    def __init__(self, settings):
        run_stats.import_modules(settings)
        self.thread = LoopThread(settings)
        self._own_settings = settings
        self._lock = ShieldedLock()
        self._activity, self._outcome = "idle", "new"
        self._is_closed = self._is_stop_wanted = False
        self._pid = self._starter = self._reaper = self.runs = 0
        self.run = self._simulation = None
        self._failure = RunFailure(self.thread)
        self._stats = self._make_stats_later = None
        self._blocks = []
        self.step = self.step_own = self.acting = self.change = None
        self.kept, self.swapping, self.trial_error = [], threading.Lock(), None
        self.is_releasing = False

    cdef bint is_in_child(self) noexcept:
        """Return True if this process is a fork of the one that runs the loop."""
        pid = self._pid  # once: another thread may be ending the run
        return pid != 0 and pid != getpid()

    cdef bint is_simulated(self) noexcept:
        """Return True if the present or last run is in virtual time, without a thread."""
        return self._simulation is not None

    cdef void note_raised(self, error) noexcept:
        """Store the exception of a callback in Python; it ends the run, or the trial of its step."""
        if self.thread.rt.trial.is_on:
            self.trial_error = error
        else:
            self._failure.raised = error

    def note_raised_in_leave(self, error):
        """Store an exception of leave() in Python. If the step has raised one as well, add a note to that instead."""
        former = self._failure.raised
        if former is None:
            self._failure.raised = error
        else:
            add_note(former, f"leave() has raised as well: {describe(error)}")

    @property
    def settings(self):
        """The settings of the current run, or of the last one."""
        return self.thread.settings

    @property
    def is_helper(self):
        """False, because this is a loop and not a watchdog of loops."""
        return False

    @property
    def leave_timeout_ns(self):
        """Time that an end waits for the present step and for leave()."""
        return self.thread.settings.leave_timeout_ns

    @property
    def grants(self):
        """The grants of the current run, or of the last one."""
        return self.thread.grants

    @property
    def state(self):
        """``"new"``, ``"running"``, ``"stopped"`` or ``"failed"``."""
        if self.is_in_child():
            return "failed"
        if not self.is_under_way():
            return self._outcome
        if self.thread.phase() != RT_PHASE_DONE:
            return "running"
        return "stopped" if self._failure.raised is None and self.thread.rt.end.reason == RT_END_NORMAL else "failed"

    @property
    def is_idle(self):
        """True if it is neither being started nor running."""
        return self._activity == "idle"

    def is_under_way(self):
        """Return True if a run has begun and has not been reaped."""
        return self._activity in ("running", "ending")

    def check_not_in_child(self):
        """Raise StateError if this process is a fork of the one that runs the loop."""
        if self.is_in_child():
            raise StateError(
                f"{self.settings.name} runs in process {self._pid}, and this process ({os.getpid()}) is a fork of it: "
                "loops do not survive a fork; create a new one here"
            )

    def start(self, owner, cycles=None, duration_ns=None):
        """Acquire everything and release the thread. On an exception nothing stays acquired."""
        self.claim(None, None)
        try:
            self.prepare(owner, cycles, duration_ns)
            self.release_thread()
        except BaseException:
            self.withdraw()
            raise

    def claim(self, run, settings, simulation=None):
        """Begin a start: alone, as a part of a group's run with these settings, or in virtual time.

        Raises
        ------
        StateError
            If the loop is not idle, or closed, or may not be started here.
        """
        self.check_not_in_child()
        if sys.is_finalizing():
            raise StateError(f"{self.settings.name} cannot be started: the interpreter is ending")
        registry.check_not_ending(self.settings.name)
        ending_signals.report_ignored()
        registry.reap_finished()
        if self.is_under_way() and not self.reap():
            shielded(self._end)
        while self.is_releasing:  # by the keeper, or another thread, which takes as long as an unlock of memory
            nap(0.001)
        if self.run is not None and self.run is not run and self.run.is_running():
            raise StateError(
                f"{self.settings.name} is a loop of {self.run.name}, which is running: stop the group first"
            )
        with self._lock:
            if self._is_closed or self._activity != "idle":
                what = {"starting": "is already being started", "running": "is already running", "ending": "is ending"}
                what = "is closed" if self._is_closed else what[self._activity]
                advice = "create a new one" if self._is_closed else "wait until it has ended, or stop it first"
                raise StateError(f"{self.settings.name} {what}: {advice}")
            self._activity = "starting"
            self._pid, self._starter, self._is_stop_wanted = getpid(), threading.get_ident(), False
        if simulation is None:
            self.run = run
        self._simulation = simulation
        self.thread.settings = self._own_settings if settings is None else settings

    def prepare(self, owner, cycles=None, duration_ns=None):
        """Do everything of a start except releasing the thread; :meth:`withdraw` undoes it."""
        owner = self.step_of(owner)
        owner.setup()
        name = None if self.run is None else self.run.name
        shielded(lambda: self.thread.acquire(owner, self.settings, cycles, duration_ns, name))
        run_warnings.warn_degraded(self.grants, self.settings.name)
        run_warnings.warn_tai(self.settings, self.thread.tai_offset_s)

    def step_of(self, owner):
        """Return the object whose callbacks a run calls; `owner` is the one that was asked to run."""
        return owner if self.step is None else self.step

    def release_thread(self):
        """Let the thread call enter(); a stop() that came during the start takes effect."""
        shielded(self._release_thread)

    def _release_thread(self):
        registry.loops.add(self)  # before the check, so that an end of all loops that begins after it finds this one
        try:
            registry.check_not_ending(self.settings.name)
        except StateError:
            registry.loops.discard(self)
            raise
        self._begin_run()
        ending_signals.guard_run(<size_t>&self.thread.rt.command, RT_COMMAND_STOP, self.thread.rt.thread.report.tid)
        self.thread.go()

    def _begin_run(self):
        with self._lock:
            self._stats = self._make_stats_later = None
            self._failure = RunFailure(self.thread)
            self._activity = "running"
            self.runs += 1
            if self._is_stop_wanted:
                self.thread.send(RT_COMMAND_STOP)

    def withdraw(self):
        """Undo a start at any stage."""
        if self._activity == "starting":
            shielded(self.abandon)
        else:
            self.stop(self.leave_timeout_ns)

    def abandon(self):
        """Release everything that a failed start has acquired; :meth:`withdraw` calls it where no signal interrupts."""
        try:
            self.thread.release()
        finally:
            self.thread.settings = self._own_settings
            self._activity, self._pid = "idle", 0

    def open_simulated(self, cycles, duration_ns, grant):
        """Prepare a claimed run in virtual time; :meth:`end_simulated` undoes it."""
        self.thread.open_simulated(self.settings, cycles, duration_ns, grant)

    def begin_simulated(self):
        """Begin a run in virtual time; a stop() that came meanwhile takes effect."""
        registry.simulations.add(self)
        self._begin_run()
        self.thread.go_simulated()

    def end_simulated(self, error):
        """End a run in virtual time at any stage. `error` is the reason, which the caller raises."""
        registry.simulations.discard(self)
        has_run = self._activity == "running"
        outcome = "stopped" if error is None else "failed"
        stats = None
        try:
            if has_run and not self.is_in_child():
                stats = self._collect(outcome)()
        finally:
            self.thread.release()
            with self._lock:
                if has_run:
                    self._stats, self._outcome = stats, outcome
                    self._failure.settle_with(error)
                self._activity, self._pid = "idle", 0

    def reap(self):
        """Release a run's resources if its thread has ended. Returns True if the thread is still running.

        If the keeper is busy with another loop, the keeper does it later.
        """
        if self.is_in_child():
            return False
        if self._activity == "running" and self.thread.phase() == RT_PHASE_DONE:
            shielded(self._end, _PATIENCE_S)  # not longer, because the start of another loop may lock all memory now
        else:
            self.follow_trial()
        return self.is_under_way() and self.thread.phase() != RT_PHASE_DONE

    def _end(self):
        """Join the thread, which has ended; keep its statistics and release everything."""
        with self._lock:
            if self._activity != "running":
                return
            self._activity, self._reaper = "ending", threading.get_ident()
        owner = None
        has_signal_come = ending_signals.release_run(<size_t>&self.thread.rt.command)
        registry.leave(self, has_signal_come)
        outcome = "failed"
        try:
            owner = self.thread.join()
            self._settle_change()
            outcome = self.state
            self._failure.settle()
            self._make_stats_later = self._collect(outcome, is_last=True)
        finally:
            try:
                self.thread.release()
            finally:
                self._outcome = outcome
                self._activity, self._pid = "idle", 0
        self._finish_change()
        del owner  # not before: its finalizer may close this loop, and finds it idle

    def settle_change(self):
        """Find out the outcome of a swap, after which its steps may be loops of their own again."""
        change = self.change
        if change is not None and not self.is_in_child():
            change.settle()

    def follow_trial(self):
        """Check whether the trial of a step is over. If it is, release the step that is not in place."""
        change = self.change
        if change is not None and change.trial is not None:
            change.settle()
            change.finish()

    @property
    def is_on_trial(self):
        """True if the step in place is on trial."""
        change = self.change
        if change is None or self.is_in_child():
            return False
        change.settle()
        return change.is_on_trial

    def end_trial(self):
        """End the trial of a step with a run in virtual time."""
        self._settle_change()
        self._finish_change()

    def _settle_change(self):
        """Find out whether the thread, which has ended, has taken over the step that it was asked to."""
        change = self.change
        if change is not None:
            change.settle(must_answer=True)

    def _finish_change(self):
        """Release the former step of a swap whose caller has given up waiting."""
        change, self.kept = self.change, []
        if change is not None:
            try:
                change.finish()
            except Exception as error:
                registry.report_error(error)

    def _is_reaping(self):
        """True if this thread is reaping: a finalizer that the collector of garbage has called in the middle of it."""
        return self._activity == "ending" and self._reaper == threading.get_ident()

    def end_error(self):
        """Return the exception for the end of the run, None for a normal end."""
        return self._failure.make()

    def _settle(self):
        """Settle the failure of a run that has ended and was not reaped."""
        with self._lock:
            if self.is_under_way() and self.thread.phase() == RT_PHASE_DONE:
                self._failure.settle()

    def unreported_error(self):
        """Return the exception of a failed run once, if join() has not raised it; otherwise None."""
        if self._failure.is_reported or self.is_in_child() or self.reap() or self.state != "failed":
            return None
        self._settle()
        return self._failure.take_unreported()

    def _collect(self, state, is_last=False):
        """Copy the figures of the run. Returns a function that makes Stats of them; None without figures."""
        return run_stats.collect(self.thread, state, self._simulation, is_last=is_last)

    def warn_lost(self):
        """Warn, once in a run, of each grant that was lost."""
        run_warnings.warn_lost(self.thread.unreported_losses(), self.settings.name)

    @property
    def stats(self):
        """Snapshot of the current run, or the statistics of the last one."""
        stats = self._read_stats()
        self.warn_lost()
        return stats

    def _read_stats(self):
        change = self.change
        if change is not None and self._activity == "running" and not self.is_in_child():
            change.settle()
        state = self.state
        if self._activity == "running" and not self.is_in_child():
            if state == "running" and self.thread.is_pending(RT_COMMAND_RESET):
                return self._empty_stats("running")
            make = self._collect(state)
            if make is not None:
                return make()
        while self._activity == "ending" and not self._is_reaping() and not self.is_in_child():
            nap(0.001)  # another thread is reaping, and stores the figures
        make = self._make_stats_later
        if make is not None:
            made = make()
            with self._lock:
                if self._make_stats_later is make:
                    self._stats, self._make_stats_later = made, None
        stats = self._stats
        return self._empty_stats(self.state) if stats is None else stats

    def _empty_stats(self, state):
        return run_stats.empty(self.thread, state, self._simulation)

    def reset_stats(self):
        """Restart the statistics; the thread switches to a cleared bank at its next cycle."""
        self.check_not_in_child()
        if not self.reap():
            if self.is_under_way():
                shielded(self._end)
            self._stats = self._make_stats_later = None
            return
        with self._lock:
            block = self.thread.block
            if self._activity != "running" or block is None or self.thread.is_pending(RT_COMMAND_RESET):
                return
            block.reset_idle_bank()
            self.thread.send(RT_COMMAND_RESET)

    def wait(self, timeout_ns=None):
        """Wait for the end of the current run, and check for Ctrl-C every 50 ms. Returns True if it has ended."""
        return self._wait(None if timeout_ns is None else time.monotonic_ns() + timeout_ns, None)

    def make_overdue(self):
        """Make the judge of the present run: does a cycle not end although the limit has passed?

        A step may take a period, however long that is.
        """
        return Overdue(self._progress_past_limit, max(self.leave_timeout_ns, self.settings.period_ns))

    def _progress_past_limit(self):
        return None if self.is_simulated() or not self.is_under_way() else self.thread.progress_past_limit()

    def _wait(self, deadline, interrupts, must_reap=True, overdue=None):
        """Wait until `deadline`, on the monotonic clock; None: no limit. Returns True if the run has ended.

        An exception of a signal handler is raised at once if `interrupts` is None. Otherwise it is added to that list,
        and after the first one the wait takes no longer than `leave_timeout`. If a handler has forked, there is nothing
        to wait for in the child. The wait for an `overdue` run ends, too.
        """
        cdef int64_t left = INT64_MAX
        cdef uint32_t phase
        cdef bint is_to_read = interrupts is not None and must_reap
        run = self.runs
        while self.is_under_way() and self.runs == run:
            if self.is_in_child():
                if interrupts is None:
                    self.check_not_in_child()
                return True
            try:
                phase = self.thread.phase()
                if phase == RT_PHASE_DONE:
                    if not must_reap:
                        return True
                    self.reap()
                    if self._activity == "ending" and not self._is_reaping():
                        self.thread.wait_while(phase, 1_000_000)  # another thread is reaping
                        continue
                    return True  # if it is not reaped yet, the keeper does that after its present job
                if deadline is not None:
                    left = deadline - time.monotonic_ns()
                    if left <= 0:
                        return False
                if is_to_read:  # instead of waiting for the last cycle
                    is_to_read = False
                    self.thread.read_ahead()
                    continue
                self.thread.wait_while(phase, min(left, SLICE_NS))
                if overdue is not None and overdue.look():
                    return False
                PyErr_CheckSignals()
            except BaseException as interrupt:
                if interrupts is None:
                    raise
                if not interrupts:
                    latest = time.monotonic_ns() + self.leave_timeout_ns
                    deadline = latest if deadline is None else min(deadline, latest)
                interrupts.append(interrupt)
        return True

    def request_stop(self):
        """Ask the thread to end, without waiting for it."""
        if self.is_in_child():
            return
        with self._lock:
            if self._activity == "starting":
                self._is_stop_wanted = True
            else:
                self.thread.send(RT_COMMAND_STOP)

    def stop(self, timeout_ns, begin_ns=None):
        """Ask the thread to end and wait for it. Do nothing if the loop is not running.

        The timeout counts from `begin_ns` on the monotonic clock, or from now. An exception of a signal handler is
        raised when leave() has returned, or `leave_timeout` is over.
        """
        interrupts = []
        left = timeout_ns if begin_ns is None else max(0, begin_ns + timeout_ns - time.monotonic_ns())
        has_ended = self.end_run(left, interrupts)
        if interrupts:
            if not has_ended:
                add_note(interrupts[0], str(stop_timeout_error(self.settings.name, timeout_ns)))
            raise interrupts[0]
        if not has_ended:
            raise stop_timeout_error(self.settings.name, timeout_ns)

    def end_run(self, timeout_ns, interrupts, must_reap=True):
        """Ask the thread to end and wait for it. Returns True if it has ended, or if this is its own thread.

        Exceptions of signal handlers are added to the list `interrupts`. With `must_reap` False the wait is for the
        thread only, and nothing is released.

        Raises
        ------
        StopTimeoutError
            If the loop is still being started when the time is over.
        """
        if self.is_in_child():
            return True
        deadline = time.monotonic_ns() + timeout_ns
        if self._is_stop_deferred(deadline, interrupts) or not self.is_under_way():
            return True
        self.request_stop()
        if self.is_on_own_thread():
            return True
        armed = ending_signals.arm()
        try:
            return self._wait(deadline, interrupts, must_reap)
        finally:
            self._disarm(armed, interrupts)

    def _disarm(self, armed, interrupts):
        try:
            ending_signals.disarm(armed)
        except BaseException as interrupt:
            interrupts.append(interrupt)

    def enter_block(self):
        """Begin a with block: signals that end the process end the loop first."""
        self._blocks.append((getpid(), ending_signals.arm_wait()))

    def leave_block(self):
        """End a with block."""
        ending_signals.disarm(self._blocks.pop()[1])

    def has_block_forked(self):
        """Return True if the innermost with block was begun by a parent of this process, which ends it."""
        pid, _ = self._blocks[len(self._blocks) - 1]
        return pid != getpid()

    def is_on_own_thread(self):
        """Return True if the caller is a callback, or a signal handler that has interrupted a simulated run."""
        if self._activity != "running":
            return False
        if self._simulation is not None:
            return self._starter == threading.get_ident()
        return threading.get_native_id() == self.thread.rt.thread.report.tid

    def _is_stop_deferred(self, deadline, interrupts):
        """Make a start in progress stop its loop. Returns True if the caller must leave the rest to that start."""
        with self._lock:
            if self._activity != "starting":
                return False
            self._is_stop_wanted = True
        if self._starter == threading.get_ident():
            return True  # called by setup(), or by a signal handler that has interrupted start()
        while self._activity == "starting" and not self.is_in_child():
            if time.monotonic_ns() > deadline:
                raise StopTimeoutError(f"{self.settings.name} is still being started; it stops once it has started")
            try:
                nap(0.001)
            except BaseException as interrupt:
                interrupts.append(interrupt)
        return False

    def join(self, timeout_ns=None):
        """Wait for the end, and raise the reason if the loop failed. Returns True if it has ended."""
        self.check_not_in_child()
        if self._activity == "starting":
            raise StateError(f"{self.settings.name} is still being started: wait for start() to return")
        if self._activity == "idle" and self._outcome == "new":
            raise StateError(f"{self.settings.name} has not been started: call start() first")
        if self.is_on_own_thread():
            raise StateError(f"{self.settings.name} runs on this very thread, which cannot wait for itself")
        deadline = None if timeout_ns is None else time.monotonic_ns() + timeout_ns
        overdue = self.make_overdue()
        armed = ending_signals.arm_wait()
        try:
            has_ended = self._wait(deadline, None, overdue=overdue)
        except BaseException as interrupt:
            # Ctrl-C, or another exception of a signal handler: without this wait nothing would stop the loop.
            self.end_after(interrupt)
            raise
        finally:
            ending_signals.disarm(armed)
        if has_ended:
            self._settle()
            self._failure.raise_if_failed()
        elif overdue.is_over:
            self.request_stop()
            raise overdue_error(self.settings.name, overdue.limit_ns)
        return has_ended

    def end_after(self, interrupt):
        """End the run because a wait for it was interrupted, and report how long that took. Raises nothing.

        Returns True if it has ended. Later calls with the same interrupt do not wait again. In a forked child it does
        nothing.
        """
        if self.is_in_child():
            return True
        if not interrupted_wait.mark_handled(interrupt, self):
            return self.state != "running"
        return interrupted_wait.end_after([self], self.settings.name, interrupt, self.leave_timeout_ns)

    def close(self, timeout_ns):
        """Stop, and refuse to start again."""
        if not self.is_in_child():
            self._is_closed = True
        self.stop(timeout_ns)
