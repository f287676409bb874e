"""Cost of a call of clock_gettime(2)."""

from libc.stdint cimport int64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from rtloop._os cimport SYS_clock_gettime, syscall

import errno

from rtloop.errors import setup_error

cdef enum:
    BATCHES = 40    # the shortest one counts, because others may have been interrupted
    CALLS = 200


cdef inline int64_t now() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t>t.tv_sec * 1000000000 + t.tv_nsec


cdef double cost(int clock, bint is_bare) noexcept nogil:
    cdef timespec t
    cdef int64_t begin, least = -1, taken
    for _ in range(BATCHES):
        begin = now()
        for _ in range(CALLS):
            if is_bare:
                syscall(SYS_clock_gettime, <long>clock, &t)
            else:
                clock_gettime(clock, &t)
        taken = now() - begin
        if least < 0 or taken < least:
            least = taken
    return <double>least / CALLS


def clock_cost(int clock):
    """Return the cost of one call of clock_gettime(2), and of the same as a bare system call, in nanoseconds.

    It is the smallest mean of many short batches; the calling thread is busy for some milliseconds.

    Parameters
    ----------
    clock : int
        Number of the clock, such as ``time.CLOCK_MONOTONIC``.

    Raises
    ------
    SetupError
        EINVAL for a clock that the kernel does not have.
    """
    cdef timespec t
    if clock_gettime(clock, &t):
        raise setup_error(errno.EINVAL, f"clock {clock} does not exist in this kernel")
    cdef double call, bare
    with nogil:
        call = cost(clock, False)
        bare = cost(clock, True)
    return call, bare
