from rtloop.telemetry.block cimport TelemetryReader


cdef class PeerBlock(TelemetryReader):
    cdef void *_address
    cdef object _ask
