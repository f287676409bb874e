"""State of the cart and the pole, and the loop that simulates it in real time."""

from cpython cimport array
from libc.stdint cimport int64_t, uint64_t

from rtloop cimport RTLoop


cdef struct Body:
    double x
    double v
    double angle
    double rate


cdef class Plant(RTLoop):
    cdef object _socket
    cdef array.array _trace
    cdef double *_points
    cdef Py_ssize_t _count
    cdef int _fd
    cdef bint _released, _tripped
    cdef uint64_t _seed
    cdef int64_t _duration_ns, _now, _t, _answers, _oldest, _fell_ns, _sequence, _heard
    cdef double _force, _worst
    cdef Body _body

    cdef void listen(self, int64_t now) noexcept nogil
    cdef void live(self, int64_t now) noexcept nogil
