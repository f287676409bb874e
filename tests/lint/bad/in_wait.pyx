"""Output in wait."""

from libc.stdint cimport int64_t
from libc.stdio cimport puts
from rtloop cimport RT_CONTINUE, RTLoop


cdef class Loop(RTLoop):
    cdef int wait(self, int64_t release) noexcept nogil:
        puts("wait")  # BAD: io
        return RT_CONTINUE
