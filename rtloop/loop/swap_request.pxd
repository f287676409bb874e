from rtloop.headers.loop cimport rt_floats_t
from rtloop.loop.thread cimport LoopThread


cdef class SwapRequest:
    cdef LoopThread _thread
    cdef rt_floats_t _floats
    cdef tuple _float_addresses

    cdef const rt_floats_t *_find_floats(self, LoopThread other) except? NULL
