# cython: cdivision=True
"""A loop that uses blocks of each kind of pool and a large buffer, without page faults or malloc."""

from libc.stdint cimport int64_t
from libc.string cimport memset
from rtloop cimport RT_CONTINUE, Cycle, HugeBuffer, Pool, RTLoop

cdef enum:
    HELD = 16    # blocks of each pool in use at a time
    BLOCK = 256  # bytes per block


cdef class Filter(RTLoop):
    """Keep the last HELD messages in blocks of each pool, and every sample in a large buffer."""

    cdef Pool single, shared, mutex
    cdef HugeBuffer samples
    cdef double *sample
    cdef int64_t capacity
    cdef (void *)[3][HELD] held
    cdef public int64_t exhausted, refused

    def __init__(self, period, *, pools, samples, **settings):
        super().__init__(period, **settings)
        self.single, self.shared, self.mutex = pools
        self.samples = samples  # this reference keeps its memory valid until the last cycle
        self.sample = <double *>self.samples.data
        self.capacity = self.samples.nbytes // sizeof(double)

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef int slot = <int>(cycle.index % HELD)
        self.exchange(0, slot, self.single)
        self.exchange(1, slot, self.shared)
        self.exchange(2, slot, self.mutex)
        self.sample[cycle.index % <unsigned long long>self.capacity] = cycle.t
        return RT_CONTINUE

    cdef void exchange(self, int kind, int slot, Pool pool) noexcept nogil:
        """Return the oldest block of a pool and take a new one."""
        if self.held[kind][slot] is not NULL and pool.free(self.held[kind][slot]) < 0:
            self.refused += 1
        self.held[kind][slot] = pool.alloc()
        if self.held[kind][slot] is NULL:
            self.exhausted += 1
        else:
            memset(self.held[kind][slot], slot, BLOCK)
