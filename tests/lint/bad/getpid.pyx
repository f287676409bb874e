"""A system call, though a short one."""

from posix.unistd cimport getppid
from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Loop(RTLoop):
    cdef int n

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.n = getppid()  # BAD: system-call
        return RT_CONTINUE
