"""Registry of the regions of all large buffers, for cimport."""

from rtloop.headers.hugepage cimport rt_region_t


cdef rt_region_t *keep_region(rt_region_t *fresh) except NULL
cdef void drop_region(rt_region_t *region) noexcept nogil
