"""Declarations of live.h, parameters.h, sampler.h and broadcast.h."""

from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef extern from "../include/rtloop/parameters.h" nogil:
    enum:
        RT_PARAMETERS_MAX
        RT_PARAMETERS_MAX_BYTES
        RT_PARAMETERS_MAX_TEXT
        RT_PARAMETERS_VERSION
        RT_PARAMETER_BOOL
        RT_PARAMETER_I1
        RT_PARAMETER_I2
        RT_PARAMETER_I4
        RT_PARAMETER_I8
        RT_PARAMETER_U1
        RT_PARAMETER_U2
        RT_PARAMETER_U4
        RT_PARAMETER_U8
        RT_PARAMETER_F4
        RT_PARAMETER_F8

    ctypedef union rt_parameter_limit_t:
        double real
        int64_t whole
        uint64_t natural

    ctypedef struct rt_parameter_t:
        void *address
        uint32_t offset
        uint32_t bytes
        uint32_t count
        uint32_t type
        rt_parameter_limit_t low
        rt_parameter_limit_t high

    ctypedef struct rt_parameters_writer_t:
        int64_t pid
        int64_t tid
        int64_t time
        char host[64]
        char program[40]

    ctypedef struct rt_parameters_block_t:
        int64_t pid
        uint32_t has_ended

    ctypedef struct rt_parameters_record_t:
        uint64_t number
        uint64_t cycle
        rt_parameters_writer_t writer

    ctypedef struct rt_parameters_view_t:
        rt_parameters_block_t *block
        uint64_t set_bytes
        uint64_t text_bytes

    ctypedef struct rt_parameters_t:
        rt_parameters_view_t view
        const rt_parameter_t *items
        uint64_t count
        char *staged
        char *records
        uint64_t capacity
        uint64_t written
        uint64_t *used

    uint64_t rt_parameters_bytes(uint64_t set_bytes, uint64_t text_bytes)
    uint64_t rt_parameters_record_bytes(uint64_t set_bytes)
    char *rt_parameters_text(const rt_parameters_view_t *view)
    void rt_parameters_prepare(rt_parameters_t *p, const char *place, int64_t pid)
    void rt_parameters_begin(rt_parameters_t *p, const char *place, int64_t pid)
    int rt_parameters_is_sound(const rt_parameter_t *items, uint64_t count, const char *values)
    int rt_parameters_publish(const rt_parameters_view_t *view, const char *place)
    int rt_parameters_read_asked(const rt_parameters_view_t *view, char *place, uint64_t *number, int tries)
    int rt_parameters_read_shown(const rt_parameters_view_t *view, char *values, uint64_t *about, int tries)
    int rt_parameters_read_used(const rt_parameters_t *p, char *values, uint64_t *about, int tries)
    uint64_t rt_parameters_copy_records(
        const rt_parameters_t *p, uint64_t first, char *to, uint64_t most, uint64_t *first_copied)
    int rt_parameters_open(rt_parameters_view_t *view, void *address, uint64_t size)
    void rt_parameters_end(rt_parameters_block_t *block)


cdef extern from "../include/rtloop/sampler.h" nogil:
    ctypedef struct rt_broadcast_t:
        uint64_t written

    ctypedef struct rt_broadcast_writer_t:
        rt_broadcast_t *block

    ctypedef struct rt_broadcast_reader_t:
        const rt_broadcast_t *block
        const char *text
        uint64_t text_bytes
        uint64_t record_bytes
        uint64_t places
        uint64_t position
        uint64_t lost

    enum:
        RT_BROADCAST_OK
        RT_BROADCAST_SHORT
        RT_BROADCAST_MAGIC_
        RT_BROADCAST_VERSION_
        RT_BROADCAST_SIZES

    uint64_t rt_broadcast_places(uint64_t capacity)
    uint64_t rt_broadcast_bytes(uint64_t record_bytes, uint64_t places, uint64_t text_bytes)
    int rt_broadcast_init(
        rt_broadcast_writer_t *writer, rt_broadcast_t *block, uint64_t record_bytes, uint64_t places, const char *text,
        uint64_t length, uint64_t text_bytes
    )
    int rt_broadcast_open(rt_broadcast_reader_t *reader, const void *address, uint64_t size, int is_from_oldest)
    uint64_t rt_broadcast_available(const rt_broadcast_reader_t *reader)
    uint64_t rt_broadcast_read(rt_broadcast_reader_t *reader, char *to, uint64_t most, uint64_t *first)
    int rt_broadcast_latest(const rt_broadcast_reader_t *reader, char *to, int tries)

    ctypedef struct rt_sampler_t:
        rt_broadcast_writer_t writer

    ctypedef struct rt_sampling_t:
        pass

    void rt_sampler_init(rt_sampler_t *sampler, uint64_t every)
    int64_t rt_sampler_add(rt_sampler_t *sampler, const void *address, uint32_t size)
    uint64_t rt_sampler_stride(const rt_sampler_t *sampler)


cdef extern from "../include/rtloop/live.h" nogil:
    ctypedef struct rt_live_t:
        const uint64_t *state

    void rt_live_init(rt_live_t *live)
    void rt_live_use_parameters(rt_live_t *live, rt_parameters_t *parameters)
    void rt_live_use_sampler(rt_live_t *live, rt_sampler_t *sampler)
