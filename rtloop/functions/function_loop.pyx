"""FunctionLoop: a loop whose step is a compiled function of another tool."""

cimport cython
from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_WRITABLE, PyBUF_WRITE, PyBuffer_Release, PyObject_GetBuffer
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.object cimport PyTypeObject

from rtloop.loop.lifecycle cimport Control
from rtloop.loop.loop cimport RT_CONTINUE, Cycle, _RTLoop_2
from rtloop._os cimport RTLD_LAZY, RTLD_NOLOAD, Dl_info, dladdr, dlclose, dlopen
from rtloop._python cimport rt_set_type_name
from rtloop.headers.loop cimport rt_cycle_t

from rtloop.errors import ConfigError
from rtloop.functions.fields import declare_fields
from rtloop.functions.function_pointer import ENTER, LEAVE, find_function, uses_data
from rtloop.memory.locking import prefault
from rtloop.units import show


@cython.auto_pickle(False)
@cython.no_gc_clear  # the thread may use the data until the loop is deallocated
cdef class FunctionLoop(_RTLoop_2):
    """FunctionLoop(callback, period, *, enter=None, leave=None, data=None, parameters=(), signals=(),
                    **settings)\n--\n
    Loop whose step is a compiled function from Numba, C, or any other compiler; it needs no subclass.

    The function is ``int step(const rt_cycle_t *cycle, void *data)``. It is called without the GIL, and costs one call
    more than the ``step`` of a Cython subclass. It returns RT_CONTINUE (0), RT_STOP (1), or a code that fails the loop.

    Parameters
    ----------
    callback : function
        A ``numba.cfunc`` of ``rtloop.numba.signature``, a cffi or ctypes pointer to a compiled function, a
        ``scipy.LowLevelCallable``, a PyCapsule, or an address as an int. Its signature is checked if it has one.
    period : duration
        As for :class:`RTLoop`, like all other keywords.
    enter, leave : function, optional
        ``int enter(void *data)`` and ``void leave(void *data)``, in the same forms; for Numba the signatures are
        ``rtloop.numba.enter_signature`` and ``leave_signature``. The loop's thread calls `enter` once before the first
        release; a negative code fails the loop. It calls `leave` once after the last cycle, if `enter` succeeded,
        however the loop ends, also at SIGTERM; not if the process is killed or crashes. Bring an actuator to rest
        there. Both may allocate and block. They get `data`, or the data that they have themselves.
    data : buffer, optional
        Memory whose address the function gets: a NumPy array, or anything else with a writable, C-contiguous buffer.
        The loop holds the buffer, so that it cannot be resized, prefaults it, and locks it while it runs, as its own
        memory. The loop and Python share it; nothing keeps them from writing at the same time.
    parameters : sequence of str, or dict, optional
        Fields of `data` to declare as parameters, with their present values; `data` must then be a NumPy array of one
        struct. A dict adds limits and a unit: ``{"kp": (0, 50, "V/rad")}``. Change them through the loop's
        `parameters`, not in `data`.
    signals : sequence of str, or dict, optional
        Fields of `data` to declare as signals. A dict adds units, or limits and units:
        ``{"angle": "rad", "force": (-50, 50, "N")}``.

    Attributes
    ----------
    callback, data
        As given.

    Raises
    ------
    TypeError
        If the callback, `enter` or `leave` is not a compiled function, or has another signature.
    ConfigError
        If there is no code at its address, its code certainly uses data and there is none, or the data cannot be
        shared; and as :class:`RTLoop`.
    """

    def __cinit__(self, *_, **__):
        self._function = do_nothing

    def __init__(
        self, callback, *period, enter=None, leave=None, data=None, parameters=(), signals=(), **settings
    ):
        function = find_function(callback)
        entering = None if enter is None else find_function(enter, ENTER)
        leaving = None if leave is None else find_function(leave, LEAVE)
        if data is not None and function.data is not None:
            raise ConfigError("the callback has its own user_data, and data= is given as well: give only one of them")
        if data is None and function.data is None:
            for one in (callback, enter, leave):
                if uses_data(one):
                    raise ConfigError(
                        f"{one.__name__} uses its argument data, and data= is not given: it would use address 0 and "
                        "crash. Pass the array that it shares with Python, data=np.zeros(3)"
                    )
        super().__init__(*period, **settings)
        self._function = <rt_step_t><size_t>function.address
        self._context = <void *><size_t>(function.data or 0)
        self._libraries[0] = hold_library(<void *>self._function)
        self._ends = enter, leave
        self.callback = callback
        (<Control>self._control).thread.add_function(function.address)
        if data is not None:
            self._hold(data)
        if entering is not None:
            self._entering = <rt_enter_t><size_t>entering.address
            self._entering_data = <void *><size_t>entering.data if entering.data else self._context
            self._libraries[1] = hold_library(<void *>self._entering)
        if leaving is not None:
            self._leaving = <rt_leave_t><size_t>leaving.address
            self._leaving_data = <void *><size_t>leaving.data if leaving.data else self._context
            self._libraries[2] = hold_library(<void *>self._leaving)
        if parameters or signals:
            declare_fields((<Control>self._control).thread.make_live(), data, parameters, signals)

    def _hold(self, data):
        """Hold the data's memory for as long as the loop exists, and make every page of it present."""
        cdef size_t address
        if getattr(getattr(data, "dtype", None), "hasobject", False):
            raise ConfigError(f"data is an array of {data.dtype}: a compiled function cannot use Python objects")
        try:
            PyObject_GetBuffer(data, &self._view, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS)
        except (TypeError, BufferError, ValueError) as error:
            raise ConfigError(
                f"data={show(data)} of type {type(data).__name__} has no writable, C-contiguous buffer ({error}): give "
                "a NumPy array; np.ascontiguousarray(data) makes a contiguous copy"
            ) from error
        self._is_held = True
        self.data = data
        self._context = self._view.buf
        if self._view.len:
            # As bytes, because NumPy exports some types, such as datetime64, only without a format.
            prefault(PyMemoryView_FromMemory(<char *>self._view.buf, self._view.len, PyBUF_WRITE))
            address = <size_t>self._view.buf
            control = <Control>self._control
            control.thread.add_range("data", "the callback's data", address, self._view.len, False)

    def __dealloc__(self):
        if self._is_held:
            PyBuffer_Release(&self._view)
        for library in self._libraries:
            if library is not NULL:
                dlclose(library)

    cdef int enter(self) noexcept nogil:
        return self._entering(self._entering_data) if self._entering is not NULL else RT_CONTINUE

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        return self._function(<const rt_cycle_t *>cycle, self._context)

    cdef void leave(self) noexcept nogil:
        if self._leaving is not NULL:
            self._leaving(self._leaving_data)


cdef int do_nothing(const rt_cycle_t *cycle, void *data) noexcept nogil:
    """Be the step of a loop whose class has not called FunctionLoop.__init__, so that `step` need not test for it."""
    return RT_CONTINUE


cdef void *hold_library(void *function) noexcept:
    """Keep the library of a function loaded while the loop needs it; NULL if the function is not in a library."""
    cdef Dl_info about
    if dladdr(function, &about) == 0 or about.dli_fname is NULL:
        return NULL
    return dlopen(about.dli_fname, RTLD_LAZY | RTLD_NOLOAD)


rt_set_type_name(<PyTypeObject *>FunctionLoop, b"rtloop.FunctionLoop")
