"""An exception in enter, which may otherwise allocate and block."""

from libc.stdlib cimport calloc
from rtloop cimport RT_CONTINUE, RTLoop


cdef class Loop(RTLoop):
    cdef double *table
    cdef object log

    cdef int enter(self) noexcept nogil:
        self.table = <double *>calloc(512, sizeof(double))
        if self.table is NULL:
            raise MemoryError("no table")  # BAD: raise
        return RT_CONTINUE
