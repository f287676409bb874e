"""A pool of equal blocks for ``step``: locked, prefaulted, constant-time. What it does is in include/rtloop/pool.h."""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_FillInfo
from cpython.object cimport PyTypeObject
from libc.errno cimport EALREADY, EINVAL
from libc.stdint cimport uint32_t, uint64_t

from rtloop._os cimport munmap
from rtloop.system.memory cimport prefault_region

import os
import warnings

import numpy as np

from rtloop.errors import ConfigError, PoolError, PoolExhaustedError, RTSetupWarning
from rtloop.system.grant import describe_refused
from rtloop.system.process import memory_lock, range_lock_grant
from rtloop.units import format_size, parse_size


cdef extern from "../include/rtloop/memory.h" nogil:
    int rt_memory_map(void **address, size_t size)


cdef extern from "../include/rtloop/pool.h" nogil:
    enum:
        RT_POOL_SINGLE
        RT_POOL_SHARED
        RT_POOL_MUTEX
        RT_POOL_MAX_COUNT

    ctypedef struct rt_pool_t:
        uint64_t block_bytes
        uint32_t count
        uint32_t kind

    uint64_t rt_pool_bytes(uint64_t block_bytes, uint64_t count, uint32_t kind)
    int rt_pool_init(rt_pool_t *pool, uint64_t block_bytes, uint64_t count, uint32_t kind)
    void *rt_pool_alloc(rt_pool_t *pool)
    int rt_pool_free(rt_pool_t *pool, void *block)
    uint32_t rt_pool_in_use(const rt_pool_t *pool)
    uint32_t rt_pool_high_water(const rt_pool_t *pool)
    uint64_t rt_pool_failures(const rt_pool_t *pool)
    int rt_pool_check(rt_pool_t *pool)


_KINDS = {"single": RT_POOL_SINGLE, "shared": RT_POOL_SHARED, "mutex": RT_POOL_MUTEX}


