from rtloop.loop.thread cimport LoopThread


cdef class Control:
    cdef object __weakref__
    cdef readonly LoopThread thread
    cdef readonly object run
    cdef object _own_settings
    cdef object _lock
    cdef str _activity
    cdef str _outcome
    cdef bint _is_closed
    cdef readonly int runs
    cdef int _pid
    cdef object _starter
    cdef object _reaper
    cdef bint _is_stop_wanted
    cdef dict _simulation
    cdef object _raised
    cdef object _error
    cdef object _make_error
    cdef object _traceback
    cdef bint _is_reported
    cdef bint _is_settled
    cdef list _blocks
    cdef object _stats
    cdef object _make_stats_later

    cdef bint is_in_child(self) noexcept
    cdef bint is_simulated(self) noexcept
    cdef void note_raised(self, error) noexcept
