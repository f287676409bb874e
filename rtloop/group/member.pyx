"""Start of a loop as a member of a group, in separate steps, so that all loops begin on one origin, or none does."""

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t

from rtloop.loop.lifecycle cimport Control
from rtloop.loop.loop cimport _RTLoop_2
from rtloop.headers.loop cimport (
    RT_COMMAND_SIBLING_FAILED,
    RT_COMMAND_STOP,
    RT_PHASE_BEGIN,
    RT_PHASE_DONE,
    RT_PHASE_ENTERED,
    RT_PHASE_GO,
    rt_clock_best_offset,
    rt_futex_move,
)

from rtloop.loop.thread cimport SLICE_NS

from rtloop.errors import StateError


cdef Control _control(_RTLoop_2 loop):
    if loop._control is None:
        raise StateError(f"{type(loop).__name__}.__init__ did not call super().__init__(period, ...)")
    return <Control>loop._control


def is_loop(loop):
    """Return True for an RTLoop."""
    return isinstance(loop, _RTLoop_2)


def control_of(loop):
    """Return the control of a loop, which waits for it and stops it.

    Raises
    ------
    StateError
        If the loop was not initialised.
    """
    _control(loop).settle_change()
    return _control(loop)


def is_own_thread(loop):
    """Return True if the caller is the loop's thread, in a callback in Python."""
    return _control(loop).is_on_own_thread()


def run_of(loop):
    """Return the group's run that the loop's present or last run belongs to, None if it ran alone."""
    return _control(loop).run


def prepare(loop, run, settings, duration_ns):
    """Do everything of a loop's start except releasing its thread: acquire everything, call only setup().

    `run` is the group's run, `settings` are the loop's for this run. Raises as the loop's start; :func:`withdraw` then
    releases what was acquired.
    """
    cdef Control c = control_of(loop)
    c.claim(run, settings)
    c.prepare(loop, None, duration_ns)


def request_stop(loop, run):
    """Ask the loop to end if it belongs to this run, without waiting for it."""
    cdef Control c = _control(loop)
    if c.run is run and c._activity != "idle":
        c.request_stop()


def withdraw(loop, run):
    """Undo the part of the loop in this run. Do nothing, and raise nothing, if it has none."""
    cdef Control c = _control(loop)
    if c.run is run and c._activity != "idle":
        c.withdraw()


_FAILURE_COMMANDS = {"stop-all": RT_COMMAND_STOP, "hook": RT_COMMAND_SIBLING_FAILED, "keep": 0}


def link(loops, on_failure):
    """Link the loops in a ring, through which a failed loop notifies the others; before any thread is released."""
    cdef Control c
    cdef Control following
    for i, loop in enumerate(loops):
        c = _control(loop)
        following = _control(loops[(i + 1) % len(loops)])
        c.thread.rt.group.failure_command = _FAILURE_COMMANDS[on_failure]
        has_siblings = c.thread.rt.group.failure_command != 0
        c.thread.rt.group.next = following.thread.rt if has_siblings else NULL


def release_thread(loop):
    """Let the loop's thread call enter(); it then waits for :func:`begin`."""
    _control(loop).release_thread()


def await_enter(loop):
    """Wait until the loop's enter() has returned or the loop has ended, and check for Ctrl-C every 50 ms."""
    cdef Control c = _control(loop)
    while c.is_under_way() and c.thread.phase() == RT_PHASE_GO:
        c.thread.wait_while(RT_PHASE_GO, SLICE_NS)
        PyErr_CheckSignals()
    if c.thread.phase() == RT_PHASE_DONE:
        c.wait()  # until it is reaped and its state is known


def clock_offset(loop):
    """Measure the offset of the loop's clock from CLOCK_MONOTONIC, in ns; 0 for a clock that cannot be set."""
    cdef Control c = _control(loop)
    return rt_clock_best_offset(c.thread.rt.read_clock, c.thread.rt.set_clock) if c.thread.rt.is_settable else 0


def begin(loop, int64_t origin, int64_t offset):
    """Set the origin of the loop's grid, on its clock, and release it; its first release is a phase later."""
    cdef Control c = _control(loop)
    if c.thread.phase() == RT_PHASE_ENTERED:
        c.thread.rt.offset = offset
        c.thread.rt.grid.origin = origin
        rt_futex_move(&c.thread.rt.phase, RT_PHASE_ENTERED, RT_PHASE_BEGIN)
