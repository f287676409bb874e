"""Functions and methods that cannot raise."""

from rtloop cimport RT_CONTINUE, Cycle, RTLoop

cdef inline double twice(double x) noexcept nogil:
    return 2 * x


cdef class Loop(RTLoop):
    cdef double x

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.x = twice(self.half(self.x))
        return RT_CONTINUE

    cdef double half(self, double x) noexcept nogil:
        return 0.5 * x
