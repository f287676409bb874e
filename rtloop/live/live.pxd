from rtloop.headers.live cimport rt_live_t


cdef class Live:
    cdef rt_live_t *_state
    # What changes during the life is in the dict, because other threads read it (see lifecycle.pxd).
    cdef dict __dict__
