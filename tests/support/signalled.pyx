"""Loops with signals."""

from libc.stdint cimport int8_t, int32_t, int64_t, uint16_t, uint64_t
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


cdef class Floats(RTLoop):
    """Two floats side by side, and a double behind them, which are declared with the types that the test asks for."""

    cdef float first, second
    cdef double third
    cdef int64_t last

    def declare(self, what, first="f8", second="f8", third="f8"):
        if what == "signal":
            self.signal("first", &self.first, first)
            self.signal("second", &self.second, second)
            self.signal("third", &self.third, third)
        else:
            self.parameter("first", &self.first, [0] * int(first[0]) if first[0].isdigit() else 0, first)
            self.parameter("second", &self.second, 0, second)
            self.parameter("third", &self.third, 0, third)

    def declare_last(self, what, dtype):
        if what == "signal":
            self.signal("last", &self.last, dtype)
        else:
            self.parameter("last", &self.last, [0] * 8, dtype)


cdef class Doubles(RTLoop):
    """As many signals as asked for, each a double; for counting instructions."""

    cdef double[64] values

    def __init__(self, period, *, int count=0, **settings):
        super().__init__(period, **settings)
        cdef int i
        for i in range(count):
            self.signal(f"s{i}", &self.values[i])


cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *address, size_t size, int protection, int flags, int fd, long offset)
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MADV_NOHUGEPAGE
    int madvise(void *address, size_t size, int advice)


cdef class Planted(RTLoop):
    """A loop to which something happens in known cycles, once in a hundred.

    Cycle 20 sleeps beyond its next two releases; from 40 to 44 `level` is outside of its limits; 60 writes to a page
    for the first time.
    """

    cdef readonly uint64_t number
    cdef readonly double level
    cdef readonly double gain
    cdef readonly double[2] pair
    cdef char *pages
    cdef int64_t sleep_ns

    def __init__(self, period, **settings):
        super().__init__(period, **settings)
        self.signal("number", &self.number, "u8")
        self.signal("level", &self.level).unit("m").limits(-1, 1)
        self.parameter("gain", &self.gain, 2.0).limits(0, 10)
        self.parameter("pair", &self.pair, (1, 2), "2f8")
        self.sleep_ns = self.settings.period_ns * 5 // 2
        self.pages = <char *>mmap(NULL, 4096 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        madvise(self.pages, 4096 * 4096, MADV_NOHUGEPAGE)

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef uint64_t turn = cycle.index % 100
        self.number = cycle.index
        self.level = 5 if 40 <= turn < 45 else 0
        if turn == 20:
            self.sleep_until(cycle.release + self.sleep_ns)
        if turn == 60:
            self.pages[cycle.index // 100 % 4096 * 4096] = 1
        return RT_CONTINUE
