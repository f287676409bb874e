from rtloop.loop.loop cimport Cycle, _RTLoop_2


cdef class PyLoop(_RTLoop_2):
    cdef readonly object callable
    cdef readonly object data

    cdef int _call(self, const Cycle *c) noexcept
