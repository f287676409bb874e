"""RTLoop: the class that a user subclasses, and the body of its thread."""

cimport cython
from cpython.object cimport PyObject
from libc.errno cimport EINVAL

from rtloop.loop.lifecycle cimport Control
from rtloop.headers.loop cimport (
    rt_cycle_t,
    rt_loop_default_wait,
    rt_loop_guarded_main,
    rt_loop_main,
    rt_loop_sampled_main,
    rt_loop_sleep_until,
    rt_loop_t,
    rt_schedule_shift,
)
from rtloop.headers.memory cimport rt_memory_populate_code, rt_memory_prefault
from rtloop.headers.telemetry cimport rt_telemetry_count_device_cycle
from rtloop.loop.callbacks cimport (
    call_enter, call_leave, call_live_step, call_on_peer_failure, call_overrun, call_safe, call_step,
    call_take_over, call_tuned_step, call_wait,
)
from rtloop.loop.thread cimport LIVE_BODY, PLAIN_BODY, SAMPLED_BODY

import itertools
from functools import partial

from rtloop.data.interface import publish, refuse_copy
from rtloop.errors import ConfigError, StateError
from rtloop.live.parameters import Parameters
from rtloop.loop import swap
from rtloop.loop.outcome import failure, run_warnings
from rtloop.settings import check_call, make_settings, parse_count, parse_run_duration
from rtloop.system.grant_errors import import_errors
from rtloop.units import format_rate, parse_timeout, show

_DEFAULT_STOP_TIMEOUT = "2s"
_DEFAULT_REVERT_ON = ("overrun", "guard", "late")
_serial = itertools.count(1)


# The hooks are inlined into the one call of rt_loop_main, so that a cycle makes a single indirect call.
cdef void *_body(void *self) noexcept nogil:
    rt_loop_main(<rt_loop_t *>(<_RTLoop_2>self)._rt, self, call_enter, call_step, call_overrun, call_wait, call_leave)
    return NULL


# The body of a loop with guards around step. A loop without guards runs _body, whose code has no guards at all.
cdef void *_guarded_body(void *self) noexcept nogil:
    cdef rt_loop_t *loop = <rt_loop_t *>(<_RTLoop_2>self)._rt
    rt_loop_guarded_main(loop, loop.guard, self, call_enter, call_step, call_overrun, call_wait, call_leave)
    return NULL


# The body of a loop that has signals and no parameters. One with guards runs the last body.
cdef void *_sampled_body(void *self) noexcept nogil:
    rt_loop_sampled_main(
        <rt_loop_t *>(<_RTLoop_2>self)._rt, self, call_enter, call_step, call_overrun, call_wait, call_leave
    )
    return NULL


# The bodies of a loop that has parameters, and perhaps signals.
cdef void *_live_body(void *self) noexcept nogil:
    rt_loop_sampled_main(
        <rt_loop_t *>(<_RTLoop_2>self)._rt, self, call_enter, call_tuned_step, call_overrun, call_wait, call_leave
    )
    return NULL


cdef void *_guarded_live_body(void *self) noexcept nogil:
    cdef rt_loop_t *loop = <rt_loop_t *>(<_RTLoop_2>self)._rt
    rt_loop_guarded_main(loop, loop.guard, self, call_enter, call_live_step, call_overrun, call_wait, call_leave)
    return NULL


