"""Ring: a queue between a step and the rest of the program. See include/rtloop/ring.h."""

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.object cimport PyObject
from libc.stdint cimport UINT64_MAX, uint64_t

cimport cython
cimport numpy as cnp

from rtloop._python cimport Py_REFCNT
from rtloop.data.storage cimport SharedStorage
from rtloop.sharing.wakers cimport Sleep, wake
from rtloop.headers.ring cimport (
    rt_ring_bytes,
    rt_ring_consume,
    rt_ring_dropped,
    rt_ring_front,
    rt_ring_high_water,
    rt_ring_init,
    rt_ring_length,
    rt_ring_open,
    rt_ring_pop,
    rt_ring_pop_many,
    rt_ring_push,
    rt_ring_push_many,
    rt_ring_t,
    rt_is_awaited,
)

import numpy as np

from rtloop.data.dtypes import as_items, plain_dtype
from rtloop.data.interface import lost_by_fork, made_twice, never_made, publish, refuse_copy
from rtloop.data.storage import Storage, warn_unlocked
from rtloop.errors import ConfigError, StateError
from rtloop.settings import parse_count
from rtloop.sharing.exchange_file import Plan, open_exchange, share_exchange
from rtloop.sharing.roles import check_role
from rtloop.sharing.waiting import find_notifier, wait_in_thread
from rtloop.units import as_index, show


cnp.import_array()


_MAX_ITEMS = (1 << 48) - 1


@cython.auto_pickle(False)
cdef class _RingMethods:
    """The methods for Python that have the name of one for Cython: a class can define only one of the two."""

    def push(self, value):
        """Put in one item, or an array of them.

        Parameters
        ----------
        value : scalar, tuple or dict of a struct's fields, or one-dimensional array
            One item of the ring's dtype, or several.

        Returns
        -------
        int
            Number of items that were put in. If the ring is full, the rest is dropped and counted.

        Raises
        ------
        ConfigError
            On a value that the dtype cannot hold.
        StateError
            In a forked child, at the consumer's side of a shared one, or after `close`.
        """
        cdef _Ring_1 queue = <_Ring_1?>self
        cdef size_t address
        cdef uint64_t count, pushed
        _check_side(queue, "producer")
        if _ring(queue).capacity == 0:
            raise StateError(lost_by_fork("ring"))
        array = as_items(value, queue.dtype)
        if array.ndim > 1:
            raise ConfigError(f"an array of {array.shape} items has no order; give one dimension: array.ravel()")
        address, count = array.ctypes.data, array.size
        with cython.critical_section(queue):  # one thread at a time may push
            pushed = rt_ring_push_many(_ring(queue), <const void *>address, count)
            _wake(_ring(queue))
        return pushed

    def pop(self):
        """Take out the oldest item.

        Returns
        -------
        NumPy scalar or None
            A copy, or None if the ring is empty.

        Raises
        ------
        StateError
            At the producer's side of a shared one, or after `close`.
        """
        cdef _Ring_1 queue = <_Ring_1?>self
        cdef size_t address
        cdef bint is_there
        _check_side(queue, "consumer")
        array = np.empty(1, queue.dtype)
        address = array.ctypes.data
        with cython.critical_section(queue):  # no other thread may begin a view between these two
            is_there = rt_ring_pop(_consumed(queue), <void *>address)
        _rearm(queue)
        return array[0] if is_there else None


