"""An assertion is an exception."""

from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Loop(RTLoop):
    cdef int n

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        assert self.n >= 0  # BAD: raise
        return RT_CONTINUE
