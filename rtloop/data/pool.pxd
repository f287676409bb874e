"""Pools for cimport: ``from rtloop cimport Pool``. Needs no header of rtloop; the inline forms are in rtloop/pool.h.

Frozen, as loop.pxd is: the order of the methods, the size of the object.
"""


# A module built against another interface looks for another name here, and is told to recompile (__getattr__).
cdef class _Pool_1:
    cdef void *handle  # the rt_pool_t of include/rtloop/pool.h
    cdef object _owner  # of the memory that handle points to
    cdef object __weakref__

    cdef void *alloc(self) noexcept nogil
    cdef int free(self, void *block) noexcept nogil
    cdef int _reserved_0(self) noexcept nogil
    cdef int _reserved_1(self) noexcept nogil
    cdef int _reserved_2(self) noexcept nogil
    cdef int _reserved_3(self) noexcept nogil
