# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""A slice is a memoryview of its own."""

from rtloop cimport RT_CONTINUE, Cycle, RTLoop

cdef double total(double[::1] v) noexcept nogil:
    return v[0]


cdef class Loop(RTLoop):
    cdef double[::1] values

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        total(self.values[1:])  # BAD: python reference
        return RT_CONTINUE
