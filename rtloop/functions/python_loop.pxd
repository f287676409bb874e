from rtloop.loop.loop cimport Cycle, _RTLoop_2


cdef class PyLoop(_RTLoop_2):
    cdef readonly object callable
    cdef readonly object data
    cdef object _leave

    cdef int _call(self, const Cycle *c) noexcept
    cdef void _call_leave(self) noexcept
