"""Output in enter."""

from libc.stdio cimport puts
from rtloop cimport RT_CONTINUE, RTLoop


cdef class Loop(RTLoop):
    cdef int enter(self) noexcept nogil:
        puts("enter")  # BAD: io
        return RT_CONTINUE
