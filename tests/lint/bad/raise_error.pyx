"""An exception where nobody can catch it."""

from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Loop(RTLoop):
    cdef int n

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        if self.n < 0:
            raise ValueError("negative")  # BAD: raise
        return RT_CONTINUE
