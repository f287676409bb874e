"""pymem and its kin take locks, and map pages."""

from cpython.mem cimport PyMem_RawMalloc
from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Loop(RTLoop):
    cdef void *p

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.p = PyMem_RawMalloc(64)  # BAD: allocation
        return RT_CONTINUE
