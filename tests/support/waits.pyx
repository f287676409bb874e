"""Loops that sleep in their step, and loops that wait by themselves and then as any loop does."""

from libc.stdint cimport int64_t

from rtloop cimport RT_CONTINUE, RT_STOP, Cycle, RTLoop


cdef class Sleeper(RTLoop):
    """A loop whose step sleeps until `offset_ns` after its release."""

    cdef public int64_t offset_ns, early, stopped, sleeps, leaves

    def __init__(self, period, *, offset_ns=300_000, **settings):
        super().__init__(period, **settings)
        self.offset_ns = offset_ns

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef int rc = self.sleep_until(cycle.release + self.offset_ns)
        self.sleeps += 1
        if rc == RT_STOP:
            self.stopped += 1
        return rc if rc < 0 else RT_CONTINUE

    cdef void leave(self) noexcept nogil:
        self.leaves += 1


cdef class Waiter(RTLoop):
    """A loop with a wait of its own that ends in the default one."""

    cdef public int64_t leaves

    cdef int wait(self, int64_t release) noexcept nogil:
        return RTLoop.wait(self, release)

    cdef void leave(self) noexcept nogil:
        self.leaves += 1
