"""HugeBuffer: large buffers on huge pages. See include/rtloop/hugepage.h for the mapping."""

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.exc cimport PyErr_Fetch, PyErr_Restore
from cpython.object cimport PyObject
from libc.stdint cimport int64_t

cimport cython

from rtloop.data.region_registry cimport drop_region, keep_region
from rtloop.headers.hugepage cimport (
    rt_hugetlbfs_page_bytes,
    rt_populate,
    rt_region_collapse,
    rt_region_empty,
    rt_region_map,
    rt_region_map_file,
    rt_region_map_hugetlb,
    rt_region_t,
    rt_region_unmap,
)

import errno
import math
import os
import resource
import warnings

import numpy as np

from rtloop.data import buffer_request
from rtloop.data.dtypes import plain_dtype
from rtloop.data.interface import made_twice, never_made, publish, refuse_copy
from rtloop.errors import RTSetupWarning, StateError
from rtloop.memory import hugepage_supply, smaps
from rtloop.memory.process_lock import memory_lock
from rtloop.units import format_size


cdef class _HugeBuffer_1:
    """HugeBuffer(nbytes, *, page_size='auto', backing='auto', strict=False)
--

    A large block of zeroed memory for a step: present, locked, and on huge pages if the machine has them.

    Huge pages spare the processor most walks of the page table. The pages of the hugetlb pool are reserved by the
    machine's administrator; transparent ones are ordinary memory that the kernel has joined. `backing`, `page_size`,
    `is_locked` and `grants` tell what the kernel granted, as read back from ``/proc/self/smaps``.

    Parameters
    ----------
    nbytes : int or str
        Bytes, or ``"256M"`` and the like; rounded up to whole pages, `size`.
    page_size : int or str
        ``"2M"``, ``"1G"`` or another size that the kernel has. ``"auto"``: the largest one that the machine has
        reserved and that wastes at most an eighth, else the kernel's default.
    backing : str or path
        ``"hugetlb"``: the pool. The path of a hugetlbfs mount, or of a new file in one: the pool, through a file of
        mode 0600 that is unlinked at once; a path that is not on hugetlbfs is refused. ``"thp"``: transparent huge
        pages. ``"pages"``: ordinary pages, between two inaccessible ones. ``"auto"``: the first of ``"hugetlb"``,
        ``"thp"``, ``"pages"`` that the machine grants.
    strict : bool
        Raise if the first choice, the page size or the lock is not granted in full; with ``"auto"`` the first choice
        is ``"hugetlb"``. Otherwise the next backing is tried, and one RTSetupWarning lists what was requested by name
        and not granted.

    Attributes
    ----------
    nbytes, size : int
        Bytes as requested, and in whole pages.
    page_size : int
        Bytes of a page that the kernel granted.
    backing : {"hugetlb", "thp", "pages"}
        Kind of pages that the kernel granted.
    grants : tuple of Grant
        Each attempt with its result, in order.

    Raises
    ------
    ConfigError
        On a value that can never work.
    SetupError
        With `strict`, if the kernel refuses: a MemoryLockError if the lock was refused, and a PermissionError if a
        privilege is missing. The message contains the command that reserves the missing pages. Without `strict`, if
        there is not even ordinary memory.

    Notes
    -----
    In Cython, ``cdef void *data`` is the address, aligned to `page_size`; it stays valid as long as the object. Hold
    the object, or a view of it, for as long as a step uses the address.

    After a fork the child finds zeros in the memory and in every view that it inherited, and the buffer is closed
    there. The parent's pages stay its own, without a fault or a copy. A child made by a bare clone(2), or by ``_Fork``,
    has no mapping at all if the buffer is on pages of the hugetlb pool, and must not touch it.

    Real-time contract
        Construction and close(): control thread; they enter the kernel, allocate, and take the time the kernel needs
        to clear the memory. Make buffers before a loop locks all future memory. Use of `data`, or of a view, from
        step: any thread; no system call and, if `is_locked`, no fault.

    Examples
    --------
    >>> buffer = rtloop.HugeBuffer("256M")
    >>> samples = buffer.array("f4", (1024, -1))
    >>> print(buffer.backing, *buffer.grants, sep="\\n")
    """

    def __init__(self, nbytes, *, page_size="auto", backing="auto", strict=False):
        if self._region is not NULL or self._is_closing:
            raise StateError(made_twice("buffer"))
        request = buffer_request.parse_request(nbytes, page_size, backing)
        self.nbytes = request.nbytes
        try:
            _take(self, request, strict)
        except BaseException:  # a refusal, a warning turned into an error, a signal handler's: nothing stays acquired
            _drop(self)
            raise

    def __dealloc__(self):
        _drop(self)

    def __getbuffer__(self, Py_buffer *view, int flags):
        if not _try_export(self):
            raise BufferError(_why_closed(self))
        try:
            PyBuffer_FillInfo(view, self, self.data, self.nbytes, 0, flags)
        except BaseException:
            _end_export(self)
            raise

    def __releasebuffer__(self, Py_buffer *view):
        cdef PyObject *kind
        cdef PyObject *value
        cdef PyObject *trace
        if _end_export(self):
            PyErr_Fetch(&kind, &value, &trace)  # the last view may go while an exception is under way
            try:
                _give_back(self)
            finally:
                PyErr_Restore(kind, value, trace)

    def __enter__(self):
        if self.closed:
            raise StateError(_why_closed(self))
        return self

    def __exit__(self, kind, error, trace):
        cdef Py_ssize_t exports
        if self._region is NULL:
            return
        with cython.critical_section(self):
            self._is_closing = True
            exports = self._exports
        if not exports:
            _check_given_back(self, _give_back(self))

    @property
    def address(self):
        """Address of the memory, as an int; the same as `data` in Cython."""
        return <size_t>self.data

    @property
    def closed(self):
        """True if it is closed, so that no new view can be made; always in a forked child."""
        return _is_closed(self)

    @property
    def is_locked(self):
        """True if the kernel keeps all of it in memory: present, and locked or of the hugetlb pool. Read each time."""
        if self.closed:
            return False
        found = smaps.account(<size_t>self.data, self.size)
        return found.resident >= self.size and (found.is_locked or found.hugetlb >= self.size)

    @property
    def huge_bytes(self):
        """Number of bytes that are on huge pages; read again at each call."""
        if self.closed:
            return 0
        found = smaps.account(<size_t>self.data, self.size)
        return found.hugetlb + found.transparent

    def array(self, dtype, shape=None):
        """Return a NumPy array on the buffer, from its beginning.

        The array and its views keep the buffer alive. Other libraries take it by DLPack:
        ``np.from_dlpack(buffer.array("f4"))``.

        Parameters
        ----------
        dtype : dtype
            The items' type.
        shape : int or tuple of int, optional
            In C order; one dimension may be -1, as many as fit. One dimension with all items by default.

        Raises
        ------
        ConfigError
            If it does not fit, or the items are Python objects.
        StateError
            After close(), and in a forked child.
        """
        if self.closed:
            raise StateError(_why_closed(self))
        item = plain_dtype(dtype)
        dims = buffer_request.dimensions(shape, item, self.nbytes)
        return np.frombuffer(self, item, math.prod(dims)).reshape(dims)

    def close(self):
        """Give the memory back to the kernel. Its addresses read as zeros until the object is gone.

        The end of a ``with`` statement does the same as soon as the last view is gone.

        Raises
        ------
        BufferError
            If views of it are in use.
        OSError
            If the kernel refuses, which may happen if all future memory is locked within a low limit. The memory is
            then freed with the object.
        """
        cdef Py_ssize_t exports
        with cython.critical_section(self):
            if _is_closed(self):
                return
            exports = self._exports
            self._is_closing = exports == 0
        if exports:
            views = f"{exports} views" if exports > 1 else "a view"
            raise BufferError(f"{views} of {self!r} in use: delete the arrays and memoryviews first")
        _check_given_back(self, _give_back(self))

    def __reduce_ex__(self, protocol):
        refuse_copy(self, "memory")

    def __repr__(self):
        if self._region is NULL:
            return "HugeBuffer(never made)"
        state = ", closed" if self.closed else ""
        return (
            f"HugeBuffer({self.nbytes}, page_size={format_size(self.page_size)!r}, backing={self.backing!r}{state})"
        )


