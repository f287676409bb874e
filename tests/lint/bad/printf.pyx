"""A line of output."""

from libc.stdio cimport printf
from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Loop(RTLoop):
    cdef int step(self, const Cycle *cycle) noexcept nogil:
        printf("%d\n", 3)  # BAD: io
        return RT_CONTINUE
