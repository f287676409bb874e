"""Base of Ring and Latest. It adds no field, because ring.pxd and latest.pxd freeze the layout of an object."""


cdef class Exchange:
    pass
