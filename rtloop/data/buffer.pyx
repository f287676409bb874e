"""Large buffers on huge pages. The mapping is in include/rtloop/hugepage.h, what is asked and said in backing.py."""

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.exc cimport PyErr_Fetch, PyErr_Restore
from cpython.object cimport PyObject, PyTypeObject
from libc.stdint cimport int64_t

from rtloop.data.fork_registry cimport drop_region, keep_region, rt_region_t

import errno
import math
import os
import resource
import warnings

import numpy as np

from rtloop.data import buffer_request as asking
from rtloop.data.dtypes import plain_dtype
from rtloop.errors import RTSetupWarning, StateError
from rtloop.memory import hugepages
from rtloop.memory.process_lock import memory_lock
from rtloop.units import format_size


cdef extern from "../include/rtloop/hugepage.h" nogil:
    int rt_region_map(rt_region_t *region, size_t bytes, size_t page, size_t align, int is_huge)
    int rt_region_map_hugetlb(rt_region_t *region, size_t bytes, int shift)
    int rt_region_map_file(rt_region_t *region, size_t bytes, int fd)
    int rt_region_collapse(const rt_region_t *region)
    int rt_region_empty(rt_region_t *region)
    void rt_region_unmap(rt_region_t *region)
    int64_t rt_hugetlbfs_page_bytes(int fd)
    int rt_populate(void *address, size_t bytes, size_t page)


