"""Declarations of latest.h."""

from libc.stdint cimport int64_t, uint64_t


cdef extern from "../include/rtloop/latest.h" nogil:
    ctypedef struct rt_latest_t:
        uint64_t value_bytes
        int64_t clock
        int64_t is_settable
        int64_t written_at_monotonic

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
