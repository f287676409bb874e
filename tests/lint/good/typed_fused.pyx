"""A fused function."""

from rtloop cimport RT_CONTINUE, Cycle, RTLoop

ctypedef fused number:
    float
    double


cdef inline number scale(number x) noexcept nogil:
    return 2 * x


cdef class Loop(RTLoop):
    cdef double x

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.x = scale(self.x)
        return RT_CONTINUE
