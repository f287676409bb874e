"""Large buffers for cimport: ``from rtloop cimport HugeBuffer``. Needs no header of rtloop.

Frozen, as loop.pxd is: the order of the fields, the size of the object.
"""


# A module built against another interface looks for another name here, and is told to recompile (__getattr__).
cdef class _HugeBuffer_1:
    cdef void *data  # aligned to page_size; valid until the object is gone, zeros after close()
    cdef readonly size_t nbytes
    cdef readonly size_t size
    cdef readonly size_t page_size
    cdef readonly str backing
    cdef readonly tuple grants
    cdef void *_region
    cdef Py_ssize_t _exports
    cdef bint _is_closing
    cdef object _unlock
    cdef void *_reserved_0
    cdef void *_reserved_1
    cdef object __weakref__
