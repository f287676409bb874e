"""Loops in virtual time: schedule, callbacks and statistics as in a real run, on the calling thread."""

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free
from posix.unistd cimport getpid

from rtloop.loop.lifecycle cimport Control
from rtloop.live.parameter_block cimport ParameterRun
from rtloop.loop.callbacks cimport call_enter, call_leave, call_overrun, call_step
from rtloop.loop.loop cimport _RTLoop_2
from rtloop.headers.live cimport rt_parameters_publish, rt_parameters_view_t
from rtloop.headers.loop cimport (
    RT_COMMAND_STOP, RT_END_ENTER, RT_END_NORMAL, rt_cycle_t, rt_live_before_step, rt_loop_t, rt_sampling_take,
)
from rtloop.headers.simulate cimport (
    CLOCK_MONOTONIC,
    RT_END_MODEL,
    RT_END_TIME,
    RT_GO_ON,
    RT_SIMULATION_OVER,
    RT_SIMULATION_PAUSE,
    rt_clock_now,
    rt_full_cycle_t,
    rt_model_t,
    rt_simulate_advance,
    rt_simulate_begin,
    rt_simulate_enter,
    rt_simulate_is_swap_due,
    rt_simulate_leave,
    rt_simulate_swap,
    rt_simulation_t,
)

from rtloop.errors import StateError
from rtloop.simulation import timing_models
from rtloop.loop.cycle import Cycle, verdict
from rtloop.loop.loop import acting_for, hand_over, populate_methods
from rtloop.loop.swap import begin, check_no_change, conclude, parse_trial, remember, restore
from rtloop.settings import parse_count, parse_run_duration
from rtloop.stats.stats import Stats
from rtloop.process import ending_signals
from rtloop.system.grant import Grant
from rtloop.units import format_duration, parse_duration, show

# Interval at which a simulation checks for Ctrl-C, and for a stop() from another thread.
cdef int64_t _SLICE_NS = 20_000_000

_GRANT = Grant(
    "simulation", "virtual time", "virtual time", ok=True,
    detail="on the calling thread: the kernel was asked for nothing, and its latency was not measured",
)


cdef class _Callable:
    """Python function that a simulation calls, with the exception that it raised."""

    cdef object function
    cdef str name
    cdef object error

    def __init__(self, function, name):
        self.function = function
        self.name = name

    cdef object call(self, argument):
        pid = getpid()
        result = self.function(argument)
        if getpid() != pid:  # a fork wipes the loop's state in the child
            raise StateError(f"{self.name} has forked: a simulation cannot continue in the child process")
        return result


cdef int64_t _ask(void *context, uint64_t index) noexcept nogil:
    with gil:
        return _duration_of(<_Callable>context, index)


cdef int64_t _duration_of(_Callable self, uint64_t index) noexcept:
    try:
        return parse_duration(self.call(index), f"{self.name}({index})", maximum=timing_models.MAX_NS)
    except BaseException as error:
        self.error = error
        return -1


cdef int _before(void *plant, const rt_cycle_t *cycle) noexcept nogil:
    with gil:
        return _plant_code(<_Callable>plant, <const rt_full_cycle_t *>cycle)


cdef int _plant_code(_Callable self, const rt_full_cycle_t *c) noexcept:
    try:
        code = verdict(self.call(Cycle(c.index, c.release, c.start, c.period, c.missed, c.t, c.dt)), self.name)
        if code < 0:
            raise ValueError(
                f"{self.name} returned {code} in cycle {c.index}: it must return None, RT_CONTINUE or RT_STOP; "
                "raise an exception to fail the run"
            )
        return code
    except BaseException as error:
        self.error = error
        return -1


# Recorded changes of parameters that a simulation repeats, each before the step of its cycle.
ctypedef struct _replay_t:
    const rt_parameters_view_t *view
    uint64_t at
    uint64_t count
    uint64_t *cycles
    const char *places
    size_t place_bytes
    void *plant


cdef int _before_replay(void *context, const rt_cycle_t *cycle) noexcept nogil:
    cdef _replay_t *replay = <_replay_t *>context
    while replay.at < replay.count and replay.cycles[replay.at] <= (<const rt_full_cycle_t *>cycle).index:
        rt_parameters_publish(replay.view, replay.places + replay.at * replay.place_bytes)
        replay.at += 1
    return _before(replay.plant, cycle) if replay.plant is not NULL else 0


cdef int _call_step(void *self, const rt_cycle_t *cycle) noexcept nogil:
    cdef rt_loop_t *loop = <rt_loop_t *>(<_RTLoop_2>self)._rt
    cdef int rc
    if loop.live.state is NULL:
        return call_step(self, cycle)
    rt_live_before_step(&loop.live, cycle)
    rc = call_step(self, cycle)
    if loop.telemetry is not NULL:  # in a child that the step has forked the state is wiped
        rt_sampling_take(&loop.sampling)
    return rc


