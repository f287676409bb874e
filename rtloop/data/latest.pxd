"""Newest values for cimport: ``from rtloop cimport Latest``. Needs no header of rtloop; the inline forms are in
rtloop/latest.h.

Frozen, as loop.pxd is: the order of the methods, the size of the object.
"""

from libc.stdint cimport int64_t

from rtloop.data.exchange.exchange cimport Exchange


# Methods for Python whose names Cython methods have as well. Like its base, it adds no field.
cdef class _LatestMethods(Exchange):
    pass


# A module built against another interface looks for another name here, and is told to recompile (__getattr__).
cdef class _Latest_1(_LatestMethods):
    cdef void *handle  # the rt_latest_t of include/rtloop/latest.h
    cdef object _owner  # of the memory that handle points to
    cdef readonly object dtype
    cdef object __weakref__

    cdef void write(self, const void *value) noexcept nogil
    cdef bint read(self, void *value) noexcept nogil
    cdef void write_at(self, const void *value, int64_t time) noexcept nogil
    cdef int64_t age(self, int64_t now) noexcept nogil
    cdef int64_t age_cycles(self, int64_t now, int64_t period) noexcept nogil
    cdef int _reserved_3(self) noexcept nogil
