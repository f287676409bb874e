from rtloop.loop.thread cimport ThreadHolder


cdef class Control(ThreadHolder):
    cdef object __weakref__
    cdef str _state
    cdef object _lock
    cdef object _stats
    cdef object _error
    cdef bint _is_told
    cdef str _former_state
    cdef object _starter
    cdef bint _is_stop_wanted
    cdef dict _simulation
    cdef object raised
    cdef object _traceback
    cdef object _own_settings

    cdef bint _is_in_child(self) noexcept
    cdef object _reap(self)
    cdef bint _is_reset_pending(self)
