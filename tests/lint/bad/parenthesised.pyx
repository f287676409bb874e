"""A name in brackets is called all the same: C passes over a macro of that name."""

from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef extern from *:
    """
    #include <stdlib.h>
    #define GRAB(n) (malloc)(n)
    static inline void drop(void *p) {
      (free)(p);  // BAD: allocation
    }
    """
    void *GRAB(size_t n) noexcept nogil
    void drop(void *p) noexcept nogil


cdef class Loop(RTLoop):
    cdef int step(self, const Cycle *cycle) noexcept nogil:
        drop(GRAB(4))  # BAD: allocation
        return RT_CONTINUE
