"""The checks switched off where they matter."""

cimport cython
from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Loop(RTLoop):
    cdef double[::1] values
    cdef int n

    @cython.boundscheck(False)
    @cython.wraparound(False)
    @cython.cdivision(True)
    @cython.initializedcheck(False)
    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.values[self.n // 2] /= self.n
        return RT_CONTINUE