cdef class _Run:
    """Run of one or more loops on one virtual clock, from their setup to their statistics."""

    cdef rt_simulation_t *parts
    cdef _replay_t *replays
    cdef int count
    cdef list loops
    cdef list held
    cdef list callables
    cdef list opened
    cdef list entered
    cdef list remembered
    cdef dict swaps
    cdef tuple trial
    cdef str keep
    cdef dict recorded

    def __cinit__(self, loops):
        self.loops = loops
        self.held, self.callables, self.opened, self.entered, self.remembered = [], [], [], [], []
        self.swaps, self.recorded = {}, {}
        self.count = len(loops)
        self.parts = <rt_simulation_t *>calloc(self.count, sizeof(rt_simulation_t))
        self.replays = <_replay_t *>calloc(self.count, sizeof(_replay_t))
        if self.parts is NULL or self.replays is NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.parts)
        free(self.replays)

    def add_callable(self, function, name):
        made = _Callable(function, name)
        self.callables.append(made)
        return made

    cdef str set_model(self, rt_model_t *model, value, name, bint *is_recorded):
        """Fill in one model of durations. Returns its description."""
        cdef _Callable made
        cdef size_t address
        if is_recorded is not NULL:
            is_recorded[0] = isinstance(value, Stats)
        if callable(value):
            made = self.add_callable(value, name)
            model.context, model.ask = <void *>made, _ask
            return f"from {getattr(value, '__qualname__', type(value).__qualname__)}()"
        values = timing_models.sequence(value, name, is_latency=is_recorded is not NULL)
        if values is None:
            model.constant = parse_duration(value, name, maximum=timing_models.MAX_NS)
            return format_duration(model.constant)
        self.held.append(values)
        address = values.ctypes.data
        model.values, model.count = <const int64_t *>address, len(values)
        if isinstance(value, Stats):
            return f"as recorded from {value.name!r} in {len(values):,} cycles, repeated"
        return f"a sequence of {len(values):,}, repeated"

    def set_plant(self, index, function):
        cdef _Callable made = self.add_callable(function, "plant")
        self.parts[index].plant, self.parts[index].before = <void *>made, _before

    def describe(self, index, latency, execution):
        """Set the models of one loop. Returns their descriptions for its statistics."""
        cdef bint is_recorded = False
        cdef rt_simulation_t *part = &self.parts[index]
        said = {"latency": self.set_model(&part.latency, latency, "latency", &is_recorded)}
        part.is_recorded = is_recorded
        said["execution"] = self.set_model(&part.execution, execution, "execution", NULL)
        return said

    def set_replay(self, index, recorded):
        """Repeat recorded changes of an opened loop's parameters; `recorded` is the result of ``plan_replay``."""
        cdef _replay_t *replay = &self.replays[index]
        cdef ParameterRun run = self.loops[index].parameters._backend.run
        cycles, places = recorded
        replay.at = replay.count = 0
        cdef bytes numbers = b"".join(int(cycle).to_bytes(8, "little") for cycle in cycles)
        cdef bytes joined = b"".join(places)
        if not cycles:
            return
        self.held += [numbers, joined, run]
        replay.view, replay.count, replay.cycles = &run.view, len(cycles), <uint64_t *><char *>numbers
        replay.places, replay.place_bytes = joined, len(joined) // len(cycles)
        if self.parts[index].before != _before_replay:
            replay.plant = self.parts[index].plant
            self.parts[index].plant, self.parts[index].before = <void *>replay, _before_replay

    def split_changes(self, index, changes):
        """Divide recorded changes among the steps of one loop by the cycles of its swaps. Returns the first part."""
        changes = sorted(changes, key=lambda change: change[0])
        ends = [cycle for cycle, _ in self.swaps[index][1:]] + [None]
        for (begin, _), end in zip(self.swaps[index], ends, strict=False):
            self.recorded[index, begin] = [
                change for change in changes if change[0] >= begin and (end is None or change[0] < end)
            ]
        return [change for change in changes if not self.swaps[index] or change[0] < self.swaps[index][0][0]]

    def plan_replay_of_swap(self, index, cycle, successor):
        """Set the recorded values of a step that is about to replace another. Returns its further changes."""
        changes = self.recorded.pop((index, cycle), None)
        return None if changes is None else successor.parameters._backend.plan_replay_of_swap(changes, cycle)

    def open(self, index, said, cycles, duration_ns, changes=None):
        """Prepare one loop as start() does, but without a thread and without requests to the kernel."""
        cdef _RTLoop_2 loop = self.loops[index]
        cdef Control c = _control(loop)
        c.claim(None, None, said)
        self.opened.append(c)
        self.remembered.append(remember(c))
        loop = c.step_of(loop)
        loop.setup()
        recorded = None
        if changes is not None:
            recorded = loop.parameters._backend.plan_replay(self.split_changes(index, changes))
        c.open_simulated(cycles, duration_ns, _GRANT)
        if recorded is not None:
            self.set_replay(index, recorded)
        self.parts[index].loop, self.parts[index].self = c.thread.rt, <void *>loop

    def plan_swaps(self, index, swaps, trial, keep):
        """Plan swaps of one loop: a dict from the index of a cycle to the loop object whose step begins with it.

        These apply to each: `trial`, its duration and the incidents that end it, and `keep`, as for RTLoop.swap.
        """
        self.trial, self.keep = trial, keep
        parse_trial(_control(self.loops[index]), *trial)
        for cycle, successor in swaps.items():
            if parse_count(cycle, "swaps") < 1 or not isinstance(successor, _RTLoop_2):
                raise TypeError(
                    f"swaps: {show(cycle)}: {show(successor)} must be the index of a cycle, at least 1, and an RTLoop"
                )
        self.swaps[index] = sorted(swaps.items(), key=lambda item: item[0])
        self.parts[index].swap_at = min(swaps, default=0)

    def make_swaps(self):
        """Settle the trials that are over, and make the swaps that are due."""
        cdef Control c
        cdef int index
        for index, c in enumerate(self.opened):
            self.parts[index].is_decided = 0
            c.follow_trial()
        for index, left in self.swaps.items():
            while rt_simulate_is_swap_due(&self.parts[index]):
                c = self.opened[index]
                cycle, successor = left.pop(0)
                self.parts[index].swap_at = left[0][0] if left else 0
                check_no_change(c)
                recorded = self.plan_replay_of_swap(index, cycle, successor)
                change = begin(
                    c, self.loops[index], successor, _control(successor), hand_over, acting_for, populate_methods,
                    self.keep, trial=parse_trial(c, *self.trial),
                )
                try:
                    change.ask()
                except BaseException:
                    change.drop()
                    raise
                with nogil:
                    rt_simulate_swap(&self.parts[index])
                conclude(change)
                if recorded is not None and successor.parameters._backend.run is not None:
                    self.set_replay(index, recorded)
                elif recorded is not None:
                    self.replays[index].at = self.replays[index].count = 0

    def go(self):
        """Release all loops; a stop() that has been called since open() takes effect."""
        cdef Control c
        for c in self.opened:
            c.begin_simulated()

    def advance(self):
        """Run to the end. Returns the control of the loop that ended the run, None if the duration was over."""
        cdef Control c
        cdef int ended = RT_SIMULATION_PAUSE
        cdef int rc, index
        for index, c in enumerate(self.opened):
            with nogil:
                rc = rt_simulate_enter(&self.parts[index], call_enter)
            if rc in (0, 1):
                self.entered.append(index)
            if rc:
                c.thread.rt.end.code = rc
                c.thread.rt.end.reason = RT_END_NORMAL if rc == 1 else RT_END_ENTER
                return c
        for index, c in enumerate(self.opened):
            rc = rt_simulate_begin(&self.parts[index])
            if rc != RT_GO_ON:
                c.thread.rt.end.reason = rc
                return c
        while ended == RT_SIMULATION_PAUSE:
            if self.callables:
                # Python code switches threads by itself, so the GIL need not be released in every cycle.
                ended = self.run_slice()
            else:
                with nogil:
                    ended = self.run_slice()
            if ended == RT_SIMULATION_PAUSE:
                PyErr_CheckSignals()
                self.make_swaps()
                for c in self.opened:
                    if c.thread.is_pending(RT_COMMAND_STOP):
                        return c
        return None if ended == RT_SIMULATION_OVER else self.opened[ended]

    cdef int run_slice(self) noexcept nogil:
        return rt_simulate_advance(
            self.parts, self.count, rt_clock_now(CLOCK_MONOTONIC) + _SLICE_NS, _call_step, call_overrun,
        )

    def error_of(self, Control c):
        """Return the exception for the end of the run, None for a normal end."""
        cdef _Callable function
        if c is None or c.thread.rt.end.reason == RT_END_NORMAL:
            return None
        if c.thread.rt.end.reason == RT_END_MODEL:
            for function in self.callables:
                if function.error is not None:
                    return function.error
            return StateError(
                f"{c.settings.name}: a callback has forked: a simulation cannot continue in the child process"
            )
        if c.thread.rt.end.reason == RT_END_TIME:
            return StateError(f"{c.settings.name}: the virtual clock has reached its limit of 146 years")
        return c.end_error()

    def close(self, Control failed, error):
        """Call leave(), take the statistics, and release everything."""
        cdef Control c
        cdef int index
        try:
            for index in reversed(self.entered):
                c = self.opened[index]
                if not c.is_in_child():
                    with nogil:
                        rt_simulate_leave(&self.parts[index], call_leave)
        finally:
            trouble = None
            for c in self.opened:
                c.end_trial()
                try:
                    c.end_simulated(error if c is failed and not isinstance(error, KeyboardInterrupt) else None)
                except BaseException as raised:  # the other loops must end as well
                    trouble = raised
            for c, step in zip(self.opened, self.remembered, strict=True):
                restore(c, step, hand_over)
            if trouble is not None:
                raise trouble


