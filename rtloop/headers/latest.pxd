"""Declarations of latest.h and shared_latest.h."""

from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef extern from "../include/rtloop/latest.h" nogil:
    const int64_t RT_LATEST_NEVER

    ctypedef struct rt_latest_t:
        uint64_t value_bytes
        int64_t clock
        int64_t is_settable
        int64_t written_at_monotonic
        uint32_t awaited

    uint64_t rt_latest_bytes(uint64_t value_bytes)
    int rt_latest_init(rt_latest_t *latest, uint64_t value_bytes)
    void rt_latest_write(rt_latest_t *latest, const void *value)
    int rt_latest_read(rt_latest_t *latest, void *value)
    int rt_latest_is_new(const rt_latest_t *latest)
    uint64_t rt_latest_written(const rt_latest_t *latest)
    void rt_latest_write_at(rt_latest_t *latest, const void *value, int64_t time)
    int64_t rt_latest_age(const rt_latest_t *latest, int64_t now)
    int64_t rt_latest_age_cycles(const rt_latest_t *latest, int64_t now, int64_t period)
    int64_t rt_latest_written_at(const rt_latest_t *latest)


cdef extern from "../include/rtloop/shared_latest.h" nogil:
    ctypedef struct rt_shared_latest_block_t:
        int64_t written_at
        int64_t written_at_monotonic
        uint32_t awaited

    ctypedef struct rt_shared_latest_t:
        rt_latest_t base
        rt_shared_latest_block_t *block

    uint64_t rt_shared_latest_bytes(uint64_t value_bytes, uint64_t readers)
    int rt_shared_latest_open(
        rt_shared_latest_t *s, rt_shared_latest_block_t *block, uint64_t value_bytes, uint64_t readers)
    void rt_shared_latest_begin_writing(rt_shared_latest_t *s)
    int rt_shared_latest_begin_reading(rt_shared_latest_t *s, uint32_t reader)
    void rt_shared_latest_write(rt_shared_latest_t *s, const void *value)
    void rt_shared_latest_write_at(rt_shared_latest_t *s, const void *value, int64_t time)
    int rt_shared_latest_read(rt_shared_latest_t *s, void *value)
    int64_t rt_shared_latest_age(const rt_shared_latest_t *s, int64_t now)
    int64_t rt_shared_latest_age_cycles(const rt_shared_latest_t *s, int64_t now, int64_t period)
    uint64_t rt_shared_latest_written(const rt_shared_latest_t *s)
    int rt_shared_latest_is_new(const rt_shared_latest_t *s)
