"""A loop of sixteen signals and eight parameters that belong together, for benchmarks/observers.py."""

from libc.stdint cimport uint64_t

from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Alone(RTLoop):
    """Count the sets of gains that are torn: of which one value is not the first one plus its index."""

    cdef readonly uint64_t torn, changes
    cdef double[8] gains
    cdef double[16] values
    cdef double last

    def __init__(self, period, **settings):
        super().__init__(period, **settings)
        cdef int i
        for i in range(8):
            self.gains[i] = i

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef int i
        if self.gains[0] != self.last:
            self.last = self.gains[0]
            self.changes += 1
        for i in range(8):
            self.torn += self.gains[i] != self.gains[0] + i
        for i in range(16):
            self.values[i] = <double>cycle.index + i
        return RT_CONTINUE


cdef class Observed(Alone):
    """The same step, whose gains are parameters and whose values are signals."""

    def __init__(self, period, **settings):
        super().__init__(period, **settings)
        cdef int i
        for i in range(8):
            self.parameter(f"gain{i}", &self.gains[i], float(i)).limits(0, 1e12)
        for i in range(16):
            self.signal(f"value{i}", &self.values[i])
