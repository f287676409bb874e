"""Python in the methods that Python calls."""

from libc.stdio cimport printf
from libc.stdlib cimport free, malloc
from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Loop(RTLoop):
    cdef void *p

    def setup(self):
        self.p = malloc(64)
        print([1, 2, 3])

    def close(self):
        super().close()
        free(self.p)

    cdef int unused(self) nogil:
        printf("never called")
        return 0

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        return RT_CONTINUE
