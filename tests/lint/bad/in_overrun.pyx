"""Output in overrun."""

from libc.stdint cimport int64_t
from libc.stdio cimport puts
from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Loop(RTLoop):
    cdef int overrun(self, const Cycle *cycle, int64_t missed) noexcept nogil:
        puts("overrun")  # BAD: io
        return RT_CONTINUE
