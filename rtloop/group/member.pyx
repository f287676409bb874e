"""Start of a loop as a member of a group, in separate steps, so that all loops begin on one origin, or none does."""

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint32_t

from rtloop.loop.loop cimport _RTLoop_2
from rtloop.headers.loop cimport (
    RT_COMMAND_SIBLING_FAILED,
    RT_COMMAND_STOP,
    RT_PHASE_DONE,
    RT_PHASE_ENTERED,
    RT_PHASE_GO,
    RT_PHASE_READY,
    rt_clock_best_offset,
    rt_clock_reader,
    rt_loop_begin,
)

from rtloop.loop.thread cimport SLICE_NS, LoopThread

import sys

from rtloop.errors import StateError


cdef _control(loop):
    if not isinstance(loop, _RTLoop_2):
        return loop._member
    control = (<_RTLoop_2>loop)._control
    if control is None:
        raise StateError(f"{type(loop).__name__}.__init__ did not call super().__init__(period, ...)")
    return control


cdef LoopThread _thread(loop):
    return _control(loop).thread


def is_remote(loop):
    """Return True for a ProcessLoop, whose step is in another process."""
    module = sys.modules.get("rtloop.child.process_loop")  # without it nobody has made one
    return module is not None and isinstance(loop, module.ProcessLoop)


def is_loop(loop):
    """Return True for an RTLoop or a ProcessLoop."""
    return isinstance(loop, _RTLoop_2) or is_remote(loop)


def control_of(loop):
    """Return the Control of a loop, or the ChildMember of one in another process, which waits for it and stops it.

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
    c = control_of(loop)
    c.claim(run, settings)
    c.prepare(loop, None, duration_ns)


def request_stop(loop, run):
    """Ask the loop to end if it belongs to this run, without waiting for it."""
    c = _control(loop)
    if c.run is run and not c.is_idle:
        c.request_stop()


def withdraw(loop, run):
    """Undo the part of the loop in this run. Do nothing, and raise nothing, if it has none."""
    c = _control(loop)
    if c.run is run and not c.is_idle:
        c.withdraw()


_FAILURE_COMMANDS = {"stop-all": RT_COMMAND_STOP, "hook": RT_COMMAND_SIBLING_FAILED, "keep": 0}


def link(loops, on_failure):
    """Link the loops in a ring, through which a failed loop notifies the others; before any thread is released."""
    cdef LoopThread thread
    cdef LoopThread following
    for i, loop in enumerate(loops):
        thread, following = _thread(loop), _thread(loops[(i + 1) % len(loops)])
        thread.rt.group.failure_command = _FAILURE_COMMANDS[on_failure]
        thread.rt.group.next = following.rt if thread.rt.group.failure_command != 0 else NULL


def release_thread(loop):
    """Let the loop's thread call enter(); it then waits for :func:`begin`."""
    _control(loop).release_thread()


def await_enter(loop):
    """Wait until the loop's enter() has returned or the loop has ended, and check for Ctrl-C every 50 ms."""
    cdef LoopThread thread = _thread(loop)
    cdef uint32_t phase = thread.phase()
    c = _control(loop)
    # A thread in another process is ready until that process has been told.
    while phase in (RT_PHASE_READY, RT_PHASE_GO) and c.is_under_way():
        phase = thread.wait_while(phase, SLICE_NS)
        PyErr_CheckSignals()
    if phase == RT_PHASE_DONE:
        c.wait()  # until it is reaped and its state is known


def clock_offset(loop):
    """Measure the offset of the loop's clock from CLOCK_MONOTONIC, in ns; 0 for a clock that cannot be set."""
    cdef LoopThread thread = _thread(loop)
    return rt_clock_best_offset(rt_clock_reader(), thread.rt.set_clock) if thread.rt.is_settable else 0


def begin(loop, int64_t origin, int64_t offset):
    """Set the origin of the loop's grid, on its clock, and release it; its first release is a phase later."""
    cdef LoopThread thread = _thread(loop)
    if thread.phase() == RT_PHASE_ENTERED:
        thread.rt.offset = offset
        thread.rt.grid.origin = origin
        rt_loop_begin(thread.rt)
