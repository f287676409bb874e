"""A wait may wait."""

from libc.stdint cimport int64_t
from posix.unistd cimport read
from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Loop(RTLoop):
    cdef int fd

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        return RT_CONTINUE

    cdef int wait(self, int64_t release) noexcept nogil:
        cdef char byte
        return RT_CONTINUE if read(self.fd, &byte, 1) == 1 else -1
