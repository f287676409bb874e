"""Latest: the newest value from one side to the other. See include/rtloop/latest.h."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

cimport cython
cimport numpy as cnp

from rtloop.data.exchange.exchange cimport Exchange
from rtloop.data.exchange.side cimport Access, check_side, fields_of, map_side, rearm, shared_storage
from rtloop.data.storage cimport SharedStorage
from rtloop.headers.latest cimport (
    RT_LATEST_NEVER,
    rt_latest_age,
    rt_latest_age_cycles,
    rt_latest_bytes,
    rt_latest_init,
    rt_latest_is_new,
    rt_latest_read,
    rt_latest_t,
    rt_latest_write,
    rt_latest_write_at,
    rt_latest_written,
    rt_latest_written_at,
    rt_shared_latest_age,
    rt_shared_latest_age_cycles,
    rt_shared_latest_begin_reading,
    rt_shared_latest_begin_writing,
    rt_shared_latest_block_t,
    rt_shared_latest_bytes,
    rt_shared_latest_is_new,
    rt_shared_latest_open,
    rt_shared_latest_read,
    rt_shared_latest_t,
    rt_shared_latest_write,
    rt_shared_latest_write_at,
    rt_shared_latest_written,
)
from rtloop.sharing.wakers cimport wake_awaited

from time import clock_gettime_ns, monotonic_ns

import numpy as np

from rtloop.data.dtypes import as_items, plain_dtype
from rtloop.data.exchange.side import describe_sides
from rtloop.data.interface import lost_by_fork, made_twice, never_made, publish
from rtloop.data.storage import Storage, warn_unlocked
from rtloop.errors import ConfigError, StateError
from rtloop.sharing.exchange_file import Plan
from rtloop.sharing.roles import check_role
from rtloop.sharing.shared_exchanges import open_exchange, share_exchange


cnp.import_array()


@cython.auto_pickle(False)
cdef class _LatestMethods(Exchange):
    """The methods for Python that have the name of one for Cython: a class can define only one of the two."""

    def write(self, value):
        """Make a value the newest one, stamped with the time on `clock`.

        Parameters
        ----------
        value : scalar, or tuple or dict of a struct's fields
            One value of the dtype.

        Raises
        ------
        ConfigError
            On a value that the dtype cannot hold, or more than one value.
        StateError
            In a forked child, at the reader's side of a shared one, or after `close`.
        """
        cdef _Latest_1 exchange = <_Latest_1?>self
        cdef rt_latest_t *latest = _latest(exchange)
        cdef cnp.ndarray array
        _check_side(exchange, "writer")
        array = as_items(value, exchange.dtype)
        if cnp.PyArray_SIZE(array) != 1:
            names = exchange.dtype.names
            advice = f"a tuple or dict of {', '.join(names)}" if names else "one, or make it a struct"
            raise ConfigError(f"{cnp.PyArray_SIZE(array)} values at once; give {advice}")
        with cython.critical_section(exchange):  # one thread at a time may write
            exchange.write_at(cnp.PyArray_DATA(array), clock_gettime_ns(latest.clock))

    def read(self):
        """Return a copy of the newest value; all zeros before the first write.

        Returns
        -------
        NumPy scalar

        Raises
        ------
        StateError
            In a forked child, at the writer's side of a shared one, or after `close`.
        """
        cdef _Latest_1 exchange = <_Latest_1?>self
        cdef cnp.ndarray array
        _check_side(exchange, "reader")
        array = np.zeros(1, exchange.dtype)
        with cython.critical_section(exchange):  # one thread at a time may read
            exchange.read(cnp.PyArray_DATA(array))
        rearm(exchange._owner)
        return array[0]


cdef class _Latest_1(_LatestMethods):
    """Latest(dtype, *, clock='monotonic', share=None, role='writer', readers=1, mode=0o600)