HugeBuffer = _HugeBuffer_1
__getattr__ = publish(_HugeBuffer_1)


cdef bint _is_closed(_HugeBuffer_1 self) noexcept:
    return self._region is NULL or self._is_closing or (<rt_region_t *>self._region).is_copy != 0


cdef bint _try_export(_HugeBuffer_1 self):
    """Count one more view. Returns False if the buffer is closed."""
    with cython.critical_section(self):
        if _is_closed(self):
            return False
        self._exports += 1
        return True


cdef bint _end_export(_HugeBuffer_1 self):
    """Count one view less. Returns True if it was the last one of a buffer that is to be given back."""
    with cython.critical_section(self):
        self._exports -= 1
        return self._is_closing and not self._exports


cdef object _why_closed(_HugeBuffer_1 self):
    if self._region is NULL:
        return never_made("buffer")
    if (<rt_region_t *>self._region).is_copy:
        return f"{self!r} belongs to the process that this one was forked from: make a new one here"
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
    """Unmap all. Called by the destructor, too: it runs no code of a subclass and waits for no lock."""
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
    """Unlock the memory and give it back: 0 or a negative errno. On an error it is freed with the object."""
    cdef int rc
    if self._region is NULL:
        return 0
    with cython.critical_section(self):  # a close() and the end of the last view may meet; the second finds nothing
        _forget_lock(self)
        rc = rt_region_empty(<rt_region_t *>self._region)
    return rc


cdef int _check_given_back(_HugeBuffer_1 self, int rc) except -1:
    if rc:
        raise OSError(-rc, f"the memory of {self!r} could not be given back, and is freed with the object: "
                           f"{os.strerror(-rc)}")
    return 0


