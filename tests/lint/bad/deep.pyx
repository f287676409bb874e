"""Three calls down."""

from libc.stdio cimport puts
from rtloop cimport RT_CONTINUE, Cycle, RTLoop

cdef void third(int n) noexcept nogil:
    puts("third")  # BAD: io


cdef void second(int n) noexcept nogil:
    third(n)


cdef inline void first(int n) noexcept nogil:
    second(n)


cdef class Loop(RTLoop):
    cdef int step(self, const Cycle *cycle) noexcept nogil:
        first(1)
        return RT_CONTINUE
