"""Newest values for cimport: ``from rtloop cimport Latest``. Needs no header of rtloop; the inline forms are in
rtloop/latest.h.

Frozen, as loop.pxd is: the order of the methods, the size of the object.
"""


# A module built against another interface looks for another name here, and is told to recompile (__getattr__).
cdef class _Latest_1:
    cdef void *handle  # the rt_latest_t of include/rtloop/latest.h
    cdef object _owner  # of the memory that handle points to
    cdef readonly object dtype
    cdef object __weakref__

    cdef void write(self, const void *value) noexcept nogil
    cdef bint read(self, void *value) noexcept nogil
    cdef int _reserved_0(self) noexcept nogil
    cdef int _reserved_1(self) noexcept nogil
    cdef int _reserved_2(self) noexcept nogil
    cdef int _reserved_3(self) noexcept nogil
