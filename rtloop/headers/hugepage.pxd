"""Declarations of hugepage.h."""

from libc.stdint cimport int32_t, int64_t

from rtloop._os cimport pthread_mutex_t


cdef extern from "../include/rtloop/hugepage.h" nogil:
    ctypedef struct rt_region_t:
        void *address
        size_t bytes
        int32_t is_copy

    void rt_region_unmap(rt_region_t *region)

    ctypedef struct rt_regions_t:
        pthread_mutex_t mutex

    void rt_regions_add(rt_regions_t *regions, rt_region_t *region)
    void rt_regions_remove(rt_regions_t *regions, rt_region_t *region)
    void rt_regions_in_child(rt_regions_t *regions)

    int rt_region_map(rt_region_t *region, size_t bytes, size_t page, size_t align, int is_huge)
    int rt_region_map_hugetlb(rt_region_t *region, size_t bytes, int shift)
    int rt_region_map_file(rt_region_t *region, size_t bytes, int fd)
    int rt_region_collapse(const rt_region_t *region)
    int rt_region_empty(rt_region_t *region)
    int64_t rt_hugetlbfs_page_bytes(int fd)
    int rt_populate(void *address, size_t bytes, size_t page)
