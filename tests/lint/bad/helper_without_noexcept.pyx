"""The caller looks for an exception after every call."""

from rtloop cimport RT_CONTINUE, Cycle, RTLoop

cdef int twice(int x) nogil:  # BAD: missing-noexcept
    return 2 * x


cdef class Loop(RTLoop):
    cdef int n

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.n = twice(self.n)
        return RT_CONTINUE
