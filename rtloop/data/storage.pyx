"""Memory of pools and exchanges: mapped, prefaulted, locked if the process may, wiped in a forked child."""

from libc.stdint cimport uint64_t

from rtloop._os cimport munmap
from rtloop.headers.memory cimport rt_memory_map, rt_memory_map_behind, rt_memory_replace_shared
from rtloop.memory.kernel cimport prefault_region

import mmap
import os
import warnings
import weakref

from rtloop.data.buffer_request import shortage
from rtloop.errors import RTSetupWarning
from rtloop.memory.kernel import is_range_locked
from rtloop.memory.lock_grant import range_lock_grant
from rtloop.memory.process_lock import memory_lock
from rtloop.memory.smaps import account
from rtloop.system.grant import describe_refused
from rtloop.units import format_size


cdef class Storage:
    """Storage(size, what)
--

    A region of zeros, page-aligned, given back when nobody holds this object.

    Parameters
    ----------
    size : int
        Bytes.
    what : str
        Name of its owner in error messages: ``"a pool"``.

    Attributes
    ----------
    grant : Grant or None
        The grant of the lock, if the kernel refused it.

    Raises
    ------
    MemoryError
        If it is more than the machine, or the control group, has left, or cannot be mapped.
    """

    backing = "pages"
    notifier = None  # of an exchange: shows by a file that there is something

    def __cinit__(self, uint64_t size, what):
        cdef int rc
        self.ends = None
        # Asked first, because the kernel kills a process when too much memory is made present.
        refused = shortage(what, size)
        if refused is not None:
            raise MemoryError(describe_refused(refused))
        rc = rt_memory_map(&self._address, size)
        if rc:
            self._address = NULL
            raise MemoryError(f"{what} of {format_size(size)} cannot be mapped: {os.strerror(-rc)}")
        self._size = size
        rc = memory_lock.acquire_range(<size_t>self._address, size)
        if rc:
            self.grant = range_lock_grant("lock", size, rc, detail="")
        else:
            # Kept here, because the module's names may be gone first when the interpreter ends.
            self._unlock = memory_lock.forget_range  # unmapping unlocks
        with nogil:
            rc = prefault_region(self._address, size)
        if rc:
            raise MemoryError(f"{what} of {format_size(size)} cannot be made present: {os.strerror(-rc)}")

    def __del__(self):
        if self._unlock is not None:
            self._unlock(<size_t>self._address)
            self._unlock = None

    def __dealloc__(self):
        if self._address is not NULL:
            munmap(self._address, self._size)

    @property
    def address(self):
        """Address of the first byte."""
        return <size_t>self._address

    @property
    def is_locked(self):
        """True if the kernel keeps it in memory; read again at each call."""
        return _is_locked(self._unlock is not None, <size_t>self._address, self._size)


def _is_locked(bint was_locked, size_t address, size_t size):
    if was_locked:
        return is_range_locked(address, size)
    # The other way would page out what is not locked. Other code may have locked everything since.
    return account(address, size).is_locked


cdef class SharedStorage:
    """SharedStorage(file)
--

    The data of a shared exchange, right behind two pages of private memory, all of it locked if the process may.

    The first page is never written except by a closed exchange, whose memory it is; the second ends where the data
    begin. A forked child has zeros in the place of all, and not the file.

    Parameters
    ----------
    file : ExchangeFile
        The exchange. This object closes it.

    Attributes
    ----------
    grant : Grant or None
        The grant of the lock, if the kernel refused it.

    Raises
    ------
    MemoryError
        If it cannot be mapped.
    """

    backing = "shared"
    notifier = None

    def __cinit__(self, file):
        cdef int rc, fd = file.fd
        cdef size_t page = mmap.PAGESIZE
        cdef size_t data_bytes = file.header.plan.data_bytes
        cdef long long offset = file.header.offset
        self.ends = None
        self.file = file
        self._private = 2 * page
        self._size = self._private + (data_bytes + page - 1) // page * page
        # Pages that another process has made present take no more memory here; the others may be any number.
        refused = shortage("a shared exchange", max(0, self._size - 512 * os.fstat(fd).st_blocks))
        if refused is not None:
            raise MemoryError(describe_refused(refused))
        rc = rt_memory_map_behind(self._private, fd, offset, self._size - self._private, &self._address)
        if rc:
            self._address = NULL
            raise MemoryError(f"an exchange of {format_size(data_bytes)} cannot be mapped: {os.strerror(-rc)}")
        rc = memory_lock.acquire_range(<size_t>self._address, self._size)
        if rc:
            self.grant = range_lock_grant("lock", self._size, rc, detail="")
        else:
            self._unlock = memory_lock.forget_range
        with nogil:
            rc = prefault_region(self._address, self._size)
        if rc:
            raise MemoryError(f"an exchange of {format_size(data_bytes)} cannot be made present: {os.strerror(-rc)}")
        _shared.add(self)

    def __del__(self):
        if self._unlock is not None:
            self._unlock(<size_t>self._address)
            self._unlock = None
        self.file.close()

    def __dealloc__(self):
        if self._address is not NULL:
            munmap(self._address, self._size)

    cdef void *closed(self):
        """Return the zeros that a closed exchange uses."""
        return self._address

    cdef void *private_end(self):
        """Return where the private memory ends and the shared data begin."""
        return <char *>self._address + self._private

    @property
    def is_locked(self):
        """True if the kernel keeps it in memory; read again at each call."""
        return _is_locked(self._unlock is not None, <size_t>self._address, self._size)

    def forget_after_fork(self):
        """Give up the file, whose locks belong to the parent, and put zeros in the place of the data."""
        self._unlock = None
        self.file.close()
        rt_memory_replace_shared(<char *>self._address + self._private, self._size - self._private)


_shared = weakref.WeakSet()


def _forget_after_fork():
    for storage in list(_shared):
        storage.forget_after_fork()


os.register_at_fork(after_in_child=_forget_after_fork)


def warn_unlocked(storage, text):
    """Warn that what lives in a storage, `text`, may be paged out, if the kernel refused to lock it.

    Raises
    ------
    RTSetupWarning
        If the program makes such warnings errors.
    """
    if storage.grant is not None:
        fix = describe_refused(storage.grant)
        warnings.warn(f"{text} may be paged out.\n{fix}", RTSetupWarning, stacklevel=2)


class HugeStorage:
    """A storage on huge pages: a HugeBuffer, which cannot be closed while this holds a view of it."""

    grant = None  # the buffer has warned by itself
    ends = None

    def __init__(self, size, backing):
        from rtloop.data.buffer import HugeBuffer

        self._buffer = HugeBuffer(size, backing=backing)
        self._view = memoryview(self._buffer)
        self.address = self._buffer.address
        self.backing = self._buffer.backing

    @property
    def is_locked(self):
        """True if the kernel keeps it in memory; read again at each call."""
        return self._buffer.is_locked
