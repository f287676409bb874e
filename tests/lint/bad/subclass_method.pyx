"""A method that a subclass overrides."""

from libc.stdio cimport puts
from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Base(RTLoop):
    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.work()
        return RT_CONTINUE

    cdef void work(self) noexcept nogil:
        pass


cdef class Derived(Base):
    cdef void work(self) noexcept nogil:
        puts("derived")  # BAD: io
