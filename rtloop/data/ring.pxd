"""Rings for cimport: ``from rtloop cimport Ring``. Needs no header of rtloop; the inline forms are in rtloop/ring.h.

Frozen, as loop.pxd is: the order of the methods, the size of the object.
"""

from libc.stdint cimport uint64_t

from rtloop.data.exchange.exchange cimport Exchange


# Methods for Python whose names Cython methods have as well. Like its base, it adds no field.
cdef class _RingMethods(Exchange):
    pass


# A module built against another interface looks for another name here, and is told to recompile (__getattr__).
cdef class _Ring_1(_RingMethods):
    cdef void *handle  # the rt_ring_t of include/rtloop/ring.h
    cdef object _owner  # of the memory that handle points to
    cdef object _loan
    cdef readonly object dtype
    cdef object __weakref__

    cdef bint push(self, const void *item) noexcept nogil
    cdef bint pop(self, void *item) noexcept nogil
    cdef uint64_t push_many(self, const void *items, uint64_t count) noexcept nogil
    cdef uint64_t pop_many(self, void *items, uint64_t count) noexcept nogil
    cdef int _reserved_0(self) noexcept nogil
    cdef int _reserved_1(self) noexcept nogil
    cdef int _reserved_2(self) noexcept nogil
    cdef int _reserved_3(self) noexcept nogil
