# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""A memoryview in a local variable counts references."""

from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Loop(RTLoop):
    cdef double[::1] values

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef double[::1] v = self.values  # BAD: reference
        v[0] = 1.0
        return RT_CONTINUE