cdef int _take(_HugeBuffer_1 self, object request, bint strict) except -1:
    """Try one backing after the other, lock what was granted, and record the grants."""
    cdef int lock_errno = 0
    grants = []
    for attempt in request.attempts:
        if attempt == "path":
            grant = _take_file(self, request)
        elif attempt == "hugetlb":
            grant = _take_pool(self, request)
        else:
            grant = _take_ordinary(self, attempt, request, &lock_errno)
        grants.append(grant)
        if strict and not grant.ok:
            raise buffer_request.refusal(grant)
        if self._region is not NULL:
            break
    else:
        raise buffer_request.refusal(grant)
    lock = buffer_request.lock_grant(self.size, self.is_locked, self.backing == "hugetlb", lock_errno)
    self.grants = (*grants, *buffer_request.page_size_grant(request, self.page_size), lock)
    text = request.judge(self.grants, strict)
    if text:
        warnings.warn(f"{self!r} is not what was requested.\n{text}", RTSetupWarning, stacklevel=1)
    return 0


cdef object _take_pool(_HugeBuffer_1 self, object request, size_t size=0, int fd=-1):
    """Take pages of the hugetlb pool, of the first size that there are enough of."""
    cdef rt_region_t fresh
    cdef size_t bytes = 0, page = 0
    cdef int shift, rc = 0
    sizes = (size,) if size else request.pool_sizes()
    for page in sizes:
        bytes = buffer_request.round_up(request.nbytes, page)
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
                found = smaps.account(<size_t>fresh.address, bytes)
                rc = 0 if found.hugetlb >= bytes and found.page_size == page else -errno.ENOMEM
            if rc == 0:
                _adopt(self, &fresh, "hugetlb", page)
                return buffer_request.pool_grant(bytes, page, request.path if fd >= 0 else None)
            rt_region_unmap(&fresh)
        if fd >= 0:
            os.truncate(fd, 0)  # the file keeps its pages, and the grant counts what is available
    return buffer_request.pool_grant(bytes, page, request.path if fd >= 0 else None, -rc, call)


cdef object _take_file(_HugeBuffer_1 self, object request):
    """Take pages of the hugetlb pool through a file on a hugetlbfs mount, which is unlinked again."""
    cdef int64_t page
    flags = os.O_NOFOLLOW | os.O_CLOEXEC
    name = f"rtloop-{os.getpid()}-{os.urandom(8).hex()}"
    folder = file = -1
    try:
        try:
            folder = os.open(request.path, os.O_RDONLY | os.O_DIRECTORY | flags)
        except FileNotFoundError:
            parent, name = os.path.split(request.path)
            folder = os.open(parent or ".", os.O_RDONLY | os.O_DIRECTORY | flags)
        page = rt_hugetlbfs_page_bytes(folder)
        if page < 0:
            return buffer_request.path_grant(request, -page)
        if request.page_size is not None and request.page_size != page:
            return buffer_request.mount_grant(request, page)
        file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags, 0o600, dir_fd=folder)
        os.unlink(name, dir_fd=folder)
        return _take_pool(self, request, page, file)
    except OSError as error:
        return buffer_request.path_grant(request, error.errno or errno.EIO)
    finally:
        for fd in (folder, file):
            if fd >= 0:
                os.close(fd)


cdef object _take_ordinary(_HugeBuffer_1 self, str name, object request, int *lock_errno):
    """Take ordinary memory, with transparent huge pages or with none."""
    cdef rt_region_t fresh
    cdef size_t base = resource.getpagesize(), bytes, unit
    cdef bint is_huge = name == "thp"
    cdef int rc
    unit = hugepage_supply.transparent_page_size() if is_huge else base
    bytes = buffer_request.round_up(request.nbytes, unit or base)
    if unit == 0:
        return buffer_request.ordinary_grant(name, bytes, unit, None, errno.ENOTSUP)
    refused = buffer_request.shortage(name, bytes)
    if refused is not None:
        return refused
    with nogil:
        rc = rt_region_map(&fresh, bytes, base, unit, is_huge)
    if rc:
        return buffer_request.ordinary_grant(name, bytes, unit, None, -rc)
    _adopt(self, &fresh, name, base)
    # Locked while nothing is present, because asking whether a page is locked splits a huge page that is not.
    lock_errno[0] = -memory_lock.acquire_range(<size_t>self.data, bytes)
    if lock_errno[0] == 0:
        self._unlock = memory_lock.forget_range  # the module may be gone first when the interpreter ends
    with nogil:
        rc = rt_populate(self.data, bytes, base)
    found = smaps.account(<size_t>self.data, bytes)
    if is_huge and found.transparent < bytes:
        with nogil:
            rt_region_collapse(<rt_region_t *>self._region)
        found = smaps.account(<size_t>self.data, bytes)
    grant = buffer_request.ordinary_grant(name, bytes, unit, found, -rc)
    if rc or (is_huge and not found.transparent):
        _drop(self)
    elif is_huge and grant.ok:
        self.page_size = unit
    return grant
