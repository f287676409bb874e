from rtloop.loop.thread cimport LoopThread


cdef class Control:
    cdef object __weakref__
    # What changes during the life is in the dict: without the GIL, one thread may replace an attribute while another
    # reads it, and Python makes both atomic. A field of C type object would be freed while it is read.
    cdef dict __dict__
    cdef readonly LoopThread thread

    cdef bint is_in_child(self) noexcept
    cdef bint is_simulated(self) noexcept
    cdef void note_raised(self, error) noexcept
