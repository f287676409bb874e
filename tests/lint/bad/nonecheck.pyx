# cython: nonecheck=True
"""An attribute of what may be None."""

from rtloop cimport RT_CONTINUE, Cycle, RTLoop

cdef class Box:
    cdef int n


cdef class Loop(RTLoop):
    cdef Box other

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.other.n = 1  # BAD: init-check
        return RT_CONTINUE