--

    The newest value of one type, from one thread to one other: the loop's and Python's, or those of two loops.

    The reader always gets the newest value, never a torn one. Values that were written in between are gone. Neither
    side ever waits for the other. Before the first write the value is all zeros, and not new. The memory is prefaulted
    and locked. If the kernel refuses the lock, an RTSetupWarning contains the fix, and ``is_locked`` is False. A forked
    child has no value.

    Parameters
    ----------
    dtype : dtype
        The value's type: a number, or a struct of them.
    clock : {"monotonic", "boottime", "tai", "realtime"}
        Clock of the time stamp of values that Python writes. Give the clock of the loop that reads them.
    share : str, optional
        Name by which other processes use the same value (:meth:`open`). This object is then one side of it only. If
        there is a value of this name, this process becomes its `role`, in the place of a process that has ended;
        otherwise it is created. ``"arm/setpoint"`` is found by processes of the same user, in the same PID namespace;
        the path of a socket, ``"/run/arm/setpoint"``, by all users that `mode` allows; an abstract socket,
        ``"@arm/setpoint"``, by processes of the same user in the same network namespace.
    role : {"writer", "reader"}
        Side of a shared value that this object is.
    readers : int
        Most readers of a shared value at a time, up to 32.
    mode : int
        Users who may open a value that is shared by a path: 0o600 this user, 0o660 also the socket's group, 0o666 all
        users.

    Attributes
    ----------
    dtype : numpy.dtype
        The value's type.

    Raises
    ------
    ConfigError
        On a type that can never work, or a shared value of this name that differs.
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
    One thread at a time may write, and one read. From Python any threads may do either: these methods take turns, also
    on a free-threaded Python. They do not wait for a step in Cython or C, which must be the only one on its side.

    From Cython:

    ``cdef void write(self, const void *value) noexcept nogil``
        Makes it the newest value.
    ``cdef bint read(self, void *value) noexcept nogil``
        Copies the newest value. Returns whether it is another one than was read before.
    ``cdef void write_at(self, const void *value, int64_t time) noexcept nogil``
        Writes a value with its time stamp: ``cycle.start``, in a loop on the reader's clock. `write` itself gives no
        stamp. Such a value keeps the stamp of an older one, or none, so that it never seems younger than it is.
    ``cdef int64_t age(self, int64_t now) noexcept nogil``
        Age of the value that was read last, ns, at least 0. INT64_MAX if it has no stamp or there is no value: it is
        then older than any limit. ``latest.age(cycle.start) > limit`` tells when to fall back to a safe output.
    ``cdef int64_t age_cycles(self, int64_t now, int64_t period) noexcept nogil``
        Its age in periods that have begun since: ``latest.age_cycles(cycle.start, cycle.period)``.

    The inline forms of ``rtloop/include/rtloop/latest.h`` (see :func:`rtloop.get_include`) take
    ``<rt_latest_t *>latest.handle``. Those of ``rtloop/include/rtloop/shared_latest.h`` take
    ``<rt_shared_latest_t *>latest.handle`` of a shared one.

    A method of the other side of a shared value does nothing: `write` at the reader, `read` at the writer.

    Real-time contract of all
        Thread: one that writes, one that reads. GIL: never. Allocates: never. System calls: none.
        Time: wait-free; a copy and at most one locked instruction. Of a shared one: at most two to read; one, and a
        load for each reader, to write.

    Examples
    --------
    >>> gains = rtloop.Latest([("p", "f8"), ("i", "f8")])
    >>> gains.write((2.0, 0.1))
    >>> float(gains.read()["p"])
    2.0
    """

    def __init__(self, dtype, *, clock="monotonic", share=None, role="writer", readers=1, mode=0o600):
        cdef uint64_t value_bytes, size
        cdef void *address
        if self.handle is not NULL:
            raise StateError(made_twice("Latest"))
        if clock not in _CLOCKS:
            raise ConfigError(f"clock={clock!r} must be one of {', '.join(_CLOCKS)}")
        item = plain_dtype(dtype)
        value_bytes = item.itemsize
        check_role("latest", share, role, readers, mode)
        if share is not None:
            size = rt_shared_latest_bytes(value_bytes, readers)
            if size == 0:
                raise ConfigError(f"{readers + 2} values of {value_bytes} bytes are more than a shared Latest can have")
            _use(self, share_exchange(share, Plan("latest", item, 1, readers, clock, size, int(mode)), role))
            return
        size = rt_latest_bytes(value_bytes)
        if size == 0:
            raise ConfigError(f"three values of {value_bytes} bytes are more than there are addresses")
        storage = Storage(size, "a Latest")
        storage.access = _ACCESS
        address = <void *><size_t>storage.address
        rt_latest_init(<rt_latest_t *>address, value_bytes)
        (<rt_latest_t *>address).clock = _CLOCKS[clock]
        (<rt_latest_t *>address).is_settable = clock in ("tai", "realtime")
        warn_unlocked(storage, f"Latest({item})")
        self.dtype = item
        self._owner = storage
        self.handle = address

    cdef void write(self, const void *value) noexcept nogil:
        rt_latest_write(<rt_latest_t *>self.handle, value)

    cdef bint read(self, void *value) noexcept nogil:
        return rt_latest_read(<rt_latest_t *>self.handle, value)

    cdef void write_at(self, const void *value, int64_t time) noexcept nogil:
        rt_latest_write_at(<rt_latest_t *>self.handle, value, time)

    cdef int64_t age(self, int64_t now) noexcept nogil:
        return rt_latest_age(<rt_latest_t *>self.handle, now)

    cdef int64_t age_cycles(self, int64_t now, int64_t period) noexcept nogil:
        return rt_latest_age_cycles(<rt_latest_t *>self.handle, now, period)

    cdef int _reserved_3(self) noexcept nogil:
        return 0

    @classmethod
    def open(cls, name, role="reader", *, dtype=None):
        """Become one side of a value that another process shares.

        Parameters
        ----------
        name : str
            Name that it was created with: ``Latest(dtype, share="arm/setpoint")``.
        role : {"reader", "writer"}
            Side that this object is.
        dtype : dtype, optional
            Type that the value must have.

        Returns
        -------
        Latest

        Raises
        ------
        AttachError
            If there is no exchange of this name; also a PermissionError if this user may not open it.
        ConfigError
            If it is a Ring, or has another type; the message names both.
        StateError
            If other processes have the role; the message names them.
        """
        check_role("latest", name, role)
        cdef _Latest_1 self = cls.__new__(cls)
        _use(self, open_exchange(name, "latest", role, None if dtype is None else plain_dtype(dtype)))
        return self

    @property
    def is_new(self):
        """True if there is a value that has not been read yet; at a shared one's writer, always False."""
        if shared_storage(self) is not None:
            return bool(self.role == "reader" and rt_shared_latest_is_new(_side(self)))
        return bool(rt_latest_is_new(_latest(self)))

    @property
    def written(self):
        """Number of values that were written; of a shared one, by all its writers so far."""
        if shared_storage(self) is not None:
            return rt_shared_latest_written(_side(self))
        return rt_latest_written(_latest(self))

    @property
    def clock(self):
        """Clock of the time stamps of values that Python writes."""
        number = _latest(self).clock
        return next(name for name in _CLOCKS if _CLOCKS[name] == number)

    @property
    def age_ns(self):
        """Time since the newest value with a stamp was written, ns on `clock`; None before the first.

        On a clock that somebody can set (``tai``, ``realtime``), the greater of the ages by that clock and by
        ``CLOCK_MONOTONIC``, so that no step makes a value younger; None if the stamp lies in the future, because the
        clock was set back.
        """
        cdef rt_latest_t *latest = _latest(self)
        cdef int64_t written, monotonic
        if shared_storage(self) is None:
            written, monotonic = rt_latest_written_at(latest), latest.written_at_monotonic
        elif latest.value_bytes:
            written, monotonic = _side(self).block.written_at, _side(self).block.written_at_monotonic
        else:
            written = monotonic = 0
        if written == 0:
            return None
        now = clock_gettime_ns(latest.clock)
        if not latest.is_settable:
            return max(0, now - written)
        elapsed = monotonic_ns() - monotonic
        return None if written > now + _FUTURE_NS else max(now - written, elapsed)

    def __repr__(self):
        return f"Latest({str(self.dtype)!r}, written={self.written}{describe_sides(self)})"


