"""The loop is a subclass of a subclass."""

from libc.stdio cimport puts
from rtloop cimport Cycle, RTLoop


cdef class Base(RTLoop):
    cdef int helper(self) noexcept nogil:
        puts("base")  # BAD: io
        return 0


cdef class Derived(Base):
    cdef int step(self, const Cycle *cycle) noexcept nogil:
        return Base.helper(self)
