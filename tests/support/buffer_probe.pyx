"""A loop whose step writes through a HugeBuffer."""

from libc.stdint cimport uint64_t

from rtloop cimport RT_CONTINUE, Cycle, HugeBuffer, RTLoop


cdef class Writer(RTLoop):
    cdef HugeBuffer buffer
    cdef uint64_t *words
    cdef uint64_t count

    def __init__(self, buffer, period, **settings):
        super().__init__(period, **settings)
        self.buffer = buffer
        self.words = <uint64_t *>self.buffer.data
        self.count = self.buffer.nbytes // 8

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        # A page, and more, further each time. Where is kept there, too: a fork makes this object copy-on-write.
        self.words[0] = (self.words[0] + 521 * 8) % (self.count - 1)
        self.words[1 + self.words[0]] = cycle.index
        return RT_CONTINUE