cdef class _Ring_1(_RingMethods):
    """Ring(dtype, capacity, *, when_full='drop', share=None, role='producer')
--

    A queue of items of one type, from one thread to one other: the loop's and Python's, or those of two loops.

    Neither side ever waits for the other. The memory is prefaulted and locked. If the kernel refuses the lock, an
    RTSetupWarning contains the fix, and ``is_locked`` is False. A forked child sees an empty ring without room.

    Parameters
    ----------
    dtype : dtype
        The items' type: a number, or a struct of them.
    capacity : int
        Number of items that it has room for.
    when_full : {"drop"}
        An item that there is no room for is dropped, and counted in `dropped`.
    share : str, optional
        Name by which another process of the same user uses the other side of the same ring (:meth:`open`). This object
        is then one side of it only. If there is a ring of this name, this process becomes its `role`, in the place of
        a process that has ended; otherwise it is created.
    role : {"producer", "consumer"}
        Side of a shared ring that this object is.

    Attributes
    ----------
    dtype : numpy.dtype
        The items' type.

    Raises
    ------
    ConfigError
        On a type or a number that can never work, or a shared ring of this name that differs.
    StateError
        If another process has the role; the message names it.
    MemoryError
        If it is more memory than the machine, or the control group, has left.

    Notes
    -----
    One thread at a time may push, and one at a time take out: `pop`, `drain` and `view`. From Python any threads may do
    either: these methods take turns, also on a free-threaded Python. They do not wait for a step in Cython or C, which
    must be the only one on its side.

    From Cython:

    ``cdef bint push(self, const void *item) noexcept nogil``
        Returns False iff the ring is full.
    ``cdef bint pop(self, void *item) noexcept nogil``
        Returns False iff the ring is empty.
    ``cdef uint64_t push_many(self, const void *items, uint64_t count) noexcept nogil``
        Returns the number of items that were put in.
    ``cdef uint64_t pop_many(self, void *items, uint64_t count) noexcept nogil``
        Returns the number of items that were taken out.

    The inline forms of ``rtloop/include/rtloop/ring.h`` (see :func:`rtloop.get_include`) take
    ``<rt_ring_t *>ring.handle``, also of a shared one.

    A method of the other side of a shared ring does nothing, and returns 0: `push` at the consumer, `pop` at the
    producer. The inline forms do not know which side they are called on.

    Real-time contract of all four
        Thread: one that pushes, one that takes out. GIL: never. Allocates: never. System calls: none.
        Time: wait-free; about 15 instructions, the copy, and one load that may miss the cache.

    Examples
    --------
    >>> ring = rtloop.Ring([("t", "f8"), ("angle", "f4")], 1000)
    >>> ring.push((0.001, 0.5))
    1
    >>> ring.drain()["angle"]
    array([0.5], dtype=float32)
    """

    def __init__(self, dtype, capacity, *, when_full="drop", share=None, role="producer"):
        cdef uint64_t item_bytes, places, size
        cdef void *address
        if self.handle is not NULL:
            raise StateError(made_twice("ring"))
        if when_full != "drop":
            raise ConfigError(f'when_full={when_full!r}: a ring can only drop what is too much; give "drop"')
        item = plain_dtype(dtype)
        number = parse_count(capacity, "capacity", maximum=_MAX_ITEMS)
        item_bytes, places = item.itemsize, number
        size = rt_ring_bytes(item_bytes, places)
        if size == 0:
            raise ConfigError(f"capacity={capacity!r} items of {item_bytes} bytes are more than there are addresses")
        check_role("ring", share, role)
        if share is not None:
            plan = Plan("ring", item, number, 1, "", size - _CONSTANT_BYTES)
            _use(self, share_exchange(share, plan, role))
            return
        storage = Storage(size, "a ring")
        address = <void *><size_t>storage.address
        rt_ring_init(<rt_ring_t *>address, item_bytes, places)
        warn_unlocked(storage, f"Ring({item}, {number})")
        self.dtype = item
        self._owner = storage
        self._loan = _Loan(storage)
        self.handle = address

    cdef bint push(self, const void *item) noexcept nogil:
        return rt_ring_push(<rt_ring_t *>self.handle, item)

    cdef bint pop(self, void *item) noexcept nogil:
        return rt_ring_pop(<rt_ring_t *>self.handle, item)

    cdef uint64_t push_many(self, const void *items, uint64_t count) noexcept nogil:
        return rt_ring_push_many(<rt_ring_t *>self.handle, items, count)

    cdef uint64_t pop_many(self, void *items, uint64_t count) noexcept nogil:
        return rt_ring_pop_many(<rt_ring_t *>self.handle, items, count)

    cdef int _reserved_0(self) noexcept nogil:
        return 0

    cdef int _reserved_1(self) noexcept nogil:
        return 0

    cdef int _reserved_2(self) noexcept nogil:
        return 0

    cdef int _reserved_3(self) noexcept nogil:
        return 0

    @classmethod
    def open(cls, name, role="consumer", *, dtype=None):
        """Become one side of a ring that another process shares.

        Parameters
        ----------
        name : str
            Name that it was created with: ``Ring(dtype, 1000, share="arm/log")``.
        role : {"consumer", "producer"}
            Side that this object is.
        dtype : dtype, optional
            Type that the items must have.

        Returns
        -------
        Ring

        Raises
        ------
        AttachError
            If this user has no exchange of this name.
        ConfigError
            If it is a Latest, or has another type; the message names both.
        StateError
            If another process has the role; the message names it.
        """
        check_role("ring", name, role)
        cdef _Ring_1 self = cls.__new__(cls)
        _use(self, open_exchange(name, "ring", role, None if dtype is None else plain_dtype(dtype)))
        return self

    @property
    def share(self):
        """Name of a shared ring; None if it is not shared."""
        return None if _shared(self) is None else self._owner.file.header.name

    @property
    def role(self):
        """Side of a shared ring that this is: "producer" or "consumer"; None if it is not shared."""
        return None if _shared(self) is None else self._owner.file.role

    def close(self):
        """Give up the role of a shared ring, so that another process can have it. No loop may use this object.

        What a step does with it afterwards has no effect. Items stay in the ring as long as a process has it. A second
        call does nothing, nor does one of a ring that is not shared.

        Raises
        ------
        StateError
            If a view is in use.
        """
        cdef SharedStorage storage = _shared(self)
        if storage is not None:
            with cython.critical_section(self):
                if (<_Loan>self._loan).is_lent:
                    raise StateError("a view of this ring is in use: leave its with statement first")
                self.handle = storage.closed()
            storage.file.close()
            if storage.notifier is not None:
                storage.notifier.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    @property
    def capacity(self):
        """Number of items that the ring has room for."""
        return _ring(self).capacity

    @property
    def dropped(self):
        """Number of items that were dropped because the ring was full."""
        return rt_ring_dropped(_ring(self))

    @property
    def high_water(self):
        """The most items that were ever in the ring, rounded up to a sixteenth of the capacity."""
        return rt_ring_high_water(_ring(self))

    @property
    def is_locked(self):
        """True if the kernel keeps the memory from being paged out; read again at each call."""
        return _ring(self).capacity != 0 and self._owner.is_locked

    def drain(self, limit=None):
        """Take out all items, or at most `limit`, the oldest first.

        Parameters
        ----------
        limit : int, optional
            The most to take out.

        Returns
        -------
        numpy.ndarray
            A copy, of the ring's dtype.
        """
        cdef uint64_t count, most = UINT64_MAX
        cdef size_t address
        _check_side(self, "consumer")
        with cython.critical_section(self):
            count = rt_ring_length(_consumed(self))
        if limit is not None:
            number = as_index(limit)
            if number is None or number < 0:
                raise ConfigError(f"limit={show(limit)} is not a number of items; give an int, or None for all")
            most = min(number, _MAX_ITEMS)
        array = np.empty(min(count, most), self.dtype)
        address, most = array.ctypes.data, len(array)
        # Checked again: another thread may have taken some meanwhile, or may have a view of them.
        with cython.critical_section(self):
            count = rt_ring_pop_many(_consumed(self), <void *>address, most)
        _rearm(self)
        return array[:count]

    def view(self):
        """Look at the oldest items in place, and take them out at the end of a ``with`` statement.

        The array has the items that are one piece of memory. Items beyond the point where the ring's memory wraps
        around come with the next view. At the end of the statement the array becomes empty. Use the array only on the
        thread of the statement.

        Raises
        ------
        BufferError
            At the end of the statement, if a part of the array is still in use. The items then stay in the ring, and
            nobody can take any out before that part is gone.
        StateError
            If another view is in use.

        Examples
        --------
        >>> with ring.view() as items:
        ...     total = items["angle"].sum()
        """
        _check_side(self, "consumer")
        return _View(self)

    def wait(self, timeout=None):
        """Sleep until there is an item.

        A loop that writes it wakes this thread after its step, by one system call between two cycles; a loop that
        nobody waits for makes none. The producer may be in another process. Signal handlers run, so Ctrl-C ends the
        wait. Call this from any thread but that of a loop.

        Parameters
        ----------
        timeout : duration, optional
            Longest wait: ``"100ms"``. Without it there is no limit, even if the producer has died: see `peers`.

        Returns
        -------
        bool
            True if there is an item, False after the timeout.

        Raises
        ------
        StateError
            In a forked child, at the producer's side of a shared one, or if another thread closes it.

        Notes
        -----
        A write by the inline forms of the C headers, or to an instance of a class in Cython that derives from this one,
        wakes nobody. This method finds it within 20 ms.
        """
        cdef Sleep sleep = Sleep(timeout)
        cdef rt_ring_t *ring
        _make_awaited(self)
        while True:
            _check_side(self, "consumer")
            ring = _ring(self)
            if ring.capacity == 0:
                raise StateError(lost_by_fork("ring"))
            if rt_ring_length(ring):
                return True
            if sleep.is_over():
                return False
            sleep.once(&ring.awaited, _has_items, ring)

    async def ready(self, timeout=None):
        """Wait as :meth:`wait` does, for asyncio. A thread of the event loop's executor sleeps meanwhile."""
        return await wait_in_thread(self.wait, timeout)

    def fileno(self):
        """Return a file that can be read while there is an item.

        For select(2), Qt, and other event loops. A thread of this process sleeps and sets it.
        Taking all items out, by `pop`, `drain` or a view, clears it; never read it. It is closed with this object.
        """
        cdef object owner = self._owner
        _check_side(self, "consumer")
        return find_notifier(self, owner).fd

    @property
    def peers(self):
        """Ids of the processes that have the other side of a shared one now; empty if it is not shared."""
        return () if _shared(self) is None else self._owner.file.peers()

    def __len__(self):
        return rt_ring_length(_ring(self))

    def __bool__(self):
        return True  # an empty ring is true, too

    @property
    def ends(self):
        """Names of the loop that writes and the loop that reads, if a chain of a group tells them, or None."""
        return self._owner.ends if self._owner is not None else None

    @ends.setter
    def ends(self, pair):
        self._owner.ends = pair

    def __reduce_ex__(self, protocol):
        refuse_copy(self, "memory")

    def __repr__(self):
        between = "" if self.ends is None else f", {' to '.join(self.ends)}"
        shared = "" if self.share is None else f", share={self.share!r}, role={self.role!r}"
        return f"Ring({str(self.dtype)!r}, {self.capacity}, dropped={self.dropped}{shared}{between})"


