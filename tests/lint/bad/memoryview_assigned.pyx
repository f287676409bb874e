# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Copying between memoryviews looks at their shapes, and raises."""

from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Loop(RTLoop):
    cdef double[::1] values, others

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.values[:] = self.others  # BAD: allocation gil
        return RT_CONTINUE
