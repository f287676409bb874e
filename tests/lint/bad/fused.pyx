"""One of a function's types."""

from libc.stdio cimport puts
from rtloop cimport RT_CONTINUE, Cycle, RTLoop

ctypedef fused number:
    float
    double


cdef number scale(number x) noexcept nogil:
    puts("scale")  # BAD: io
    return 2 * x


cdef class Loop(RTLoop):
    cdef double x

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.x = scale(self.x)
        return RT_CONTINUE
