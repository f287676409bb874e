"""A method of its own, called through the table of methods."""

from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Loop(RTLoop):
    cdef int n

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.n = self.twice(self.n)
        return RT_CONTINUE

    cdef int twice(self, int x) nogil:  # BAD: missing-noexcept
        return 2 * x