cdef rt_ring_t *_ring(_Ring_1 ring) except NULL:
    if ring.handle is NULL:
        raise StateError(never_made("ring"))
    return <rt_ring_t *>ring.handle


cdef SharedStorage _shared(_Ring_1 ring):
    """Return the memory of a shared one, or None."""
    return <SharedStorage>ring._owner if isinstance(ring._owner, SharedStorage) else None


cdef int _check_side(_Ring_1 ring, role) except -1:
    """Raise if the ring was never made, or is the other side of a shared one."""
    _ring(ring)
    if _shared(ring) is not None:
        ring._owner.file.check_role(role)
    return 0


cdef inline void _wake(rt_ring_t *ring) noexcept nogil:
    if rt_is_awaited(&ring.awaited):
        wake(&ring.awaited)


cdef bint _has_items(const void *ring) noexcept nogil:
    return rt_ring_length(<const rt_ring_t *>ring) != 0


cdef int _rearm(_Ring_1 ring) except -1:
    """Clear the file that shows that there are items, after some were taken out."""
    if ring._owner.notifier is not None:
        ring._owner.notifier.rearm()
    return 0


@cython.auto_pickle(False)
cdef class _Awaited(_Ring_1):
    """The methods for Cython of a ring that somebody has waited for: they wake whoever sleeps."""

    cdef bint push(self, const void *item) noexcept nogil:
        cdef bint is_in = rt_ring_push(<rt_ring_t *>self.handle, item)
        _wake(<rt_ring_t *>self.handle)
        return is_in

    cdef uint64_t push_many(self, const void *items, uint64_t count) noexcept nogil:
        cdef uint64_t pushed = rt_ring_push_many(<rt_ring_t *>self.handle, items, count)
        _wake(<rt_ring_t *>self.handle)
        return pushed


