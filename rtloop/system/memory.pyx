"""Memory locking for one process: a thin face of mlock(2), mlockall(2) and mallopt(3).

The kernel's locks do not nest, and a lock of everything belongs to the whole process: what several loops share is
counted in :mod:`rtloop.system.process`, which calls these functions.
"""

from libc.errno cimport errno

from rtloop._os cimport (
    M_MMAP_MAX,
    M_TRIM_THRESHOLD,
    MCL_CURRENT,
    MCL_FUTURE,
    MCL_ONFAULT,
    mallopt,
    mlock,
    mlockall,
    munlock,
    munlockall,
    pthread_atfork,
)

import mmap

from rtloop.system.text import read_text


cdef rt_fork_watch_t _watch


cdef void _after_fork_in_parent() noexcept nogil:
    # The fork made every locked private page copy-on-write: locking again breaks that here, not in a cycle.
    _watch.forks += 1
    if _watch.lock_flags:
        mlockall(_watch.lock_flags)


cdef void _after_fork_in_child() noexcept nogil:
    # Memory locks are not inherited (mlockall(2)).
    _watch.lock_flags = 0


cdef int lock_region(void *address, size_t size) noexcept nogil:
    return -errno if mlock(address, size) else 0


cdef int unlock_region(void *address, size_t size) noexcept nogil:
    return -errno if munlock(address, size) else 0


def lock_everything(bint onfault=False):
    """Lock all present and future memory of the process; every fork is followed by the same lock in the parent.

    Returns
    -------
    int
        0, or a negative errno.
    """
    cdef int flags = MCL_CURRENT | MCL_FUTURE | (MCL_ONFAULT if onfault else 0)
    cdef int rc
    with nogil:
        rc = -errno if mlockall(flags) else 0
    if rc == 0:
        _watch.lock_flags = flags
    return rc


def forget_lock():
    """Lock nothing more after a fork, though what is locked stays so."""
    _watch.lock_flags = 0


def unlock_everything():
    """Undo every lock of the process. Returns 0 or a negative errno."""
    cdef int rc
    _watch.lock_flags = 0
    with nogil:
        rc = -errno if munlockall() else 0
    return rc


def lock_range(size_t address, size_t size):
    """Lock a range of addresses. Returns 0 or a negative errno."""
    return lock_region(<void *>address, size)


def unlock_range(size_t address, size_t size):
    """Unlock a range of addresses. Returns 0 or a negative errno."""
    return unlock_region(<void *>address, size)


def is_future_locked():
    """Tell whether memory mapped from now on is locked, at once or on its first use, by mapping a page and looking."""
    if rt_memory_is_future_locked() == 1:
        return True
    # With MCL_ONFAULT the page is not present, and only the mapping's flags tell.
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        if not _has_locked_memory():  # spares a loop's start the long list of mappings
            return False
        address = <size_t>_address_of(page)
        return any(start <= address < start + size for start, size in locked_ranges())


cdef void *_address_of(object buffer) except NULL:
    cdef unsigned char[::1] view = buffer
    return &view[0]


def _has_locked_memory():
    lines = read_text("/proc/self/status").splitlines()
    return any(line.startswith("VmLck:") and line.split()[1] != "0" for line in lines)


def fork_count():
    """Return how often this process has forked with the C library's fork()."""
    return _watch.forks


def tune_malloc():
    """Keep glibc from giving memory back to the kernel and from mapping large blocks afresh.

    Process-wide and for good: ``M_TRIM_THRESHOLD`` to -1, ``M_MMAP_MAX`` to 0 (mallopt(3)).

    Returns
    -------
    bool
        Whether the C library accepted both.
    """
    return mallopt(M_TRIM_THRESHOLD, -1) == 1 and mallopt(M_MMAP_MAX, 0) == 1


def locked_ranges():
    """Return (start, size) of every locked mapping of this process, from ``/proc/self/smaps``."""
    ranges = []
    start = end = 0
    for line in read_text("/proc/self/smaps").splitlines():
        if line.startswith("VmFlags:"):
            if "lo" in line.split():
                ranges.append((start, end - start))
        elif line[0] in "0123456789abcdef":
            span = line.split(" ", 1)[0].split("-")
            if len(span) == 2:
                start, end = int(span[0], 16), int(span[1], 16)
    return ranges


if pthread_atfork(NULL, _after_fork_in_parent, _after_fork_in_child):
    raise MemoryError("pthread_atfork failed")
