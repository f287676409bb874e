"""Thin wrappers of mlock(2), mlockall(2), madvise(2), mallopt(3) and their relatives.

The kernel's locks do not nest, and mlockall(2) concerns the whole process. :mod:`rtloop.memory.process_lock` counts
what several loops share, and calls these functions.
"""

from libc.errno cimport EOPNOTSUPP, EPERM, errno
from posix.resource cimport RLIM_INFINITY, RLIMIT_CORE, getrlimit, rlimit, setrlimit

from rtloop._os cimport (
    MCL_CURRENT,
    MCL_FUTURE,
    MCL_ONFAULT,
    RLIMIT_MEMLOCK,
    madvise,
    mlock,
    mlockall,
    munlock,
    munlockall,
)
from rtloop.headers.memory cimport (
    RT_FUTURE_LOCKED,
    RT_FUTURE_LOCKED_ONFAULT,
    rt_heap_is_glibc,
    rt_heap_owner,
    rt_heap_tune,
    rt_memory_can_tell_locked,
    rt_memory_future_lock,
    rt_memory_ignores_limit,
    rt_memory_is_locked,
    rt_memory_lock_onfault,
    rt_memory_populate,
    rt_memory_prefault_stack,
)
from rtloop.memory.forks cimport lock_after_fork, lock_flags_after_fork

import mmap
import os

from rtloop.memory.smaps import mappings
from rtloop.system.fileio import parse_fields, read_text


#: Flags of mlockall(2).
LOCK_CURRENT = MCL_CURRENT
LOCK_FUTURE = MCL_FUTURE
LOCK_ONFAULT = MCL_ONFAULT
# True if the kernel can report whether a single page is locked; determined once.
_can_tell_locked = None


cdef int lock_region(void *address, size_t size, bint onfault) noexcept nogil:
    """Lock the pages of a range, now or as each is first touched (mlock2(2)).

    It is not counted: when a loop that locks everything ends, the range is unlocked as well, unless it was locked
    before that loop started.
    """
    if onfault:
        return -errno if rt_memory_lock_onfault(address, size) else 0
    return -errno if mlock(address, size) else 0


cdef int unlock_region(void *address, size_t size) noexcept nogil:
    """Unlock the pages of a range (munlock(2)), no matter who locked them."""
    return -errno if munlock(address, size) else 0


cdef int lock_all_memory(bint current, bint future, bint onfault) noexcept nogil:
    """Lock current memory, future memory, or both (mlockall(2)).

    -EPERM under a finite RLIMIT_MEMLOCK without CAP_IPC_LOCK, because later allocations, thread starts and the growth
    of the stack would fail.
    """
    cdef int flags = (MCL_CURRENT if current else 0) | (MCL_FUTURE if future else 0) | (MCL_ONFAULT if onfault else 0)
    cdef rlimit limit
    if getrlimit(RLIMIT_MEMLOCK, &limit):
        return -errno
    if limit.rlim_cur != RLIM_INFINITY and not rt_memory_ignores_limit():
        return -EPERM
    return -errno if mlockall(flags) else 0


cdef int unlock_all_memory() noexcept nogil:
    """Undo every lock of the process (munlockall(2)), those of running loops included."""
    lock_after_fork(0)
    return -errno if munlockall() else 0


cdef int prefault_region(void *address, size_t size) noexcept nogil:
    """Read and write back every page of a writable range, so that its first use in a cycle does not fault."""
    return rt_memory_populate(address, size, True)


cdef int prefault_stack_region(size_t size) noexcept nogil:
    """Touch the next `size` bytes of the calling thread's stack; -ENOSPC if less than that is left."""
    return rt_memory_prefault_stack(size)


cdef int advise_region(void *address, size_t size, int advice) noexcept nogil:
    """Call madvise(2) with one of its MADV_ numbers; `address` must be the start of a page."""
    return -errno if madvise(address, size, advice) else 0


cdef int tune_heap() noexcept nogil:
    """Keep glibc from returning memory to the kernel and from mapping large blocks.

    -EOPNOTSUPP if it refuses, or if the malloc of another library serves the process.
    """
    return rt_heap_tune()


