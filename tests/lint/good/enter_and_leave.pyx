"""No release waits for enter and leave, nor for Python's setup and released: they may allocate, block and do I/O."""

from libc.stdio cimport FILE, fclose, fopen, fputs
from libc.stdlib cimport free, malloc
from posix.unistd cimport close, getpid, usleep, write
from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef int tell(const char *text) noexcept nogil:
    cdef FILE *file = fopen("/dev/null", "w")
    if file is NULL:
        return -1
    fputs(text, file)
    return fclose(file)


cdef class Loop(RTLoop):
    cdef int fd
    cdef double *table

    def setup(self):
        print("a file is opened here")
        self.fd = 1

    def released(self):
        print("another step is in place")

    cdef int enter(self) noexcept nogil:
        self.table = <double *>malloc(512 * sizeof(double))
        return RT_CONTINUE if self.table is not NULL and tell(b"entered") == 0 else -12

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        return RT_CONTINUE

    cdef int rest(self) noexcept nogil:
        for _ in range(100):
            if write(self.fd, b"0\n", 2) == 2:
                return getpid()
            usleep(1000)
        return -1

    cdef void leave(self) noexcept nogil:
        self.rest()
        tell(b"left")
        free(self.table)
        close(self.fd)
