"""What belongs into setup."""

from rtloop.memory cimport lock
from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Loop(RTLoop):
    cdef void *p

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        lock(self.p, 4096, False)  # BAD: system-call
        return RT_CONTINUE
