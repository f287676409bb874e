"""A loop's C state and its thread: what a run acquires, in a fixed order, and what undoes it."""

from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport INT64_MAX, UINT64_MAX, int64_t, uint32_t, uint64_t
from libc.string cimport memset

from rtloop._atomics cimport rt_load_acquire
from rtloop._os cimport munmap, pthread_join
from rtloop.telemetry.block cimport TelemetryBlock
from rtloop.guard.guard_block cimport GuardBlock
from rtloop.memory.memory_h cimport rt_memory_map

import os
from contextlib import ExitStack

from rtloop.errors import SetupError
from rtloop.guard import setup as guard_setup
from rtloop.memory.own_locks import lock_range, lock_ranges, own_grant
from rtloop.loop import resources
from rtloop.telemetry import description
from rtloop.settings import CLOCKS, OVERRUN_POLICIES
from rtloop.units import format_size

# The thread's answer is looked for this often.
cdef int64_t _SLICE_NS = 50_000_000


cdef class ThreadHolder:
    """The C state of a loop, and its thread with all that it needs; :class:`~rtloop.loop.lifecycle.Control` runs it.

    While the thread exists, this holds a reference to the loop object.
    """

    def __cinit__(self):
        cdef void *address = NULL
        if rt_memory_map(&address, sizeof(rt_loop_t)):
            raise MemoryError("no memory for the state of a loop")
        self.rt = <rt_loop_t *>address
        self.grants = self.ranges = self.remarks = ()

    def __dealloc__(self):
        # A running loop is never deallocated, for it owns a reference to itself; in a forked child it may be.
        if self.rt is not NULL and self._owner is NULL:
            munmap(self.rt, sizeof(rt_loop_t))

    cdef void bind(
        self, rt_body_t body, rt_body_t guarded_body, rt_hook_t on_peer_failure, rt_hook_t safe, bint has_own_wait
    ):
        self._body, self._guarded_body, self._on_peer_failure, self._safe = body, guarded_body, on_peer_failure, safe
        self._has_own_wait = has_own_wait

    def _launch(self, owner, cycles, duration_ns):
        """Do all of start() but the last step: a thread waits, with everything granted, to be let go."""
        settings = self.settings
        grants = []
        memset(self.rt, 0, sizeof(rt_loop_t))
        self._fill(cycles, duration_ns)
        with resources.setup_errors(settings.name, grants), ExitStack() as stack:
            grants.extend(resources.process_wide(settings, stack))
            grants += resources.rt_bandwidth(settings)
            grant, self._block = resources.telemetry(settings, stack)
            grants.append(grant)
            grants += self._lock_state(stack)
            grants += [self._acquire_stack(stack), *self._acquire_guard(stack)]
            grants += [*resources.dma_latency(settings, stack), *self.remarks]
            self._create_thread(owner)
            stack.callback(self._abort_thread)
            grants += guard_setup.grants(settings, self._guard)
            grants += resources.thread_grants(settings, self.rt.thread.request, self.rt.thread.report)
            resources.insist(settings, grants)
            self._fill_header()
            self.grants = tuple(grants)
            group = None if self.run is None else self.run.name
            description.write(self._block, settings, self.grants, has_own_wait=self._has_own_wait, group=group)
            self._undo = stack.pop_all()

    def _abort_thread(self):
        """End a thread that waits to be let go; one that was let go has been joined by now."""
        if self._owner is not NULL:
            rt_futex_set(&self.rt.phase, RT_PHASE_ABORT)
            self._join_thread()

    def _fill(self, cycles, duration_ns):
        """Translate the settings into the C state."""
        s = self.settings
        cdef rt_loop_t *rt = self.rt
        cdef bytes name = s.name.encode()[:15].decode(errors="ignore").encode()
        rt.schedule.period = s.period_ns
        rt.schedule.policy = OVERRUN_POLICIES[s.overrun]
        rt.schedule.max_burst = s.max_burst
        rt.schedule.max_overruns = s.max_overruns or 0
        rt.clock, rt.read_clock = CLOCKS[s.clock], rt_clock_reader()
        rt.has_own_wait = self._has_own_wait
        rt.limits.warmup = s.warmup
        rt.limits.max_cycles = UINT64_MAX if cycles is None else cycles
        rt.limits.max_duration = INT64_MAX if duration_ns is None else duration_ns
        rt.grid.align = s.align_ns or 0
        rt.grid.phase = s.phase_ns
        if s.is_spin_auto:
            rt_spin_auto(&rt.spin, s.period_ns, resources.spin_budget(s))
        else:
            rt_spin_fixed(&rt.spin, s.spin_ns)

        rt.group.is_member = self.run is not None
        rt.thread.request.attr = resources.sched_attr(s, sizeof(rt_sched_attr_t), RT_SCHED_FLAG_RESET_ON_FORK)
        rt.thread.request.flush_denormals = s.flush_denormals
        for i in range(len(name)):
            rt.thread.request.name[i] = name[i]
        cpus = resources.choose_cpus(s)
        if cpus is not None:
            rt.thread.request.is_pinned = True
            for cpu in cpus:
                rt.thread.request.cpus[<int>(cpu // 64)] |= <uint64_t>1 << <int>(cpu % 64)

    def _lock_state(self, stack):
        """Lock the C state, which is all that a cycle touches beside the telemetry, and the callback's data."""
        state = ("state", "the loop's own counters and plan", <size_t>self.rt, sizeof(rt_loop_t), True)
        return [lock_range(self.settings.lock_memory, stack, *item) for item in (state, *self.ranges)]

    def _acquire_stack(self, stack):
        """Map, lock, guard and paint the stack."""
        cdef size_t size = self.settings.stack_bytes
        rc = rt_stack_map(&self.rt.thread.stack, size)
        if rc:
            raise SetupError(-rc, f"stack_size={format_size(size)}: mmap or mprotect: {os.strerror(-rc)}")
        stack.callback(lambda: rt_stack_unmap(&self.rt.thread.stack))
        usable = <size_t>self.rt.thread.stack.base, size
        ranges = usable, (<size_t>self.rt.thread.stack.signal_stack, <size_t>RT_STACK_SIGNAL_BYTES)
        rc = lock_ranges(self.settings.lock_memory, stack, ranges)
        with nogil:
            rt_stack_paint(&self.rt.thread.stack)
        detail = "guard of 64 KiB below, alternate signal stack of 64 KiB, painted"
        return own_grant(self.settings.lock_memory, "stack", detail, size, rc)

    def _acquire_guard(self, stack):
        """Map and lock the block of the guards, if there are any."""
        mapping = <size_t>self.rt.thread.stack.mapping, self.rt.thread.stack.mapping_bytes
        self._guard, grants = guard_setup.acquire(self.settings, stack, mapping)
        self.rt.guard = NULL if self._guard is None else (<GuardBlock>self._guard).guard
        return grants

    def _create_thread(self, owner):
        """Create the thread and wait until it has asked the kernel for everything."""
        self.rt.telemetry = (<TelemetryBlock>self._block).block
        self.rt.hooks.self = <void *>owner
        self.rt.hooks.on_peer_failure, self.rt.hooks.safe = self._on_peer_failure, self._safe
        self.rt.phase = RT_PHASE_STARTING
        body = self._body if self.rt.guard is NULL else self._guarded_body
        rc = rt_thread_create(&self.rt.thread.id, &self.rt.thread.stack, body, <void *>owner)
        if rc:
            size = format_size(self.rt.thread.stack.bytes)
            raise SetupError(-rc, f"pthread_create with a stack of {size}: {os.strerror(-rc)}")
        Py_INCREF(owner)
        self._owner = <void *>owner
        with nogil:
            while rt_futex_wait(&self.rt.phase, RT_PHASE_STARTING, _SLICE_NS) == RT_PHASE_STARTING:
                pass

    def _fill_header(self):
        """Say in the telemetry block who this loop is."""
        attr = self.rt.thread.report.attr
        cpu = (resources.choose_cpus(self.settings) or (-1,))[0]
        self._block.sign(self._pid, self.rt.thread.report.tid, self.settings, self.rt.clock,
                         (attr.sched_policy, attr.sched_priority, cpu))

    def trip(self):
        """Return what a watchdog has found of this run of the loop, None where it has not acted."""
        cdef uint32_t watch = rt_load_acquire(&self.rt.watch)
        if watch not in (RT_WATCH_TRIPPED, RT_WATCH_SAFE):
            return None
        found = dict(self.rt.trip)
        found["periods"] = found.pop("limit") // self.settings.period_ns
        if watch == RT_WATCH_TRIPPED:  # safe() has not returned
            found["safe_code"] = found["safe_ended"] = None
        return found

    def tell_peers(self):
        """Tell the other loops that this one has failed, where a safe() that has not returned keeps that from them."""
        if rt_load_acquire(&self.rt.watch) == RT_WATCH_TRIPPED:
            rt_loop_notify_siblings(self.rt)

    cdef object _join_thread(self):
        """Join the thread, which is about to end, and drop the reference that it needed."""
        with nogil:
            pthread_join(self.rt.thread.id, NULL)
        owner = <object><PyObject *>self._owner
        self._owner = NULL
        Py_DECREF(owner)
