"""Blocks of shared memory that a loop writes its signals to, and the cursors that read them."""

cimport cython
from libc.errno cimport errno as c_errno
from libc.stdint cimport UINT64_MAX, uint64_t
from libc.string cimport memmove
from posix.stat cimport fstat, struct_stat
from posix.unistd cimport close

from rtloop.headers.atomics cimport rt_load_relaxed_64
from rtloop._os cimport MAP_FAILED, MAP_SHARED, PROT_READ, mmap, munmap
from rtloop.headers.live cimport (
    RT_BROADCAST_MAGIC_,
    RT_BROADCAST_OK,
    RT_BROADCAST_SHORT,
    RT_BROADCAST_SIZES,
    RT_BROADCAST_VERSION_,
    rt_broadcast_available,
    rt_broadcast_bytes,
    rt_broadcast_init,
    rt_broadcast_latest,
    rt_broadcast_open,
    rt_broadcast_places,
    rt_broadcast_read,
    rt_broadcast_t,
    rt_live_t,
    rt_live_use_sampler,
    rt_sampler_add,
    rt_sampler_init,
    rt_sampler_stride,
    rt_sampler_t,
)
from rtloop.headers.memory cimport rt_memory_map, rt_memory_map_sealed, rt_memory_prefault

import errno
import os

import numpy as np

from rtloop.errors import ConfigError

#: Bytes that are copied at once, with the GIL.
cdef uint64_t _PIECE = 1 << 18
cdef int _TRIES = 1000
#: A block of another process may be larger than the memory of this machine, made of nothing but holes.
MOST_FOREIGN_BYTES = 1 << 30
_FAULTS = {
    RT_BROADCAST_SHORT: "it is shorter than a header",
    RT_BROADCAST_MAGIC_: "it does not begin like a block of signals",
    RT_BROADCAST_VERSION_: "it is of another version: read it with the rtloop that runs the loop",
    RT_BROADCAST_SIZES: "its sizes are impossible",
}


cdef class SignalBlock:
    """The mapped block of a loop's signals, of this process or of another.

    Attributes
    ----------
    size : int
        Bytes of the block.
    """

    cdef int _check(self) except -1:
        if self._address is NULL:
            raise RuntimeError("this block has not been mapped")
        return 0

    def __dealloc__(self):
        if self._address is not NULL:
            munmap(self._address, self.size)


cdef class ForeignSignals(SignalBlock):
    """ForeignSignals(fd, size)
--

    The block of another process, mapped without permission to write. Nothing in it is trusted.

    Parameters
    ----------
    fd : int
        Its file, which must be sealed against shrinking. It may be closed afterwards.
    size : int
        Bytes of the file.

    Raises
    ------
    ValueError
        If it is not a block, is damaged, or is of another version.
    OSError
        If it cannot be mapped.
    """

    def __init__(self, int fd, size_t size):
        cdef void *address
        if self._address is not NULL:
            raise RuntimeError("this block has been mapped before")
        if size == 0 or size > <object>MOST_FOREIGN_BYTES:
            raise ValueError(f"it has {size} bytes, which is not the size of a block of signals")
        address = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0)
        if address == MAP_FAILED:
            raise OSError(c_errno, f"mapping {size} bytes: {os.strerror(c_errno)}")
        self._address, self.size = address, size
        Cursor(self, "now")  # raises ValueError


cdef class OwnSignals(SignalBlock):
    """OwnSignals(name, pieces, every, capacity, text)
--

    The signals of a loop of this process: the block that everybody reads, and the sampler that writes it.

    Parameters
    ----------
    name : str
        Name of the loop.
    pieces : sequence of (int, int)
        Address and bytes of each piece of memory to copy, those of larger words first.
    every : int
        Sample the cycles whose index is divisible by this.
    capacity : int
        Number of records that a reader may fall behind.
    text : bytes
        Description for the readers.

    Attributes
    ----------
    inode : int or None
        Number of the file, by which other processes find it; None if memfd_create(2) is refused.
    refusal : int or None
        The errno of that refusal.
    pid : int
        Process that has made it.

    Raises
    ------
    ConfigError
        If the signals are too many for a record.
    OSError
        If there is no memory.
    """

    def __cinit__(self):
        self._fd = -1

    def __init__(self, str name, pieces, every, capacity, bytes text not None):
        cdef void *address = NULL
        cdef void *own = NULL
        cdef int rc
        cdef uint64_t places = rt_broadcast_places(capacity)
        cdef uint64_t text_bytes = (<uint64_t>len(text) + 63) // 64 * 64
        cdef size_t at
        if self._address is not NULL:
            raise RuntimeError("this block has been made before")
        rc = rt_memory_map(&own, sizeof(rt_sampler_t))
        if rc:
            raise OSError(-rc, f"sampler of {sizeof(rt_sampler_t)} bytes: {os.strerror(-rc)}")
        self._sampler = <rt_sampler_t *>own
        rt_memory_prefault(own, sizeof(rt_sampler_t))
        rt_sampler_init(self._sampler, every)
        for begin, length in pieces:
            at = begin
            if rt_sampler_add(self._sampler, <const void *>at, length) < 0:
                raise ConfigError(f"the signals of {name} do not fit into a record of at most 1024 words")
        self.pid = os.getpid()
        self.size = rt_broadcast_bytes(rt_sampler_stride(self._sampler), places, text_bytes)
        if self.size == 0:
            raise ConfigError(f"a block for {capacity} records of the signals of {name} has an impossible size")
        rc = rt_memory_map_sealed(b"rtloop-signals:" + name.encode()[:200], self.size, &address, &self._fd)
        if rc and rc != -errno.ENOMEM:  # memfd_create(2) is refused: readers are in this process alone
            self.refusal = -rc
            rc = rt_memory_map(&address, self.size)
        if rc:
            raise OSError(-rc, f"block of signals of {self.size} bytes: {os.strerror(-rc)}")
        self._address = address
        if self._fd >= 0:
            self.inode = os.fstat(self._fd).st_ino
        rt_memory_prefault(address, self.size)
        rc = rt_broadcast_init(
            &self._sampler.writer, <rt_broadcast_t *>address, rt_sampler_stride(self._sampler), places, text, len(text),
            text_bytes,
        )
        if rc:
            raise OSError(-rc, f"block of signals of {self.size} bytes: {os.strerror(-rc)}")

    def __dealloc__(self):
        if self._sampler is not NULL:
            munmap(self._sampler, sizeof(rt_sampler_t))

    def __del__(self):
        # In C, because this may outlive Python's modules. A program that became a daemon may have closed all files, and
        # the number may belong to another file by now.
        cdef struct_stat found
        cdef int fd = self._fd
        self._fd = -1
        if fd >= 0 and fstat(fd, &found) == 0 and found.st_ino == self.inode:
            close(fd)

    @property
    def ranges(self):
        """Addresses and sizes of the block and of the sampler."""
        return (<size_t>self._address, self.size), (<size_t>self._sampler, sizeof(rt_sampler_t))

    def attach(self, size_t live):
        """Make the loop whose rt_live_t is at this address write the block. Before its thread exists."""
        self._check()
        rt_live_use_sampler(<rt_live_t *>live, self._sampler)


