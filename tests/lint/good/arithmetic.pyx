"""Doubles and the mathematics of C."""

from libc.math cimport fmax, pow, sin
from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Loop(RTLoop):
    cdef double x

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.x = sin(self.x) + fmax(0.0, pow(self.x, 3.0)) / 2.0
        return RT_CONTINUE