cdef rt_latest_t *_latest(_Latest_1 latest) except NULL:
    if latest.handle is NULL:
        raise StateError(never_made("Latest"))
    return <rt_latest_t *>latest.handle


cdef rt_shared_latest_t *_side(_Latest_1 latest) except NULL:
    return <rt_shared_latest_t *>_latest(latest)


cdef int _check_side(_Latest_1 latest, role) except -1:
    """Raise if the exchange has no memory in this process, or is the other side of a shared one."""
    cdef rt_latest_t *exchange = _latest(latest)
    check_side(latest, role)
    if exchange.value_bytes == 0:
        raise StateError(lost_by_fork("Latest"))
    return 0


cdef bint _plain_has_news(const void *latest) noexcept nogil:
    return rt_latest_is_new(<const rt_latest_t *>latest) != 0


cdef bint _shared_has_news(const void *latest) noexcept nogil:
    return rt_shared_latest_is_new(<const rt_shared_latest_t *>latest) != 0


@cython.auto_pickle(False)
cdef class _Awaited(_Latest_1):
    """The methods for Cython of a value that somebody has waited for: they wake whoever sleeps."""

    cdef void write(self, const void *value) noexcept nogil:
        rt_latest_write(<rt_latest_t *>self.handle, value)
        wake_awaited(&(<rt_latest_t *>self.handle).awaited)

    cdef void write_at(self, const void *value, int64_t time) noexcept nogil:
        rt_latest_write_at(<rt_latest_t *>self.handle, value, time)
        wake_awaited(&(<rt_latest_t *>self.handle).awaited)


