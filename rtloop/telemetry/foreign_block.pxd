from rtloop.telemetry.block cimport TelemetryReader


cdef class ForeignBlock(TelemetryReader):
    cdef void *_address
    cdef object _read_usage