cdef class Cursor:
    """Cursor(block, start)
--

    A position in a block, and a count of the records that were written over before they were read.

    Parameters
    ----------
    block : SignalBlock
        The block.
    start : {"begin", "oldest", "now"}
        Where to begin: with the first record ever, counting those that are gone as lost; with the oldest that is still
        there; or with the next.

    Raises
    ------
    ValueError
        If it is not a block, is damaged, or is of another version.
    """

    def __init__(self, SignalBlock block not None, start):
        block._check()
        rc = rt_broadcast_open(&self._reader, block._address, block.size, start != "now")
        if rc != RT_BROADCAST_OK:
            raise ValueError(_FAULTS[rc])
        self.block = block
        if start == "begin":
            self._reader.position = 0

    @property
    def record_bytes(self):
        """Bytes of a record."""
        return self._reader.record_bytes

    @property
    def capacity(self):
        """Number of records that a reader may fall behind."""
        return self._reader.places - 1 if self._reader.places > 0 else 0

    @property
    def written(self):
        """Number of records that the loop has written, in all runs."""
        return 0 if self._reader.block is NULL else rt_load_relaxed_64(&self._reader.block.written)

    @property
    def position(self):
        """Number of the record that is read next."""
        return self._reader.position

    @property
    def lost(self):
        """Number of records that were overwritten before this cursor reached them."""
        return self._reader.lost

    @property
    def available(self):
        """Number of records to read."""
        return 0 if self._reader.block is NULL else rt_broadcast_available(&self._reader)

    def text(self):
        """Return the description that the loop wrote."""
        return self._reader.text[:self._reader.text_bytes].rstrip(b"\0")

    def read(self, dtype, most):
        """Return the next records, at most `most`, as an array of a type of `record_bytes`."""
        cdef uint64_t size = self._reader.record_bytes
        cdef uint64_t piece = 1 if size > _PIECE or size == 0 else _PIECE // size
        cdef uint64_t filled = 0, first = 0, count, got, wanted, limit
        cdef char *to
        cdef size_t address
        if self._reader.block is NULL or dtype.itemsize != <object>size:
            raise ValueError(f"records have {size} bytes, and the type has {dtype.itemsize}")
        limit = min(most, <object>UINT64_MAX)
        count = rt_broadcast_available(&self._reader)
        if count > limit:
            count = limit
        array = np.empty(count, dtype)
        address = array.ctypes.data
        to = <char *>address
        with cython.critical_section(self):
            while count > 0:  # each turn takes at least one of them
                wanted = count if count < piece else piece
                got = rt_broadcast_read(&self._reader, to + filled * size, wanted, &first)
                if got + first == 0:
                    break
                if first:
                    memmove(to + filled * size, to + (filled + first) * size, got * size)
                filled += got
                count -= got + first
        return array if filled == <object>len(array) else array[:filled].copy()

    def latest(self, dtype):
        """Return the newest record as an array without dimensions; None if there is none, or the loop overtakes."""
        cdef size_t address
        if self._reader.block is NULL or dtype.itemsize != <object>self._reader.record_bytes:
            raise ValueError(f"records have {self._reader.record_bytes} bytes, and the type has {dtype.itemsize}")
        array = np.empty((), dtype)
        address = array.ctypes.data
        return array if rt_broadcast_latest(&self._reader, <char *>address, _TRIES) else None