@cython.no_gc_clear  # the thread may use the object until it is deallocated
cdef class _RTLoop_2:
    """RTLoop(period, *, phase=0, align=None, clock="monotonic", clock_step="follow", policy="fifo", priority=80,
           runtime=None, deadline=None, cpu="auto", spin=0, overrun="skip", max_burst=8, max_overruns=None, warmup=10,
           strict=True,
           lock_memory="all", stack_size="512K", tune_malloc=False, core_dumps=True, dma_latency=0,
           flush_denormals=False, guard="off", guard_allow=(), explain=False, record=65536, leave_timeout="2s",
           tunable=True, signals_every=1, signals_capacity=16384, name=None)\n--\n
    Hard periodic loop on a thread of its own.

    Subclass it in Cython and override ``step``. The thread calls its methods as C functions, without the GIL. The class
    itself is a loop whose step does nothing.

    A duration is a str with a unit (``"250us"``, ``"2s"``), a ``datetime.timedelta``, or an int in NANOSECONDS. Write
    ``run("1s")``: ``run(1)`` would be a nanosecond, and an int so short is refused. A size is an int (bytes) or a str
    (``"512K"``).

    Parameters
    ----------
    period : duration
        Time from one release to the next; also a rate, ``"4kHz"``. At least 2 us. Fractions are exact over any
        time: ``"44.1kHz"``, ``"30000/1001Hz"``, ``"1/60s"``, ``fractions.Fraction(1, 60)`` (seconds).
    phase : duration
        Offset from the origin: release k is at origin + phase + k * period, rounded to the nearest nanosecond. A
        fraction of a nanosecond is kept, as in a period: ``"1/6ms"``.
    align : duration, optional
        Makes the origin a multiple of this on the clock. Loops, also on machines with a common clock, are then on one
        grid whenever they start. It must be a whole number of periods; the error for any other value has the nearest
        one that works.
    clock : {"monotonic", "boottime", "tai", "realtime"}
        Clock of all times (clock_gettime(2)).
    clock_step : {"follow", "stop"}
        Reaction to a step of the clock (``tai`` and ``realtime`` only). ``follow`` continues with the next release on
        the clock as it was set. ``stop`` fails the loop with a ClockStepError. ``stats.clock_steps`` counts the steps.
    policy : {"fifo", "rr", "other", "deadline"}
        Scheduling policy of the thread (sched(7)).
    priority : int
        1 to 99, for ``fifo`` and ``rr``. 99 gives a warning, because it competes with the kernel's own threads.
    runtime, deadline : duration, optional
        For ``deadline``: CPU time of a cycle, and its deadline, counted from the release (default: the period).
    cpu : "auto", None, int or several
        CPUs that the thread may run on. ``"auto"``: the isolated CPUs if there are any, else as inherited; None: as
        inherited.
    spin : duration or "auto"
        Wake up this long before each release and spin until then; less than the period. ``"auto"`` derives it from the
        measured wake-up latency, and uses at most a quarter of the CPU.
    overrun : {"skip", "catch-up", "shift", "stop"}
        Reaction to a cycle that ends after the next release. ``skip`` drops the late releases and keeps the grid.
        ``catch-up`` runs up to `max_burst` of them back to back and then skips. ``shift`` moves the grid to now.
        ``stop`` fails the loop.
    max_burst : int
        Most releases that ``catch-up`` runs back to back.
    max_overruns : int, optional
        Number of consecutive overruns that fails the loop.
    warmup : int
        Number of first cycles that are recorded, but not counted in histograms and not guarded.
    strict : bool
        True to raise one exception for all refused requests. Otherwise one RTSetupWarning lists them, and the loop
        runs.
    lock_memory : {"all", "onfault", "own", "off"}
        Memory to lock. ``all``: the whole process, now and later (mlockall(2)). ``onfault``: the same, each page when
        it is first touched. ``own``: only what the loop itself uses. ``off``: nothing.
    stack_size : size
        Size of the thread's stack, at least 64K.
    tune_malloc : bool
        True to keep glibc's malloc from returning memory to the kernel, permanently and for the whole process.
    core_dumps : bool
        False to set RLIMIT_CORE to 0 while the loop runs.
    dma_latency : duration, optional
        Largest exit latency of CPU idle states while the loop runs, set with ``/dev/cpu_dma_latency``; None: no limit.
    flush_denormals : bool
        True if the thread is to treat denormal numbers as zero.
    guard : {"off", "count", "stop"}
        Watch ``step`` after the warm-up for page faults and system calls, and for allocations if the library of
        :func:`rtloop.guard.reexec` is loaded. ``count`` counts them. ``stop`` also fails the loop with a GuardError.
    guard_allow : sequence of str
        System calls that ``step`` makes on purpose: ``("sendto", "recvfrom")``.
    explain : bool or duration
        Trace the kernel during the run, and find the causes of late cycles: ``stats.explain()``. True explains overruns
        and the ten worst delays, a duration such as ``"200us"`` every longer delay. It needs root. The tracepoints cost
        each cycle some microseconds.
    record : int
        Number of last cycles whose timestamps are kept, 24 bytes each, in a ring whose number of places is a power of
        two. From 32768 on, it may have none to spare, so a snapshot of a running loop may lack the oldest.
    leave_timeout : duration
        Time that the end of a ``with`` block, an interrupt or the end of the program waits for the present ``step`` and
        for ``leave`` to return.
    tunable : bool
        False to let other processes read the loop's parameters, but not change them.
    signals_every : int
        Sample the signals of the cycles whose index is divisible by this: ``signals_every=10`` samples a loop of 10 kHz
        at 1 kHz.
    signals_capacity : int
        Number of samples that are kept, for readers that fall behind.
    name : str, optional
        Name of the loop and, cut to 15 bytes, of its thread.

    Raises
    ------
    ConfigError
        If the value of a keyword can never work.

    Notes
    -----
    The thread calls these methods. Override them in Cython as ``noexcept nogil``. They return RT_CONTINUE, RT_STOP, or
    a negative code, which fails the loop; ``leave`` returns nothing. If the overrun policy fails the loop, RT_STOP from
    ``overrun`` does not turn that into a normal end.

    ==================================  ============================================================================
    ``enter()``                         before the first release; may allocate and block
    ``step(cycle)``                     at every release
    ``overrun(cycle, missed)``          after an overrun, with the number of dropped releases
    ``wait(release)``                   instead of the sleep, for loops that hardware paces
    ``leave()``                         after the last cycle, if ``enter`` succeeded
    ``on_peer_failure()``               when another loop of a group with ``on_failure="hook"`` has failed; the default
                                        returns RT_STOP
    ``safe()``                          on the thread of the group's watchdog, if this loop hangs; its code is reported
    ``take_over(former, cycle)``        between two cycles of a running loop that goes on with this step: see
                                        :meth:`swap`
    ==================================  ============================================================================

    ``self.parameter(name, &self.field, value)`` and ``self.signal(name, &self.field)``, called in ``__init__`` or
    ``setup``, declare a field as a parameter, which any thread or process may change, or as a signal, which is sampled
    after each step. Both return a declaration, for ``.limits(low, high)`` and ``.unit(text)``, and raise a ConfigError
    if the name, the type or the address is invalid. A field that is not a double needs its type: ``"i4"``, ``"3f8"``.

    ``self.device_cycle(number)``, called from ``wait`` or ``step`` with the device's own cycle number, counts the
    device's cycles that the loop has missed in ``Stats.device_missed``. It returns how many were missed just before
    this one. A number that is not above the last one is a repetition or a restart of the device. Extend a counter with
    fewer bits before it wraps around. It costs a few instructions, and never enters the kernel.

    ``self.shift(ns)``, called from ``step``, moves the next release and all later ones. It returns 0. If the next
    release would not be later than the current one, or would be later than 146 years on the clock, it moves nothing
    and returns -ERANGE. It costs a few instructions, does not allocate, and does not enter the kernel.

    ``self.sleep_until(ns)``, called from ``step``, sleeps until a time on the loop's clock, such as
    ``cycle.release + 50000``. It returns 0, at once if the time has passed; RT_STOP within 50 ms if the loop is being
    stopped; or a negative errno. The sleep does not count as execution time (its histogram is ``stats.waiting``), and a
    guard does not report it. It makes one system call per 50 ms, and does not allocate.
    """

    def __cinit__(self, *args, **kwargs):
        self._rt = NULL

    def __init__(self, *period, **settings):
        if self._control is not None:
            raise StateError("this loop is already initialised: __init__ was called twice")
        check_call(type(self), period, settings)
        default_name = f"{type(self).__name__}-{next(_serial)}"
        cdef Control control = Control(make_settings(default_name, *period, **settings))
        control.thread.bind(call_on_peer_failure, call_safe, _overrides_wait(self))
        control.thread.bind_body(PLAIN_BODY, _body, _guarded_body)
        control.thread.bind_body(SAMPLED_BODY, _sampled_body, _guarded_live_body)
        control.thread.bind_body(LIVE_BODY, _live_body, _guarded_live_body)
        control.thread.bind_swap(call_take_over)
        self._rt = control.thread.rt
        self._control = control

    cdef int enter(self) noexcept nogil:
        return RT_CONTINUE

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        return RT_CONTINUE

    cdef int overrun(self, const Cycle *cycle, int64_t missed) noexcept nogil:
        return RT_CONTINUE

    cdef int wait(self, int64_t release) noexcept nogil:
        # Only called by a subclass's own wait(), which may end with the loop's sleep.
        return rt_loop_default_wait(<rt_loop_t *>self._rt, release) if self._rt is not NULL else -EINVAL

    cdef void leave(self) noexcept nogil:
        pass

    cdef int shift(self, int64_t ns) noexcept nogil:
        return rt_schedule_shift(&(<rt_loop_t *>self._rt).schedule, ns) if self._rt is not NULL else -EINVAL

    cdef int safe(self) noexcept nogil:
        return 0

    cdef int on_peer_failure(self) noexcept nogil:
        return RT_STOP

    cdef int sleep_until(self, int64_t ns) noexcept nogil:
        return rt_loop_sleep_until(<rt_loop_t *>self._rt, ns) if self._rt is not NULL else -EINVAL

    cdef object parameter(self, name, void *address, value, dtype="f8"):
        live = RTLoop_control(self).thread.make_live()
        check = partial(live.check_field, "parameter", _end_of(self))
        return live.parameters.declare(name, <size_t>address, value, dtype, check)

    cdef object signal(self, name, const void *address, dtype="f8"):
        live, own = RTLoop_control(self).thread.make_live(), (<size_t><void *>self, _end_of(self))
        check = partial(live.check_field, "signal", own[1])
        return live.signals.declare(name, <size_t>address, dtype, own, check)

    cdef int take_over(self, _RTLoop_2 former, const Cycle *cycle) noexcept nogil:
        return RT_CONTINUE

    cdef int _reserved_4(self) noexcept nogil:
        return 0

    cdef int _reserved_5(self) noexcept nogil:
        return 0

    cdef int _reserved_6(self) noexcept nogil:
        return 0

    cdef int _reserved_7(self) noexcept nogil:
        return 0

    cdef int _reserved_8(self) noexcept nogil:
        return 0

    cdef int _reserved_9(self) noexcept nogil:
        return 0

    cdef int _reserved_10(self) noexcept nogil:
        return 0

    cdef int _reserved_11(self) noexcept nogil:
        return 0

    cdef int _reserved_12(self) noexcept nogil:
        return 0

    cdef int _reserved_13(self) noexcept nogil:
        return 0

    cdef int _reserved_14(self) noexcept nogil:
        return 0

    cdef int _reserved_15(self) noexcept nogil:
        return 0

    cdef int _reserved_16(self) noexcept nogil:
        return 0

    cdef int _reserved_17(self) noexcept nogil:
        return 0

    cdef int _reserved_18(self) noexcept nogil:
        return 0

    cdef int _reserved_19(self) noexcept nogil:
        return 0

    cdef int _reserved_20(self) noexcept nogil:
        return 0

    cdef int _reserved_21(self) noexcept nogil:
        return 0

    cdef int _reserved_22(self) noexcept nogil:
        return 0

    cdef int64_t device_cycle(self, uint64_t number) noexcept nogil:
        cdef rt_loop_t *loop = <rt_loop_t *>self._rt
        return <int64_t>rt_telemetry_count_device_cycle(loop.telemetry, number) if loop is not NULL else -EINVAL

    def setup(self):
        """Prepare a run, in Python. Every start calls it before memory is locked; the default does nothing."""

    def released(self):
        """Clean up after a swap, in Python: another step has taken this one's place. The default does nothing.

        :meth:`swap` calls it before it returns, on its own thread, when the loop's thread cannot be in this object any
        more. With a trial, a helper thread of rtloop calls it after that, of the step that is not in place.
        """

    def swap(self, successor, timeout=_DEFAULT_STOP_TIMEOUT, *, keep="all", trial=None,
             revert_on=_DEFAULT_REVERT_ON):
        """Go on with the step of another loop object, from one cycle to the next, while the loop runs.

        The thread, the schedule, the statistics, the guards and the telemetry stay those of the running loop. From then
        on both objects are handles of the one loop: ``state``, ``stats``, ``stop``, ``parameters`` and all others are
        the same. ``leave`` of the successor runs at the end, and its step is also that of the next start. Its ``enter``
        does not run, and of its keywords only those of its signals matter.

        Parameters that both steps declare with the same name and type keep their values, as `keep` says.
        ``loop.signals`` are those of the new step.

        Parameters
        ----------
        successor : RTLoop
            A loop of any class that has not been started, with the same ``period``, ``clock`` and
            ``flush_denormals``, a ``stack_size`` that is not larger, and a ``wait`` of its own only if the running loop
            has one. Its :meth:`setup` is called here, and what its step needs is made present, and locked as
            ``lock_memory`` of the running loop says.
        timeout : duration
            Longest time to wait for the end of the present cycle, in addition to two periods.
        keep : str
            ``"all"``: every such parameter keeps its value, and one outside of the successor's limits raises
            ConfigError. ``"changed"``: only those that were changed since they were declared keep their value. The
            others take that of the successor, as does one whose value is outside of the successor's limits.
        trial : duration, optional
            Time in which the loop goes back to the former step by itself, between two cycles, if the new one fails: its
            ``step``, ``overrun`` or ``wait`` returns a negative code, or something in `revert_on` happens. Counted in
            cycles. Without it the swap is final.
        revert_on : sequence of {"overrun", "guard", "late", "nonfinite"}
            What counts as a failure in the trial, besides a negative code: a cycle that ends after the next release; a
            violation that the loop's guard finds; a release that has passed before the loop waits for it, also because
            ``take_over`` took too long; a signal of the new step that is infinite or not a number after a cycle.

        Returns
        -------
        int
            Index of the first cycle of the new step.

        Warns
        -----
        RTSetupWarning
            Once, within about a tenth of a second, if the loop has gone back to the former step: with the cycle and the
            reason.

        Raises
        ------
        SwapError
            If ``take_over`` of the successor returns anything but RT_CONTINUE, or the present step does not return in
            time; if a module of ``rtloop.build`` has a ``take_over`` that casts the former step to a class of which
            it is not an instance, or whose fields differ between the builds. The former step goes on unchanged.
        ConfigError
            If the successor does not agree with the loop.
        StateError
            If this loop does not run, or runs in virtual time; if the successor has been started before; if another
            swap is under way, or the present step is on trial; if this is the loop's own thread.
        SetupError
            If the kernel refuses memory for the successor, or its lock.

        Notes
        -----
        ``cdef int take_over(self, RTLoop former, const Cycle *cycle) noexcept nogil`` of the successor runs on the
        loop's thread after a step of the former and before the wait for the next release, and may take the time that is
        left until then. `cycle` is the first cycle of the new step, with ``start`` as the present time. It may call
        ``self.shift``. It must not allocate or block.

        A cycle without a swap costs nothing more. The former step and what it holds are released when the loop's thread
        cannot be in it any more; then its :meth:`released` is called.

        With a trial, this returns when the swap is made, and the former step is kept until the trial is over
        (:attr:`on_trial`). The cycle that fails belongs to the new step, and counts in the statistics; the next one
        runs the former step. The former step goes on with its own state as it was. Its ``take_over`` is not called,
        because the state of a step that has failed cannot be trusted; ``cycle.index`` tells how many cycles it has
        missed. It has the parameters that were requested last. Then :meth:`released` of the new step is called, and
        ``leave`` of the former runs at the end. Each cycle of a trial takes the slow path, some tens of nanoseconds
        more. RT_STOP of the new step ends the loop, and so does a watchdog that finds it stuck. The end of the loop
        also ends the trial.
        """
        cdef Control control = RTLoop_control(self)
        if not isinstance(successor, _RTLoop_2):
            raise TypeError(f"successor={show(successor)} must be an RTLoop")
        if keep not in ("all", "changed"):
            raise ConfigError(f"keep={show(keep)} must be 'all' or 'changed'")
        return swap.swap(control, self, successor, RTLoop_control(successor), hand_over, acting_for, populate_methods,
                         parse_timeout(timeout), keep, (trial, revert_on))

    @property
    def on_trial(self):
        """True while the present step is on trial after a :meth:`swap`."""
        return RTLoop_control(self).is_on_trial

    @property
    def _step(self):
        """Object whose step the loop runs: this one, or the successor of the last swap."""
        return RTLoop_control(self).step_of(self)

    def start(self):
        """Acquire everything that the settings request and start the thread.

        Raises
        ------
        SetupError
            If the kernel refused a request and ``strict`` is on; also a PermissionError if a privilege is missing. The
            exception lists all refusals, also as ``refused``, and its type is that of the first. Nothing stays
            acquired.
        StateError
            If the loop is already running, or closed.
        """
        RTLoop_control(self).start(self)

    def stop(self, timeout=_DEFAULT_STOP_TIMEOUT):
        """Ask the thread to end after its present cycle, and wait for it. Do nothing if the loop is not running.

        Parameters
        ----------
        timeout : duration
            Longest time to wait, such as ``"2s"``; a bare int is nanoseconds.

        Raises
        ------
        StopTimeoutError
            If a callback has not returned by then. The thread ends when the callback returns.

        Warns
        -----
        RTSetupWarning
            Once, if the loop had failed and neither :meth:`join` nor :meth:`run` has raised the reason.
        """
        cdef Control control = RTLoop_control(self)
        control.stop(parse_timeout(timeout))
        run_warnings.warn_failed(control.unreported_error())

    def join(self, timeout=None):
        """Wait until the loop has ended.

        Parameters
        ----------
        timeout : duration, optional
            Longest time to wait, such as ``"2s"``; a bare int is nanoseconds. No limit by default.

        Returns
        -------
        bool
            True if the loop has ended; False only after a timeout.

        Raises
        ------
        CallbackError, OverrunError, ClockStepError, GuardError, WatchdogError
            If the loop has failed: the reason.
        KeyboardInterrupt
            On Ctrl-C, which stops the loop. On another thread than the main one the method returns instead.
        StateError
            If the loop was never started.
        """
        return RTLoop_control(self).join(None if timeout is None else parse_timeout(timeout))

    def run(self, duration=None, cycles=None):
        """Start, wait for the end, and return the statistics.

        Parameters
        ----------
        duration : duration, optional
            Run all releases within this time: ``"10s"``, ``"500 ms"``. A bare int is nanoseconds, and is refused if it
            is shorter than a period.
        cycles : int, optional
            Run this many cycles. Without `duration` and `cycles` the loop runs until ``step`` returns RT_STOP, or until
            Ctrl-C.

        Returns
        -------
        Stats
            Of the whole run.

        Raises
        ------
        SetupError, StateError, CallbackError, OverrunError, ClockStepError, GuardError, KeyboardInterrupt
            As :meth:`start` and :meth:`join`.
        StopTimeoutError
            If the duration is over, and then no cycle ends within ``leave_timeout`` or a period, whichever is longer.
            The thread ends when the callback returns. A cycle that hangs before `cycles` are complete is not found.
        """
        control = RTLoop_control(self)
        if cycles is not None:
            cycles = parse_count(cycles, "cycles")
        if duration is not None:
            duration = parse_run_duration(duration, control.settings.period_ns)
        control.enter_block()
        try:
            control.start(self, cycles, duration)
            control.join()
        finally:
            control.leave_block()
        return control.stats

    def simulate(self, duration=None, cycles=None, *, execution=0, latency=0, plant=None, parameters=None, swaps=None,
                 trial=None, revert_on=_DEFAULT_REVERT_ON):
        """Run in virtual time, on the calling thread, with the same callbacks and schedule.

        It needs no privilege, and equal inputs give bit-identical results. ``wait`` is not called, and a step that
        reads a clock by itself reads the real one. :func:`rtloop.simulate` runs several loops.

        Parameters
        ----------
        duration, cycles
            As for :meth:`run`.
        execution : duration, sequence of durations, Stats or callable
            Execution time of ``step``: a constant; a list, or an integer array in ns, used one by one and repeated; a
            run's Stats, for the recorded times; or a function of the cycle's index.
        latency : duration, sequence of durations, Stats or callable
            Wake-up latency, in the same forms. It is ignored in cycles before which the loop does not sleep, unless it
            is recorded.
        plant : RTLoop or callable, optional
            A second loop, which runs first if both start at the same time; or a function that is called with the
            :class:`~rtloop.Cycle` before every step, and may return RT_STOP.
        parameters : iterable of ParameterChange, optional
            Changes to repeat at the same cycles: ``stats.parameter_changes`` of a run. The loop begins with the initial
            values of that run, and each step of `swaps` with the values that it began with in the run. Also give the
            swaps of the run: ``swaps={swap.cycle: Successor(...) for swap in stats.swaps}``.
        swaps : dict, optional
            Swaps to make: from the index of a cycle to the loop object whose step begins with it, as with :meth:`swap`.
            Afterwards the loop has its present step again.
        trial, revert_on
            For all `swaps`, as for :meth:`swap`; ``"guard"`` has no effect in virtual time.

        Returns
        -------
        Stats
            With ``is_simulated`` True.

        Raises
        ------
        CallbackError, OverrunError, KeyboardInterrupt
            As :meth:`run`. An exception of the plant or of a model is raised unchanged.
        """
        with import_errors(self.name):
            from rtloop.simulation.simulation import simulate_loop

        return simulate_loop(
            self, duration, cycles, execution, latency, plant, parameters, swaps, (trial, revert_on)
        )

    def reset_stats(self):
        """Restart the statistics with the next cycle. It costs the thread one assignment and one getrusage(2)."""
        RTLoop_control(self).reset_stats()

    def close(self):
        """Stop the loop as :meth:`stop` does, and refuse to start it again. Its last statistics stay available."""
        cdef Control control = self._control
        if control is not None:
            control.close(control.leave_timeout_ns)
            run_warnings.warn_failed(control.unreported_error())

    def __enter__(self):
        cdef Control control = RTLoop_control(self)
        control.enter_block()
        try:
            self.start()
        except BaseException:
            control.leave_block()
            raise
        return self

    def __exit__(self, kind, value, traceback):
        cdef Control control = RTLoop_control(self)
        if control.has_block_forked():  # in a forked child: the loop is the parent's
            control.leave_block()
            return
        try:
            if not isinstance(value, KeyboardInterrupt) or control.state != "running":
                control.stop(control.leave_timeout_ns)
            elif not control.end_after(value):
                return
            error = control.unreported_error()  # before stop(), which would warn
            self.stop()  # a subclass's own
            if kind is not None:
                failure.note_failed(value, error)
            elif control.state == "failed":
                control.join()
        finally:
            control.leave_block()

    def __reduce_ex__(self, protocol):
        refuse_copy(self, "a thread")

    def __repr__(self):
        if self._control is None:
            return f"<{type(self).__name__}, not initialised>"
        return f"<{type(self).__name__} {self.name!r}, {format_rate(self.settings.period_ns)}, {self.state}>"

    @property
    def state(self):
        """``"new"``, ``"running"``, ``"stopped"`` or ``"failed"``; closing a loop keeps the last two."""
        return RTLoop_control(self).state

    @property
    def parameters(self):
        """Mapping of the loop's parameters, which any thread may read and change, whether the loop runs or not."""
        return Parameters(_PresentParameters(self, RTLoop_control(self)))

    @property
    def signals(self):
        """Samples of the loop's signals, during a run and after it: :class:`rtloop.Signals`."""
        live = RTLoop_control(self).thread.make_live()
        return live.samples

    @property
    def stats(self):
        """Statistics of the current run, or of the last one: a consistent snapshot that does not delay the loop."""
        return RTLoop_control(self).stats

    @property
    def grants(self):
        """Requests to the kernel and what it granted, one Grant each, of the current run or the last one."""
        return RTLoop_control(self).grants

    @property
    def settings(self):
        """The keywords, checked and with their units parsed."""
        return RTLoop_control(self).settings

    @property
    def name(self):
        """The loop's name."""
        return RTLoop_control(self).settings.name


