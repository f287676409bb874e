"""The smallest complete loop: a sine wave, computed a thousand times a second."""

from libc.math cimport M_PI, sin
from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Sine(RTLoop):
    cdef public double value

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.value = sin(2 * M_PI * cycle.t)
        return RT_CONTINUE
