"""Declarations of telemetry.h and telemetry_view.h."""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t


cdef extern from "../include/rtloop/telemetry.h" nogil:
    enum:
        RT_GUARD_KINDS
        RT_HISTOGRAM_BINS
        RT_LATENCY
        RT_EXECUTION
        RT_RESPONSE
        RT_INTERVAL
        RT_WAITING
        RT_BANK_BYTES "sizeof(rt_bank_t)"  # its last field has no size in Cython

    ctypedef struct rt_histogram_t:
        int64_t min
        int64_t max
        int64_t sum
        uint64_t squares_low
        uint64_t squares_high

    ctypedef struct rt_usage_t:
        int64_t minor_faults
        int64_t major_faults
        int64_t voluntary_switches
        int64_t involuntary_switches

    ctypedef struct rt_counters_t:
        uint64_t cycles
        uint64_t missed
        uint64_t overruns
        uint64_t late
        uint64_t stalls
        uint64_t warmup
        uint64_t first_record
        int64_t shifted
        int64_t first_release
        int64_t last_end
        uint64_t clock_steps
        int64_t clock_gap
        int64_t step_sizes[16]
        uint64_t step_records[16]
        rt_usage_t usage_begin
        rt_usage_t usage_end
        uint64_t guard[4]
        uint64_t device_cycles
        uint64_t device_missed

    ctypedef struct rt_bank_t:
        rt_counters_t counters
        rt_histogram_t *histograms

    ctypedef struct rt_record_t:
        int64_t release
        int64_t start
        int64_t end

    ctypedef struct rt_telemetry_t:
        uint64_t text_bytes
        int64_t pid
        int64_t tid
        int64_t period
        int64_t phase
        int32_t clock
        int32_t policy
        int32_t priority
        int32_t cpu
        char name[64]
        uint32_t active
        uint32_t ended
        uint32_t end_reason
        uint64_t written
        rt_bank_t banks[2]

    uint64_t rt_telemetry_bytes(uint64_t capacity, uint64_t text)
    void rt_histogram_counts(const rt_histogram_t *h, uint64_t *counts)
    void rt_telemetry_init(rt_telemetry_t *t, uint64_t capacity, uint64_t keep, uint64_t text)
    int rt_telemetry_write_text(rt_telemetry_t *t, const char *text, uint64_t size)
    uint64_t rt_telemetry_count_device_cycle(rt_telemetry_t *t, uint64_t number)
    void rt_bank_clear(rt_bank_t *bank)
    int rt_telemetry_snapshot(const rt_telemetry_t *t, rt_bank_t *to, uint64_t *written, int tries)


cdef extern from "../include/rtloop/telemetry_view.h" nogil:
    enum:
        RT_VIEW_MAX_RECORDS
        RT_VIEW_MAX_TEXT
        RT_VIEW_OK
        RT_VIEW_SHORT
        RT_VIEW_MAGIC
        RT_VIEW_VERSION
        RT_VIEW_HEADER
        RT_VIEW_RECORDS
        RT_VIEW_TEXT
        RT_VIEW_TOTAL
        RT_TELEMETRY_VERSION

    ctypedef struct rt_view_t:
        const rt_telemetry_t *block
        uint64_t record_capacity
        uint64_t text_capacity
        uint32_t version

    int rt_view_open(rt_view_t *view, const void *address, uint64_t size)
    bint rt_view_is_sound(const rt_bank_t *bank)
    uint64_t rt_view_count(const rt_view_t *view, uint64_t first, uint64_t last, uint64_t most)
    uint64_t rt_view_copy_records(const rt_view_t *view, rt_record_t *to, uint64_t last, uint64_t count)
    int64_t rt_view_copy_text(const rt_view_t *view, char *to)
