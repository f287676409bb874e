from rtloop.functions.python_loop cimport PyLoop
from rtloop.loop.loop cimport Cycle


cdef class ChildLoop(PyLoop):
    cdef object _collector

    cdef int _call(self, const Cycle *c) noexcept
    cdef void _collect(self) noexcept
