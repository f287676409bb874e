"""Declarations of pool.h and pool_check.h."""

from libc.stdint cimport uint32_t, uint64_t


cdef extern from "../include/rtloop/pool_check.h" nogil:
    enum:
        RT_POOL_SINGLE
        RT_POOL_SHARED
        RT_POOL_MUTEX
        RT_POOL_MAX_COUNT

    ctypedef struct rt_pool_t:
        uint64_t block_bytes
        uint32_t count
        uint32_t kind

    uint64_t rt_pool_bytes(uint64_t block_bytes, uint64_t count, uint32_t kind)
    int rt_pool_init(rt_pool_t *pool, uint64_t block_bytes, uint64_t count, uint32_t kind)
    void *rt_pool_alloc(rt_pool_t *pool)
    int rt_pool_free(rt_pool_t *pool, void *block)
    uint32_t rt_pool_in_use(const rt_pool_t *pool)
    uint32_t rt_pool_high_water(const rt_pool_t *pool)
    uint64_t rt_pool_failures(const rt_pool_t *pool)
    int rt_pool_check(rt_pool_t *pool)
