"""Ring: a queue between a step and the rest of the program. See include/rtloop/ring.h."""

from libc.stdint cimport UINT64_MAX, uint32_t, uint64_t

cimport cython
cimport numpy as cnp

from rtloop.data.exchange.exchange cimport Exchange
from rtloop.data.exchange.loan cimport Loan, View
from rtloop.data.exchange.side cimport Access, check_side, fields_of, map_side, rearm
from rtloop.data.storage cimport SharedStorage
from rtloop.headers.ring cimport (
    rt_ring_bytes,
    rt_ring_dropped,
    rt_ring_high_water,
    rt_ring_init,
    rt_ring_length,
    rt_ring_open,
    rt_ring_pop,
    rt_ring_pop_many,
    rt_ring_push,
    rt_ring_push_many,
    rt_ring_t,
)
from rtloop.sharing.wakers cimport wake_awaited

import numpy as np

from rtloop.data.dtypes import as_items, plain_dtype
from rtloop.data.exchange.side import describe_sides
from rtloop.data.interface import lost_by_fork, made_twice, never_made, publish
from rtloop.data.storage import Storage, warn_unlocked
from rtloop.errors import ConfigError, StateError
from rtloop.settings import parse_count
from rtloop.sharing.exchange_file import Plan
from rtloop.sharing.roles import check_role
from rtloop.sharing.shared_exchanges import open_exchange, share_exchange
from rtloop.units import as_index, show


cnp.import_array()


_MAX_ITEMS = (1 << 48) - 1


@cython.auto_pickle(False)
cdef class _RingMethods(Exchange):
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
        cdef cnp.ndarray array
        cdef uint64_t count, pushed
        _check_side(queue, "producer")
        if _ring(queue).capacity == 0:
            raise StateError(lost_by_fork("ring"))
        array = as_items(value, queue.dtype)
        if cnp.PyArray_NDIM(array) > 1:
            shape = (<object>array).shape
            raise ConfigError(f"an array of {shape} items has no order; give one dimension: array.ravel()")
        count = cnp.PyArray_SIZE(array)
        with cython.critical_section(queue):  # one thread at a time may push
            pushed = rt_ring_push_many(_ring(queue), cnp.PyArray_DATA(array), count)
            wake_awaited(&_ring(queue).awaited)
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
        cdef cnp.ndarray array
        cdef bint is_there
        _check_side(queue, "consumer")
        array = np.empty(1, queue.dtype)
        with cython.critical_section(queue):  # no other thread may begin a view between these two
            is_there = rt_ring_pop(_consumed(queue), cnp.PyArray_DATA(array))
        rearm(queue._owner)
        return array[0] if is_there else None


