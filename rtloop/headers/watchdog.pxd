"""Declarations of watchdog.h."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from rtloop._os cimport pthread_t
from rtloop.headers.loop cimport rt_loop_t, rt_stack_t, rt_thread_report_t, rt_thread_request_t
from rtloop.headers.telemetry cimport rt_telemetry_t


cdef extern from "../include/rtloop/watchdog.h" nogil:
    ctypedef struct rt_watched_t:
        rt_loop_t *loop
        const rt_telemetry_t *remote
        int64_t limit

    ctypedef struct rt_watchdog_t:
        int64_t interval
        uint64_t checks
        rt_thread_request_t request
        rt_thread_report_t report
        rt_stack_t stack
        pthread_t thread
        uint32_t phase
        uint32_t count
        rt_watched_t *loops

    uint64_t rt_watchdog_bytes(uint32_t count)
    void rt_watchdog_main(rt_watchdog_t *dog)