cdef Control _control(_RTLoop_2 loop):
    if loop._control is None:
        raise StateError(f"{type(loop).__name__}.__init__ did not call super().__init__(period, ...)")
    (<Control>loop._control).settle_change()
    return <Control>loop._control


def _simulate(loops, index, duration, cycles, execution, latency, plant=None, parameters=None, swaps=None,
              trial=(None, ()), keep="all"):
    """Simulate; `cycles`, the plant and a duration without a unit refer to the loop at `index`."""
    cdef Control failed = None
    if cycles is not None:
        cycles = parse_count(cycles, "cycles")
    if duration is not None:
        duration = parse_run_duration(duration, loops[index].settings.period_ns)
    run = _Run(loops)
    said = [
        run.describe(i, late, lasting)
        for i, (late, lasting) in enumerate(
            zip(
                timing_models.each(latency, loops, "latency"),
                timing_models.each(execution, loops, "execution"),
                strict=True,
            )
        )
    ]
    if plant is not None:
        run.set_plant(index, plant)
    for i, loop in enumerate(loops):
        run.plan_swaps(i, {} if swaps is None else swaps.get(loop, {}), trial, keep)
    error = None
    armed = ending_signals.arm_wait()
    try:
        for i in range(len(loops)):
            changes = None if parameters is None else parameters.get(loops[i])
            run.open(i, said[i], cycles if i == index else None, duration, changes)
        run.go()
        failed = run.advance()
        error = run.error_of(failed)
    finally:
        try:
            run.close(failed, error)
        finally:
            ending_signals.disarm(armed)
    if error is not None:
        raise error
    return tuple(loop.stats for loop in loops)


