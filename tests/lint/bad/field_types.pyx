"""Fields that are declared with another type than theirs."""

from rtloop cimport RT_CONTINUE, Cycle, RTLoop

cdef struct Gains:
    float kp
    short order


ctypedef struct Limits:
    int most


cdef class Base(RTLoop):
    cdef float inherited


cdef class Loop(Base):
    cdef float x
    cdef double y
    cdef bint is_on
    cdef long long count
    cdef Gains gains
    cdef Limits limits
    cdef float q[3]
    cdef float table[2][2]

    def setup(self):
        self.signal("x", &self.x)  # BAD: field-type
        self.signal("y", &self.y, "f4")  # BAD: field-type
        self.signal("count", &self.count).unit("1")  # BAD: field-type
        self.signal("most", &self.limits.most, dtype="i8")  # BAD: field-type
        self.signal("q", &self.q[1], dtype="float64")  # BAD: field-type
        self.signal("all", &self.q, "2f8")  # BAD: field-type
        self.signal("table", &self.table[1][1])  # BAD: field-type
        self.signal("inherited", &self.inherited)  # BAD: field-type
        self.parameter("is_on", &self.is_on, True)  # BAD: field-type
        self.parameter("kp", &self.gains.kp, 1.0)  # BAD: field-type
        self.parameter("order", <void *>&self.gains.order, 1, "<i4")  # BAD: field-type

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        return RT_CONTINUE