class _PresentParameters:
    """The parameters of the step that a loop has at the moment, so that a mapping stays valid beyond a swap.

    It holds the loop object: a change outside of a run is written to the fields at once.
    """

    def __init__(self, loop, Control control):
        self._loop, self._control = loop, control

    def _present(self):
        """Return the object whose step the loop has, and its parameters: they are of the same step."""
        cdef Control control = self._control
        with control._lock:
            return control.step_of(self._loop), control.thread.make_live().parameters

    def __getattr__(self, name):
        return getattr(self._present()[1], name)

    def change(self, changes):
        """Request other values: also of the new step during a swap, and of the former one during a trial."""
        step, first = self._present()
        first.change(changes)
        before, (step, present) = first, self._present()
        while present is not before:
            present.change_like(first, changes)
            before, (step, present) = present, self._present()
        change = (<Control>self._control).change
        waiting = None if change is None else change.former_parameters
        if waiting is not None and waiting is not first:
            waiting.change_like(first, changes)


RTLoop = _RTLoop_2
__getattr__ = publish(_RTLoop_2)


cdef Control RTLoop_control(_RTLoop_2 self):
    if self._control is None:
        raise StateError(f"{type(self).__name__}.__init__ did not call super().__init__(period, ...)")
    (<Control>self._control).settle_change()  # a step that has failed its trial is a loop of its own again
    return <Control>self._control


