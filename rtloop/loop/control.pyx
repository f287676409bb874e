"""The life of a loop: start, stop, join, and what each leaves behind.

A control owns the loop's C state and its thread. The loop object (:mod:`rtloop.loop.loop`) owns the control and gives
it the thread's body. While the thread runs, the control holds a reference to the loop object.
"""

from cpython.exc cimport PyErr_CheckSignals
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport INT64_MAX, UINT64_MAX
from libc.string cimport memset
from posix.unistd cimport getpid

from rtloop._os cimport munmap, pthread_join
from rtloop.loop.telemetry cimport TelemetryBlock
from rtloop.system.guard cimport GuardBlock
from rtloop.system.memory_h cimport rt_memory_map

import os
import sys
import threading
import time
from contextlib import ExitStack

from rtloop.errors import SetupError, StateError, StopTimeoutError
from rtloop.loop import about, acquire, failure, guarding, running
from rtloop.loop.settings import CLOCKS, OVERRUN_POLICIES
from rtloop.system.keeper import shielded
from rtloop.system.memory import fork_count
from rtloop.units import format_duration, format_size

# Ctrl-C is looked for this often while a thread is waited for.
cdef int64_t _SLICE_NS = 50_000_000

_IDLE_STATES = ("new", "stopped", "failed")
_ENDS = {RT_END_ENTER: "enter", RT_END_STEP: "step", RT_END_OVERRUN: "overrun", RT_END_WAIT: "wait",
         RT_END_CLOCK: "clock", RT_END_OVERRUNS: "overruns", RT_END_GUARD: "guard"}
# A run that one of these ended had counted its last cycle already.
_ENDS_COUNTED = (RT_END_STEP, RT_END_OVERRUN, RT_END_OVERRUNS, RT_END_GUARD)


