"""The forms of rtloop.memory on addresses, called without the GIL."""

from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap

from rtloop.memory cimport (
    advise,
    disable_core_dumps,
    lock,
    lock_all,
    prefault,
    prefault_stack,
    raise_limit,
    tune_malloc,
    unlock,
    unlock_all,
)


cdef class Mapped:
    """Pages of one's own, between two that cannot be touched, so that the kernel joins them to no neighbour."""

    cdef readonly size_t address, size
    cdef char *base

    def __cinit__(self, size_t size):
        self.size = size
        self.base = <char *>mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if self.base == MAP_FAILED:
            raise MemoryError
        self.address = <size_t>self.base

    def __dealloc__(self):
        munmap(self.base, self.size)

    def lock(self, bint onfault):
        with nogil:
            rc = lock(self.base, self.size, onfault)
        return rc

    def unlock(self):
        with nogil:
            rc = unlock(self.base, self.size)
        return rc

    def prefault(self):
        with nogil:
            rc = prefault(self.base, self.size)
        return rc

    def advise(self, int advice):
        with nogil:
            rc = advise(self.base, self.size, advice)
        return rc


def everything(bint current, bint future, bint onfault):
    with nogil:
        rc = lock_all(current, future, onfault)
    return rc


def nothing():
    with nogil:
        rc = unlock_all()
    return rc


def stack(size_t size):
    with nogil:
        rc = prefault_stack(size)
    return rc


def practice():
    """Return what raise_limit, disable_core_dumps and tune_malloc return."""
    with nogil:
        a = raise_limit()
        b = disable_core_dumps()
        c = tune_malloc()
    return a, b, c