cdef int _make_awaited(_Ring_1 self) except -1:
    """Give a ring that is not shared the methods for Cython that wake. Those of a derived class in Cython stay."""
    cdef _Ring_1 plain = _Ring_1.__new__(_Ring_1)
    cdef _Ring_1 awaited = _Awaited.__new__(_Awaited)
    if _methods(self)[0] is _methods(plain)[0]:
        _methods(self)[0] = _methods(awaited)[0]
    return 0


@cython.auto_pickle(False)
cdef class _Producer(_Awaited):
    """The methods for Cython of the producer of a shared ring: those of the other side do nothing."""

    cdef bint pop(self, void *item) noexcept nogil:
        return False

    cdef uint64_t pop_many(self, void *items, uint64_t count) noexcept nogil:
        return 0


@cython.auto_pickle(False)
cdef class _Consumer(_Ring_1):
    """The methods for Cython of the consumer of a shared ring: those of the other side do nothing."""

    cdef bint push(self, const void *item) noexcept nogil:
        return False

    cdef uint64_t push_many(self, const void *items, uint64_t count) noexcept nogil:
        return 0


cdef void **_methods(_Ring_1 ring) noexcept:
    """Return the pointer to an object's table of methods for Cython, which lies in front of its first field."""
    return (<void **>&ring.handle) - 1


