"""A product that OpenBLAS may compute with a pool of threads."""

from rtloop cimport RT_CONTINUE, Cycle, RTLoop
from scipy.linalg.cython_blas cimport ddot


cdef class Loop(RTLoop):
    cdef double[3] x
    cdef double y

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef int n = 3, one = 1
        self.y = ddot(&n, &self.x[0], &one, &self.x[0], &one)  # BAD: thread-pool
        return RT_CONTINUE
