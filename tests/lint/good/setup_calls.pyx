"""What rtloop.memory offers, before the first release."""

from rtloop.memory cimport prefault
from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Loop(RTLoop):
    cdef double[512] table

    cdef int enter(self) noexcept nogil:
        return prefault(&self.table, sizeof(self.table))

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        return RT_CONTINUE
