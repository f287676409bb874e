"""What is accepted is the one call, not the other."""

from libc.stdlib cimport free, malloc
from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Loop(RTLoop):
    cdef int step(self, const Cycle *cycle) noexcept nogil:
        free(malloc(8))  # rtloop: allow free: only this  # BAD: allocation
        return RT_CONTINUE
