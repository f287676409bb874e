"""Output in leave."""

from libc.stdio cimport puts
from rtloop cimport RTLoop


cdef class Loop(RTLoop):
    cdef void leave(self) noexcept nogil:
        puts("leave")  # BAD: io
