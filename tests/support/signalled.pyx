"""Loops with signals."""

from libc.stdint cimport int8_t, int32_t, uint16_t, uint64_t
from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Counting(RTLoop):
    """A loop whose signals belong together: `inverse` is ``~number``, and `third` is ``[n, n + 1, n + 2]``."""

    cdef readonly uint64_t number, inverse
    cdef readonly double angle
    cdef readonly double[3] third
    cdef readonly int32_t mode
    cdef readonly bint unused

    def __init__(self, period, **settings):
        super().__init__(period, **settings)
        self.signal("number", &self.number, "u8")
        self.signal("mode", &self.mode, "i4")
        self.signal("angle", &self.angle).unit("rad")
        self.signal("inverse", &self.inverse, "u8")
        self.signal("third", &self.third, "3f8").unit("m")

    def declare(self, name, dtype="f8", bint is_null=False):
        if is_null:
            return self.signal(name, NULL, dtype)
        return self.signal(name, &self.angle, dtype)

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef int i
        self.number += 1
        self.inverse = ~self.number
        self.angle = cycle.t
        self.mode = -<int32_t>self.number
        for i in range(3):
            self.third[i] = self.number + i
        return RT_CONTINUE


cdef class Mixed(RTLoop):
    """Signals of every size, declared in no order."""

    cdef readonly int8_t flag
    cdef readonly uint16_t half
    cdef readonly float single
    cdef readonly double complex wave
    cdef readonly int32_t[3] triple
    cdef readonly int8_t[5] bytes_
    cdef readonly double last

    def __init__(self, period, **settings):
        super().__init__(period, **settings)
        self.signal("flag", &self.flag, "?")
        self.signal("half", &self.half, "u2")
        self.signal("single", &self.single, "f4")
        self.signal("wave", &self.wave, "c16")
        self.signal("triple", &self.triple, "3i4")
        self.signal("bytes", &self.bytes_, "5i1")
        self.signal("last", &self.last)

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef int i
        cdef int n = <int>cycle.index
        self.flag = n & 1
        self.half = <uint16_t>(1000 + n)
        self.single = 0.5 + n
        self.wave = n + 2j * n
        for i in range(3):
            self.triple[i] = n * 10 + i
        for i in range(5):
            self.bytes_[i] = <int8_t>(-i - n)
        self.last = n
        return RT_CONTINUE


cdef class Doubles(RTLoop):
    """As many signals as asked for, each a double; for counting instructions."""

    cdef double[64] values

    def __init__(self, period, *, int count=0, **settings):
        super().__init__(period, **settings)
        cdef int i
        for i in range(count):
            self.signal(f"s{i}", &self.values[i])
