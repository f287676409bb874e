"""Findings that are accepted, each with a reason."""

from libc.stdio cimport puts
from libc.stdlib cimport free, malloc
from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Loop(RTLoop):
    cdef int n

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        puts("x")  # rtloop: allow puts: shown to be accepted
        # rtloop: allow malloc, free: of the same size each time
        # The heap is tuned.
        free(
            malloc(8)
        )
        self.n = self.n // 2  # rtloop: allow division: it has to round down
        with gil:  # rtloop: allow gil: once an hour
            print(1)
        return RT_CONTINUE
