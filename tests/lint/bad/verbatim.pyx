"""C in the file itself."""

from rtloop cimport RT_CONTINUE, Cycle, RTLoop

cdef extern from *:
    """
    #include <stdio.h>
    static int twice(int x) {
        printf("%d", x);  // BAD: io
        return 2 * x;
    }
    """
    int twice(int x) noexcept nogil


cdef class Loop(RTLoop):
    cdef int step(self, const Cycle *cycle) noexcept nogil:
        twice(3)
        return RT_CONTINUE
