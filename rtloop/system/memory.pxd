"""Locking and mapping, for cimport: each returns 0 or a negative errno, never raises, and needs no GIL."""

from libc.stdint cimport int32_t, uint32_t


cdef extern from "../include/rtloop/memory.h" nogil:
    ctypedef struct rt_fork_watch_t:
        uint32_t forks
        int32_t lock_flags
    int rt_memory_map(void **address, size_t size)
    int rt_memory_map_sealed(const char *name, size_t size, void **address, int *fd)
    void rt_memory_prefault(void *address, size_t size)
    enum:
        RT_FUTURE_NOT_LOCKED
        RT_FUTURE_LOCKED
        RT_FUTURE_LOCKED_ONFAULT
    int rt_memory_future_lock()
    int rt_memory_lock_onfault(void *address, size_t size)
    int rt_memory_is_locked(void *address)
    int rt_memory_can_tell_locked()


cdef int lock_region(void *address, size_t size) noexcept nogil
cdef int lock_region_onfault(void *address, size_t size) noexcept nogil
cdef int unlock_region(void *address, size_t size) noexcept nogil
