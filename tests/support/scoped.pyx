"""A loop to look at with rtloop scope."""

from libc.math cimport sin
from libc.stdint cimport int32_t
from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Scoped(RTLoop):
    """Sixteen signals. Each change of `fire` makes `spike` 1 for one cycle; `wave` has the amplitude `gain`."""

    cdef readonly double gain, offset, wave, spike
    cdef readonly int32_t mode, fire, fired
    cdef double[13] others

    def __init__(self, period, **settings):
        super().__init__(period, **settings)
        cdef int i
        self.parameter("gain", &self.gain, 1.0).limits(0, 50).unit("V/rad")
        self.parameter("offset", &self.offset, 0.0).unit("V")
        self.parameter("mode", &self.mode, 0, "i4").limits(0, 3)
        self.parameter("fire", &self.fire, 0, "i4")
        self.signal("wave", &self.wave).unit("V")
        self.signal("spike", &self.spike)
        self.signal("fired", &self.fired, "i4")
        for i in range(13):
            self.signal(f"s{i}", &self.others[i]).unit("A")

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef int i
        self.wave = self.offset + self.gain * sin(6.283185307179586 * cycle.t)
        self.spike = self.fire != self.fired
        self.fired = self.fire
        for i in range(13):
            self.others[i] = i + 0.3 * sin((i + 1) * cycle.t)
        return RT_CONTINUE