cdef class _Pool_1:
    """Pool(block_size, count, *, kind='shared', backing=None)
--

    Equal blocks of memory that a step takes and gives back in bounded time, without a page fault or a call of malloc.

    One contiguous region, each block on cache lines of its own, prefaulted, and locked into memory. Where the kernel
    refuses the lock, an RTSetupWarning has the fix, and ``is_locked`` is False. A forked child sees an empty pool.

    Parameters
    ----------
    block_size : int or str
        Bytes of a block, or ``"4K"`` and the like.
    count : int
        How many blocks, at most 1048576.
    kind : {"shared", "single", "mutex"}
        ``"shared"``: lock-free, for any threads. ``"single"``: the fastest, for one thread. ``"mutex"``: for any
        threads, with priority inheritance.
    backing : str or path, optional
        What holds the blocks, as in :class:`HugeBuffer`: ``"auto"``, ``"hugetlb"``, a hugetlbfs path or ``"thp"`` for
        huge pages. By default ordinary pages; the property of this name tells what the kernel gave.

    Raises
    ------
    ConfigError
        On a size, a count or a kind that can never work.
    MemoryError
        Where the region cannot be mapped.

    Notes
    -----
    From Cython:

    ``cdef void *alloc(self) noexcept nogil``
        Returns NULL iff every block is in use.
    ``cdef int free(self, void *block) noexcept nogil``
        Returns 0, -EINVAL for what is no block of this pool (NULL, an address of elsewhere, or one inside a block), or
        -EALREADY for a block that is free. A refused free changes nothing.

    The inline forms of ``rtloop/include/rtloop/pool.h`` (see :func:`rtloop.get_include`) take
    ``<rt_pool_t *>pool.handle``.

    Real-time contract of both
        Thread: ``"single"`` one at a time; ``"shared"`` any, signal handlers included; ``"mutex"`` any.
        GIL: never. Allocates: never. System calls: none, but for ``"mutex"``, to wait for its turn.
        Time: ``"single"`` O(1). ``"shared"`` at most 3 locked instructions and, for alloc, ``count / 2048`` words read,
        and ``count / 16`` where the pool is exhausted; more only where other threads take and free meanwhile; blocks
        nobody, and nobody blocks it. ``"mutex"`` O(1), after the one that holds it, who inherits the priority.
    """

    def __init__(self, block_size, count, *, kind="shared", backing=None):
        cdef uint64_t block_bytes, blocks, size
        cdef uint32_t kind_code
        cdef void *address
        cdef int rc
        if self.handle is not NULL:
            raise PoolError("a pool is made once: its blocks may be in use; make a new one")
        if not isinstance(kind, str) or kind not in _KINDS:
            raise ConfigError(f"kind={kind!r} is not a kind of pool; give one of {', '.join(map(repr, _KINDS))}")
        if isinstance(count, bool) or not hasattr(count, "__index__"):
            raise ConfigError(f"count={count!r} is not a number of blocks; give an int")
        number = int(count.__index__())
        if not 0 < number <= RT_POOL_MAX_COUNT:
            raise ConfigError(f"count={count!r} must be from 1 to {RT_POOL_MAX_COUNT}")
        block_bytes = parse_size(block_size, "block_size", minimum=1)
        blocks = number
        kind_code = _KINDS[kind]
        size = rt_pool_bytes(block_bytes, blocks, kind_code)
        if size == 0:
            raise ConfigError(f"block_size={block_size!r} times count={count!r} is more than a pool can manage")
        region = _Region(size) if backing is None else _HugeRegion(size, backing)
        address = <void *><size_t>region.address
        with nogil:
            rc = rt_pool_init(<rt_pool_t *>address, block_bytes, blocks, kind_code)
        if rc:
            raise OSError(-rc, f"a pool with kind={kind!r} cannot be made: {os.strerror(-rc)}")
        self._owner = region
        self.handle = address
        if backing is None and region.grant is not None:
            text = describe_refused(region.grant)
            warnings.warn(f"{self!r} may be paged out.\n{text}", RTSetupWarning, stacklevel=1)

    cdef void *alloc(self) noexcept nogil:
        return rt_pool_alloc(<rt_pool_t *>self.handle)

    cdef int free(self, void *block) noexcept nogil:
        return rt_pool_free(<rt_pool_t *>self.handle, block)

    cdef int _reserved_0(self) noexcept nogil:
        return 0

    cdef int _reserved_1(self) noexcept nogil:
        return 0

    cdef int _reserved_2(self) noexcept nogil:
        return 0

    cdef int _reserved_3(self) noexcept nogil:
        return 0

    @property
    def kind(self):
        """Which threads may use it: ``"single"``, ``"shared"`` or ``"mutex"``."""
        code = _pool(self).kind
        return next((name for name, value in _KINDS.items() if value == code), "wiped by a fork")

    @property
    def block_size(self):
        """Bytes of a block, as asked for."""
        return _pool(self).block_bytes

    @property
    def capacity(self):
        """How many blocks there are, free or not."""
        return _pool(self).count

    @property
    def in_use(self):
        """How many blocks are in use at this moment; while other threads take and free, an estimate."""
        return rt_pool_in_use(_pool(self))

    @property
    def high_water(self):
        """The most blocks that were ever in use.

        With several threads at once, ``"shared"`` may count too many by what others gave back during an alloc, and
        never too few.
        """
        return rt_pool_high_water(_pool(self))

    @property
    def failures(self):
        """How often a block was asked for and none was free."""
        return rt_pool_failures(_pool(self))

    @property
    def is_locked(self):
        """Whether the kernel has locked the region into memory, so that it cannot be paged out."""
        _pool(self)
        return self._owner.is_locked

    @property
    def backing(self):
        """What the kernel gave for the blocks: ``"pages"``, ``"hugetlb"`` or ``"thp"``."""
        _pool(self)
        return self._owner.backing

    def check(self):
        """Check the whole pool; no other thread may use it meanwhile.

        Raises
        ------
        PoolError
            Where a block is free twice, is lost, or the counters disagree: memory was overwritten.
        """
        cdef rt_pool_t *pool = _pool(self)
        cdef int rc
        with nogil:
            rc = rt_pool_check(pool)
        if rc:
            raise PoolError(f"{self!r} is broken: something has written before or behind its blocks")

    def block(self, dtype=np.uint8):
        """Hold a block for a ``with`` statement, as a NumPy array.

        The array has as many items as fit, and holds what the last user left. At the end of the statement the block is
        free for others; the memory stays mapped until the last view of it is gone.

        Parameters
        ----------
        dtype : dtype
            The items' type.

        Raises
        ------
        ConfigError
            Where no item fits.
        PoolExhaustedError
            At the beginning of the statement, where every block is in use.
        PoolError
            At the end of the statement, where the block was given back already.

        Examples
        --------
        >>> pool = rtloop.Pool(256, 16)
        >>> with pool.block(dtype="f8") as array:
        ...     array[:] = 0
        """
        _check_not_in_child(self)
        item = np.dtype(dtype)
        if item.hasobject:
            raise ConfigError(f"dtype={dtype!r} has no place in plain memory; give numbers, or a struct of them")
        if not 0 < item.itemsize <= _pool(self).block_bytes:
            raise ConfigError(f"dtype={dtype!r} does not fit into a block of {self.block_size} bytes")
        return _Held(self, item)

    def __repr__(self):
        return (
            f"Pool(block_size={self.block_size}, count={self.capacity}, kind={self.kind!r}, in_use={self.in_use}, "
            f"is_locked={self.is_locked})"
        )


