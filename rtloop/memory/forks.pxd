"""Actions before and after a fork, for cimport; see the module."""

from rtloop.headers.loop cimport rt_stack_t


cdef void keep_stack_in_own_forks(rt_stack_t *stack) noexcept nogil
cdef void lock_after_fork(int flags) noexcept nogil
cdef int lock_flags_after_fork() noexcept nogil
