"""Watchdog thread of a group: what it acquires, like a loop, and its end, after all of its loops have ended."""

from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t, uint32_t
from posix.unistd cimport getpid

from rtloop._os cimport munmap, pthread_join
from rtloop.headers.atomics cimport rt_load_acquire, rt_load_relaxed_64, rt_store_release_32
from rtloop.headers.loop cimport (
    RT_PHASE_ABORT,
    RT_PHASE_DONE,
    RT_PHASE_GO,
    RT_PHASE_STARTING,
    RT_SCHED_FLAG_RESET_ON_FORK,
    RT_STACK_SIGNAL_BYTES,
    RT_WATCH_ON,
    rt_futex_wait,
    rt_stack_map,
    rt_stack_paint,
    rt_stack_unmap,
    rt_thread_create,
)
from rtloop.headers.memory cimport rt_memory_map
from rtloop.headers.watchdog cimport rt_watchdog_bytes, rt_watchdog_main, rt_watchdog_t
from rtloop.loop.thread cimport SLICE_NS, LoopThread
from rtloop.memory.forks cimport keep_stack_in_own_forks
from rtloop.telemetry.foreign_block cimport ForeignBlock

import os
import threading
import time
from contextlib import ExitStack

from rtloop.errors import SetupError
from rtloop.group import member
from rtloop.guard.started_threads import starting
from rtloop.loop import registry, resources, scheduling
from rtloop.loop.outcome import run_warnings
from rtloop.memory.own_locks import lock_range, lock_ranges, own_grant
from rtloop.process.interpreter import with_filters_of_caller
from rtloop.process.nap import nap
from rtloop.system import refusal_cause
from rtloop.system.grant_errors import setup_errors
from rtloop.process.signal_shield import shielded
from rtloop.telemetry.live_grants import LiveGrants
from rtloop.units import format_size


cdef void *_body(void *dog) noexcept nogil:
    rt_watchdog_main(<rt_watchdog_t *>dog)
    return NULL


