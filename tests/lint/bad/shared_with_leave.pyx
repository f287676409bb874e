"""Functions that leave shares with step or with wait: the stricter contract holds."""

from libc.stdint cimport int64_t
from libc.stdio cimport fputs, stderr
from libc.stdlib cimport free, malloc
from posix.unistd cimport usleep
from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef int tell(const char *text) noexcept nogil:
    return fputs(text, stderr)  # BAD: io


cdef int settle() noexcept nogil:
    usleep(100)
    cdef void *scratch = malloc(64)  # BAD: allocation
    free(scratch)  # BAD: allocation
    return RT_CONTINUE


cdef class Loop(RTLoop):
    cdef int enter(self) noexcept nogil:
        return settle()

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        return RT_CONTINUE

    cdef int take_over(self, RTLoop former, const Cycle *cycle) noexcept nogil:
        return RT_CONTINUE if tell(b"taken over") >= 0 else -5

    cdef int wait(self, int64_t release) noexcept nogil:
        return settle()

    cdef void leave(self) noexcept nogil:
        tell(b"left")
        settle()
