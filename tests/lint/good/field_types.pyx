"""Fields that are declared with their types, and some whose types Cython's C does not show."""

import numpy as np
from rtloop cimport RT_CONTINUE, Cycle, RTLoop

cdef extern from *:
    """
    typedef float narrow_t;
    """
    ctypedef float narrow_t


cdef struct Gains:
    float kp
    short order


cdef class Base(RTLoop):
    cdef double inherited


cdef class Loop(Base):
    cdef float x
    cdef double y
    cdef bint is_on
    cdef bint is_closed
    cdef unsigned int mask
    cdef long long count
    cdef Gains gains
    cdef float q[3]
    cdef double *other
    cdef narrow_t narrow

    def setup(self):
        number = np.float32
        self.signal("x", &self.x, "f4")
        self.signal("y", &self.y).unit("rad")
        self.signal("count", &self.count, "u8")
        self.signal("mask", &self.mask, dtype="int32")
        self.signal("q", &self.q[1], dtype="float32")
        self.signal("all", &self.q, "3f4")
        self.signal("inherited", &self.inherited)
        self.signal("other", &self.other[1])
        self.signal("narrow", &self.narrow, dtype=number)
        self.parameter("is_on", &self.is_on, True, "b1")
        self.parameter("is_closed", &self.is_closed, True, "i4")
        self.parameter("kp", &self.gains.kp, 1.0, "<f4")
        self.parameter("order", &self.gains.order, 1, "i2")

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        return RT_CONTINUE
