"""free and its kin take locks, and map pages."""

from libc.stdlib cimport free
from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Loop(RTLoop):
    cdef void *p

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        free(self.p)  # BAD: allocation
        return RT_CONTINUE
