"""Structs, arrays, tables, enums."""

from rtloop cimport RT_CONTINUE, Cycle, RTLoop

cdef enum:
    A = 1

cdef struct Point:
    double x, y


cdef class Loop(RTLoop):
    cdef Point[4] points

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef Point p = self.points[cycle.index & 3]
        p.x, p.y = p.y, p.x
        self.points[A] = p
        return RT_CONTINUE
