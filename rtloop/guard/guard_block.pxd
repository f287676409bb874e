from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t


cdef extern from "../include/rtloop/guard.h" nogil:
    enum:
        RT_GUARD_FRAMES
        RT_GUARD_SLOTS
        RT_GUARD_KEEP
        RT_GUARD_RANGES
        RT_GUARD_ALLOWED
        RT_GUARD_FAULTS_NONE
        RT_GUARD_FAULTS_BY_USAGE
        RT_GUARD_FAULTS_BY_SAMPLE

    ctypedef struct rt_violation_t:
        uint64_t cycle
        int64_t time
        uint64_t detail
        uint64_t frames[24]
        uint32_t kind
        uint32_t function

    ctypedef struct rt_code_t:
        uint64_t low
        uint64_t high
        uint64_t is_user

    ctypedef struct rt_guard_t:
        int32_t faults
        int32_t is_stopping
        uint64_t warmup
        uint64_t written
        uint64_t first
        uint64_t traps
        uint64_t allowed[16]
        int32_t syscalls_rc
        int32_t faults_rc
        int32_t malloc_rc
        int32_t perf_fd[2]
        uint32_t ranges
        int (*malloc_attach)(rt_guard_t *guard, size_t size) noexcept nogil
        rt_code_t code[512]
        rt_violation_t violations[512]


cdef class GuardBlock:
    cdef rt_guard_t *guard
    cdef bint _is_registered
    cdef public object migrated
    cdef public object moved

    cdef object _violation(self, const rt_violation_t *v)
