from rtloop.functions.python_loop cimport PyLoop
from rtloop.loop.loop cimport Cycle


cdef class ChildLoop(PyLoop):
    cdef object _collector, _leave

    cdef int _call(self, const Cycle *c) noexcept
    cdef void _call_leave(self) noexcept
    cdef void _collect(self) noexcept