cdef class Watchdog:
    """Watchdog(loops, settings, remarks)

    Watchdog of one run of a group. As long as its thread exists, this object and its loops are kept alive.

    Parameters
    ----------
    loops : sequence of RTLoop or ProcessLoop
        Loops that have acquired everything, and whose threads have not been released.
    settings : Settings
        Settings of its own thread, like a loop's; the period is the interval of its checks.
    remarks : sequence of Grant
        Additional grants.
    """

    cdef rt_watchdog_t *dog
    cdef bint _has_thread
    cdef int _pid
    cdef tuple _loops
    cdef object _settings
    cdef tuple _remarks
    # `_grants`, `_live` and `_undo` are in the dict, because other threads read them while a run ends (lifecycle.pxd).
    cdef dict __dict__
    cdef object _lock
    cdef str _state
    cdef object _warn_lost

    def __cinit__(self, loops, *arguments):
        cdef void *address = NULL
        if rt_memory_map(&address, rt_watchdog_bytes(len(loops))):
            raise MemoryError("no memory for the state of a watchdog")
        self.dog = <rt_watchdog_t *>address
        self.dog.count = len(loops)

    def __init__(self, loops, settings, remarks):
        self._loops, self._settings, self._remarks, self._grants = tuple(loops), settings, tuple(remarks), ()
        self._live = self._undo = None
        self._foreign = ()
        self._lock, self._state, self._pid = threading.RLock(), "new", getpid()

    def __dealloc__(self):
        if self.dog is not NULL and not self._has_thread:
            munmap(self.dog, rt_watchdog_bytes(self.dog.count))

    @property
    def checks(self):
        """Number of checks of its loops so far."""
        return rt_load_relaxed_64(&self.dog.checks)

    @property
    def grants(self):
        """Grants of the watchdog, as the kernel has them now while it runs. A lost one warns once."""
        self._read_grants()
        live = self._live
        if live is not None:
            run_warnings.warn_lost(live.unreported(), self._settings.name)
        return self._grants

    def _read_grants(self):
        """Read the grants again while the run holds what they are about."""
        live, undo = self._live, self._undo
        if live is None or undo is None or self._pid != getpid():
            return
        report = self.dog.report if rt_load_acquire(&self.dog.phase) == RT_PHASE_DONE else None
        self._grants = live.now(report, lambda: self._undo is undo)

    @property
    def state(self):
        """``"new"``, ``"running"`` or ``"stopped"``."""
        if self._pid != getpid():
            return "stopped"
        if self._state == "running" and rt_load_acquire(&self.dog.phase) == RT_PHASE_DONE:
            return "stopped"
        return "running" if self._state == "ending" else self._state

    @property
    def is_helper(self):
        """True, because this is a watchdog and not a loop."""
        return True

    @property
    def leave_timeout_ns(self):
        """Time that the end of the program waits for it."""
        return registry.EXIT_TIMEOUT_NS

    def reap(self):
        """Release everything if the thread has ended. Returns True if it has not ended."""
        if self._pid != getpid():
            return False
        if self._state == "running" and rt_load_acquire(&self.dog.phase) == RT_PHASE_DONE:
            shielded(self._end)
        return self._state in ("running", "ending")

    def prepare(self, limits_ns):
        """Acquire everything and create the thread; withdraw() undoes it. A loop is stuck after its limit."""
        shielded(lambda: self._launch(limits_ns))
        run_warnings.warn_degraded(self._grants, self._settings.name)
        self._warn_lost = with_filters_of_caller(run_warnings.warn_lost)

    def release_thread(self):
        """Let the thread watch; call it before the loops begin."""
        shielded(self._release_thread)

    def _release_thread(self):
        self._state = "running"
        registry.loops.add(self)
        rt_store_release_32(&self.dog.phase, RT_PHASE_GO)

    def withdraw(self):
        """Release everything that prepare() has acquired. A thread that watches ends with its stopped loops."""
        if self._state in ("running", "ending"):
            self.stop(registry.EXIT_TIMEOUT_NS)
        elif self._undo is not None:
            shielded(self._give_back)

    def _launch(self, limits_ns):
        cdef LoopThread thread
        cdef ForeignBlock block
        settings, grants = self._settings, []
        self.dog.interval = settings.period_ns
        for i, (loop, limit) in enumerate(zip(self._loops, limits_ns, strict=True)):
            control = member.control_of(loop)
            thread = control.thread
            self.dog.loops[i].loop, self.dog.loops[i].limit = thread.rt, limit
            if member.is_remote(loop):
                block = control.telemetry
                self._foreign += (block, thread)  # what it looks at stays mapped
                self.dog.loops[i].remote = block.view.block
            thread.rt.watch = RT_WATCH_ON
        with setup_errors(settings.name, grants), ExitStack() as stack:
            grants.extend(resources.process_wide(settings, stack))
            state = ("state", "its view of the loops", <size_t>self.dog, rt_watchdog_bytes(self.dog.count), True)
            grants.append(lock_range(settings.lock_memory, stack, *state))
            grants.append(self._acquire_stack(stack))
            starting.append(self)  # until it has its own name
            try:
                self._create_thread()
            finally:
                starting.remove(self)
            stack.callback(self._abort_thread)
            grants += scheduling.thread_grants(settings, self.dog.request, self.dog.report)
            resources.raise_if_refused(settings, grants)
            self._grants = (*grants, *self._remarks)
            self._live = LiveGrants(self._grants, getpid(), self.dog.report.tid, {
                "state": (<size_t>self.dog, rt_watchdog_bytes(self.dog.count)),
                "stack": (<size_t>self.dog.stack.base, self.dog.stack.bytes),
            })
            self._undo = stack.pop_all()

    def _acquire_stack(self, stack):
        cdef size_t size = self._settings.stack_bytes
        rc = rt_stack_map(&self.dog.stack, size)
        if rc:
            raise SetupError(-rc, f"a stack of {format_size(size)}: mmap or mprotect: {os.strerror(-rc)}")
        stack.callback(lambda: rt_stack_unmap(&self.dog.stack))
        self.dog.stack.on_begin = keep_stack_in_own_forks
        ranges = ((<size_t>self.dog.stack.base, size),
                  (<size_t>self.dog.stack.signal_stack, <size_t>RT_STACK_SIGNAL_BYTES))
        rc = lock_ranges(self._settings.lock_memory, stack, ranges)
        with nogil:
            rt_stack_paint(&self.dog.stack)
        detail = "guard of 64 KiB below, alternate signal stack of 64 KiB"
        return own_grant(self._settings.lock_memory, "stack", detail, size, rc)

    def _create_thread(self):
        cdef bytes name = b"rtloop-watchdog"
        self.dog.request.attr = scheduling.sched_attr(self._settings, sizeof(self.dog.request.attr),
                                                      RT_SCHED_FLAG_RESET_ON_FORK)
        for i in range(len(name)):
            self.dog.request.name[i] = name[i]
        self.dog.phase = RT_PHASE_STARTING
        rc = rt_thread_create(&self.dog.thread, &self.dog.stack, _body, self.dog)
        if rc:
            raise SetupError(-rc, refusal_cause.describe_thread_failure("the watchdog's thread: ", -rc))
        Py_INCREF(self)
        self._has_thread = True
        with nogil:
            while rt_futex_wait(&self.dog.phase, RT_PHASE_STARTING, SLICE_NS) == RT_PHASE_STARTING:
                pass

    def _abort_thread(self):
        """End a thread that still waits for its release; any other has already been joined."""
        if self._has_thread:
            rt_store_release_32(&self.dog.phase, RT_PHASE_ABORT)
            self._join_thread()

    cdef object _join_thread(self):
        with nogil:
            pthread_join(self.dog.thread, NULL)
        self._has_thread = False
        Py_DECREF(self)

    def _give_back(self):
        undo, self._undo = self._undo, None
        undo.close()

    def _end(self):
        """Join the thread, which has ended, and release everything."""
        with self._lock:
            if self._state != "running":
                return
            self._state = "ending"
        registry.loops.discard(self)
        try:
            self._join_thread()
            with self._lock:
                self._read_grants()
            self._give_back()
            lost = self._live.unreported()
            if lost:
                run_warnings.warn_off_keeper(self._warn_lost, lost, self._settings.name)
        finally:
            self._state = "stopped"

    def request_stop(self):
        """Do nothing: it watches until all loops have ended, because a loop can also hang while it is stopped."""

    def stop(self, timeout_ns, begin_ns=None):
        """Wait until it has ended, up to the timeout. It ends when each loop has ended or was found stuck."""
        cdef int64_t slice_ns
        cdef uint32_t phase
        deadline = (time.monotonic_ns() if begin_ns is None else begin_ns) + timeout_ns
        while self.reap():
            left = deadline - time.monotonic_ns()
            if left <= 0:
                return
            phase = rt_load_acquire(&self.dog.phase)
            if phase == RT_PHASE_DONE:
                nap(0.001)  # another thread is reaping
                continue
            slice_ns = min(left, SLICE_NS)
            with nogil:
                rt_futex_wait(&self.dog.phase, phase, slice_ns)
