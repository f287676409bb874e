"""The life of a loop: start, stop, join, and what each leaves behind.

A control owns the loop's C state and its thread (:mod:`rtloop.loop.thread`). The loop object
(:mod:`rtloop.loop.loop`) owns the control and gives it the thread's body.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport INT64_MAX, int64_t, uint32_t
from posix.unistd cimport getpid

from rtloop._atomics cimport rt_load_acquire
from rtloop.loop.thread cimport (
    RT_COMMAND_RESET,
    RT_COMMAND_STOP,
    RT_END_CLOCK,
    RT_END_ENTER,
    RT_END_GUARD,
    RT_END_NORMAL,
    RT_END_OVERRUN,
    RT_END_OVERRUNS,
    RT_END_ON_PEER_FAILURE,
    RT_END_STEP,
    RT_END_WAIT,
    RT_END_WATCHDOG,
    RT_PHASE_DONE,
    RT_PHASE_GO,
    ThreadHolder,
    rt_futex_set,
    rt_futex_wait,
    rt_loop_send_command,
    rt_stack_high_water,
)

import os
import sys
import threading
import time

from rtloop.errors import StateError, StopTimeoutError
from rtloop.guard.violations import list_violations
from rtloop.loop import failure, registry
from rtloop.system.signal_shield import shielded
from rtloop.memory.kernel import fork_count
from rtloop.units import format_duration

# Ctrl-C is looked for this often while a thread is waited for.
cdef int64_t _SLICE_NS = 50_000_000

_IDLE_STATES = ("new", "stopped", "failed")
_ENDS = {RT_END_ENTER: "enter", RT_END_STEP: "step", RT_END_OVERRUN: "overrun", RT_END_WAIT: "wait",
         RT_END_CLOCK: "clock", RT_END_OVERRUNS: "overruns", RT_END_GUARD: "guard",
         RT_END_ON_PEER_FAILURE: "on_peer_failure"}
# A run that one of these ended had counted its last cycle already.
_ENDS_COUNTED = (RT_END_STEP, RT_END_OVERRUN, RT_END_OVERRUNS, RT_END_GUARD)


cdef class Control(ThreadHolder):
    """The life of one loop, on top of its thread."""

    def __cinit__(self):
        self._state = "new"

    def __init__(self, settings):
        self.settings = self._own_settings = settings
        self._lock = threading.RLock()

    cdef bint _is_in_child(self) noexcept:
        return self._pid != 0 and self._pid != getpid()

    @property
    def state(self):
        """What the loop is: new, registry, stopped or failed."""
        if self._is_in_child():
            return "failed"
        if self._state == "running" and rt_load_acquire(&self.rt.phase) == RT_PHASE_DONE:
            self._reap()
        state = self._former_state if self._state == "starting" else self._state
        if state == "closed":
            return "stopped" if self._error is None else "failed"
        return "running" if state == "ending" else state

    def _move(self, allowed, to):
        """Change the state if it is one of the allowed ones; the loser of a race gets StateError."""
        with self._lock:
            if self._state not in allowed:
                raise StateError(
                    f"{self.settings.name} is {self._state}; this needs a loop that is {' or '.join(allowed)}"
                )
            former, self._state = self._state, to
            return former

    def _check_not_in_child(self):
        if self._is_in_child():
            raise StateError(
                f"{self.settings.name} runs in process {self._pid}, of which this one ({os.getpid()}) is a fork; "
                "loops do not survive a fork: make a new one here"
            )

    def start(self, owner, cycles=None, duration_ns=None):
        """Acquire everything and let the thread go; on any exception nothing stays acquired."""
        self.claim(None, self._own_settings)
        try:
            self.prepare(owner, cycles, duration_ns)
            shielded(self._let_go)
        except BaseException:
            self.withdraw()
            raise

    def claim(self, run, settings):
        """Begin a start with these settings, alone or as a part of a group's run."""
        self._check_not_in_child()
        if sys.is_finalizing():
            raise StateError(f"{self.settings.name} cannot be started: the interpreter is ending")
        registry.reap_finished()
        if self.run is not None and self.run is not run and self.run.is_running():
            raise StateError(f"{self.settings.name} is a loop of {self.run.name}, which runs: stop the group first")
        self._former_state = self._move(_IDLE_STATES, "starting")
        self.run, self.settings = run, settings
        self._pid, self._starter, self._is_stop_wanted, self._simulation = getpid(), threading.get_ident(), False, None

    def prepare(self, owner, cycles=None, duration_ns=None):
        """Do all of a start but the last step; withdraw() undoes it."""
        _stats_maker()  # the end of a run is no time for an import
        owner.setup()
        shielded(lambda: self._launch(owner, cycles, duration_ns))
        failure.warn_degraded(self.grants, self.settings.name)

    def withdraw(self):
        """Undo a start, however far it has come."""
        if self._state == "starting":
            shielded(self._abandon)
        else:
            self.stop(registry.EXIT_TIMEOUT_NS)

    def _let_go(self):
        """Let the thread run; a stop that was asked for meanwhile comes with it."""
        with self._lock:
            self._stats = self._error = None
            self._is_told = False
            self._state = "running"
            if self._is_stop_wanted:
                rt_loop_send_command(self.rt, RT_COMMAND_STOP)
        registry.loops.add(self)
        rt_futex_set(&self.rt.phase, RT_PHASE_GO)

    def _abandon(self):
        """Give back what a start that did not succeed has acquired."""
        self._block = None
        undo, self._undo = self._undo, None
        try:
            if undo is not None:
                undo.close()
        finally:
            self._state, self.settings = self._former_state, self._own_settings
            self._pid = 0

    cdef object _reap(self):
        shielded(self._end)

    def _end(self):
        """After the thread's last word: join it, keep its statistics, give everything back."""
        with self._lock:
            if self._state != "running":
                return
            self._state = "ending"
        registry.loops.discard(self)
        try:
            self._join_thread()
            self._error = self._end_error()
            self._traceback = getattr(self._error, "__traceback__", None)
            self._stats = self._make_stats(self._block, "stopped" if self._error is None else "failed")
        finally:
            self._block = self._guard = None
            undo, self._undo = self._undo, None
            try:
                undo.close()
            finally:
                self._state = "stopped" if self._error is None else "failed"
                self._pid = 0

    def _end_error(self):
        """Return the exception for how the run ended, None where it ended well."""
        reason, cycle = self.rt.end.reason, self.rt.cycle.index
        error, self.raised = self.raised, None
        if reason == RT_END_NORMAL or error is not None:
            return error
        if reason == RT_END_WATCHDOG:
            return failure.watchdog_error(self.settings, self.trip())
        if reason in _ENDS_COUNTED:
            cycle -= 1
        if reason == RT_END_GUARD:
            return failure.guard_error(self.settings, cycle, list_violations(self._guard, cycle))
        return failure.end_error(self.settings, _ENDS[reason], self.rt.end.code, cycle, self.rt.schedule.late)

    def untold_error(self):
        """Return, once, what ended a loop that failed where join() has not raised it; otherwise None."""
        if self._is_told or self._is_in_child() or self.state != "failed":
            return None
        self._is_told = True
        return self._error

    def _make_stats(self, block, state):
        used = rt_stack_high_water(&self.rt.thread.stack)
        snapshot = block.snapshot()
        stack = (self.rt.thread.stack.bytes, used)
        return _stats_maker()(self.settings, state, self.grants, snapshot, stack=stack, forks=fork_count(),
                              has_own_wait=self._has_own_wait, simulation=self._simulation,
                              violations=list_violations(self._guard, has_lines=state != "running"))

    @property
    def stats(self):
        """A snapshot now, or of the last run."""
        if self.state == "running" and not self._is_in_child():
            block = self._block
            if self._is_reset_pending():
                return _stats_maker()(self.settings, "running", self.grants, None, simulation=self._simulation)
            if block is not None:
                return self._make_stats(block, "running")
        if self._stats is None:
            return _stats_maker()(self.settings, self.state, self.grants, None, simulation=self._simulation)
        return self._stats

    def reset_stats(self):
        """Begin the statistics anew; the thread turns to a cleared bank at its next cycle."""
        self._check_not_in_child()
        if self.state != "running":
            self._stats = None
            return
        with self._lock:
            if self._state != "running" or self._is_reset_pending():
                return
            self._block.reset_idle_bank()
            rt_loop_send_command(self.rt, RT_COMMAND_RESET)

    cdef bint _is_reset_pending(self):
        return rt_load_acquire(&self.rt.command) & RT_COMMAND_RESET != 0

    def wait(self, timeout_ns=None):
        """Wait for the thread's end, in slices, so that Ctrl-C is heard. Returns whether it has ended."""
        cdef int64_t left = INT64_MAX if timeout_ns is None else timeout_ns
        cdef int64_t slice_ns
        cdef uint32_t phase
        deadline = None if timeout_ns is None else time.monotonic_ns() + timeout_ns
        while self._state in ("running", "ending"):
            phase = rt_load_acquire(&self.rt.phase)
            if phase == RT_PHASE_DONE and self._state == "running":
                self._reap()
                continue
            if deadline is not None:
                left = deadline - time.monotonic_ns()
                if left <= 0:
                    return False
            if phase == RT_PHASE_DONE:
                time.sleep(0.001)  # another thread is reaping
                continue
            slice_ns = min(left, _SLICE_NS)
            with nogil:
                rt_futex_wait(&self.rt.phase, phase, slice_ns)
            PyErr_CheckSignals()
        return True

    def request_stop(self):
        """Ask the thread to end, without waiting for it."""
        if not self._is_in_child():
            rt_loop_send_command(self.rt, RT_COMMAND_STOP)

    def stop(self, timeout_ns):
        """Ask the thread to end and wait for it; a loop that does not run needs nothing."""
        if self._is_in_child():
            return
        deadline = time.monotonic_ns() + timeout_ns
        if self._is_stop_deferred(deadline) or self.state != "running":
            return
        self.request_stop()
        if not self._is_on_own_thread() and not self.wait(deadline - time.monotonic_ns()):
            raise StopTimeoutError(
                f"{self.settings.name} did not stop within {format_duration(timeout_ns)}: a callback has not returned. "
                "Its thread goes on; it ends when the callback returns"
            )

    def _is_on_own_thread(self):
        """Whether a callback is asking, or a signal handler that has interrupted a simulated run."""
        if self._state != "running" or self._simulation is None:
            return self._state == "running" and threading.get_native_id() == self.rt.thread.report.tid
        return self._starter == threading.get_ident()

    def _is_stop_deferred(self, deadline):
        """Make a start that is under way stop its loop. Returns whether the rest must be left to that start."""
        with self._lock:
            if self._state != "starting":
                return False
            self._is_stop_wanted = True
        if self._starter == threading.get_ident():
            return True  # called by setup(), or by a signal handler that has interrupted start()
        while self._state == "starting":
            if time.monotonic_ns() > deadline:
                raise StopTimeoutError(f"{self.settings.name} is still being started; it stops when it has been")
            time.sleep(0.001)
        return False

    def join(self, timeout_ns=None):
        """Wait for the end and raise what ended a failed loop. Returns whether it has ended."""
        self._check_not_in_child()
        if self._state in ("new", "starting") or self._is_on_own_thread():
            what = {"new": "has not been started", "running": "runs on this very thread"}.get(
                self._state, "is still being started")
            raise StateError(f"{self.settings.name} {what}")
        try:
            has_ended = self.wait(timeout_ns)
        except BaseException as interrupt:
            # Ctrl-C, or whatever a signal handler raised: the loop must not outlive its keeper.
            try:
                self.stop(registry.EXIT_TIMEOUT_NS)
            except StopTimeoutError as error:
                failure.add_note(interrupt, str(error))
            raise
        if has_ended and self._error is not None:
            self._is_told = True
            raise self._error.with_traceback(self._traceback)
        return has_ended

    def close(self, timeout_ns):
        """Stop, and refuse to start again."""
        self.stop(timeout_ns)
        if not self._is_in_child():
            self._move((*_IDLE_STATES, "closed"), "closed")


def _stats_maker():
    """Return make_stats, imported when a loop first runs, for `import rtloop` is to be quick."""
    from rtloop.telemetry.assemble import make_stats

    return make_stats