Pool = _Pool_1


cdef class _Region:
    """Memory for a pool: mapped, prefaulted, and locked where the process may; given back when nobody holds it."""

    backing = "pages"
    cdef void *_address
    cdef size_t _size
    cdef object _unlock
    cdef readonly object grant  # of the lock, where it was refused

    def __cinit__(self, uint64_t size):
        cdef int rc
        rc = rt_memory_map(&self._address, size)
        if rc:
            self._address = NULL
            raise MemoryError(f"a pool of {format_size(size)} cannot be mapped: {os.strerror(-rc)}")
        self._size = size
        rc = memory_lock.acquire_range(<size_t>self._address, size)
        if rc:
            self.grant = range_lock_grant("lock", size, rc, detail="")
        else:
            # Kept here, for at the end of the interpreter the module's names may be gone first.
            self._unlock = memory_lock.forget_range  # unmapping unlocks
        with nogil:
            rc = prefault_region(self._address, size)
        if rc:
            raise MemoryError(f"a pool of {format_size(size)} cannot be made present: {os.strerror(-rc)}")

    def __del__(self):
        if self._unlock is not None:
            self._unlock(<size_t>self._address)
            self._unlock = None

    def __dealloc__(self):
        if self._address is not NULL:
            munmap(self._address, self._size)

    @property
    def address(self):
        return <size_t>self._address

    @property
    def is_locked(self):
        return self._unlock is not None


class _HugeRegion:
    """The same on huge pages: a HugeBuffer, which cannot be closed while the pool holds a view of it."""

    def __init__(self, size, backing):
        from rtloop.data.buffer import HugeBuffer

        self._buffer = HugeBuffer(size, backing=backing)
        self._view = memoryview(self._buffer)
        self.address = self._buffer.address
        self.backing = self._buffer.backing

    @property
    def is_locked(self):
        return self._buffer.is_locked


cdef rt_pool_t *_pool(_Pool_1 pool) except NULL:
    if pool.handle is NULL:
        raise PoolError("this pool was never made: a subclass has not called super().__init__()")
    return <rt_pool_t *>pool.handle


cdef int _check_not_in_child(_Pool_1 pool) except -1:
    if _pool(pool).count == 0:
        raise PoolError("this process is a fork, and pools do not survive a fork: make a new one here")
    return 0


cdef class _Held:
    """A block on loan. It lends its memory to the array, and so keeps the pool."""

    cdef _Pool_1 _pool
    cdef object _dtype
    cdef void *_block

    def __cinit__(self, _Pool_1 pool, dtype):
        self._pool = pool
        self._dtype = dtype

    def __getbuffer__(self, Py_buffer *view, int flags):
        if self._block is NULL:
            raise BufferError("this block is not held: use the array of the with statement")
        PyBuffer_FillInfo(view, self, self._block, _pool(self._pool).block_bytes, 0, flags | PyBUF_WRITABLE)

    def __enter__(self):
        pool = self._pool
        if self._block is not NULL:
            raise PoolError("this block is held already; call pool.block() for another one")
        _check_not_in_child(pool)
        self._block = pool.alloc()
        if self._block is NULL:
            raise PoolExhaustedError(f"all {pool.capacity} blocks of the pool are in use; make it larger")
        items = _pool(pool).block_bytes // self._dtype.itemsize
        # The array's base is a loan of its own, so that this one can be entered again with another block.
        loan = _Held(pool, self._dtype)
        (<_Held>loan)._block = self._block
        return np.frombuffer(loan, self._dtype, items)

    def __exit__(self, *exception):
        block, self._block = <size_t>self._block, NULL
        if _pool(self._pool).count == 0:
            return  # in a forked child, which owns no block
        rc = self._pool.free(<void *>block)
        if rc == -EALREADY:
            raise PoolError(f"the block at {block:#x} was given back twice")
        if rc == -EINVAL:
            raise PoolError(f"{block:#x} is not the address of a block of {self._pool!r}")


def __getattr__(name):
    if name.startswith("_Pool_") and name[6:].isdigit():
        raise ImportError(
            f"this module was compiled against interface {name[6:]} of rtloop's Pool, and the installed rtloop has "
            "interface 1: recompile the module"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


cdef extern from *:
    """
    static inline void rt_name_pool(PyTypeObject *type) { type->tp_name = "rtloop.Pool"; }
    """
    void rt_name_pool(PyTypeObject *type)


# The class is known by the name that its users import.
rt_name_pool(<PyTypeObject *>_Pool_1)
