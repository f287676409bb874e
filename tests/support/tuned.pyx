"""Loops with parameters."""

from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Tuned(RTLoop):
    """A loop that counts the cycles whose parameters do not belong together: `a` differs from `b`."""

    cdef readonly double a, b, sum
    cdef readonly double[3] gains
    cdef readonly int32_t mode
    cdef readonly bint has_run
    cdef readonly uint64_t torn, cycles

    def __init__(self, period, **settings):
        super().__init__(period, **settings)
        self.parameter("a", &self.a, 1.0).limits(0, 1000).unit("V/rad")
        self.parameter("b", &self.b, 1.0).limits(0, 1000)
        self.parameter("gains", &self.gains, (1, 2, 3), "3f8")
        self.parameter("mode", &self.mode, 0, "i4").limits(0, 3)

    def declare(self, name, value=0.0, dtype="f8", bint is_null=False):
        """Declare another parameter, in a field that nobody reads."""
        return self.parameter(name, NULL if is_null else <void *>&self.sum, value, dtype)

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.torn += self.a != self.b
        self.sum += self.a * self.gains[1] + self.mode
        self.cycles += 1
        return RT_CONTINUE


cdef class Resetting(RTLoop):
    """A loop whose step takes a request back when it has seen it."""

    cdef readonly int32_t request, other
    cdef readonly uint64_t seen

    def __init__(self, period, **settings):
        super().__init__(period, **settings)
        self.parameter("request", &self.request, 0, "i4")
        self.parameter("other", &self.other, 0, "i4")

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        if self.request:
            self.seen += 1
            self.request = 0
        return RT_CONTINUE


cdef class DeclaredInSetup(RTLoop):
    cdef readonly double kp, field

    def setup(self):
        self.parameter("kp", &self.kp, 2.0).limits(0, 10)


cdef class Every(RTLoop):
    """One parameter of each type of number."""

    cdef readonly bint started
    cdef uint8_t flag
    cdef int8_t i1
    cdef int16_t i2
    cdef int32_t i4
    cdef int64_t i8
    cdef uint8_t u1
    cdef uint16_t u2
    cdef uint32_t u4
    cdef uint64_t u8
    cdef float f4
    cdef double f8
    cdef int16_t[2][3] table

    def __init__(self, period, **settings):
        super().__init__(period, **settings)
        self.parameter("flag", &self.flag, False, "?")
        self.parameter("i1", &self.i1, 0, "i1")
        self.parameter("i2", &self.i2, 0, "i2")
        self.parameter("i4", &self.i4, 0, "i4")
        self.parameter("i8", &self.i8, 0, "i8")
        self.parameter("u1", &self.u1, 0, "u1")
        self.parameter("u2", &self.u2, 0, "u2")
        self.parameter("u4", &self.u4, 0, "u4")
        self.parameter("u8", &self.u8, 0, "u8")
        self.parameter("f4", &self.f4, 0, "f4")
        self.parameter("f8", &self.f8, 0)
        self.parameter("table", &self.table, [[0] * 3] * 2, ("i2", (2, 3)))

    def fields(self):
        """The fields themselves, as the step reads them."""
        table = [[self.table[i][k] for k in range(3)] for i in range(2)]
        return dict(flag=bool(self.flag), i1=self.i1, i2=self.i2, i4=self.i4, i8=self.i8, u1=self.u1, u2=self.u2,
                    u4=self.u4, u8=self.u8, f4=self.f4, f8=self.f8, table=table)
