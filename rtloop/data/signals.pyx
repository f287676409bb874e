"""Named signals of a step, logged with one line in it. How it works is in include/rtloop/signals.h."""

from cpython.object cimport PyTypeObject
from libc.stdint cimport uint32_t, uint64_t

from rtloop.data.ring cimport _Ring_1

import numpy as np

from rtloop.data.dtypes import plain_dtype
from rtloop.data.ring import Ring
from rtloop.data.storage import Storage
from rtloop.errors import ConfigError, StateError


cdef extern from "../include/rtloop/signals.h" nogil:
    ctypedef struct rt_cycle_t:
        pass

    ctypedef struct rt_ring_t:
        pass

    ctypedef struct rt_signals_t:
        rt_ring_t *ring
        uint64_t every

    int rt_signals_add(rt_signals_t *signals, const void *address, uint32_t bytes)
    int rt_signals_sample(rt_signals_t *signals, const rt_cycle_t *cycle)
    void rt_store_release(rt_ring_t **to, rt_ring_t *value)


_HEAD = [("cycle", "<u8"), ("release", "<i8"), ("start", "<i8")]


cdef class _SignalLog_1:
    """SignalLog(capacity=16384, *, every=1)
--

    A log of named signals: each is a number that a step has somewhere, and one line in the step copies them all.

    A record has the cycle's index, release and start, and the signals. The records go into a :class:`Ring`, `ring`,
    from which a :class:`Recorder` or the program takes them. Until somebody asks for the ring, logging does nothing and
    costs nothing.

    Parameters
    ----------
    capacity : int
        How many records there is room for: what comes while the one who takes them is held up. More are dropped, and
        counted in ``ring.dropped``.
    every : int
        Log only every n-th cycle: ``every=10`` makes 1 kHz of a loop at 10 kHz.

    Notes
    -----
    From Cython:

    ``cdef int add(self, name, const void *address, dtype="f8") except -1``
        Add a signal that is read from an address, which has to stay valid as long as the step logs: a field of the
        loop. With the GIL. ConfigError on a name that is there already or a type that is no single number,
        StateError where the ring has been asked for.
    ``cdef bint sample(self, const void *cycle) noexcept nogil``
        Log what the signals are now; `cycle` is what the step was given. Returns whether there is a record of it.

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
            raise StateError("a log is made once; make a new one")
        for name, value in (("capacity", capacity), ("every", every)):
            if isinstance(value, bool) or not hasattr(value, "__index__") or not 0 < value < 1 << 48:
                raise ConfigError(f"{name}={value!r} must be an int of at least 1")
        storage = Storage(sizeof(rt_signals_t), "a log of signals")
        self.capacity = capacity
        self._fields = list(_HEAD)
        self._owner = storage
        self.handle = <void *><size_t>storage.address
        (<rt_signals_t *>self.handle).every = every

    cdef int add(self, name, const void *address, dtype="f8") except -1:
        signals = _signals(self)
        item = plain_dtype(dtype)
        if item.kind not in "fiub" or item.itemsize > 8:
            raise ConfigError(f"dtype={dtype!r} of the signal {name!r} is no number of up to 8 bytes")
        if self._ring is not None:
            raise StateError(f"the signal {name!r} comes too late: the ring has been asked for, and has its fields")
        if not isinstance(name, str) or not name or name in dict(self._fields):
            raise ConfigError(f"name={name!r} is empty, or is the name of another field of the record")
        if address is NULL:
            raise ConfigError(f"the signal {name!r} has no address")
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
        """The signals' names."""
        _signals(self)
        return tuple(name for name, _ in self._fields[len(_HEAD):])

    @property
    def dtype(self):
        """The record's type: ``cycle``, ``release`` and ``start``, and the signals."""
        _signals(self)
        return np.dtype(self._fields)

    @property
    def ring(self):
        """The ring that the records go into, from the first time that it is asked for."""
        cdef rt_signals_t *signals = _signals(self)
        if not self.names:
            raise StateError("this log has no signals: add() them first")
        if self._ring is None:
            fresh = Ring(self.dtype, self.capacity)  # takes its time, and another thread may have come first meanwhile
            if self._ring is None:
                self._ring = fresh
                rt_store_release(&signals.ring, <rt_ring_t *>(<_Ring_1>self._ring).handle)
        return self._ring

    def __repr__(self):
        return f"SignalLog({', '.join(self.names)})"


SignalLog = _SignalLog_1


cdef rt_signals_t *_signals(_SignalLog_1 log) except NULL:
    if log.handle is NULL:
        raise StateError("this log was never made: a subclass has not called super().__init__()")
    return <rt_signals_t *>log.handle


def __getattr__(name):
    if name.startswith("_SignalLog_") and name[11:].isdigit():
        raise ImportError(
            f"this module was compiled against interface {name[11:]} of rtloop's SignalLog, and the installed rtloop "
            "has interface 1: recompile the module"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


cdef extern from *:
    """
    static inline void rt_name_signal_log(PyTypeObject *type) { type->tp_name = "rtloop.SignalLog"; }
    """
    void rt_name_signal_log(PyTypeObject *type)


# The class is known by the name that its users import.
rt_name_signal_log(<PyTypeObject *>_SignalLog_1)
