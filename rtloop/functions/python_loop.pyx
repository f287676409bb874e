"""PyLoop: a loop whose step is a Python function, with the GIL."""

cimport cython
from cpython.object cimport PyTypeObject
from libc.errno cimport EINVAL

from rtloop._python cimport (
    PyEval_SaveThread,
    PyGILState_Ensure,
    PyGILState_LOCKED,
    PyGILState_Release,
    PyGILState_UNLOCKED,
    rt_py_is_ending,
    rt_set_type_name,
)
from rtloop.headers.loop cimport rt_loop_t
from rtloop.loop.lifecycle cimport Control
from rtloop.loop.loop cimport RT_CONTINUE, RT_STOP, Cycle, _RTLoop_2

import os
import sys

from rtloop.functions.fields import declare_fields
from rtloop.loop.outcome import failure
from rtloop.loop.cycle import Cycle as _Cycle
from rtloop.loop.cycle import verdict
from rtloop.system.grant import Grant
from rtloop.units import show

# A Python function that calls Python functions through C, a thousand deep, needs more than a step in C.
_STACK_SIZE = "4M"
_GRANT = Grant(
    "gil", "taken in every cycle", "taken in every cycle", ok=True, kind="thread",
    detail="the step is Python code: other Python threads and the garbage collector can delay it by milliseconds, and "
           "it uses the interpreter's memory",
)
_FREE_GRANT = Grant(
    "gil", "none", "none", ok=True, kind="thread",
    detail="the step is Python code, in a free-threaded Python: next to threads that only compute, it needs no "
           "ProcessLoop; the garbage collector stops it for milliseconds, other Python threads delay it by the locks "
           "of the objects that they share, and it uses the interpreter's memory",
)


def is_gil_enabled():
    """Return True if Python code takes the GIL now: importing a module can switch it on."""
    return getattr(sys, "_is_gil_enabled", lambda: True)()


def _gil_grant():
    return _GRANT if is_gil_enabled() else _FREE_GRANT


cdef void _unregister() noexcept nogil:
    """Undo the registration of enter()."""
    if rt_py_is_ending():
        return
    PyGILState_Ensure()
    PyGILState_Release(PyGILState_LOCKED)
    PyGILState_Release(PyGILState_UNLOCKED)  # that of enter()


