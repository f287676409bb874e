"""Python's division of integers."""

from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Loop(RTLoop):
    cdef int n, d

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.n = self.n // self.d  # BAD: division
        return RT_CONTINUE
