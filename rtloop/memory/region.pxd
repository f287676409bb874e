"""A range of memory that an object exports, held so that it is neither moved nor freed."""

from cpython.buffer cimport Py_buffer


cdef class Region:
    cdef Py_buffer _view
    cdef bint _is_held
