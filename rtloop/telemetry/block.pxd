from libc.stdint cimport uint64_t

from rtloop.headers.telemetry cimport rt_bank_t, rt_counters_t, rt_telemetry_t, rt_view_t


cdef class TelemetryReader:
    cdef rt_view_t view
    cdef readonly size_t size
    cdef int _attempts
    cdef object _log

    cdef object _open(self, const void *address, size_t size)
    cdef object _check(self, const rt_bank_t *bank)
    cdef object _thread_usage(self)
    cdef object _usage_since_begin(self, const rt_counters_t *counters)
    cdef bint _has_ended_soon(self)
    cdef object _records(self, uint64_t first, uint64_t last, uint64_t most)


cdef class TelemetryBlock(TelemetryReader):
    cdef rt_telemetry_t *block
    cdef readonly int fd
    cdef bint _is_locked
    cdef object _inode
