"""A divisor that is no zero, and unsigned."""

from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Loop(RTLoop):
    cdef double x
    cdef int n

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.x = self.x / 3.0
        self.n = <int>(cycle.index % 5)
        return RT_CONTINUE
