"""Steps that replace one another: a short one, and one that takes longer than its period."""

from libc.stdint cimport int64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Short(RTLoop):
    """Integrate, as a small controller does."""

    cdef double integral, output

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.integral += cycle.dt * (1.0 - self.output)
        self.output = 0.5 * self.integral
        return RT_CONTINUE

    cdef int take_over(self, RTLoop former, const Cycle *cycle) noexcept nogil:
        self.integral = (<Short>former).integral
        self.output = (<Short>former).output
        return RT_CONTINUE


cdef class Long(Short):
    """Take longer than the period, so that the next cycle follows at once."""

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef int64_t end = cycle.start + cycle.period + cycle.period // 8
        cdef timespec now
        while True:
            clock_gettime(CLOCK_MONOTONIC, &now)
            if now.tv_sec * 1000000000 + now.tv_nsec >= end:
                break
        return Short.step(self, cycle)
