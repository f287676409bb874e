"""A step that sleeps."""

from posix.unistd cimport usleep
from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Loop(RTLoop):
    cdef int step(self, const Cycle *cycle) noexcept nogil:
        usleep(100)  # BAD: blocking
        return RT_CONTINUE
