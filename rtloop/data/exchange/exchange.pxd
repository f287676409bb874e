"""Base of Ring and Latest. It adds nothing to an object, whose layout ring.pxd and latest.pxd freeze."""


cdef class Exchange:
    pass
