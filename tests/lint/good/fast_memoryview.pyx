# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""A memoryview without the checks."""

from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Loop(RTLoop):
    cdef double[::1] values
    cdef int n

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.values[self.n] += 1.0
        return RT_CONTINUE
