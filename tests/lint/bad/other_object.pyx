"""A method of another object."""

from libc.stdio cimport puts
from rtloop cimport RT_CONTINUE, Cycle, RTLoop

cdef class Tool:
    cdef void use(self) noexcept nogil:
        puts("tool")  # BAD: io


cdef class Loop(RTLoop):
    cdef Tool tool

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.tool.use()
        return RT_CONTINUE
