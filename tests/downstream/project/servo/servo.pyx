from libc.stdint cimport int64_t, uint64_t

from rtloop cimport RT_CONTINUE, RT_STOP, Cycle, RTLoop


cdef class Servo(RTLoop):
    """Follow a ramp of one unit a second, and count everything on the way."""

    cdef public uint64_t stop_after         # 0: never
    cdef readonly uint64_t steps, enters, leaves, overruns, misnumbered
    cdef readonly int64_t first_release, last_release, last_start, missed, early, backwards
    cdef readonly double position, t

    cdef int enter(self) noexcept nogil:
        self.enters += 1
        return RT_CONTINUE

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        if self.steps == 0:
            self.first_release = cycle.release
        if cycle.index != self.steps:
            self.misnumbered += 1
        if cycle.start < cycle.release:
            self.early += 1
        if cycle.release <= self.last_release:
            self.backwards += 1
        self.steps += 1
        self.last_release = cycle.release
        self.last_start = cycle.start
        self.missed += cycle.missed
        self.position += 1.0 * cycle.dt
        self.t = cycle.t
        return RT_STOP if self.steps == self.stop_after else RT_CONTINUE

    cdef int overrun(self, const Cycle *cycle, int64_t missed) noexcept nogil:
        self.overruns += 1
        return RT_CONTINUE

    cdef void leave(self) noexcept nogil:
        self.leaves += 1