cdef class _HugeBuffer_1:
    """HugeBuffer(nbytes, *, page_size='auto', backing='auto', strict=False)
--

    A large block of zeroed memory for a step: present, locked, and on huge pages where the machine has them.

    Huge pages spare the processor most walks of the page table. The pages of the hugetlb pool are reserved by the
    machine's administrator; transparent ones are ordinary memory that the kernel has joined. What the kernel really
    gave is read back from ``/proc/self/smaps`` and told in `backing`, `page_size`, `is_locked` and `grants`.

    Parameters
    ----------
    nbytes : int or str
        Bytes, or ``"256M"`` and the like. Whole pages are taken: `size`.
    page_size : int or str
        ``"2M"``, ``"1G"`` or another size that the kernel has. ``"auto"``: the largest one that the machine has
        reserved and that wastes at most an eighth, else the kernel's default.
    backing : str or path
        ``"hugetlb"``: the pool. The path of a hugetlbfs mount, or of a new file in one: the pool, by way of a file of
        mode 0600 that loses its name at once; a path that is not on hugetlbfs is refused. ``"thp"``:
        transparent huge pages. ``"pages"``: ordinary pages, between two inaccessible ones. ``"auto"``: the first of
        ``"hugetlb"``, ``"thp"``, ``"pages"`` that the machine grants.
    strict : bool
        Whether to raise where the first choice, the page size, or the lock is not granted in full; with ``"auto"``
        the first choice is ``"hugetlb"``. Otherwise the next backing is tried, and what was asked for by name and
        not granted is told in one RTSetupWarning.

    Attributes
    ----------
    nbytes, size : int
        Bytes as asked for, and in whole pages.
    page_size : int
        Bytes of the pages that the kernel gave.
    backing : {"hugetlb", "thp", "pages"}
        What the kernel gave.
    grants : tuple of Grant
        What was asked for, tried, and granted, in this order.

    Raises
    ------
    ConfigError
        On a value that can never work.
    SetupError
        With `strict`, where the kernel refuses; a MemoryLockError where it is the lock, and a PermissionError where a
        privilege is missing. The message has the command that reserves the missing pages. Without `strict`, where
        there is not even ordinary memory.

    Notes
    -----
    In Cython, ``cdef void *data`` is the address, aligned to `page_size`; it stays valid as long as the object. Hold
    the object, or a view of it, for as long as a step uses the address.

    After a fork the child finds zeros, in the memory and in every view it has inherited; to it the buffer is closed.
    The parent's pages stay its own: it meets no fault and no copy. A child made by a bare clone(2), or by ``_Fork``,
    has no mapping at all where the buffer is on pages of the hugetlb pool, and must not touch it.

    Real-time contract
        Construction and close(): control thread; they enter the kernel, allocate, and take the time the kernel needs
        to clear the memory. Make buffers before a loop locks all future memory. Use of `data`, or of a view, from
        step: any thread; no system call and, where `is_locked`, no fault.

    Examples
    --------
    >>> buffer = rtloop.HugeBuffer("256M")
    >>> samples = buffer.array("f4", (1024, -1))
    >>> print(buffer.backing, *buffer.grants, sep="\\n")
    """

    def __init__(self, nbytes, *, page_size="auto", backing="auto", strict=False):
        if self._region is not NULL or self._is_closing:
            raise StateError("a buffer is made once: its memory may be in use; make a new one")
        wish = asking.parse_wish(nbytes, page_size, backing)
        self.nbytes = wish.nbytes
        try:
            _take(self, wish, strict)
        except BaseException:  # a refusal, a warning that was made an error, a signal handler's: nothing stays acquired
            _drop(self)
            raise

    def __dealloc__(self):
        _drop(self)

    def __getbuffer__(self, Py_buffer *view, int flags):
        if self.closed:
            raise BufferError(_why_closed(self))
        PyBuffer_FillInfo(view, self, self.data, self.nbytes, 0, flags)
        self._exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        cdef PyObject *kind
        cdef PyObject *value
        cdef PyObject *trace
        self._exports -= 1
        if self._is_closing and not self._exports:
            PyErr_Fetch(&kind, &value, &trace)  # the last view may go while an exception passes by
            try:
                _give_back(self)
            finally:
                PyErr_Restore(kind, value, trace)

    def __enter__(self):
        if self.closed:
            raise StateError(_why_closed(self))
        return self

    def __exit__(self, kind, error, trace):
        if self._region is NULL:
            return
        self._is_closing = True
        if not self._exports:
            _check_given_back(self, _give_back(self))

    @property
    def address(self):
        """Where the memory begins, as an int; what `data` is in Cython."""
        return <size_t>self.data

    @property
    def closed(self):
        """Whether no new view can be made: after close() or a ``with`` statement, and in a forked child."""
        return self._region is NULL or self._is_closing or (<rt_region_t *>self._region).is_copy != 0

    @property
    def is_locked(self):
        """Whether the kernel keeps all of it in memory, asked now: locked, or of the hugetlb pool, and present."""
        if self.closed:
            return False
        found = hugepages.account(<size_t>self.data, self.size)
        return found.resident >= self.size and (found.is_locked or found.hugetlb >= self.size)

    @property
    def huge_bytes(self):
        """How many bytes the kernel has on huge pages, asked now."""
        if self.closed:
            return 0
        found = hugepages.account(<size_t>self.data, self.size)
        return found.hugetlb + found.transparent

    def array(self, dtype, shape=None):
        """Return a NumPy array on the buffer, from its beginning.

        It and its views keep the buffer. Other libraries take it by DLPack: ``np.from_dlpack(buffer.array("f4"))``.

        Parameters
        ----------
        dtype : dtype
            The items' type.
        shape : int or tuple of int, optional
            In C order; one -1 is as many as fit. By default one dimension with as many items as fit.

        Raises
        ------
        ConfigError
            Where it does not fit, or the items are Python objects.
        StateError
            After close(), and in a forked child.
        """
        if self.closed:
            raise StateError(_why_closed(self))
        item = plain_dtype(dtype)
        dims = asking.dimensions(shape, item, self.nbytes)
        return np.frombuffer(self, item, math.prod(dims)).reshape(dims)

    def close(self):
        """Give the memory back. The addresses read as zeros until the object is gone.

        At the end of a ``with`` statement the same happens as soon as the last view is gone.

        Raises
        ------
        BufferError
            While views of it are in use.
        OSError
            Where the kernel takes nothing back, which it may refuse with all future memory locked within a low limit:
            the memory goes with the object.
        """
        if self.closed:
            return
        if self._exports:
            views = f"{self._exports} views" if self._exports > 1 else "a view"
            raise BufferError(f"{views} of {self!r} in use: delete the arrays and memoryviews first")
        self._is_closing = True
        _check_given_back(self, _give_back(self))

    def __repr__(self):
        if self._region is NULL:
            return "HugeBuffer(never made)"
        state = ", closed" if self.closed else ""
        return (
            f"HugeBuffer({self.nbytes}, page_size={format_size(self.page_size)!r}, backing={self.backing!r}{state})"
        )


