"""Logs of named signals for cimport: ``from rtloop cimport SignalLog``. Needs no header of rtloop.

Frozen, as loop.pxd is: the order of the methods, the size of the object.
"""


# A module built against another interface looks for another name here, and is told to recompile (__getattr__).
cdef class _SignalLog_1:
    cdef void *handle  # the rt_signals_t of include/rtloop/signals.h
    cdef object _owner  # of the memory that handle points to
    cdef object _fields
    cdef object _ring
    cdef readonly object capacity
    cdef object __weakref__

    cdef int add(self, name, const void *address, dtype=*) except -1
    cdef bint sample(self, const void *cycle) noexcept nogil
    cdef int _reserved_0(self) noexcept nogil
    cdef int _reserved_1(self) noexcept nogil
    cdef int _reserved_2(self) noexcept nogil
    cdef int _reserved_3(self) noexcept nogil
