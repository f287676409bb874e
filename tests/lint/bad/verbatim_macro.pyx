"""A macro that hides what it does."""

from rtloop cimport RT_CONTINUE, Cycle, RTLoop

cdef extern from *:
    """
    #include <stdlib.h>
    #define TAKE(n) malloc(n)
    #define FILL(p) do { (p) = TAKE(64); } while (0)
    """
    void FILL(void *p) noexcept nogil


cdef class Loop(RTLoop):
    cdef void *p

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        FILL(self.p)  # BAD: allocation
        return RT_CONTINUE
