"""Output in on_peer_failure."""

from libc.stdio cimport puts
from rtloop cimport RT_CONTINUE, RTLoop


cdef class Loop(RTLoop):
    cdef int on_peer_failure(self) noexcept nogil:
        puts("on_peer_failure")  # BAD: io
        return RT_CONTINUE
