"""Registry of the regions of all large buffers, for cimport."""

from libc.stdint cimport int32_t


cdef extern from "../include/rtloop/hugepage.h" nogil:
    ctypedef struct rt_region_t:
        void *address
        size_t bytes
        int32_t is_copy

    void rt_region_unmap(rt_region_t *region) nogil


cdef rt_region_t *keep_region(rt_region_t *fresh) except NULL
cdef void drop_region(rt_region_t *region) noexcept nogil
