"""Lock of all memory after each fork, for cimport; see the module."""

cdef void lock_after_fork(int flags) noexcept nogil
cdef int lock_flags_after_fork() noexcept nogil
