"""Loops whose steps replace one another while they run."""

from libc.stdint cimport int64_t
from posix.time cimport nanosleep, timespec
from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef void pause(int64_t ns) noexcept nogil:
    cdef timespec left
    left.tv_sec, left.tv_nsec = <long>(ns // 1_000_000_000), <long>(ns % 1_000_000_000)
    while nanosleep(&left, &left) == -1:
        pass


cdef class Law(RTLoop):
    """A step that counts on from where the former one was: `total` is the number of steps of all that were in place.

    `before` is the index of the last cycle of the former step; `gaps` counts cycles that do not follow upon one
    another.
    """

    cdef readonly int64_t total, steps, takes, enters, leaves, gaps, safes
    cdef readonly int64_t first, last, before
    cdef readonly int64_t taken_release, taken_start, taken_index, first_release
    cdef readonly double taken_t, first_t
    cdef public int take_code, step_code
    cdef public int64_t step_ns, shift_ns, sleep_ns
    cdef public int64_t sleep_at  # the step that makes a system call
    cdef public bint holds, holds_take_over  # until they are cleared
    cdef public int64_t stop_at
    cdef public int releases
    cdef public bint is_alone
    cdef public object noted
    cdef public double angle
    cdef readonly double kp

    def __init__(self, period, **settings):
        super().__init__(period, **settings)
        self.first = self.last = self.before = self.stop_at = self.sleep_at = -1

    def declare(self, name="kp", value=1.0, dtype="f8", limits=None):
        """Declare a parameter at `kp`."""
        made = self.parameter(name, &self.kp, value, dtype)
        if limits is not None:
            made.limits(*limits)

    def show(self, name="angle"):
        """Declare a signal at `angle`."""
        self.signal(name, &self.angle)

    def released(self):
        self.releases += 1
        if self.noted is not None:
            self.noted(self)

    cdef int enter(self) noexcept nogil:
        self.enters += 1
        return RT_CONTINUE

    cdef int take_over(self, RTLoop former, const Cycle *cycle) noexcept nogil:
        self.takes += 1
        while self.holds_take_over:
            pause(200_000)
        self.taken_release, self.taken_start, self.taken_index = cycle.release, cycle.start, <int64_t>cycle.index
        self.taken_t = cycle.t
        if self.take_code:
            return self.take_code
        if self.shift_ns:
            self.shift(self.shift_ns)
        if self.is_alone:  # the former step may be of any class
            return RT_CONTINUE
        self.total, self.before = (<Law>former).total, (<Law>former).last
        return RT_CONTINUE

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef int64_t index = <int64_t>cycle.index
        if self.steps == 0:
            self.first, self.first_release, self.first_t = index, cycle.release, cycle.t
            self.gaps += self.before != -1 and self.before != index - 1
        else:
            self.gaps += self.last != index - 1
        self.last = index
        self.total += 1
        self.steps += 1
        self.angle += self.kp
        while self.holds:
            pause(200_000)
        if self.step_ns:
            pause(self.step_ns)
        if self.sleep_at == self.steps - 1:
            pause(1)
        if self.sleep_ns:
            self.sleep_until(cycle.release + self.sleep_ns)
        if self.stop_at == self.steps - 1:
            return self.step_code
        return RT_CONTINUE

    cdef void leave(self) noexcept nogil:
        self.leaves += 1

    cdef int safe(self) noexcept nogil:
        self.safes += 1
        self.holds = False
        return 0


cdef class Other(Law):
    """A step of another class."""

    cdef readonly int64_t others

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.others += 1
        return Law.step(self, cycle)


cdef class Shown(RTLoop):
    """A step with a signal of a given type, which is spoilt in one of its cycles."""

    cdef double[4] large
    cdef float[4] small
    cdef unsigned short[4] tiny
    cdef int is_small
    cdef readonly int64_t steps, leaves
    cdef public int64_t spoil_at
    cdef public double spoilt

    def declare_signal(self, kind):
        """Declare a signal of type f8, f4, 2f4, c16, f2 or 3f2; its last number is the one that is spoilt."""
        if "f2" in kind:
            self.tiny[0], self.tiny[1], self.tiny[2] = 0xFBFF, 0x0001, 0x7BFF  # the largest ones and the smallest
            self.signal("shown", &self.tiny[0], kind)
            return
        self.is_small = "f4" in kind
        self.signal("shown", &self.small[0] if self.is_small else <const void *>&self.large[0], kind)

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef unsigned short bits
        self.steps += 1
        if self.steps == self.spoil_at:
            self.large[0] = self.large[1] = self.spoilt
            self.small[0] = self.small[1] = <float>self.spoilt
            bits = 0x7C00 if self.spoilt > 0 else 0xFC00
            self.tiny[0] = self.tiny[2] = 0x7E00 if self.spoilt != self.spoilt else bits
        return RT_CONTINUE

    cdef void leave(self) noexcept nogil:
        self.leaves += 1


cdef class Paced(RTLoop):
    """A loop that paces itself."""

    cdef readonly int64_t waits

    cdef int wait(self, int64_t release) noexcept nogil:
        self.waits += 1
        return RTLoop.wait(self, release)
