"""A division by zero is an exception in Python."""

from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Loop(RTLoop):
    cdef double x

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.x = 1.0 / self.x  # BAD: division
        return RT_CONTINUE
