"""A whole method under the GIL."""

from libc.stdint cimport int64_t
from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Loop(RTLoop):
    cdef int overrun(self, const Cycle *cycle, int64_t missed) noexcept with gil:  # BAD: gil
        print("late")
        return RT_CONTINUE