cdef int raise_memlock_limit() noexcept nogil:
    """Raise RLIMIT_MEMLOCK to infinity if that is allowed, else to the hard limit."""
    cdef rlimit limit, wanted
    if getrlimit(RLIMIT_MEMLOCK, &limit):
        return -errno
    wanted.rlim_cur = wanted.rlim_max = RLIM_INFINITY
    if not setrlimit(RLIMIT_MEMLOCK, &wanted):
        return 0
    limit.rlim_cur = limit.rlim_max
    return -errno if setrlimit(RLIMIT_MEMLOCK, &limit) else 0


cdef int forbid_core_dumps() noexcept nogil:
    """Set RLIMIT_CORE to 0, so that a crash does not write the process's memory to disk."""
    cdef rlimit limit
    if getrlimit(RLIMIT_CORE, &limit):
        return -errno
    limit.rlim_cur = 0
    return -errno if setrlimit(RLIMIT_CORE, &limit) else 0


def lock_everything(int flags, bint is_again_after_fork=True):
    """Call mlockall(2) with these flags; every fork is followed by the same lock in the parent.

    Parameters
    ----------
    flags : int
        ``MCL_CURRENT``, ``MCL_FUTURE`` and ``MCL_ONFAULT``, or-ed.
    is_again_after_fork : bool
        False not to lock again in the parent after a fork.

    Returns
    -------
    int
        0, or a negative errno.
    """
    cdef int rc
    cdef int former = lock_flags_after_fork()
    # Set the flags first: a concurrent fork on another thread must not lock again with the former ones.
    lock_after_fork(flags if is_again_after_fork else 0)
    with nogil:
        rc = -errno if mlockall(flags) else 0
    if rc:
        lock_after_fork(former)
    return rc


def forget_lock():
    """Stop locking again after forks; present locks stay."""
    lock_after_fork(0)


def unlock_everything():
    """Undo every lock of the process. Returns 0 or a negative errno."""
    cdef int rc
    lock_after_fork(0)
    with nogil:
        rc = -errno if munlockall() else 0
    return rc


def lock_range(size_t address, size_t size, bint onfault=False):
    """Lock a range of addresses, at once or as its pages are first touched. Returns 0 or a negative errno."""
    cdef int rc
    with nogil:
        rc = lock_region(<void *>address, size, onfault)
    return rc


def unlock_range(size_t address, size_t size):
    """Unlock a range of addresses. Returns 0 or a negative errno."""
    cdef int rc
    with nogil:
        rc = unlock_region(<void *>address, size)
    return rc


def is_range_locked(size_t address, size_t size):
    """Ask the kernel whether a range is locked. The range must have been locked, or not, as a whole.

    Use it only for a range that should be locked. On one that is not, the query makes its pages the first to be paged
    out, and splits a transparent huge page. Memory of hugetlbfs never counts as locked.
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
    """Determine whether the kernel locks new mappings, by mapping a page.

    Returns
    -------
    {None, "all", "onfault"}
        Not locked; locked and present at once; locked when first touched.
    """
    cdef int found = rt_memory_future_lock()
    if found == RT_FUTURE_LOCKED:
        return "all"
    if found == RT_FUTURE_LOCKED_ONFAULT:
        return "onfault"
    if found >= 0 or not _has_locked_memory():
        return None
    # An old kernel, or a filter that forbids mincore(2): only the mapping's flags tell.
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        address = <size_t>_address_of(page)
        its = next((m for m in mappings() if m.is_locked and m.start <= address < m.start + m.size), None)
    if its is None:
        return None
    return "onfault" if its.is_onfault or found == -EOPNOTSUPP else "all"


cdef void *_address_of(object buffer) except NULL:
    cdef unsigned char[::1] view = buffer
    return &view[0]


def _has_locked_memory():
    return parse_fields(read_text("/proc/self/status")).get("VmLck", "0 kB") != "0 kB"


def tune_malloc():
    """Keep glibc from returning memory to the kernel and from mapping large blocks.

    Sets ``M_TRIM_THRESHOLD`` to -1 and ``M_MMAP_MAX`` to 0 (mallopt(3)), permanently and for the whole process.

    Returns
    -------
    bool
        True if glibc accepted both, and its malloc serves the process.
    """
    return tune_heap() == 0


def is_glibc_heap():
    """Return True if glibc's malloc serves the process; may allocate a block to find out."""
    return rt_heap_is_glibc() == 1


def heap_owner(str function="malloc"):
    """Return the path of the library or the program that contains a function of the heap, None if there is none."""
    name = function.encode()
    cdef const char *path = rt_heap_owner(name)
    return None if path is NULL else os.fsdecode(<bytes>path)
