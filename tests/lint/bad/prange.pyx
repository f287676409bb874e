"""Threads of OpenMP, made in the step."""

from cython.parallel cimport prange
from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Loop(RTLoop):
    cdef int[8] items

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        for i in prange(8):  # BAD: gil
            self.items[i] = 1
        return RT_CONTINUE
