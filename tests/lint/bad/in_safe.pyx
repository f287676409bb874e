"""Output in safe."""

from libc.stdio cimport puts
from rtloop cimport RT_CONTINUE, RTLoop


cdef class Loop(RTLoop):
    cdef int safe(self) noexcept nogil:
        puts("safe")  # BAD: io
        return RT_CONTINUE
