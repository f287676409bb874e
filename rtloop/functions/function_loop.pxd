from rtloop.loop.loop cimport Cycle, _RTLoop_2
from rtloop.headers.loop cimport rt_cycle_t

ctypedef int (*rt_step_t)(const rt_cycle_t *cycle, void *data) noexcept nogil


cdef class FunctionLoop(_RTLoop_2):
    cdef rt_step_t _function
    cdef void *_context
    cdef void *_library
    cdef Py_buffer _view
    cdef bint _is_held
    cdef readonly object callback
    cdef readonly object data