def simulate_loop(loop, duration, cycles, execution=0, latency=0, plant=None, parameters=None, swaps=None,
                  trial=(None, ()), keep="all"):
    """Implement RTLoop.simulate; `keep` is that of RTLoop.swap, for all swaps."""
    replayed = None if parameters is None else {loop: parameters}
    planned = None if swaps is None else {loop: swaps}
    if isinstance(plant, _RTLoop_2):
        return _simulate([plant, loop], 1, duration, cycles, execution, latency, None, replayed, planned, trial,
                         keep)[1]
    if plant is not None and not callable(plant):
        raise TypeError(f"plant={show(plant)} must be an RTLoop, or a callable that takes a Cycle")
    return _simulate([loop], 0, duration, cycles, execution, latency, plant, replayed, planned, trial, keep)[0]


def simulate(loops, duration=None, *, execution=0, latency=0, parameters=None):
    """Simulate several loops in lock-step on one virtual clock, as if each had a CPU of its own.

    The loop with the earliest start runs next. If two start at the same time, they run in the given order; give a plant
    before its controller. What a step writes is visible to the other loops from the start of that step. Virtual time
    begins at 1 s, and release k of each loop is at 1 s + phase + k * period (with ``align``, at the next multiple of
    the period). Nothing sleeps, the kernel is asked for nothing, and equal loops give bit-identical results.

    Parameters
    ----------
    loops : iterable of RTLoop
        They must not be running.
    duration : duration, optional
        Run all releases within this time. Without it, the simulation ends when one of the loops ends.
    execution, latency : model
        As for :meth:`RTLoop.simulate`, for all loops; or a dict from loop to model. A loop that is not in it gets 0.
    parameters : dict, optional
        A dict from loop to the recorded changes of its parameters, as for :meth:`RTLoop.simulate`.

    Returns
    -------
    tuple of Stats
        One for each loop.

    Raises
    ------
    CallbackError, OverrunError, KeyboardInterrupt
        As in a real run. The failure of one loop ends the simulation of all.
    StateError
        If a loop runs already, or is closed.
    """
    loops = list(loops)
    if not loops or not all(isinstance(loop, _RTLoop_2) for loop in loops):
        raise TypeError(f"loops={show(loops)} must hold at least one RTLoop, and nothing else")
    if parameters is not None and not (isinstance(parameters, dict) and parameters.keys() <= set(loops)):
        raise TypeError(f"parameters={show(parameters)} must be a dict from one of the loops to its recorded changes")
    return _simulate(loops, 0, duration, None, execution, latency, None, parameters)
