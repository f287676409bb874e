"""LoopThread: the C state of a loop and its thread, with all that a run acquires and releases."""

from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport INT64_MAX, UINT64_MAX, int64_t, uint32_t, uint64_t
from libc.string cimport memset
from posix.unistd cimport getpid

from rtloop._os cimport munmap, pthread_join
from rtloop.headers.atomics cimport rt_load_acquire, rt_load_relaxed, rt_load_relaxed_64, rt_store_release_32
from rtloop.headers.loop cimport (
    RT_END_CLOCK,
    RT_END_CLOCK_STEP,
    RT_END_ENTER,
    RT_END_GUARD,
    RT_END_NORMAL,
    RT_END_ON_PEER_FAILURE,
    RT_END_OVERRUN,
    RT_END_OVERRUNS,
    RT_END_STEP,
    RT_END_WAIT,
    RT_END_WATCHDOG,
    RT_PHASE_ABORT,
    RT_PHASE_DONE,
    RT_PHASE_GO,
    RT_PHASE_IDLE,
    RT_PHASE_STARTING,
    RT_SCHED_FLAG_RESET_ON_FORK,
    RT_STACK_SIGNAL_BYTES,
    RT_WATCH_SAFE,
    RT_WATCH_TRIPPED,
    rt_clock_reader,
    rt_futex_set,
    rt_futex_wait,
    rt_loop_is_past_limit,
    rt_loop_notify_siblings,
    rt_loop_send_command,
    rt_loop_t,
    rt_sched_attr_t,
    rt_schedule_set_period,
    rt_spin_auto,
    rt_spin_fixed,
    rt_stack_high_water,
    rt_stack_map,
    rt_stack_paint,
    rt_stack_unmap,
    rt_thread_create,
    rt_watch_is_taken,
)
from rtloop.headers.telemetry cimport rt_telemetry_t
from rtloop.headers.memory cimport (
    rt_memory_map, rt_memory_map_behind, rt_memory_populate_code, rt_memory_replace_shared,
)
from rtloop.guard.guard_block cimport GuardBlock
from rtloop.live.live cimport Live
from rtloop.memory.forks cimport keep_stack_in_own_forks
from rtloop.sharing.wakers cimport loops_of_process
from rtloop.telemetry.block cimport TelemetryBlock

cimport cython

import mmap
import os
import weakref
from contextlib import ExitStack
from math import floor, lcm

from rtloop.errors import SetupError
from rtloop.guard import setup as guard_setup
from rtloop.guard.started_threads import StartedThreads, starting
from rtloop.guard.thread_pools import GRANT as POOLS, PoolWatch, loop_tids, pools_grant
from rtloop.live.live import add_figures
from rtloop.loop import dma_latency, resources, scheduling
from rtloop.memory.own_locks import lock_range, lock_ranges, own_grant
from rtloop.settings import CLOCK_STEP_POLICIES, CLOCKS, OVERRUN_POLICIES, SETTABLE_CLOCKS
from rtloop.system import refusal_cause
from rtloop.system.time_sync import tai_offset_s
from rtloop.system.grant_errors import setup_errors
from rtloop.telemetry import description
from rtloop.telemetry.live_grants import LiveGrants
from rtloop.units import format_size

# Names of what has ended a run.
ENDS = {RT_END_NORMAL: None, RT_END_ENTER: "enter", RT_END_STEP: "step", RT_END_OVERRUN: "overrun",
        RT_END_WAIT: "wait", RT_END_CLOCK: "clock", RT_END_OVERRUNS: "overruns", RT_END_GUARD: "guard",
        RT_END_ON_PEER_FAILURE: "on_peer_failure", RT_END_WATCHDOG: "watchdog", RT_END_CLOCK_STEP: "clock_step"}
# Ends after which the cycle counter already includes the last cycle.
_ENDS_COUNTED = (RT_END_STEP, RT_END_OVERRUN, RT_END_OVERRUNS, RT_END_GUARD)

# Threads whose state is shared with another process.
_shared = weakref.WeakSet()

# Swaps that the record of a run has room for.
_MOST_SWAPS = 4096


