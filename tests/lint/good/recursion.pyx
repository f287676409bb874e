"""Functions that call each other."""

from rtloop cimport RT_CONTINUE, Cycle, RTLoop

cdef int even(int n) noexcept nogil:
    return 1 if n == 0 else odd(n - 1)


cdef int odd(int n) noexcept nogil:
    return 0 if n == 0 else even(n - 1)


cdef class Loop(RTLoop):
    cdef int n

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.n = even(10)
        return RT_CONTINUE
