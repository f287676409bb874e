cdef class Storage:
    cdef void *_address
    cdef size_t _size
    cdef object _unlock
    cdef readonly object grant
    # `ends`, of an exchange between two loops: who writes and who reads. In the dict, because a field must not be
    # replaced while another thread reads it without the GIL.
    cdef dict __dict__
