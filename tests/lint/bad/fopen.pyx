"""A file."""

from libc.stdio cimport FILE, fopen
from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Loop(RTLoop):
    cdef FILE *f

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.f = fopen("log", "a")  # BAD: io
        return RT_CONTINUE
