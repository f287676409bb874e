cdef class Storage:
    cdef void *_address
    cdef size_t _size
    cdef object _unlock
    cdef readonly object grant
    cdef public object ends  # of an exchange between two loops: who writes and who reads
