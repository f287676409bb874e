"""A loop of sixteen signals that move, for benchmarks/scope.py."""

from libc.math cimport sin
from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Waves(RTLoop):
    """Sine waves, one above the other."""

    cdef double[16] values

    def __init__(self, period, **settings):
        super().__init__(period, **settings)
        cdef int i
        for i in range(16):
            self.signal(f"wave{i}", &self.values[i]).unit("V")

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef int i
        for i in range(16):
            self.values[i] = i + 0.4 * sin((i + 1) * cycle.t)
        return RT_CONTINUE
