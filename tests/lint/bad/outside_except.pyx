"""A C function that is declared to raise; its body is out of reach."""

from rtloop cimport RT_CONTINUE, Cycle, RTLoop

cdef extern from "filter_of_somebody.h":
    int filter_twice(int x) except -1 nogil


cdef class Loop(RTLoop):
    cdef int n

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.n = filter_twice(self.n)  # BAD: exception-check
        return RT_CONTINUE
