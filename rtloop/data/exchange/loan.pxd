"""Items that a ring lends in place."""

from libc.stdint cimport uint64_t

from rtloop.headers.ring cimport rt_ring_t


cdef class Loan:
    cdef object _storage
    cdef object _base
    cdef object _array
    cdef uint64_t count
    cdef bint is_lent

    cdef int check_returned(self) except -1
    cdef object lend(self, rt_ring_t *ring, dtype)
    cdef void end(self)
    cdef bint is_in_use(self)


cdef class View:
    cdef object _ring
    cdef Loan _loan
    cdef bint _is_open
