from rtloop.loop.loop cimport Cycle, _RTLoop_2
from rtloop.headers.loop cimport rt_cycle_t

ctypedef int (*rt_step_t)(const rt_cycle_t *cycle, void *data) noexcept nogil
ctypedef int (*rt_enter_t)(void *data) noexcept nogil
ctypedef void (*rt_leave_t)(void *data) noexcept nogil


cdef class FunctionLoop(_RTLoop_2):
    cdef rt_step_t _function
    cdef void *_context
    cdef rt_enter_t _entering
    cdef rt_leave_t _leaving
    cdef void *_entering_data
    cdef void *_leaving_data
    cdef void *_libraries[3]  # of the three functions; NULL if there is none
    cdef tuple _ends  # the objects, because a function may not outlive its object
    cdef Py_buffer _view
    cdef bint _is_held
    cdef readonly object callback
    cdef readonly object data
