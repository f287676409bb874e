"""PyLoop: a loop whose step is a Python function, on the real schedule, and with the GIL."""

cimport cython
from cpython.object cimport PyTypeObject
from libc.errno cimport EINVAL

from rtloop._os cimport madvise
from rtloop.loop.lifecycle cimport Control
from rtloop.loop.loop cimport RT_CONTINUE, RT_STOP, Cycle, _RTLoop_2
from rtloop.loop.loop_h cimport rt_loop_t, rt_stack_t

import os

from rtloop.loop import failure
from rtloop.loop.cycle import Cycle as _Cycle
from rtloop.loop.cycle import verdict
from rtloop.system.grant import Grant
from rtloop.units import show

# A Python function that calls Python functions through C, a thousand deep, needs more than a step in C.
_STACK_SIZE = "4M"
_GRANT = Grant(
    "gil", "taken in every cycle", "taken in every cycle", ok=True, kind="thread",
    detail="the step is Python code: every other Python thread, and the collector of garbage, can delay it by "
           "milliseconds, and its memory is the interpreter's",
)


cdef extern from *:
    """
    static inline void rt_name_py_loop(PyTypeObject *type) { type->tp_name = "rtloop.PyLoop"; }
    #include <sys/mman.h>
    #ifndef MADV_KEEPONFORK
    #define MADV_KEEPONFORK 19
    #endif
    #if PY_VERSION_HEX >= 0x030D0000
    #define rt_py_is_ending() Py_IsFinalizing()
    #else
    #define rt_py_is_ending() _Py_IsFinalizing()
    #endif
    """
    void rt_name_py_loop(PyTypeObject *type)
    bint rt_py_is_ending() nogil
    enum:
        MADV_KEEPONFORK


cdef extern from "Python.h" nogil:
    ctypedef struct PyThreadState:
        pass
    ctypedef int PyGILState_STATE
    PyGILState_STATE PyGILState_Ensure()
    void PyGILState_Release(PyGILState_STATE state)
    PyThreadState *PyEval_SaveThread()
    enum:
        PyGILState_LOCKED
        PyGILState_UNLOCKED


@cython.auto_pickle(False)
@cython.no_gc_clear  # the thread may use the function until the loop is deallocated
cdef class PyLoop(_RTLoop_2):
    """PyLoop(callable, period, **settings)\n--\n
    A loop whose step is a Python function: for prototypes, on the same schedule and with the same statistics.

    It takes the GIL in every cycle, and its grants say so. What else runs in Python delays it, and its page faults are
    those of Python code. It does not keep the interpreter from ending.

    Parameters
    ----------
    callable : callable
        Called with a :class:`~rtloop.Cycle` for every release, on the loop's thread. It returns None or RT_CONTINUE to
        go on, True or RT_STOP for a normal end, or a negative int, which fails the loop as a CallbackError. It may call
        the loop's ``stop``. An exception fails the loop; ``join`` and ``run`` raise it.
    period : duration
        And all other keywords as for :class:`RTLoop`, but for ``stack_size``, which is 4M.

    Attributes
    ----------
    callable
        As given.

    Raises
    ------
    TypeError
        Where `callable` is not callable.
    ConfigError
        As :class:`RTLoop`.
    """

    def __init__(self, callable, *period, **settings):
        if not hasattr(callable, "__call__"):
            hint = ": rtloop.FunctionLoop runs compiled functions" if hasattr(callable, "address") else ""
            raise TypeError(f"callable={show(callable)} is not a Python function, nor anything else to call{hint}")
        super().__init__(*period, **{"stack_size": _STACK_SIZE, **settings})
        self.callable = callable
        (<Control>self._control).thread.add_remark(_GRANT)

    cdef int enter(self) noexcept nogil:
        # Python knows the thread from here to leave(): a threading.local lasts, and a cycle does not have to make anew
        # what belongs to a thread.
        if rt_py_is_ending():  # rtloop: allow python: it needs no GIL
            return RT_STOP
        cdef rt_stack_t *stack = &(<rt_loop_t *>self._rt).thread.stack
        if stack.mapping is not NULL:
            # Python code may fork, and the child goes on upon this stack: it must not find it wiped.
            # rtloop: allow madvise: before the first release
            madvise(stack.mapping, stack.mapping_bytes, MADV_KEEPONFORK)
        PyGILState_Ensure()  # rtloop: allow gil: a PyLoop runs Python, and its grants say so
        PyEval_SaveThread()
        return RT_CONTINUE

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        # At its end the interpreter stops all loops first, hence none is here then but one that was started even later.
        # A thread that waits for the GIL when the interpreter ends never gets it, and is no more.
        if rt_py_is_ending():  # rtloop: allow python: it needs no GIL
            return RT_STOP
        with gil:  # rtloop: allow gil: a PyLoop runs Python, and its grants say so
            return self._call(cycle)

    cdef void leave(self) noexcept nogil:
        if rt_py_is_ending():  # rtloop: allow python: it needs no GIL
            return
        PyGILState_Ensure()  # rtloop: allow gil: a PyLoop runs Python, and its grants say so
        PyGILState_Release(PyGILState_LOCKED)
        PyGILState_Release(PyGILState_UNLOCKED)  # that of enter()

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
            failure.add_note(error, f"Raised in cycle {c.index} of {self.name}, which has stopped.")
        if control.is_in_child():
            # The loop's state is wiped in the child. A simulation notices; a real loop has only this thread there.
            if not control.is_simulated():
                os.write(2, f"rtloop: {self.name}: its step has forked, and the child ends with it\n".encode())
                os._exit(1)
        return code


rt_name_py_loop(<PyTypeObject *>PyLoop)
