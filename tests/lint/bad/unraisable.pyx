"""A method that may raise, called from one that may not: stderr, with the GIL."""

from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Loop(RTLoop):
    cdef int n

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.n = self.checked(self.n)
        return RT_CONTINUE

    cdef int checked(self, int x) except? -1 nogil:  # BAD: missing-noexcept
        if x < 0:
            raise ValueError("negative")  # BAD: raise
        return x
