"""mmap and its kin take locks, and map pages."""

from posix.mman cimport MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, mmap
from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Loop(RTLoop):
    cdef void *p

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.p = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)  # BAD: allocation
        return RT_CONTINUE
