# distutils: language = c++
"""A C++ function that may throw."""

from libcpp.vector cimport vector
from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Loop(RTLoop):
    cdef vector[double] v

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.v.push_back(1.0)  # BAD: exception-check
        return RT_CONTINUE
