"""Declarations of guard.h, guard_faults.h, guard_signal.h, and of seqlock.h, which they use."""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t, uintptr_t


cdef extern from "../include/rtloop/seqlock.h" nogil:
    ctypedef struct rt_seqlock_t:
        pass

    uint32_t rt_seqlock_read_begin(const rt_seqlock_t *lock)
    bint rt_seqlock_read_valid(const rt_seqlock_t *lock, uint32_t begin)


cdef extern from "../include/rtloop/guard.h" nogil:
    enum:
        RT_GUARD_FRAMES
        RT_GUARD_PLACES
        RT_GUARD_RANGES
        RT_GUARD_ALLOWED
        RT_GUARD_FAULTS_NONE
        RT_GUARD_FAULTS_BY_USAGE
        RT_GUARD_FAULTS_BY_SAMPLE

    ctypedef struct rt_violation_t:
        uint64_t cycle
        uint64_t last_cycle
        uint64_t count
        int64_t time
        int64_t last_time
        uint64_t detail
        uint64_t least
        uint64_t most
        uint64_t order
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
        rt_seqlock_t lock
        uint32_t places[4]
        uint64_t unkept[4]
        uint64_t traps
        uint64_t allowed[16]
        int32_t syscalls_rc
        int32_t faults_rc
        int32_t malloc_rc
        int32_t perf_fd[2]
        uint32_t ranges
        int (*malloc_attach)(rt_guard_t *guard, size_t size) noexcept nogil
        rt_code_t code[512]
        rt_violation_t violations[4][64]


cdef extern from "../include/rtloop/guard_signal.h" nogil:
    int rt_guard_register(rt_guard_t *guard, uintptr_t low, uintptr_t high)
    void rt_guard_unregister(const rt_guard_t *guard)
    int rt_guard_has_signal()


cdef extern from "../include/rtloop/guard_faults.h" nogil:
    void rt_guard_close_faults(rt_guard_t *guard)