cdef class Control:
    """The state and the thread of one loop."""

    def __cinit__(self):
        cdef void *address = NULL
        if rt_memory_map(&address, sizeof(rt_loop_t)):
            raise MemoryError("no memory for the state of a loop")
        self.rt = <rt_loop_t *>address
        self._state = "new"
        self.grants = self.ranges = self.remarks = ()

    def __init__(self, settings):
        self.settings = self._own_settings = settings
        self._lock = threading.RLock()

    def __dealloc__(self):
        # A running loop is never deallocated, for it owns a reference to itself; in a forked child it may be.
        if self.rt is not NULL and self._owner is NULL:
            munmap(self.rt, sizeof(rt_loop_t))

    cdef void bind(self, void *(*body)(void *) noexcept nogil, bint has_own_wait):
        self._body = body
        self._has_own_wait = has_own_wait

    cdef bint _is_in_child(self) noexcept:
        return self._pid != 0 and self._pid != getpid()

    @property
    def state(self):
        """What the loop is: new, running, stopped or failed."""
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
        running.reap_finished()
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
            self.stop(running.EXIT_TIMEOUT_NS)

    def _let_go(self):
        """Let the thread run; a stop that was asked for meanwhile comes with it."""
        with self._lock:
            self._stats = self._error = None
            self._is_told = False
            self._state = "running"
            if self._is_stop_wanted:
                rt_loop_command(self.rt, RT_COMMAND_STOP)
        running.loops.add(self)
        rt_futex_set(&self.rt.phase, RT_PHASE_GO)

    def _launch(self, owner, cycles, duration_ns):
        """Do all of start() but the last step: a thread waits, with everything granted, to be let go."""
        settings = self.settings
        grants = []
        memset(self.rt, 0, sizeof(rt_loop_t))
        self._fill(cycles, duration_ns)
        with acquire.setup_errors(settings.name, grants), ExitStack() as stack:
            grants.extend(acquire.process_wide(settings, stack))
            grants += acquire.rt_bandwidth(settings)
            grant, self._block = acquire.telemetry(settings, stack)
            grants.append(grant)
            grants += self._lock_state(stack)
            grants += [self._acquire_stack(stack), *self._acquire_guard(stack)]
            grants += [*acquire.dma_latency(settings, stack), *self.remarks]
            self._create_thread(owner)
            stack.callback(self._abort_thread)
            grants += guarding.grants(settings, self._guard)
            grants += acquire.thread_grants(settings, self.rt.request, self.rt.report)
            acquire.insist(settings, grants)
            self._fill_header()
            self.grants = tuple(grants)
            group = None if self.run is None else self.run.name
            about.write(self._block, settings, self.grants, has_own_wait=self._has_own_wait, group=group)
            self._undo = stack.pop_all()

    def _abort_thread(self):
        """End a thread that waits to be let go; one that was let go has been joined by now."""
        if self._owner is not NULL:
            rt_futex_set(&self.rt.phase, RT_PHASE_ABORT)
            self._join_thread()

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

    def _fill(self, cycles, duration_ns):
        """Translate the settings into the C state."""
        s = self.settings
        cdef rt_loop_t *rt = self.rt
        cdef bytes name = s.name.encode()[:15].decode(errors="ignore").encode()
        rt.schedule.period = s.period_ns
        rt.schedule.policy = OVERRUN_POLICIES[s.overrun]
        rt.schedule.max_burst = s.max_burst
        rt.schedule.max_overruns = s.max_overruns or 0
        rt.clock, rt.read = CLOCKS[s.clock], rt_clock_reader()
        rt.has_own_wait = self._has_own_wait
        rt.warmup = s.warmup
        rt.max_cycles = UINT64_MAX if cycles is None else cycles
        rt.max_duration = INT64_MAX if duration_ns is None else duration_ns
        rt.align = s.align_ns or 0
        rt.phase_ns = s.phase_ns
        if s.is_spin_auto:
            rt_spin_auto(&rt.spin, s.period_ns, acquire.spin_budget(s))
        else:
            rt_spin_fixed(&rt.spin, s.spin_ns)

        rt.is_member = self.run is not None
        rt.request.attr = acquire.sched_attr(s, sizeof(rt_sched_attr_t), RT_SCHED_FLAG_RESET_ON_FORK)
        rt.request.flush_denormals = s.flush_denormals
        for i in range(len(name)):
            rt.request.name[i] = name[i]
        cpus = acquire.choose_cpus(s)
        if cpus is not None:
            rt.request.is_pinned = True
            for cpu in cpus:
                rt.request.cpus[<int>(cpu // 64)] |= <uint64_t>1 << <int>(cpu % 64)

    def _lock_state(self, stack):
        """Lock the C state, which is all that a cycle touches beside the telemetry, and the callback's data."""
        state = ("state", "the loop's own counters and plan", <size_t>self.rt, sizeof(rt_loop_t), True)
        return [acquire.lock_range(self.settings, stack, *item) for item in (state, *self.ranges)]

    def _acquire_stack(self, stack):
        """Map, lock, guard and paint the stack."""
        cdef size_t size = self.settings.stack_bytes
        rc = rt_stack_map(&self.rt.stack, size)
        if rc:
            raise SetupError(-rc, f"stack_size={format_size(size)}: mmap or mprotect: {os.strerror(-rc)}")
        stack.callback(lambda: rt_stack_unmap(&self.rt.stack))
        ranges = (<size_t>self.rt.stack.base, size), (<size_t>self.rt.stack.signal_stack, <size_t>RT_STACK_SIGNAL_BYTES)
        rc = acquire.lock_ranges(self.settings, stack, ranges)
        with nogil:
            rt_stack_paint(&self.rt.stack)
        detail = "guard of 64 KiB below, alternate signal stack of 64 KiB, painted"
        return acquire.lock_own(self.settings, "stack", detail, size, rc)

    def _acquire_guard(self, stack):
        """Map and lock the block of the guards, if there are any."""
        mapping = <size_t>self.rt.stack.mapping, self.rt.stack.mapping_bytes
        self._guard, body, grants = guarding.acquire(self.settings, stack, mapping)
        self.rt.guard = NULL if self._guard is None else (<GuardBlock>self._guard).guard
        self._guarded_body = <void *(*)(void *) noexcept nogil><size_t>body
        return grants

    def _create_thread(self, owner):
        """Create the thread and wait until it has asked the kernel for everything."""
        self.rt.telemetry = (<TelemetryBlock>self._block).block
        self.rt.phase = RT_PHASE_STARTING
        body = self._body if self.rt.guard is NULL else self._guarded_body
        rc = rt_thread_create(&self.rt.thread, &self.rt.stack, body, <void *>owner)
        if rc:
            size = format_size(self.rt.stack.bytes)
            raise SetupError(-rc, f"pthread_create with a stack of {size}: {os.strerror(-rc)}")
        Py_INCREF(owner)
        self._owner = <void *>owner
        with nogil:
            while rt_futex_wait(&self.rt.phase, RT_PHASE_STARTING, _SLICE_NS) == RT_PHASE_STARTING:
                pass

    def _fill_header(self):
        """Say in the telemetry block who this loop is."""
        attr = self.rt.report.attr
        cpu = (acquire.choose_cpus(self.settings) or (-1,))[0]
        self._block.sign(self._pid, self.rt.report.tid, self.settings, self.rt.clock,
                         (attr.sched_policy, attr.sched_priority, cpu))

    cdef object _join_thread(self):
        """Join the thread, which is about to end, and drop the reference that it needed."""
        with nogil:
            pthread_join(self.rt.thread, NULL)
        owner = <object><PyObject *>self._owner
        self._owner = NULL
        Py_DECREF(owner)

    cdef object _reap(self):
        shielded(self._end)

    def _end(self):
        """After the thread's last word: join it, keep its statistics, give everything back."""
        with self._lock:
            if self._state != "running":
                return
            self._state = "ending"
        running.loops.discard(self)
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
        reason, cycle = self.rt.end_reason, self.rt.cycle.index
        error, self.raised = self.raised, None
        if reason == RT_END_NORMAL or error is not None:
            return error
        if reason in _ENDS_COUNTED:
            cycle -= 1
        if reason == RT_END_GUARD:
            return failure.guard_error(self.settings, cycle, guarding.violations(self._guard, cycle))
        return failure.end_error(self.settings, _ENDS[reason], self.rt.end_code, cycle, self.rt.schedule.late)

    def untold_error(self):
        """Return, once, what ended a loop that failed where join() has not raised it; otherwise None."""
        if self._is_told or self._is_in_child() or self.state != "failed":
            return None
        self._is_told = True
        return self._error

    def _make_stats(self, block, state):
        used = rt_stack_high_water(&self.rt.stack)
        snapshot = block.snapshot()
        stack = (self.rt.stack.bytes, used)
        return _stats_maker()(self.settings, state, self.grants, snapshot, stack=stack, forks=fork_count(),
                              has_own_wait=self._has_own_wait, simulation=self._simulation,
                              violations=guarding.violations(self._guard, has_lines=state != "running"))

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
            rt_loop_command(self.rt, RT_COMMAND_RESET)

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
            rt_loop_command(self.rt, RT_COMMAND_STOP)

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
            return self._state == "running" and threading.get_native_id() == self.rt.report.tid
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
                self.stop(running.EXIT_TIMEOUT_NS)
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
    from rtloop.loop.snapshot import make_stats

    return make_stats