cdef class _Ring_1(_RingMethods):
    """Ring(dtype, capacity, *, when_full='drop', share=None, role='producer', mode=0o600)
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
        Name by which another process uses the other side of the same ring (:meth:`open`). This object is then one side
        of it only. If there is a ring of this name, this process becomes its `role`, in the place of a process that
        has ended; otherwise it is created. ``"arm/log"`` is found by processes of the same user, in the same PID
        namespace; the path of a socket, ``"/run/arm/log"``, by all users that `mode` allows; an abstract socket,
        ``"@arm/log"``, by processes of the same user in the same network namespace.
    role : {"producer", "consumer"}
        Side of a shared ring that this object is.
    mode : int
        Users who may open a ring that is shared by a path: 0o600 this user, 0o660 also the socket's group, 0o666 all
        users.

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
    AttachError
        If the processes that have it open by a socket do not answer. The error is also a PermissionError if this user
        may not open it.
    SetupError
        If its socket cannot be created. The error is also a PermissionError if this user may not create it.
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

    def __init__(self, dtype, capacity, *, when_full="drop", share=None, role="producer", mode=0o600):
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
        check_role("ring", share, role, mode=mode)
        if share is not None:
            plan = Plan("ring", item, number, 1, "", size - _CONSTANT_BYTES, int(mode))
            _use(self, share_exchange(share, plan, role))
            return
        storage = Storage(size, "a ring")
        storage.access = _ACCESS
        address = <void *><size_t>storage.address
        rt_ring_init(<rt_ring_t *>address, item_bytes, places)
        warn_unlocked(storage, f"Ring({item}, {number})")
        self.dtype = item
        self._owner = storage
        self._loan = Loan(storage)
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
            If there is no exchange of this name; also a PermissionError if this user may not open it.
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
        cdef cnp.ndarray array
        _check_side(self, "consumer")
        with cython.critical_section(self):
            count = rt_ring_length(_consumed(self))
        if limit is not None:
            number = as_index(limit)
            if number is None or number < 0:
                raise ConfigError(f"limit={show(limit)} is not a number of items; give an int, or None for all")
            most = min(number, _MAX_ITEMS)
        array = np.empty(min(count, most), self.dtype)
        most = cnp.PyArray_SIZE(array)
        # Checked again: another thread may have taken some meanwhile, or may have a view of them.
        with cython.critical_section(self):
            count = rt_ring_pop_many(_consumed(self), cnp.PyArray_DATA(array), most)
        rearm(self._owner)
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
        return View(self, self._loan)

    def __len__(self):
        return rt_ring_length(_ring(self))

    def __bool__(self):
        return True  # an empty ring is true, too

    def __repr__(self):
        return f"Ring({str(self.dtype)!r}, {self.capacity}, dropped={self.dropped}{describe_sides(self)})"


cdef rt_ring_t *_ring(_Ring_1 ring) except NULL:
    if ring.handle is NULL:
        raise StateError(never_made("ring"))
    return <rt_ring_t *>ring.handle


cdef int _check_side(_Ring_1 ring, role) except -1:
    """Raise if the ring was never made, or is the other side of a shared one."""
    _ring(ring)
    return check_side(ring, role)


cdef rt_ring_t *_consumed(_Ring_1 ring) except NULL:
    """Return the ring for its consumer. Raises a BufferError while items are lent."""
    (<Loan>ring._loan).check_returned()
    return _ring(ring)


cdef int _check_not_lent(object ring) except -1:
    if (<Loan>(<_Ring_1>ring)._loan).is_lent:
        raise StateError("a view of this ring is in use: leave its with statement first")
    return 0


@cython.auto_pickle(False)
cdef class _Awaited(_Ring_1):
    """The methods for Cython of a ring that somebody has waited for: they wake whoever sleeps."""

    cdef bint push(self, const void *item) noexcept nogil:
        cdef bint is_in = rt_ring_push(<rt_ring_t *>self.handle, item)
        wake_awaited(&(<rt_ring_t *>self.handle).awaited)
        return is_in

    cdef uint64_t push_many(self, const void *items, uint64_t count) noexcept nogil:
        cdef uint64_t pushed = rt_ring_push_many(<rt_ring_t *>self.handle, items, count)
        wake_awaited(&(<rt_ring_t *>self.handle).awaited)
        return pushed


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


cdef int _use(_Ring_1 self, file) except -1:
    """Make an object one side of a shared ring, of which it gets the methods for Cython."""
    cdef rt_ring_t *ring
    kind = _Producer if file.role == "producer" else _Consumer
    cdef _Ring_1 methods = kind.__new__(kind)
    plan = file.header.plan
    cdef SharedStorage storage = map_side(
        self, _ACCESS, file, rt_ring_bytes(plan.dtype.itemsize, plan.capacity) - _CONSTANT_BYTES)
    ring = <rt_ring_t *>(<char *>storage.private_end() - _CONSTANT_BYTES)
    rt_ring_open(ring, plan.dtype.itemsize, plan.capacity)
    warn_unlocked(storage, f"Ring({plan.dtype}, {plan.capacity}, share={file.header.name!r})")
    self.dtype = plan.dtype
    self._owner = storage
    self._loan = Loan(storage)
    fields_of(self).methods = fields_of(methods).methods
    self.handle = ring
    return 0


cdef bint _has_items(const void *ring) noexcept nogil:
    return rt_ring_length(<const rt_ring_t *>ring) != 0


cdef uint64_t _size(const void *ring) noexcept nogil:
    return (<const rt_ring_t *>ring).capacity


cdef uint32_t *_awaited(void *ring) noexcept nogil:
    return &(<rt_ring_t *>ring).awaited


cdef Access _make_access():
    cdef Access access = Access("Ring", "ring", "consumer")
    access.plain = fields_of(_Ring_1.__new__(_Ring_1)).methods
    access.waking = fields_of(_Awaited.__new__(_Awaited)).methods
    access.has_news, access.size, access.awaited = _has_items, _size, _awaited
    access.check_closing = _check_not_lent
    return access


cdef Access _ACCESS = _make_access()

#: First cache line of a ring: its constants, and private memory of each process.
cdef size_t _CONSTANT_BYTES = 64


Ring = _Ring_1
__getattr__ = publish(_Ring_1)

# Their public names are those of the public class.
for _method in (Ring.push, Ring.pop):
    _method.__qualname__ = f"Ring.{_method.__name__}"
