"""Pool: equal blocks of memory for ``step``, locked, prefaulted, constant-time. See include/rtloop/pool.h."""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_FillInfo
from libc.errno cimport EALREADY, EINVAL
from libc.stdint cimport uint32_t, uint64_t

cimport cython

from rtloop.headers.pool cimport (
    RT_POOL_MAX_COUNT,
    RT_POOL_MUTEX,
    RT_POOL_SHARED,
    RT_POOL_SINGLE,
    rt_pool_alloc,
    rt_pool_bytes,
    rt_pool_check,
    rt_pool_failures,
    rt_pool_free,
    rt_pool_high_water,
    rt_pool_in_use,
    rt_pool_init,
    rt_pool_t,
)

import os

import numpy as np

from rtloop.data.dtypes import plain_dtype
from rtloop.data.interface import lost_by_fork, made_twice, never_made, publish, refuse_copy
from rtloop.data.storage import HugeStorage, Storage, warn_unlocked
from rtloop.errors import ConfigError, PoolError, PoolExhaustedError
from rtloop.settings import parse_count
from rtloop.units import parse_size


_KINDS = {"single": RT_POOL_SINGLE, "shared": RT_POOL_SHARED, "mutex": RT_POOL_MUTEX}


cdef class _Pool_1:
    """Pool(block_size, count, *, kind='shared', backing=None)
--

    Equal blocks of memory that a step takes and gives back in bounded time, without a page fault or a call of malloc.

    The blocks are one contiguous region, each on cache lines of its own, prefaulted and locked into memory. If the
    kernel refuses the lock, an RTSetupWarning contains the fix, and ``is_locked`` is False. A forked child sees an
    empty pool, and views of blocks read zeros there.

    Parameters
    ----------
    block_size : int or str
        Bytes of a block, or ``"4K"`` and the like.
    count : int
        Number of blocks, at most 1048576.
    kind : {"shared", "single", "mutex"}
        ``"shared"``: lock-free, for any threads. ``"single"``: the fastest, for one thread. ``"mutex"``: for any
        threads, with priority inheritance.
    backing : str or path, optional
        Memory that holds the blocks, as in :class:`HugeBuffer`: ``"auto"``, ``"hugetlb"``, a hugetlbfs path or
        ``"thp"`` for huge pages. Ordinary pages by default. The property of this name is what the kernel granted.

    Raises
    ------
    ConfigError
        On a size, a count or a kind that can never work.
    MemoryError
        If it is more than the machine, or the control group, has left.

    Notes
    -----
    From Cython:

    ``cdef void *alloc(self) noexcept nogil``
        Returns NULL iff every block is in use.
    ``cdef int free(self, void *block) noexcept nogil``
        Returns 0, -EINVAL for an address that is not a block of this pool (NULL, an address elsewhere, or one inside a
        block), or -EALREADY for a block that is already free. A refused free changes nothing.

    The inline forms of ``rtloop/include/rtloop/pool.h`` (see :func:`rtloop.get_include`) take
    ``<rt_pool_t *>pool.handle``.

    Real-time contract of both
        Thread: ``"single"`` one at a time; ``"shared"`` any, signal handlers included; ``"mutex"`` any.
        GIL: never. Allocates: never. System calls: none, except that ``"mutex"`` may wait for its turn.
        Time: ``"single"`` O(1). ``"shared"`` lock-free: at most 3 locked instructions and, for alloc, ``count / 2048``
        words read, or ``count / 16`` if the pool is exhausted; more only if other threads take and free meanwhile.
        ``"mutex"`` O(1), after the thread that holds it, which inherits the priority.
    """

    def __init__(self, block_size, count, *, kind="shared", backing=None):
        cdef uint64_t block_bytes, blocks, size
        cdef uint32_t kind_code
        cdef void *address
        cdef int rc
        if self.handle is not NULL:
            raise PoolError(made_twice("pool"))
        if not isinstance(kind, str) or kind not in _KINDS:
            raise ConfigError(f"kind={kind!r} is not a kind of pool; give one of {', '.join(map(repr, _KINDS))}")
        number = parse_count(count, "count", maximum=RT_POOL_MAX_COUNT)
        block_bytes = parse_size(block_size, "block_size", minimum=1)
        blocks = number
        kind_code = _KINDS[kind]
        size = rt_pool_bytes(block_bytes, blocks, kind_code)
        if size == 0:
            raise ConfigError(f"block_size={block_size!r} times count={count!r} is more than a pool can manage")
        storage = Storage(size, "a pool") if backing is None else HugeStorage(size, backing)
        address = <void *><size_t>storage.address
        with nogil:
            rc = rt_pool_init(<rt_pool_t *>address, block_bytes, blocks, kind_code)
        if rc:
            raise OSError(-rc, f"a pool with kind={kind!r} cannot be made: {os.strerror(-rc)}")
        self._owner = storage
        self.handle = address
        try:
            warn_unlocked(storage, repr(self))
        except BaseException:  # a warning that was turned into an error leaves no pool
            self.handle = NULL
            self._owner = None
            raise

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
        """Threads that may use it: ``"single"``, ``"shared"`` or ``"mutex"``."""
        code = _pool(self).kind
        return next((name for name, value in _KINDS.items() if value == code), "wiped by a fork")

    @property
    def block_size(self):
        """Bytes of a block, as requested."""
        return _pool(self).block_bytes

    @property
    def capacity(self):
        """Number of blocks, free or not."""
        return _pool(self).count

    @property
    def in_use(self):
        """Number of blocks in use at this moment; an estimate while other threads take and free."""
        return rt_pool_in_use(_pool(self))

    @property
    def high_water(self):
        """The most blocks that were ever in use.

        With several threads at once, ``"shared"`` may count too many by the blocks that others gave back during an
        alloc. It never counts too few.
        """
        return rt_pool_high_water(_pool(self))

    @property
    def failures(self):
        """Number of times that a block was requested and none was free."""
        return rt_pool_failures(_pool(self))

    @property
    def is_locked(self):
        """True if the kernel keeps the region in memory, so that it cannot be paged out; read again at each call."""
        return _pool(self).count != 0 and self._owner.is_locked

    @property
    def backing(self):
        """Memory that the kernel granted for the blocks: ``"pages"``, ``"hugetlb"`` or ``"thp"``."""
        _pool(self)
        return self._owner.backing

    def check(self):
        """Check the whole pool; no other thread may use it meanwhile.

        Raises
        ------
        PoolError
            If the pool's own tables contradict each other, because something has written over them. A block that is
            marked as in use but lost by its user cannot be detected.
        """
        cdef rt_pool_t *pool = _pool(self)
        cdef int rc
        with nogil:
            rc = rt_pool_check(pool)
        if rc:
            raise PoolError(f"{self!r} is broken: something has written before or behind its blocks")

    def block(self, dtype=np.uint8):
        """Hold a block for a ``with`` statement, as a NumPy array.

        The array has as many items as fit, and contains what the last user left there. At the end of the statement the
        block is free for others. The memory stays mapped until the last view of it is gone.

        Parameters
        ----------
        dtype : dtype
            The items' type.

        Raises
        ------
        ConfigError
            If no item fits.
        PoolExhaustedError
            At the beginning of the statement, if every block is in use.
        PoolError
            At the end of the statement, if the block was given back before.

        Examples
        --------
        >>> pool = rtloop.Pool(256, 16)
        >>> with pool.block(dtype="f8") as array:
        ...     array[:] = 0
        """
        _check_not_in_child(self)
        item = plain_dtype(dtype)
        if item.itemsize > _pool(self).block_bytes:
            raise ConfigError(f"dtype={dtype!r} does not fit into a block of {self.block_size} bytes")
        return _Held(self, item)

    def __reduce_ex__(self, protocol):
        refuse_copy(self, "memory")

    def __repr__(self):
        return (
            f"Pool(block_size={self.block_size}, count={self.capacity}, kind={self.kind!r}, in_use={self.in_use})"
        )


