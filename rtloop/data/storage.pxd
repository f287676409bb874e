cdef class Storage:
    cdef void *_address
    cdef size_t _size
    cdef object _unlock
    cdef readonly object grant
    # `ends`, of an exchange between two loops: who writes and who reads. In the dict, because a field must not be
    # replaced while another thread reads it without the GIL.
    cdef dict __dict__


cdef class SharedStorage:
    cdef void *_address
    cdef size_t _size
    cdef size_t _private
    cdef object _unlock
    cdef readonly object file
    cdef readonly object grant
    cdef dict __dict__
    cdef object __weakref__

    cdef void *closed(self)
    cdef void *private_end(self)