HugeBuffer = _HugeBuffer_1


cdef object _why_closed(_HugeBuffer_1 self):
    if self._region is NULL:
        return "this buffer was never made: a subclass has not called super().__init__()"
    if (<rt_region_t *>self._region).is_copy:
        return f"{self!r} belongs to the process that this one is a fork of: make a new one here"
    return f"{self!r} has been closed: make a new one"


cdef int _adopt(_HugeBuffer_1 self, rt_region_t *fresh, str backing, size_t page_size) except -1:
    cdef rt_region_t *region = keep_region(fresh)
    self._region = region
    self.data = region.address
    self.size = region.bytes
    self.backing = backing
    self.page_size = page_size
    return 0


cdef void _drop(_HugeBuffer_1 self) noexcept:
    """Unmap it all. Called by the destructor, too: nothing of a subclass runs, and no lock is waited for."""
    cdef rt_region_t *region = <rt_region_t *>self._region
    if region is NULL:
        return
    _forget_lock(self)
    drop_region(region)
    self._region = NULL
    self.data = NULL
    self.size = 0


cdef int _forget_lock(_HugeBuffer_1 self) except? -1:
    unlock, self._unlock = self._unlock, None
    if unlock is not None:
        unlock(<size_t>self.data)
    return 0


cdef int _give_back(_HugeBuffer_1 self) except? 1:
    """Unlock the memory and give it back: 0 or a negative errno. What could not be given back goes with the object."""
    if self._region is NULL:
        return 0
    _forget_lock(self)
    return rt_region_empty(<rt_region_t *>self._region)


cdef int _check_given_back(_HugeBuffer_1 self, int rc) except -1:
    if rc:
        raise OSError(-rc, f"the memory of {self!r} could not be given back, and goes with the object: "
                           f"{os.strerror(-rc)}")
    return 0


cdef int _take(_HugeBuffer_1 self, object wish, bint strict) except -1:
    """Try one backing after the other, lock what was granted, and tell."""
    cdef int lock_errno = 0
    grants = []
    for attempt in wish.attempts:
        if attempt == "path":
            grant = _take_file(self, wish)
        elif attempt == "hugetlb":
            grant = _take_pool(self, wish)
        else:
            grant = _take_ordinary(self, attempt, wish, &lock_errno)
        grants.append(grant)
        if strict and not grant.ok:
            raise asking.refusal(grant)
        if self._region is not NULL:
            break
    else:
        raise asking.refusal(grant)
    lock = asking.lock_grant(self.size, self.is_locked, self.backing == "hugetlb", lock_errno)
    self.grants = (*grants, *asking.page_size_grant(wish, self.page_size), lock)
    text = wish.judge(self.grants, strict)
    if text:
        warnings.warn(f"{self!r} is not what was asked for.\n{text}", RTSetupWarning, stacklevel=1)
    return 0


cdef object _take_pool(_HugeBuffer_1 self, object wish, size_t size=0, int fd=-1):
    """Take pages of the hugetlb pool, of the first size of which there are enough."""
    cdef rt_region_t fresh
    cdef size_t bytes = 0, page = 0
    cdef int shift, rc = 0
    sizes = (size,) if size else wish.pool_sizes()
    for page in sizes:
        bytes = asking.round_up(wish.nbytes, page)
        shift = (<object>page).bit_length() - 1
        call = "mmap"
        with nogil:
            if fd >= 0:
                rc = rt_region_map_file(&fresh, bytes, fd)
            else:
                rc = rt_region_map_hugetlb(&fresh, bytes, shift)
        if rc == 0:
            call = "populate"
            with nogil:
                rc = rt_populate(fresh.address, bytes, page)
            if rc == 0:
                found = hugepages.account(<size_t>fresh.address, bytes)
                rc = 0 if found.hugetlb >= bytes and found.page_size == page else -errno.ENOMEM
            if rc == 0:
                _adopt(self, &fresh, "hugetlb", page)
                return asking.pool_grant(bytes, page, wish.path if fd >= 0 else None)
            rt_region_unmap(&fresh)
    return asking.pool_grant(bytes, page, wish.path if fd >= 0 else None, -rc, call)