Pool = _Pool_1
__getattr__ = publish(_Pool_1)


cdef rt_pool_t *_pool(_Pool_1 pool) except NULL:
    if pool.handle is NULL:
        raise PoolError(never_made("pool"))
    return <rt_pool_t *>pool.handle


cdef int _check_not_in_child(_Pool_1 pool) except -1:
    if _pool(pool).count == 0:
        raise PoolError(lost_by_fork("pool"))
    return 0


cdef class _Held:
    """A block on loan, which lends its memory to the array and keeps the pool alive."""

    cdef _Pool_1 _pool
    cdef object _dtype
    cdef void *_block

    def __cinit__(self, _Pool_1 pool, dtype):
        self._pool = pool
        self._dtype = dtype

    def __getbuffer__(self, Py_buffer *view, int flags):
        cdef void *block = self._block
        if block is NULL:
            raise BufferError("this block is not held: use the array of the with statement")
        PyBuffer_FillInfo(view, self, block, _pool(self._pool).block_bytes, 0, flags | PyBUF_WRITABLE)

    def __enter__(self):
        pool = self._pool
        _check_not_in_child(pool)
        with cython.critical_section(self, pool):  # a pool for one thread serves one Python thread at a time
            if self._block is not NULL:
                raise PoolError("this block is already held; call pool.block() for another one")
            self._block = pool.alloc()
        if self._block is NULL:
            raise PoolExhaustedError(f"all {pool.capacity} blocks of the pool are in use; make it larger")
        try:
            items = _pool(pool).block_bytes // self._dtype.itemsize
            # The array's base is a separate loan, so that this one can be entered again with another block.
            loan = _Held(pool, self._dtype)
            (<_Held>loan)._block = self._block
            return np.frombuffer(loan, self._dtype, items)
        except BaseException:  # of a signal handler, or because memory ran out
            self._give_back()
            raise

    cdef object _give_back(self):
        """Free the block. Returns its address, 0 if none was held, and the result of the pool's free()."""
        cdef void *block
        cdef int rc = 0
        with cython.critical_section(self, self._pool):
            block, self._block = self._block, NULL
            if block is not NULL and _pool(self._pool).count:  # a forked child owns no block
                rc = self._pool.free(block)
        return <size_t>block, rc

    def __exit__(self, *exception):
        block, rc = self._give_back()
        if not block:
            raise PoolError("no block is held: this with statement has ended")
        if rc == -EALREADY:
            raise PoolError(f"the block at {block:#x} was given back twice")
        if rc == -EINVAL:
            raise PoolError(f"{block:#x} is not the address of a block of {self._pool!r}")
