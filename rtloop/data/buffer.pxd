"""Large buffers for cimport: ``from rtloop cimport HugeBuffer``. Needs no header of rtloop.

The layout below is compiled into a user's module: append only.
"""


cdef class HugeBuffer:
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
    cdef object __weakref__
