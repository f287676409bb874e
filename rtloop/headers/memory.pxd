"""Declarations of memory.h and heap.h."""

from libc.stdint cimport int32_t, int64_t, uint32_t


cdef extern from "../include/rtloop/memory.h" nogil:
    ctypedef struct rt_fork_watch_t:
        uint32_t forks
        int32_t lock_flags
    int rt_memory_map(void **address, size_t size)
    int rt_memory_map_shared(const char *name, size_t size, int is_open_to_writers, void **address, int *fd)
    int rt_memory_is_sealed(int fd)
    int rt_memory_map_sealed(const char *name, size_t size, void **address, int *fd)
    int rt_memory_map_behind(size_t private_bytes, int fd, int64_t offset, size_t bytes, void **address)
    int rt_memory_replace_shared(void *address, size_t bytes)
    void rt_memory_prefault(void *address, size_t size)
    int rt_memory_populate(void *address, size_t size, int is_writable)
    void rt_memory_populate_code(void *function)
    int64_t rt_memory_resident_bytes(void *address, size_t size)
    int64_t rt_memory_stack_left()
    int rt_memory_prefault_stack(size_t size)
    int rt_memory_ignores_limit()
    enum:
        RT_FUTURE_NOT_LOCKED
        RT_FUTURE_LOCKED
        RT_FUTURE_LOCKED_ONFAULT
    int rt_memory_future_lock()
    int rt_memory_lock_onfault(void *address, size_t size)
    int rt_memory_is_locked(void *address)
    int rt_memory_can_tell_locked()


cdef extern from "../include/rtloop/heap.h" nogil:
    int rt_heap_is_glibc()
    int rt_heap_tune()
    const char *rt_heap_owner(const char *function)
