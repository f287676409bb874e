"""A system call that may wait."""

from posix.unistd cimport write
from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Loop(RTLoop):
    cdef int step(self, const Cycle *cycle) noexcept nogil:
        write(1, "x", 1)  # BAD: blocking
        return RT_CONTINUE
