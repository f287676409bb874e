"""Declarations of atomics.h, whose macros take any type: one declaration for each type in use."""

from libc.stdint cimport uint32_t, uint64_t


cdef extern from "../include/rtloop/atomics.h" nogil:
    uint32_t rt_load_acquire(const uint32_t *p)
    void rt_store_release_32 "rt_store_release"(uint32_t *p, uint32_t value)
    uint64_t rt_load_acquire_64 "rt_load_acquire"(const uint64_t *p)
    uint32_t rt_load_relaxed(const uint32_t *p)
    uint64_t rt_load_relaxed_64 "rt_load_relaxed"(const uint64_t *p)
