# cython: wraparound=False, initializedcheck=False
"""An index that is looked at."""

from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Loop(RTLoop):
    cdef double[::1] values
    cdef int n

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.values[self.n] = 1.0  # BAD: bounds-check
        return RT_CONTINUE
