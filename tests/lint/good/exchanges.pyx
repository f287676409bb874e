"""A ring, a newest value and a pool."""

from rtloop cimport RT_CONTINUE, Cycle, Latest, Pool, Ring, RTLoop


cdef class Loop(RTLoop):
    cdef Latest latest
    cdef Ring ring
    cdef Pool pool
    cdef double x

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef void *block
        self.latest.read(&self.x)
        self.ring.push(&self.x)
        block = self.pool.alloc()
        self.pool.free(block)
        return RT_CONTINUE