cdef int _use(_Ring_1 self, file) except -1:
    """Make an object one side of a shared ring, of which it gets the methods for Cython."""
    cdef SharedStorage storage
    cdef rt_ring_t *ring
    cdef _Ring_1 plain = _Ring_1.__new__(_Ring_1)
    kind = _Producer if file.role == "producer" else _Consumer
    cdef _Ring_1 methods = kind.__new__(kind)
    plan = file.header.plan
    try:
        if _methods(self)[0] is not _methods(plain)[0]:
            raise ConfigError("a class in Cython that derives from Ring cannot be shared: use a Ring as its field")
        if plan.data_bytes != rt_ring_bytes(plan.dtype.itemsize, plan.capacity) - _CONSTANT_BYTES:
            raise ConfigError(f"the exchange {file.header.name!r} is damaged: its sizes contradict each other")
        storage = SharedStorage(file)
        ring = <rt_ring_t *>(<char *>storage.private_end() - _CONSTANT_BYTES)
        rt_ring_open(ring, plan.dtype.itemsize, plan.capacity)
    except BaseException:
        file.close()
        raise
    warn_unlocked(storage, f"Ring({plan.dtype}, {plan.capacity}, share={file.header.name!r})")
    self.dtype = plan.dtype
    self._owner = storage
    self._loan = _Loan(storage)
    _methods(self)[0] = _methods(methods)[0]
    self.handle = ring
    return 0


#: First cache line of a ring: its constants, and private memory of each process.
cdef size_t _CONSTANT_BYTES = 64