@cython.auto_pickle(False)
@cython.no_gc_clear  # the thread may use the function until the loop is deallocated
cdef class PyLoop(_RTLoop_2):
    """PyLoop(callable, period, *, leave=None, data=None, parameters=(), signals=(), **settings)\n--\n
    Loop whose step is a Python function, for prototypes, with the schedule and the statistics of a compiled loop.

    It takes the GIL in every cycle, which its grants report. Other Python threads delay it, and Python code causes page
    faults. In a free-threaded Python there is no GIL to take; the garbage collector still stops it. It does not keep
    the interpreter from ending.

    Parameters
    ----------
    callable : callable
        Function that the loop's thread calls with a :class:`~rtloop.Cycle` at every release. It returns None or
        RT_CONTINUE to continue, True or RT_STOP for a normal end, or a negative int, which fails the loop with a
        CallbackError. It may call the loop's ``stop``. An exception fails the loop; ``join`` and ``run`` raise it.
    period : duration
        As for :class:`RTLoop`, like all other keywords. The default of ``stack_size`` is 4M.
    leave : callable, optional
        Function that the loop's thread calls without arguments after the last cycle, to bring an actuator to rest. It
        runs however the loop ends, also at SIGTERM; not if the process is killed or crashes. An exception in it fails
        the loop.
    data : numpy.ndarray, optional
        One struct with the data of the function: ``np.zeros((), [("kp", "f8"), ("angle", "f8")])``.
    parameters : sequence of str, or dict, optional
        Fields of `data` to declare as parameters, with their present values. A dict adds limits and a unit:
        ``{"kp": (0, 50, "V/rad")}``. Change them through the loop's `parameters`, not in `data`.
    signals : sequence of str, or dict, optional
        Fields of `data` to declare as signals. A dict adds units, or limits and units:
        ``{"angle": "rad", "force": (-50, 50, "N")}``.

    Attributes
    ----------
    callable, data
        As given.

    Raises
    ------
    TypeError
        If `callable` or `leave` is not callable.
    ConfigError
        As :class:`RTLoop`.
    """

    def __init__(self, callable, *period, leave=None, data=None, parameters=(), signals=(), **settings):
        if not hasattr(callable, "__call__"):
            hint = ": rtloop.FunctionLoop runs compiled functions" if hasattr(callable, "address") else ""
            if period and hasattr(period[0], "__call__"):
                hint = f"; the callable comes first: PyLoop(function, {show(callable)})"
            raise TypeError(f"callable={show(callable)} is not a function or another callable{hint}")
        if leave is not None and not hasattr(leave, "__call__"):
            raise TypeError(f"leave={show(leave)} is not a function or another callable")
        super().__init__(*period, **{"stack_size": _STACK_SIZE, **settings})
        self.callable, self.data, self._leave = callable, data, leave
        if parameters or signals:
            declare_fields((<Control>self._control).thread.make_live(), data, parameters, signals)
        (<Control>self._control).thread.add_remark(_gil_grant)

    cdef int enter(self) noexcept nogil:
        # Register the thread with Python from here to the end of the run, so that a threading.local lasts and no cycle
        # has to create a thread state.
        if rt_py_is_ending():  # rtloop: allow python: it needs no GIL
            return RT_STOP
        PyGILState_Ensure()  # rtloop: allow gil: a PyLoop runs Python, and its grants say so
        PyEval_SaveThread()
        # Not in leave(), because another step may be in place by then.
        (<rt_loop_t *>self._rt).hooks.at_end = _unregister
        return RT_CONTINUE

    cdef int take_over(self, _RTLoop_2 former, const Cycle *cycle) noexcept nogil:
        # A former PyLoop has registered the thread.
        return RT_CONTINUE if (<rt_loop_t *>self._rt).hooks.at_end is not NULL else self.enter()

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        # The interpreter stops all loops before it ends, so this concerns only a loop that was started later still. A
        # thread that waits for the GIL while the interpreter ends never gets it.
        if rt_py_is_ending():  # rtloop: allow python: it needs no GIL
            return RT_STOP
        with gil:  # rtloop: allow gil: a PyLoop runs Python, and its grants say so
            return self._call(cycle)

    cdef int _call(self, const Cycle *c) noexcept:
        cdef Control control = <Control>self._control
        cdef int code = RT_CONTINUE
        try:
            result = self.callable(_Cycle(c.index, c.release, c.start, c.period, c.missed, c.t, c.dt))
            if result is not None:
                code = verdict(result, getattr(self.callable, "__name__", "the callable"))
        except BaseException as error:
            control.note_raised(error)
            code = -EINVAL
            end = "gone back to its former step" if control.thread.is_on_trial() else "stopped"
            failure.add_note(error, f"Raised in cycle {c.index} of {self.name}, which has {end}.")
        if control.is_in_child():
            # The loop's state is wiped in the child. A simulation notices; a real loop has only this thread there.
            if not control.is_simulated():
                os.write(2, f"rtloop: {self.name}: its step has forked, and the child process ends here\n".encode())
                os._exit(1)
        return code

    cdef void leave(self) noexcept nogil:
        if not rt_py_is_ending():  # rtloop: allow python: it needs no GIL
            with gil:  # rtloop: allow gil: after the last cycle
                self._call_leave()

    cdef void _call_leave(self) noexcept:
        if self._leave is None:
            return
        try:
            self._leave()
        except BaseException as error:
            failure.add_note(error, f"Raised in leave() of {self.name}.")
            (<Control>self._control).note_raised_in_leave(error)


rt_set_type_name(<PyTypeObject *>PyLoop, b"rtloop.PyLoop")
