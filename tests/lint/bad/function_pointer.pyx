"""A function whose address is taken will be called."""

from libc.stdio cimport puts
from libc.stdlib cimport qsort
from rtloop cimport RT_CONTINUE, Cycle, RTLoop

cdef int compare(const void *a, const void *b) noexcept nogil:
    puts("compare")  # BAD: io
    return 0


cdef class Loop(RTLoop):
    cdef int[8] items

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        qsort(self.items, 8, sizeof(int), &compare)
        return RT_CONTINUE
