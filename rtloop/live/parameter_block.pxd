from libc.stdint cimport uint64_t

from rtloop.headers.live cimport rt_parameters_t, rt_parameters_view_t


cdef class ParameterView:
    cdef rt_parameters_view_t view
    cdef void *_address
    cdef readonly size_t size
    cdef readonly int fd
    cdef readonly str name

    cdef int _read_used(self, char *values, uint64_t *about) noexcept nogil


cdef class ForeignParameters(ParameterView):
    pass


cdef class ParameterRun(ParameterView):
    cdef rt_parameters_t *own
    cdef readonly size_t own_bytes
    cdef object _inode
    cdef int _pid

    cdef rt_parameters_t *_map_own(self, items, uint64_t set_bytes) except NULL