cdef rt_ring_t *_consumed(_Ring_1 self) except NULL:
    cdef rt_ring_t *ring = _ring(self)
    cdef _Loan loan = self._loan
    if loan.is_lent or loan.is_in_use():
        raise BufferError(_IN_USE)
    return ring


_IN_USE = "items of this ring are in use: leave the with statement, and delete the parts of its array that were kept"


cdef class _Items:
    """Items of a ring as a buffer, which keeps the memory."""

    cdef object _storage
    cdef const void *_address
    cdef Py_ssize_t _size

    def __cinit__(self, storage):
        self._storage = storage

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, <void *>self._address, self._size, 1, flags)


cdef class _Loan:
    """The array that a ring lends.

    The array is a slice of another one, its base. NumPy gives all parts of the array, and their parts, this same base:
    the number of references to the base tells whether a part is in use. A memoryview of the array itself does not
    count, nor does an array of another class or of ``np.lib.stride_tricks``. These keep the array, and with it the
    memory.

    While `is_lent` is set, all belongs to the thread of the with statement. Otherwise it is used in a critical section
    of the ring.
    """

    cdef object _storage
    cdef object _base
    cdef object _array
    cdef uint64_t count
    cdef bint is_lent

    def __cinit__(self, storage):
        self._storage = storage

    cdef object lend(self, rt_ring_t *ring, dtype):
        cdef _Items items = _Items(self._storage)
        items._address = rt_ring_front(ring, &self.count)
        items._size = self.count * ring.item_bytes
        self._base = np.frombuffer(items, dtype) if self.count else np.empty(0, dtype)
        self._array = self._base[:]
        return self._array

    cdef void end(self):
        """Make the array empty, for whoever still has it."""
        cdef cnp.ndarray array
        for array in (self._array, self._base):
            for axis in range(cnp.PyArray_NDIM(array)):
                cnp.PyArray_DIMS(array)[axis] = 0

    cdef bint is_in_use(self):
        """Tell whether a part of the array is in use; if not, forget the array."""
        if self._base is None:
            return False
        # The references of this object, and the array's to its base. Without a dimension the array cannot be emptied.
        if Py_REFCNT(<PyObject *>self._base) > 2:
            return True
        if cnp.PyArray_NDIM(<cnp.ndarray>self._array) == 0 and Py_REFCNT(<PyObject *>self._array) > 1:
            return True
        _held = self._base, self._array  # until both are forgotten
        self._base = self._array = None
        return False


cdef class _View:
    """The with statement of a view."""

    cdef _Ring_1 _ring
    cdef bint _is_open

    def __cinit__(self, _Ring_1 ring):
        self._ring = ring

    def __enter__(self):
        cdef _Loan loan = self._ring._loan
        cdef rt_ring_t *ring
        with cython.critical_section(self._ring):
            if loan.is_lent:
                raise StateError("another view of this ring is in use")
            ring = _consumed(self._ring)
            loan.is_lent = True
        try:
            array = loan.lend(ring, self._ring.dtype)
        except BaseException:
            loan.is_lent = False
            raise
        self._is_open = True
        return array

    def __exit__(self, *exception):
        cdef _Loan loan = self._ring._loan
        with cython.critical_section(self._ring):
            if not self._is_open:
                raise StateError("this view is closed: its with statement has ended")
            self._is_open = False
            loan.end()
            loan.is_lent = False
            if loan.is_in_use():
                raise BufferError("a part of the array is in use: keep a copy instead. The items stay in the ring")
            if _ring(self._ring).capacity:  # a forked child has inherited the statement, and not the items
                rt_ring_consume(_ring(self._ring), loan.count)
        _rearm(self._ring)


Ring = _Ring_1
__getattr__ = publish(_Ring_1)

# Their public names are those of the public class.
for _method in (Ring.push, Ring.pop):
    _method.__qualname__ = f"Ring.{_method.__name__}"
