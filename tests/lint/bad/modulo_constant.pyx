"""Python's remainder rounds down, also by a constant."""

from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Loop(RTLoop):
    cdef int n

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.n = (self.n - 7) % 5  # BAD: division
        return RT_CONTINUE
