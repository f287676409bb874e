"""SignalLog: named signals of a step, logged with one line in it. See include/rtloop/signals.h."""


cimport cython

from rtloop.headers.ring cimport rt_ring_t
from rtloop.headers.signals cimport rt_cycle_t, rt_signals_add, rt_signals_sample, rt_signals_t, rt_store_release
from rtloop.data.ring cimport _Ring_1

import numpy as np

from rtloop.data.dtypes import plain_dtype
from rtloop.data.interface import made_twice, never_made, publish, refuse_copy
from rtloop.data.ring import Ring
from rtloop.data.storage import Storage
from rtloop.errors import ConfigError, StateError
from rtloop.settings import parse_count


_MAX_RECORDS = (1 << 48) - 1
_HEAD = [("cycle", "<u8"), ("release", "<i8"), ("start", "<i8")]


cdef class _SignalLog_1:
    """SignalLog(capacity=16384, *, every=1)
--

    A log of named signals: numbers that a step keeps in its fields, all copied by one line in the step.

    For signals of a loop use ``self.signal(name, address)``, which needs no line in the step, and whose samples any
    number of readers in any process can read. A SignalLog is for what that cannot do: to record at a chosen place
    within the step or not in every call, to record signals that another object than a loop owns, or to keep the oldest
    records rather than the newest if a reader is delayed.

    A record has the cycle's index, release and start, and the signals. The records go into a :class:`Ring`, `ring`,
    from which a :class:`Recorder` or the program takes them. Until the ring is first used, logging does nothing and
    costs nothing.

    Parameters
    ----------
    capacity : int
        Number of records that there is room for while the reader is delayed. Further ones are dropped, and counted in
        ``ring.dropped``.
    every : int
        Log only every n-th cycle: ``every=10`` makes 1 kHz of a loop at 10 kHz.

    Notes
    -----
    From Cython:

    ``cdef int add(self, name, const void *address, dtype="f8") except -1``
        Add a signal that is read from an address. The address has to stay valid as long as the step logs: give a field
        of the loop. With the GIL. ConfigError on a name that exists or a type that is not a single number, StateError
        after `ring` was first used.
    ``cdef bint sample(self, const void *cycle) noexcept nogil``
        Log the current values; `cycle` is the argument of the step. Returns whether a record was written.

    Real-time contract of sample
        Thread: the loop's. GIL: never. Allocates: never. System calls: none.
        Time: wait-free; about 20 instructions and 5 for each signal.

    Examples
    --------
    ::

        cdef class Servo(RTLoop):
            cdef readonly SignalLog log
            cdef double angle, torque

            def __init__(self, *args, **settings):
                super().__init__(*args, **settings)
                self.log = SignalLog()
                self.log.add("angle", &self.angle)
                self.log.add("torque", &self.torque)

            cdef int step(self, const Cycle *cycle) noexcept nogil:
                ...
                self.log.sample(cycle)
                return RT_CONTINUE
    """

    def __init__(self, capacity=16384, *, every=1):
        if self.handle is not NULL:
            raise StateError(made_twice("log"))
        number = parse_count(capacity, "capacity", maximum=_MAX_RECORDS)
        divisor = parse_count(every, "every", maximum=_MAX_RECORDS)
        storage = Storage(sizeof(rt_signals_t), "a log of signals")
        self.capacity = number
        self._fields = list(_HEAD)
        self._owner = storage
        self.handle = <void *><size_t>storage.address
        (<rt_signals_t *>self.handle).every = divisor

    cdef int add(self, name, const void *address, dtype="f8") except -1:
        signals = _signals(self)
        item = plain_dtype(dtype)
        if item.kind not in "fiub" or item.itemsize > 8:
            raise ConfigError(f"dtype={dtype!r} of the signal {name!r} is not a number of up to 8 bytes")
        if _has_ring(self):
            raise StateError(
                f"the signal {name!r} cannot be added now: the ring already exists, so its fields are fixed; add every "
                "signal before the log is first used"
            )
        if not isinstance(name, str) or not name or name in dict(self._fields):
            raise ConfigError(f"name={name!r} is empty, or is the name of another field of the record")
        if address is NULL:
            raise ConfigError(f"the address of the signal {name!r} is NULL: give that of a field, such as &self.angle")
        if rt_signals_add(signals, address, item.itemsize):
            raise ConfigError(f"there are {len(self._fields) - len(_HEAD)} signals, which is the most a log can have")
        self._fields.append((name, item.str))
        return 0

    cdef bint sample(self, const void *cycle) noexcept nogil:
        return rt_signals_sample(<rt_signals_t *>self.handle, <const rt_cycle_t *>cycle)

    cdef int _reserved_0(self) noexcept nogil:
        return 0

    cdef int _reserved_1(self) noexcept nogil:
        return 0

    cdef int _reserved_2(self) noexcept nogil:
        return 0

    cdef int _reserved_3(self) noexcept nogil:
        return 0

    @property
    def names(self):
        """Names of the signals."""
        _signals(self)
        return tuple(name for name, _ in self._fields[len(_HEAD):])

    @property
    def dtype(self):
        """Type of a record: ``cycle``, ``release`` and ``start``, and the signals."""
        _signals(self)
        return np.dtype(self._fields)

    @property
    def ring(self):
        """Ring that the records go into, made when this is first read."""
        cdef rt_signals_t *signals = _signals(self)
        if not self.names:
            raise StateError("this log has no signals: add() them first")
        if not _has_ring(self):
            fresh = Ring(self.dtype, self.capacity)  # takes its time: another thread may have been first
            with cython.critical_section(self):
                if self._ring is None:
                    self._ring = fresh
                    rt_store_release(&signals.ring, <rt_ring_t *>(<_Ring_1>fresh).handle)
        return self._ring  # never replaced

    def __reduce_ex__(self, protocol):
        refuse_copy(self, "memory")

    def __repr__(self):
        return f"SignalLog({', '.join(self.names)})"


SignalLog = _SignalLog_1
__getattr__ = publish(_SignalLog_1)


cdef bint _has_ring(_SignalLog_1 log):
    with cython.critical_section(log):
        return log._ring is not None


cdef rt_signals_t *_signals(_SignalLog_1 log) except NULL:
    if log.handle is NULL:
        raise StateError(never_made("log"))
    return <rt_signals_t *>log.handle
