from rtloop.headers.guard cimport rt_guard_t, rt_violation_t


cdef class GuardBlock:
    cdef rt_guard_t *guard
    cdef bint _is_registered
    cdef public object migrated
    cdef public object moved

    cdef object _violation(self, const rt_violation_t *v)
