"""Fields of every exchange, and what its common methods call."""

from cpython.object cimport PyObject
from libc.stdint cimport uint32_t, uint64_t

from rtloop.data.storage cimport SharedStorage
from rtloop.sharing.wakers cimport rt_has_news_t


# The fields with which a Ring and a Latest begin, behind what every object has. Golden files of tests/abi freeze them.
cdef struct Fields:
    void *methods  # the table of the methods for Cython
    void *handle
    PyObject *owner


cdef inline Fields *fields_of(object exchange) noexcept:
    return <Fields *>(<PyObject *>exchange + 1)


cdef class Access:
    cdef readonly object name
    cdef readonly object noun
    cdef readonly object reader
    cdef void *plain
    cdef void *waking
    cdef rt_has_news_t has_news
    cdef uint64_t (*size)(const void *handle) noexcept nogil
    cdef uint32_t *(*awaited)(void *handle) noexcept nogil
    cdef int (*check_closing)(object exchange) except -1


cdef Access access_of(object exchange)
cdef SharedStorage shared_storage(object exchange)
cdef int check_side(object exchange, role) except -1
cdef int rearm(object owner) except -1
cdef SharedStorage map_side(object exchange, Access access, file, uint64_t data_bytes)