cdef object _take_file(_HugeBuffer_1 self, object wish):
    """Take pages of the hugetlb pool by way of a file on a hugetlbfs mount, which has no name when this returns."""
    cdef int64_t page
    flags = os.O_NOFOLLOW | os.O_CLOEXEC
    name = f"rtloop-{os.getpid()}-{os.urandom(8).hex()}"
    folder = file = -1
    try:
        try:
            folder = os.open(wish.path, os.O_RDONLY | os.O_DIRECTORY | flags)
        except FileNotFoundError:
            parent, name = os.path.split(wish.path)
            folder = os.open(parent or ".", os.O_RDONLY | os.O_DIRECTORY | flags)
        page = rt_hugetlbfs_page_bytes(folder)
        if page < 0:
            return asking.path_grant(wish, -page)
        if wish.page_size is not None and wish.page_size != page:
            return asking.mount_grant(wish, page)
        file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags, 0o600, dir_fd=folder)
        os.unlink(name, dir_fd=folder)
        return _take_pool(self, wish, page, file)
    except OSError as error:
        return asking.path_grant(wish, error.errno or errno.EIO)
    finally:
        for fd in (folder, file):
            if fd >= 0:
                os.close(fd)


cdef object _take_ordinary(_HugeBuffer_1 self, str name, object wish, int *lock_errno):
    """Take ordinary memory, with transparent huge pages or surely without."""
    cdef rt_region_t fresh
    cdef size_t base = resource.getpagesize(), bytes, unit
    cdef bint is_huge = name == "thp"
    cdef int rc
    unit = hugepages.transparent_page_size() if is_huge else base
    bytes = asking.round_up(wish.nbytes, unit or base)
    if unit == 0:
        return asking.ordinary_grant(name, bytes, unit, None, errno.ENOTSUP)
    refused = asking.shortage(name, bytes)
    if refused is not None:
        return refused
    with nogil:
        rc = rt_region_map(&fresh, bytes, base, unit, is_huge)
    if rc:
        return asking.ordinary_grant(name, bytes, unit, None, -rc)
    _adopt(self, &fresh, name, base)
    # Locked while nothing is present: to ask whether a page is locked splits a huge page that is not.
    lock_errno[0] = -memory_lock.acquire_range(<size_t>self.data, bytes)
    if lock_errno[0] == 0:
        self._unlock = memory_lock.forget_range  # kept, for at the interpreter's end the module may be gone first
    with nogil:
        rc = rt_populate(self.data, bytes, base)
    found = hugepages.account(<size_t>self.data, bytes)
    if is_huge and found.transparent < bytes:
        with nogil:
            rt_region_collapse(<rt_region_t *>self._region)
        found = hugepages.account(<size_t>self.data, bytes)
    grant = asking.ordinary_grant(name, bytes, unit, found, -rc)
    if rc or (is_huge and not found.transparent):
        _drop(self)
    elif is_huge and grant.ok:
        self.page_size = unit
    return grant


def __getattr__(name):
    if name.startswith("_HugeBuffer_") and name[12:].isdigit():
        raise ImportError(
            f"this module was compiled against interface {name[12:]} of rtloop's HugeBuffer, and the installed rtloop "
            "has interface 1: recompile the module"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


cdef extern from *:
    """
    static inline void rt_name_buffer(PyTypeObject *type) { type->tp_name = "rtloop.HugeBuffer"; }
    """
    void rt_name_buffer(PyTypeObject *type)


# The class is known by the name that its users import.
rt_name_buffer(<PyTypeObject *>_HugeBuffer_1)
