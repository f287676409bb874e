"""Memory of pools and exchanges: mapped, prefaulted, locked if the process may, wiped in a forked child."""

from libc.stdint cimport uint64_t

from rtloop._os cimport munmap
from rtloop.headers.memory cimport rt_memory_map
from rtloop.memory.kernel cimport prefault_region

import os
import warnings

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
        if self._unlock is not None:
            return is_range_locked(<size_t>self._address, self._size)
        # The other way would page out what is not locked. Other code may have locked everything since.
        return account(<size_t>self._address, self._size).is_locked


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
