# distutils: language = c++
"""Memory from C++."""

from libcpp.vector cimport vector
from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Loop(RTLoop):
    cdef vector[int] *v

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.v = new vector[int]()  # BAD: allocation exception-check
        return RT_CONTINUE
