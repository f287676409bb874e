"""Latest: the newest value from one side to the other. See include/rtloop/latest.h."""

from libc.stdint cimport int64_t, uint64_t

cimport cython

from rtloop.headers.latest cimport (
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
)

from time import clock_gettime_ns, monotonic_ns

import numpy as np

from rtloop.data.dtypes import as_items, plain_dtype
from rtloop.data.interface import lost_by_fork, made_twice, never_made, publish, refuse_copy
from rtloop.data.storage import Storage, warn_unlocked
from rtloop.errors import ConfigError, StateError


@cython.auto_pickle(False)
cdef class _LatestMethods:
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
            In a forked child.
        """
        cdef _Latest_1 exchange = <_Latest_1?>self
        cdef rt_latest_t *latest = _latest(exchange)
        cdef size_t address
        _check_not_in_child(latest)
        array = as_items(value, exchange.dtype)
        if array.size != 1:
            names = exchange.dtype.names
            advice = f"a tuple or dict of {', '.join(names)}" if names else "one, or make it a struct"
            raise ConfigError(f"{array.size} values at once; give {advice}")
        address = array.ctypes.data
        with cython.critical_section(exchange):  # one thread at a time may write
            rt_latest_write_at(latest, <const void *>address, clock_gettime_ns(latest.clock))

    def read(self):
        """Return a copy of the newest value; all zeros before the first write.

        Returns
        -------
        NumPy scalar
        """
        cdef _Latest_1 exchange = <_Latest_1?>self
        cdef rt_latest_t *latest = _latest(exchange)
        cdef size_t address
        _check_not_in_child(latest)
        array = np.empty(1, exchange.dtype)
        address = array.ctypes.data
        with cython.critical_section(exchange):  # one thread at a time may read
            rt_latest_read(latest, <void *>address)
        return array[0]


cdef class _Latest_1(_LatestMethods):
    """Latest(dtype, *, clock='monotonic')
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

    Attributes
    ----------
    dtype : numpy.dtype
        The value's type.

    Raises
    ------
    ConfigError
        On a type that can never work.
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
    ``<rt_latest_t *>latest.handle``.

    Real-time contract of all
        Thread: one that writes, one that reads. GIL: never. Allocates: never. System calls: none.
        Time: wait-free; a copy and at most one locked instruction.

    Examples
    --------
    >>> gains = rtloop.Latest([("p", "f8"), ("i", "f8")])
    >>> gains.write((2.0, 0.1))
    >>> float(gains.read()["p"])
    2.0
    """

    def __init__(self, dtype, *, clock="monotonic"):
        cdef uint64_t value_bytes, size
        cdef void *address
        if self.handle is not NULL:
            raise StateError(made_twice("Latest"))
        if clock not in _CLOCKS:
            raise ConfigError(f"clock={clock!r} must be one of {', '.join(_CLOCKS)}")
        item = plain_dtype(dtype)
        value_bytes = item.itemsize
        size = rt_latest_bytes(value_bytes)
        if size == 0:
            raise ConfigError(f"three values of {value_bytes} bytes are more than there are addresses")
        storage = Storage(size, "a Latest")
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

    @property
    def is_new(self):
        """True if there is a value that has not been read yet."""
        return bool(rt_latest_is_new(_latest(self)))

    @property
    def written(self):
        """Number of values that were written."""
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
        cdef int64_t written = rt_latest_written_at(latest)
        if written == 0:
            return None
        now = clock_gettime_ns(latest.clock)
        if not latest.is_settable:
            return max(0, now - written)
        elapsed = monotonic_ns() - latest.written_at_monotonic
        return None if written > now + _FUTURE_NS else max(now - written, elapsed)

    @property
    def is_locked(self):
        """True if the kernel keeps the memory from being paged out; read again at each call."""
        return _latest(self).value_bytes != 0 and self._owner.is_locked

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
        return f"Latest({str(self.dtype)!r}, written={self.written}{between})"


cdef rt_latest_t *_latest(_Latest_1 latest) except NULL:
    if latest.handle is NULL:
        raise StateError(never_made("Latest"))
    return <rt_latest_t *>latest.handle


cdef int _check_not_in_child(const rt_latest_t *latest) except -1:
    if latest.value_bytes == 0:
        raise StateError(lost_by_fork("Latest"))
    return 0


Latest = _Latest_1
__getattr__ = publish(_Latest_1)

#: RT_LATEST_FUTURE_NS of latest.h.
_FUTURE_NS = 1_000_000
# The clocks of a loop, with their numbers in <time.h>.
_CLOCKS = {"monotonic": 1, "boottime": 7, "tai": 11, "realtime": 0}

# Their public names are those of the public class.
for _method in (Latest.write, Latest.read):
    _method.__qualname__ = f"Latest.{_method.__name__}"
