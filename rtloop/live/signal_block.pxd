from rtloop.headers.live cimport rt_broadcast_reader_t, rt_sampler_t


cdef class SignalBlock:
    cdef void *_address
    cdef readonly size_t size
    cdef object __weakref__

    cdef int _check(self) except -1


cdef class ForeignSignals(SignalBlock):
    pass


cdef class OwnSignals(SignalBlock):
    cdef rt_sampler_t *_sampler
    cdef int _fd
    cdef readonly object inode
    cdef readonly object refusal
    cdef readonly object pid


cdef class Cursor:
    cdef rt_broadcast_reader_t _reader
    cdef readonly SignalBlock block
