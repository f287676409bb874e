"""Python's remainder."""

from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Loop(RTLoop):
    cdef int n
    cdef unsigned int d

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.n = <int>(cycle.index % self.d)  # BAD: division
        return RT_CONTINUE