# Indices of methods in the method table, whose order loop.pxd freezes.
cdef enum:
    _STEP_SLOT = 1
    _WAIT_SLOT = 3
    _TAKE_OVER_SLOT = 11


cdef size_t _end_of(_RTLoop_2 self) except 0:
    """Return the address behind the object."""
    return <size_t><void *>self + <size_t>type(self).__basicsize__


cdef void **_method_table(_RTLoop_2 self) noexcept:
    # A compiled class keeps the pointer to its table in the first field after the object header.
    return (<void ***>(<char *><PyObject *>self + sizeof(PyObject)))[0]


cdef bint _overrides_wait(_RTLoop_2 self):
    """Return True if a subclass overrides wait(). If not, the loop sleeps without an indirect call."""
    cdef _RTLoop_2 base = _RTLoop_2.__new__(_RTLoop_2)
    return _method_table(self)[_WAIT_SLOT] != _method_table(base)[_WAIT_SLOT]


# Stands in front of a step with parameters or signals whose loop was started with one without: its thread runs a body
# that does not look at them, or only samples signals. A call more for each cycle.
@cython.no_gc_clear
cdef class _LiveStep(_RTLoop_2):
    cdef _RTLoop_2 inner
    cdef bint is_sampled  # by the body

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        if self.is_sampled:
            return call_tuned_step(<void *>self.inner, <const rt_cycle_t *>cycle)
        return call_live_step(<void *>self.inner, <const rt_cycle_t *>cycle)

    cdef int overrun(self, const Cycle *cycle, int64_t missed) noexcept nogil:
        return self.inner.overrun(cycle, missed)

    cdef int wait(self, int64_t release) noexcept nogil:
        return self.inner.wait(release)

    cdef void leave(self) noexcept nogil:
        self.inner.leave()

    cdef int safe(self) noexcept nogil:
        return self.inner.safe()

    cdef int on_peer_failure(self) noexcept nogil:
        return self.inner.on_peer_failure()


def hand_over(_RTLoop_2 loop, Control control):
    """Make an object a handle of a loop."""
    loop._rt = control.thread.rt
    loop._control = control


def acting_for(_RTLoop_2 successor, Control control, Control own):
    """Return the object that the callbacks of a running loop get for a successor, and its address."""
    cdef _LiveStep front
    live, kind = own.thread.live, control.thread.kind
    is_sampled = kind == SAMPLED_BODY
    if live is None or kind == LIVE_BODY or control.is_simulated() or (is_sampled and not live.parameters.declared):
        return successor, <size_t><void *>successor
    front = _LiveStep.__new__(_LiveStep)
    front.inner, front.is_sampled = successor, is_sampled
    front._rt = control.thread.rt
    front._control = control
    return front, <size_t><void *>front


def populate_methods(_RTLoop_2 loop):
    """Make the code of the methods of a loop object present, before its first cycle."""
    rt_memory_populate_code(_method_table(loop)[_STEP_SLOT])
    rt_memory_populate_code(_method_table(loop)[_TAKE_OVER_SLOT])
    rt_memory_prefault(<void *><PyObject *>loop, <size_t>type(loop).__basicsize__)