@cython.auto_pickle(False)
cdef class _Writer(_Latest_1):
    """The methods for Cython of the writer of a shared value."""

    cdef void write(self, const void *value) noexcept nogil:
        cdef rt_shared_latest_t *side = <rt_shared_latest_t *>self.handle
        rt_shared_latest_write(side, value)
        if side.block is not NULL:
            wake_awaited(&side.block.awaited)

    cdef bint read(self, void *value) noexcept nogil:
        return False

    cdef void write_at(self, const void *value, int64_t time) noexcept nogil:
        cdef rt_shared_latest_t *side = <rt_shared_latest_t *>self.handle
        rt_shared_latest_write_at(side, value, time)
        if side.block is not NULL:
            wake_awaited(&side.block.awaited)

    cdef int64_t age(self, int64_t now) noexcept nogil:
        return RT_LATEST_NEVER

    cdef int64_t age_cycles(self, int64_t now, int64_t period) noexcept nogil:
        return RT_LATEST_NEVER


@cython.auto_pickle(False)
cdef class _Reader(_Latest_1):
    """The methods for Cython of a reader of a shared value."""

    cdef void write(self, const void *value) noexcept nogil:
        pass

    cdef bint read(self, void *value) noexcept nogil:
        return rt_shared_latest_read(<rt_shared_latest_t *>self.handle, value)

    cdef void write_at(self, const void *value, int64_t time) noexcept nogil:
        pass

    cdef int64_t age(self, int64_t now) noexcept nogil:
        return rt_shared_latest_age(<rt_shared_latest_t *>self.handle, now)

    cdef int64_t age_cycles(self, int64_t now, int64_t period) noexcept nogil:
        return rt_shared_latest_age_cycles(<rt_shared_latest_t *>self.handle, now, period)


cdef int _use(_Latest_1 self, file) except -1:
    """Make an object one side of a shared value, of which it gets the methods for Cython."""
    cdef rt_shared_latest_t *side
    kind = _Writer if file.role == "writer" else _Reader
    cdef _Latest_1 methods = kind.__new__(kind)
    plan = file.header.plan
    number = _CLOCKS.get(plan.clock)
    cdef SharedStorage storage = map_side(
        self, _SHARED_ACCESS, file,
        0 if number is None else rt_shared_latest_bytes(plan.dtype.itemsize, plan.readers))
    side = <rt_shared_latest_t *>(<char *>storage.private_end() - _PRIVATE_BYTES)
    rt_shared_latest_open(side, <rt_shared_latest_block_t *>storage.private_end(), plan.dtype.itemsize, plan.readers)
    side.base.clock, side.base.is_settable = number, plan.clock in ("tai", "realtime")
    if file.role == "writer":
        rt_shared_latest_begin_writing(side)
    else:
        rt_shared_latest_begin_reading(side, file.slot - 1)
    warn_unlocked(storage, f"Latest({plan.dtype}, share={file.header.name!r})")
    self.dtype = plan.dtype
    self._owner = storage
    fields_of(self).methods = fields_of(methods).methods
    self.handle = side
    return 0


cdef uint64_t _size(const void *latest) noexcept nogil:
    return (<const rt_latest_t *>latest).value_bytes


cdef uint32_t *_plain_awaited(void *latest) noexcept nogil:
    return &(<rt_latest_t *>latest).awaited


cdef uint32_t *_shared_awaited(void *latest) noexcept nogil:
    return &(<rt_shared_latest_t *>latest).block.awaited


cdef Access _make_access(bint is_shared):
    cdef Access access = Access("Latest", "Latest", "reader")
    access.plain = fields_of(_Latest_1.__new__(_Latest_1)).methods
    access.waking = fields_of(_Awaited.__new__(_Awaited)).methods
    access.size = _size
    access.has_news = _shared_has_news if is_shared else _plain_has_news
    access.awaited = _shared_awaited if is_shared else _plain_awaited
    return access


cdef Access _ACCESS = _make_access(False)
cdef Access _SHARED_ACCESS = _make_access(True)

#: Room for a side in front of the data, a multiple of the cache line.
cdef size_t _PRIVATE_BYTES = (sizeof(rt_shared_latest_t) + 63) // 64 * 64

Latest = _Latest_1
__getattr__ = publish(_Latest_1)

#: RT_LATEST_FUTURE_NS of latest.h.
_FUTURE_NS = 1_000_000
# The clocks of a loop, with their numbers in <time.h>.
_CLOCKS = {"monotonic": 1, "boottime": 7, "tai": 11, "realtime": 0}

# Their public names are those of the public class.
for _method in (Latest.write, Latest.read):
    _method.__qualname__ = f"Latest.{_method.__name__}"
