"""A finding is accepted only with a reason."""

from libc.stdio cimport puts
from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Loop(RTLoop):
    cdef int step(self, const Cycle *cycle) noexcept nogil:
        puts("x")  # rtloop: allow puts  # BAD: io bad-allow
        return RT_CONTINUE
