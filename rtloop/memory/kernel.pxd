"""Locking and mapping, for cimport: each returns 0 or a negative errno, never raises, and needs no GIL.

All of them enter the kernel and may take long: they are for set-up, for enter() and leave(), and not for step().
"""

cdef int lock_region(void *address, size_t size, bint onfault) noexcept nogil
cdef int unlock_region(void *address, size_t size) noexcept nogil
cdef int lock_all_memory(bint current, bint future, bint onfault) noexcept nogil
cdef int unlock_all_memory() noexcept nogil
cdef int prefault_region(void *address, size_t size) noexcept nogil
cdef int prefault_stack_region(size_t size) noexcept nogil
cdef int advise_region(void *address, size_t size, int advice) noexcept nogil
cdef int tune_heap() noexcept nogil
cdef int raise_memlock_limit() noexcept nogil
cdef int forbid_core_dumps() noexcept nogil
