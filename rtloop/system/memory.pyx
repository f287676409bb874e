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
from typing import NamedTuple

from rtloop.system.text import read_text


cdef rt_fork_watch_t _watch
#: Flags of mlockall(2).
LOCK_CURRENT = MCL_CURRENT
LOCK_FUTURE = MCL_FUTURE
LOCK_ONFAULT = MCL_ONFAULT
# Whether the kernel tells of a single page that it is locked; asked once.
_can_tell_locked = None


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


cdef int lock_region_onfault(void *address, size_t size) noexcept nogil:
    return -errno if rt_memory_lock_onfault(address, size) else 0


cdef int unlock_region(void *address, size_t size) noexcept nogil:
    return -errno if munlock(address, size) else 0


def lock_everything(int flags, bint is_again_after_fork=True):
    """Call mlockall(2) with these flags; every fork is followed by the same lock in the parent.

    Parameters
    ----------
    flags : int
        ``MCL_CURRENT``, ``MCL_FUTURE`` and ``MCL_ONFAULT``, or-ed.
    is_again_after_fork : bool
        Whether to lock again in the parent after a fork.

    Returns
    -------
    int
        0, or a negative errno.
    """
    cdef int rc
    with nogil:
        rc = -errno if mlockall(flags) else 0
    if rc == 0:
        _watch.lock_flags = flags if is_again_after_fork else 0
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


def lock_range(size_t address, size_t size, bint onfault=False):
    """Lock a range of addresses, at once or as its pages are first touched. Returns 0 or a negative errno."""
    cdef int rc
    with nogil:
        rc = lock_region_onfault(<void *>address, size) if onfault else lock_region(<void *>address, size)
    return rc


def unlock_range(size_t address, size_t size):
    """Unlock a range of addresses. Returns 0 or a negative errno."""
    cdef int rc
    with nogil:
        rc = unlock_region(<void *>address, size)
    return rc


def is_range_locked(size_t address, size_t size):
    """Tell from the kernel whether a range, which was locked or not as a whole, is locked.

    Not for memory of hugetlbfs, which is never given back to the kernel and so never locked in its sense.
    """
    global _can_tell_locked
    if size == 0:
        return False
    if _can_tell_locked is None:
        _can_tell_locked = bool(rt_memory_can_tell_locked())
    if _can_tell_locked:
        return rt_memory_is_locked(<void *>address) == 1 and rt_memory_is_locked(<void *>(address + size - 1)) == 1
    last = address + size - 1
    locked = [m for m in mappings() if m.is_locked]
    return all(any(m.start <= x < m.start + m.size for m in locked) for x in (address, last))


def future_lock():
    """Tell what becomes of memory mapped from now on, by mapping a page and looking.

    Returns
    -------
    {None, "all", "onfault"}
        Not locked; locked and present at once; locked as it is first touched.
    """
    cdef int found = rt_memory_future_lock()
    if found == RT_FUTURE_LOCKED:
        return "all"
    if found == RT_FUTURE_LOCKED_ONFAULT:
        return "onfault"
    if found >= 0 or not _has_locked_memory():
        return None
    # An old kernel, and the page is not present: only the mapping's flags tell.
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        address = <size_t>_address_of(page)
        is_locked = any(m.is_locked and m.start <= address < m.start + m.size for m in mappings())
    return "onfault" if is_locked else None


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


class Mapping(NamedTuple):
    """One mapping of this process, in bytes, and how it is locked."""

    start: int
    size: int
    is_locked: bool
    is_onfault: bool


def mappings():
    """Return every mapping of this process with its lock, from ``/proc/self/smaps``: slow, for it visits all pages."""
    found = []
    start = end = 0
    for line in read_text("/proc/self/smaps").splitlines():
        if line.startswith("VmFlags:"):
            flags = line.split()
            found.append(Mapping(start, end - start, "lo" in flags, "lf" in flags))
        elif line[0] in "0123456789abcdef":
            span = line.split(" ", 1)[0].split("-")
            if len(span) == 2:
                start, end = int(span[0], 16), int(span[1], 16)
    return found


if pthread_atfork(NULL, _after_fork_in_parent, _after_fork_in_child):
    raise MemoryError("pthread_atfork failed")