cdef class LoopThread:
    """C state of a loop, its thread, and all that a run acquires for them.

    A run goes through :meth:`acquire`, :meth:`go`, :meth:`join` and :meth:`release`, in this order. If :meth:`release`
    follows :meth:`acquire` directly, it also ends the thread. A simulated run begins with :meth:`open_simulated`
    instead, and has no thread. From :meth:`acquire` to :meth:`join` this holds a reference to the loop object.

    Attributes
    ----------
    settings : Settings
        Settings of the current run, or of the last one.
    grants : tuple of Grant
        Grants of the current run, or of the last one.
    has_own_wait : bool
        True if the loop overrides ``wait``.
    kind : int
        Body of the run's thread, PLAIN_BODY, SAMPLED_BODY or LIVE_BODY: what it looks at around each step.
    block : TelemetryBlock or None
        Telemetry, while it is acquired.
    guard : GuardBlock or None
        Block of the guards, while it is acquired.
    tracer : RunTracer or None
        Traces the kernel during the run, if the settings ask for it.
    ranges : tuple
        Additional memory to lock: (name of the grant, detail, address, size, True if rtloop has mapped it).
    remarks : tuple of callable
        Functions that return an additional grant of every run.
    live : Live or None
        Parameters and signals, if there are any.
    swaps : tuple of Swap
        The last swaps of the current run, or of the last one.
    swap_count : int
        Number of all of them.
    former_figures : dict
        What the Stats of the run say of the parameters of its former steps.
    functions : tuple of int
        Addresses of the step's functions, besides its methods, whose code is made present before a swap to it.

    `ranges`, `remarks`, `live` and `functions` belong to the step; a swap replaces them.
    """

    def __cinit__(self):
        cdef void *address = NULL
        if rt_memory_map(&address, sizeof(rt_loop_t)):
            raise MemoryError("no memory for the state of a loop")
        self.rt = <rt_loop_t *>address

    def __init__(self, settings):
        self.settings = settings
        self.grants = self.ranges = self.remarks = self.functions = ()
        self.swaps, self.former_figures, self.swap_count = (), {}, 0
        self.block = self.guard = self.tai_offset_s = self.live = self.tracer = None
        self._undo = self._step_undo = self._live = self._why_cpus = self._about = None

    def __dealloc__(self):
        # If it still has a thread, this is a forked child, whose copy of the state the kernel has wiped.
        if self.rt is not NULL and self._owner is NULL:
            munmap(self.rt, sizeof(rt_loop_t))

    def share_state(self, int fd):
        """Keep the state in a file of :func:`state_bytes` from now on, which another process maps as well.

        Nothing may run. The file may be closed afterwards.

        Raises
        ------
        OSError
            If it cannot be mapped.
        """
        cdef Live live = self.live
        cdef void *address = NULL
        rc = rt_memory_map_behind(0, fd, 0, state_bytes(), &address)
        if rc:
            raise OSError(-rc, f"mapping the state of {self.settings.name}: {os.strerror(-rc)}")
        munmap(self.rt, sizeof(rt_loop_t))
        self.rt = <rt_loop_t *>address
        if live is not None:
            live.move(<size_t>&self.rt.live)
        _shared.add(self)

    def forget_shared_state(self):
        """Put zeros in the place of a shared state, which a forked child does not inherit."""
        rt_memory_replace_shared(self.rt, state_bytes())

    cdef void bind(self, rt_hook_t on_peer_failure, rt_hook_t safe, bint has_own_wait):
        """Set the C functions of the loop object."""
        self._on_peer_failure, self._safe, self.has_own_wait = on_peer_failure, safe, has_own_wait

    cdef void bind_body(self, int kind, rt_body_t body, rt_body_t guarded_body):
        """Set the C functions that the thread of a loop of this kind runs, without and with guards."""
        self._bodies[kind], self._guarded_bodies[kind] = body, guarded_body

    cdef int _kind(self) except -1:
        live = self.live
        if live is None:
            return PLAIN_BODY
        return SAMPLED_BODY if live.signals.declared and not live.parameters.declared else LIVE_BODY

    cdef void bind_swap(self, rt_take_over_t take_over):
        """Set the C function that hands a loop over to the loop object."""
        self._take_over = take_over

    cdef Live make_live(self):
        """Return the parameters and signals, made when the first is declared."""
        cdef Live live = self.live
        if live is None:
            own = vars(self)
            if own.get("_first_live", own) is None:
                own.pop("_first_live", None)  # a swap to a step without any
            live = own.setdefault("_first_live", Live(self.settings))  # one for all threads
            live._state = &self.rt.live
            self.live = live
        return live

    def add_range(self, *item):
        """Add an item to `ranges`: memory to lock in every run."""
        self.ranges += (item,)

    def add_remark(self, make_grant):
        """Add a function to `remarks`."""
        self.remarks += (make_grant,)

    def add_function(self, size_t address):
        """Add a function to `functions`."""
        self.functions += (address,)

    def _make_remarks(self):
        return [make_grant() for make_grant in self.remarks]

    def acquire(self, owner, settings, cycles, duration_ns, group_name):
        """Acquire everything, and create a thread that waits for :meth:`go`. On an exception nothing stays acquired.

        Parameters
        ----------
        owner : RTLoop
            Loop object whose callbacks the thread calls.
        settings : Settings
            Settings of the run.
        cycles, duration_ns : int, optional
            Limits of the run.
        group_name : str, optional
            Name of the group that starts the loop and sets its origin.
        """
        self.settings = settings
        self.tai_offset_s = tai_offset_s()
        grants = []
        with setup_errors(settings.name, grants), ExitStack() as stack:
            self._reset_state(cycles, duration_ns, group_name is not None)
            grants.extend(resources.process_wide(settings, stack))
            grants += scheduling.rt_bandwidth(settings)
            grant, self.block = resources.telemetry(settings, stack)
            grants.append(grant)
            step = stack.enter_context(ExitStack())
            if self.live is not None:
                grants += self.live.acquire(settings, step)
            grants += [self._lock_state(stack), *self._lock_ranges(settings, step)]
            grants += [self._acquire_stack(stack), *self._acquire_guard(stack)]
            pools = pools_grant()
            latency, held = dma_latency.acquire(settings, stack)
            grants += [*latency, *pools, *self._make_remarks()]
            starting.append(self)
            try:
                self._create_thread(owner)
                stack.callback(self._abort)
                loop_tids.append(self.rt.thread.report.tid)
                stack.callback(loop_tids.remove, self.rt.thread.report.tid)
            finally:
                starting.remove(self)
            grants += guard_setup.grants(settings, self.guard)
            grants += self._acquire_tracer(settings, stack, grants)
            grants += scheduling.thread_grants(settings, self.rt.thread.request, self.rt.thread.report, self._why_cpus)
            self._ask_rtkit(settings, grants)
            resources.raise_if_refused(settings, grants)
            self._sign()
            self.grants = tuple(grants)
            self._live = LiveGrants(self.grants, getpid(), self.rt.thread.report.tid, {
                "state": (<size_t>self.rt, sizeof(rt_loop_t)),
                "stack": (<size_t>self.rt.thread.stack.base, self.rt.thread.stack.bytes),
                "telemetry": (<size_t>self.rt.telemetry, self.block.size),
                **({} if self.live is None else self.live.ranges),
            }, self._readers(held, pools), find_more=StartedThreads().grants)
            self._about = {"group": group_name, "descriptors": {} if held is None else {"dma_latency": held.fd}}
            self._describe()
            self._undo, self._step_undo = stack.pop_all(), step

    def _ask_rtkit(self, settings, grants):
        """Ask RealtimeKit for the policy that the kernel has refused, if the program uses RealtimeKit."""
        granted = scheduling.through_rtkit(settings, self.rt.thread.report, grants)
        if granted is not None:
            self.rt.thread.report.policy_rc = 0
            self.rt.thread.report.attr.sched_policy, self.rt.thread.report.attr.sched_priority = granted

    def _acquire_tracer(self, settings, stack, grants):
        """Begin to trace the kernel beside the run, if the settings ask for it."""
        self.tracer = None
        if settings.explain_ns is None:
            return []
        needs_interpreter = any(one.name == "gil" and one.granted != "none" for one in grants)
        grant, self.tracer = resources.tracer(
            settings, stack, self.block, self.rt.thread.report.tid, needs_interpreter, self.has_own_wait
        )
        return [grant]

    def _describe(self):
        """Write the description for other processes, which finds them the blocks of the present step."""
        blocks = {} if self.live is None else self.live.inodes
        swaps = (self.swap_count, self.swaps[len(self.swaps) - 1].cycle if self.swaps else 0)
        description.write(self.block, self.settings, self.grants, has_own_wait=self.has_own_wait, blocks=blocks,
                          swaps=swaps, last_swaps=self.swaps, **self._about)

    @staticmethod
    def _readers(held, pools):
        """Return the functions that read a grant of this process again."""
        readers = {} if held is None else {"dma_latency": held.now}
        return readers | ({POOLS: PoolWatch().now} if pools else {})

    def read_grants(self):
        """Return the grants as the kernel has them now, while the run holds what they are about."""
        live, undo = self._live, self._undo
        if live is None or undo is None:
            return self.grants
        report = self.rt.thread.report if self.phase() == RT_PHASE_DONE else None
        grants = live.now(report, lambda: self._undo is undo)
        if live is self._live:  # not those of a run that another thread has just begun
            self.grants = grants
        return grants

    def read_ahead(self):
        """Read the grants while the thread is about to end, so that :meth:`read_grants` is quicker once it has."""
        live, undo = self._live, self._undo
        if live is not None and undo is not None:
            live.read_ahead(lambda: self._undo is undo)

    def unreported_losses(self):
        """Return the grants that were lost, each once in a run."""
        live = self._live
        return [] if live is None else live.unreported()

    def open_simulated(self, settings, cycles, duration_ns, grant):
        """Prepare the state and the telemetry of a run without a thread."""
        self.settings = settings
        self._reset_state(cycles, duration_ns, False)
        with setup_errors(settings.name, []), ExitStack() as stack:
            self.block = TelemetryBlock(settings.name, settings.record)
            stack.callback(self.block.close)
            self.rt.telemetry = (<TelemetryBlock>self.block).block
            step = stack.enter_context(ExitStack())
            if self.live is not None:
                self.live.open_simulated(settings, step)
            self._sign()
            self._undo, self._step_undo = stack.pop_all(), step
        self._live, self.grants = None, (grant, *self._make_remarks())

    def stage(self, settings, stack, former, is_simulated, keep="all"):
        """Acquire what this loop's step needs to be another loop's. Returns the grants.

        Parameters
        ----------
        settings : Settings
            Settings of the loop that goes on with the step.
        stack : contextlib.ExitStack
            Gets what releases everything; after a swap that was not made, :meth:`forget` comes first.
        former : Live or None
            Parameters and signals of that loop's present step.
        is_simulated : bool
            True if that loop runs in virtual time.
        keep : str
            The parameters that keep their values: ``"all"`` or ``"changed"``.
        """
        grants = [] if self.live is None else self.live.stage(settings, stack, former, is_simulated, keep)
        if not is_simulated:
            grants += self._lock_ranges(settings, stack)
            for address in self.functions:
                rt_memory_populate_code(<void *><size_t>address)
        return grants + self._make_remarks()

    def forget(self):
        """Undo :meth:`stage` but for the stack: the other loop has not gone on with this step."""
        if self.live is not None:
            self.live.forget()

    def is_on_trial(self):
        """Return True if the step in place is on trial. The loop's thread."""
        return self.rt.trial.is_on != 0

    def is_watchdog_at_work(self):
        """Return True if the watchdog may be about to call safe() of a step that was in place when this was called."""
        return rt_watch_is_taken(&self.rt.watch) != 0

    def take_back(self):
        """Undo :meth:`stage` of a step that the other loop has gone on with, and does not have any more."""
        if self.live is not None:
            self.live.move(<size_t>&self.rt.live)

    @property
    def parts(self):
        """Attributes that belong to the step: `live`, `ranges`, `remarks` and `functions`."""
        return self.live, self.ranges, self.remarks, self.functions

    def use(self, parts, undo, grants):
        """Go on with the parts of another step, and with what releases it.

        Returns what releases the former one, and its grants.
        """
        cdef Live live = self.live
        former, names = self._step_undo, {name for name, *_ in self.ranges}
        if live is not None:
            names |= live.ranges.keys()
            self.former_figures = add_figures(self.former_figures, live.figures())
            live.retire()
        names |= {grant.name for grant in self._make_remarks()}
        self.take_parts(parts)
        live = self.live
        self._step_undo = undo
        lives = self._live
        former_grants = tuple(grant for grant in self.grants if grant.name in names)
        self.grants = tuple(grant for grant in self.grants if grant.name not in names) + tuple(grants)
        if lives is not None:
            ranges = {name: (address, size) for name, _, address, size, _ in self.ranges}
            ranges |= {} if live is None else live.ranges
            self._live = lives.with_step(names, grants, ranges)
            self._describe()
        return former, former_grants

    def take_parts(self, parts):
        """Go on with the parts of another step."""
        cdef Live live
        live, self.ranges, self.remarks, self.functions = parts
        if live is not None:
            live.move(<size_t>&self.rt.live)
        vars(self)["_first_live"] = live
        self.live = live

    def note_swap(self, swap):
        """Add a swap to the record of the run."""
        self.swaps = (*self.swaps, swap)[-_MOST_SWAPS:]
        self.swap_count += 1

    def go_simulated(self):
        """Mark the run without a thread as begun."""
        self.rt.phase = RT_PHASE_GO

    def go(self):
        """Let the thread call ``enter``; it looks once a millisecond, for this thread must not wake it."""
        rt_store_release_32(&self.rt.phase, RT_PHASE_GO)

    def join(self):
        """Join the thread, which is about to end. Returns the loop object, which this has no reference to any more.

        A finalizer of it runs when the caller drops it, and may want to close the loop.
        """
        if self._owner is NULL:
            return None
        with nogil:
            pthread_join(self.rt.thread.id, NULL)
        owner = <object><PyObject *>self._owner
        self._owner = NULL
        Py_DECREF(owner)
        return owner

    def release(self):
        """Release everything that the run has acquired, in reverse. A second call does nothing."""
        undo, self._undo = self._undo, None
        step, self._step_undo = self._step_undo, None
        try:
            if step is not None:
                step.close()  # that of a swap is not in `undo`
            if undo is not None:
                undo.close()
        finally:
            self.block = self.guard = self.tracer = None
            if self._owner is NULL and self.rt.phase != RT_PHASE_DONE:
                rt_futex_set(&self.rt.phase, RT_PHASE_IDLE)

    def _abort(self):
        """End a thread that still waits for :meth:`go`; any other has already been joined."""
        if self._owner is not NULL:
            rt_store_release_32(&self.rt.phase, RT_PHASE_ABORT)
            self.join()

    def _reset_state(self, cycles, duration_ns, is_member):
        """Clear the C state, and translate the settings into it."""
        s = self.settings
        cdef rt_loop_t *rt = self.rt
        cdef bytes name = s.name.encode()[:15].decode(errors="ignore").encode()
        memset(rt, 0, sizeof(rt_loop_t))
        self.swaps, self.former_figures, self.swap_count = (), {}, 0
        is_settable = s.clock in SETTABLE_CLOCKS
        # The fraction of a phase is the same for all releases, and rounded once, except half a ns, which is rounded to
        # the even release each time.
        is_carried = is_settable or s.period.denominator > 1 or s.phase.denominator == 2
        unit = lcm(s.period.denominator, s.phase.denominator) if is_carried else 0
        phase = s.phase if is_carried else round(s.phase)
        rt_schedule_set_period(&rt.schedule, floor(s.period), int(s.period % 1 * unit), unit)
        rt.grid.phase, rt.grid.part = floor(phase), int(phase % 1 * unit)
        rt.schedule.policy = OVERRUN_POLICIES[s.overrun]
        rt.schedule.max_burst = s.max_burst
        rt.schedule.max_overruns = s.max_overruns or 0
        rt.clock = CLOCKS["monotonic" if is_settable else s.clock]
        rt.set_clock, rt.is_settable, rt.on_clock_step = CLOCKS[s.clock], is_settable, CLOCK_STEP_POLICIES[s.clock_step]
        rt.read_clock = rt_clock_reader()
        rt.has_own_wait = self.has_own_wait
        rt.wakers = loops_of_process()
        rt.limits.warmup = s.warmup
        rt.limits.max_cycles = UINT64_MAX if cycles is None else cycles
        rt.limits.max_duration = INT64_MAX if duration_ns is None else duration_ns
        rt.grid.align = s.align_ns or 0
        if s.is_spin_auto:
            rt_spin_auto(&rt.spin, s.period_ns, scheduling.spin_budget(s))
        else:
            rt_spin_fixed(&rt.spin, s.spin_ns)

        rt.group.is_member = is_member
        rt.thread.request.attr = scheduling.sched_attr(s, sizeof(rt_sched_attr_t), RT_SCHED_FLAG_RESET_ON_FORK)
        rt.thread.request.flush_denormals = s.flush_denormals
        for i in range(len(name)):
            rt.thread.request.name[i] = name[i]
        cpus, self._why_cpus = scheduling.choose_cpus(s)
        if cpus is not None:
            rt.thread.request.is_pinned = True
            for cpu in cpus:
                rt.thread.request.cpus[<int>(cpu // 64)] |= <uint64_t>1 << <int>(cpu % 64)

    def _lock_state(self, stack):
        """Lock the C state, which together with the telemetry and the step's own memory is all that a cycle touches."""
        state = ("state", "the loop's own counters and schedule", <size_t>self.rt, sizeof(rt_loop_t), True)
        return lock_range(self.settings.lock_memory, stack, *state)

    def _lock_ranges(self, settings, stack):
        return [lock_range(settings.lock_memory, stack, *item) for item in self.ranges]

    def _acquire_stack(self, stack):
        """Map, lock, guard and paint the stack."""
        cdef size_t size = self.settings.stack_bytes
        with cython.critical_section(self):
            rc = rt_stack_map(&self.rt.thread.stack, size)
        if rc:
            raise SetupError(-rc, f"stack_size={format_size(size)}: mmap or mprotect: {os.strerror(-rc)}")
        stack.callback(self._unmap_stack)
        self.rt.thread.stack.on_begin = keep_stack_in_own_forks
        ranges = ((<size_t>self.rt.thread.stack.base, size),
                  (<size_t>self.rt.thread.stack.signal_stack, <size_t>RT_STACK_SIGNAL_BYTES))
        rc = lock_ranges(self.settings.lock_memory, stack, ranges)
        with nogil:
            rt_stack_paint(&self.rt.thread.stack)
        detail = "guard of 64 KiB below, alternate signal stack of 64 KiB, painted"
        return own_grant(self.settings.lock_memory, "stack", detail, size, rc)

    def _unmap_stack(self):
        with cython.critical_section(self):
            rt_stack_unmap(&self.rt.thread.stack)

    def _acquire_guard(self, stack):
        """Map and lock the block of the guards, if there are any."""
        mapping = <size_t>self.rt.thread.stack.mapping, self.rt.thread.stack.mapping_bytes
        self.guard, grants = guard_setup.acquire(self.settings, stack, mapping)
        self.rt.guard = NULL if self.guard is None else (<GuardBlock>self.guard).guard
        return grants

    def _create_thread(self, owner):
        """Create the thread and wait until it has made its requests to the kernel."""
        self.rt.telemetry = (<TelemetryBlock>self.block).block
        self.rt.hooks.self = <void *>owner
        self.rt.hooks.on_peer_failure, self.rt.hooks.safe = self._on_peer_failure, self._safe
        self.rt.phase = RT_PHASE_STARTING
        kind = self._kind()
        self.kind = LIVE_BODY if kind == SAMPLED_BODY and self.rt.guard is not NULL else kind
        body = self._bodies[kind] if self.rt.guard is NULL else self._guarded_bodies[kind]
        rc = rt_thread_create(&self.rt.thread.id, &self.rt.thread.stack, body, <void *>owner)
        if rc:
            beginning = f"a thread with a stack of {format_size(self.rt.thread.stack.bytes)}: "
            raise SetupError(-rc, refusal_cause.describe_thread_failure(beginning, -rc))
        Py_INCREF(owner)
        self._owner = <void *>owner
        while self.wait_while(RT_PHASE_STARTING, SLICE_NS) == RT_PHASE_STARTING:
            pass

    def _sign(self):
        """Write the loop's identity into the telemetry block."""
        attr = self.rt.thread.report.attr
        cpu = scheduling.first_cpu(self.rt.thread.request)
        self.block.sign(getpid(), self.rt.thread.report.tid, self.settings, CLOCKS[self.settings.clock],
                        (attr.sched_policy, attr.sched_priority, cpu))

    cdef uint32_t phase(self) noexcept nogil:
        """Return the run's phase, one of RT_PHASE_..."""
        return rt_load_acquire(&self.rt.phase)

    cdef uint32_t wait_while(self, uint32_t phase, int64_t timeout_ns):
        """Wait, without the GIL, until the phase changes or the timeout is over. Returns the phase."""
        with nogil:
            return rt_futex_wait(&self.rt.phase, phase, timeout_ns)

    cdef bint is_pending(self, uint32_t command) noexcept nogil:
        """Return True if the thread has not handled a command yet."""
        return rt_load_acquire(&self.rt.command) & command != 0

    cdef void send(self, uint32_t command) noexcept nogil:
        """Send RT_COMMAND_... bits to the thread."""
        rt_loop_send_command(self.rt, command)

    def stack_use(self):
        """Return the size of the stack and its high-water mark, in bytes."""
        with cython.critical_section(self):  # another thread may release the run meanwhile
            if self.rt.thread.stack.mapping is NULL:
                return 0, 0
            return self.rt.thread.stack.bytes, rt_stack_high_water(&self.rt.thread.stack)

    def end(self):
        """Return how the run has ended: its cause, the code, the index of the last cycle, and its lateness in ns.

        The cause is the name of a callback, ``"clock"``, ``"clock_step"``, ``"overruns"``, ``"guard"`` or
        ``"watchdog"``; None after a normal end.
        """
        reason, cycle = self.rt.end.reason, self.rt.cycle.index
        return ENDS[reason], self.rt.end.code, cycle - (reason in _ENDS_COUNTED), self.rt.schedule.late

    def trip(self):
        """Return the watchdog's record of this run, None if it has not acted."""
        cdef uint32_t watch = rt_load_acquire(&self.rt.watch)
        if watch not in (RT_WATCH_TRIPPED, RT_WATCH_SAFE):
            return None
        found = dict(self.rt.trip)
        found["periods"] = round(found.pop("limit") / self.settings.period)
        if watch == RT_WATCH_TRIPPED:  # safe() has not returned
            found["safe_code"] = found["safe_ended"] = None
        return found

    def progress_past_limit(self):
        """Return the number of cycles that have ended, once a limit of the run has passed.

        None before that and after the last cycle, and for a loop that a watchdog has found stuck, which the watchdog
        reports.
        """
        cdef TelemetryBlock block = self.block
        cdef const rt_telemetry_t *telemetry
        if block is None or rt_load_acquire(&self.rt.watch) in (RT_WATCH_TRIPPED, RT_WATCH_SAFE):
            return None
        telemetry = block.block
        if rt_load_relaxed(&telemetry.ended) or not rt_loop_is_past_limit(self.rt, telemetry):
            return None
        return rt_load_relaxed_64(&telemetry.written)

    def notify_siblings(self):
        """Notify the other loops of a failure, if safe() hangs and keeps the watchdog from notifying them."""
        if rt_load_acquire(&self.rt.watch) == RT_WATCH_TRIPPED:
            rt_loop_notify_siblings(self.rt)


def state_bytes():
    """Return the size of a file for the state of a loop: whole pages."""
    return (sizeof(rt_loop_t) + mmap.PAGESIZE - 1) // mmap.PAGESIZE * mmap.PAGESIZE


def _forget_after_fork():
    for thread in list(_shared):
        (<LoopThread>thread).forget_shared_state()


os.register_at_fork(after_in_child=_forget_after_fork)
