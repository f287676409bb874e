"""The newest value from one side to the other. How it works is in include/rtloop/latest.h."""

from cpython.object cimport PyTypeObject
from libc.stdint cimport int64_t, uint64_t

import warnings
from time import clock_gettime_ns

import numpy as np

from rtloop.data.dtypes import as_items, plain_dtype
from rtloop.data.storage import Storage
from rtloop.errors import ConfigError, RTSetupWarning, StateError
from rtloop.system.grant import describe_refused


cdef extern from "../include/rtloop/latest.h" nogil:
    ctypedef struct rt_latest_t:
        uint64_t value_bytes
        int64_t clock

    uint64_t rt_latest_bytes(uint64_t value_bytes)
    int rt_latest_init(rt_latest_t *latest, uint64_t value_bytes)
    void rt_latest_write(rt_latest_t *latest, const void *value)
    int rt_latest_read(rt_latest_t *latest, void *value)
    int rt_latest_is_new(const rt_latest_t *latest)
    uint64_t rt_latest_written(const rt_latest_t *latest)
    void rt_latest_write_at(rt_latest_t *latest, const void *value, int64_t time)
    int64_t rt_latest_age(const rt_latest_t *latest, int64_t now)
    int64_t rt_latest_age_cycles(const rt_latest_t *latest, int64_t now, int64_t period)
    int64_t rt_latest_written_at(const rt_latest_t *latest)


cdef class _Latest_1:
    """Latest(dtype, *, clock='monotonic')
--

    The newest value of one type, from one thread to one other: the loop's and Python's, or those of two loops.

    The reader always gets the newest value, and a whole one; what was written in between is gone. Neither side ever
    waits for the other. Before the first write the value is all zeros, and not new. The memory is prefaulted, and
    locked; where the kernel refuses the lock, an RTSetupWarning has the fix, and ``is_locked`` is False. A forked child
    has none.

    Parameters
    ----------
    dtype : dtype
        The value's type: a number, or a struct of them.
    clock : {"monotonic", "boottime", "tai", "realtime"}
        On which clock a value that Python writes is stamped with its time: that of the loop which reads it.

    Attributes
    ----------
    dtype : numpy.dtype
        The value's type.

    Raises
    ------
    ConfigError
        On a type that can never work.
    MemoryError
        Where it is more memory than the machine, or the control group, has left.

    Notes
    -----
    One thread at a time may write, and one read. From Python any thread may do either, for the interpreter lets one do
    it at a time.

    From Cython:

    ``cdef void write(self, const void *value) noexcept nogil``
        Makes it the newest value.
    ``cdef bint read(self, void *value) noexcept nogil``
        Copies the newest value. Returns whether it is another one than was read before.

    ``cdef void write_at(self, const void *value, int64_t time) noexcept nogil``
        The same as ``write``, with the time that the value is of: ``cycle.start``, in a loop on the reader's clock.
        `write` itself gives it no time: such a value has the stamp of an older one, or none, and never seems younger
        than it is.
    ``cdef int64_t age(self, int64_t now) noexcept nogil``
        How old the value that was read last is, ns; at least 0. INT64_MAX where it has no stamp, or there is none: it
        is then older than any limit. ``latest.age(cycle.start) > limit`` says when to fall to a safe output.
    ``cdef int64_t age_cycles(self, int64_t now, int64_t period) noexcept nogil``
        The same in periods that have begun since: ``latest.age_cycles(cycle.start, cycle.period)``.

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
            raise StateError("it is made once: others may be using it; make a new one")
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
        if storage.grant is not None:
            text = describe_refused(storage.grant)
            warnings.warn(f"Latest({item}) may be paged out.\n{text}", RTSetupWarning, stacklevel=1)
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
        """Whether there is a value that has not been read yet."""
        return bool(rt_latest_is_new(_latest(self)))

    @property
    def written(self):
        """How many values were written."""
        return rt_latest_written(_latest(self))

    @property
    def clock(self):
        """The clock of the times that Python's values are stamped with."""
        number = _latest(self).clock
        return next(name for name in _CLOCKS if _CLOCKS[name] == number)

    @property
    def age_ns(self):
        """How long ago the newest value with a stamp was written, ns on `clock`; None before the first."""
        cdef rt_latest_t *latest = _latest(self)
        cdef int64_t written = rt_latest_written_at(latest)
        return None if written == 0 else max(0, clock_gettime_ns(latest.clock) - written)

    @property
    def is_locked(self):
        """Whether the kernel keeps the memory from being paged out, asked now."""
        return _latest(self).value_bytes != 0 and self._owner.is_locked

    @property
    def ends(self):
        """The names of the loop that writes and the loop that reads, where a chain of a group says so, or None."""
        return self._owner.ends if self._owner is not None else None

    @ends.setter
    def ends(self, pair):
        self._owner.ends = pair

    def __repr__(self):
        between = "" if self.ends is None else f", {' to '.join(self.ends)}"
        return f"Latest({str(self.dtype)!r}, written={self.written}{between})"


def write(_Latest_1 self not None, value):
    """Make a value the newest one, stamped with the time on `clock`.

    Parameters
    ----------
    value : scalar, or tuple or dict of a struct's fields
        What becomes a value of the dtype.

    Raises
    ------
    ConfigError
        On what the dtype has no place for, or more than one value.
    StateError
        In a forked child.
    """
    cdef rt_latest_t *latest = _latest(self)
    cdef size_t address
    _check_not_in_child(latest)
    array = as_items(value, self.dtype)
    if array.size != 1:
        advice = f"a tuple or dict of {', '.join(self.dtype.names)}" if self.dtype.names else "one, or make it a struct"
        raise ConfigError(f"{array.size} values at once; give {advice}")
    address = array.ctypes.data
    rt_latest_write_at(latest, <const void *>address, clock_gettime_ns(latest.clock))


def read(_Latest_1 self not None):
    """Return the newest value, a copy; before the first write all zeros.

    Returns
    -------
    NumPy scalar
    """
    cdef rt_latest_t *latest = _latest(self)
    cdef size_t address
    _check_not_in_child(latest)
    array = np.empty(1, self.dtype)
    address = array.ctypes.data
    rt_latest_read(latest, <void *>address)
    return array[0]


cdef rt_latest_t *_latest(_Latest_1 latest) except NULL:
    if latest.handle is NULL:
        raise StateError("this Latest was never made: a subclass has not called super().__init__()")
    return <rt_latest_t *>latest.handle


cdef int _check_not_in_child(const rt_latest_t *latest) except -1:
    if latest.value_bytes == 0:
        raise StateError("this process is a fork, and exchanges do not survive a fork: make a new one here")
    return 0


def __getattr__(name):
    if name.startswith("_Latest_") and name[8:].isdigit():
        raise ImportError(
            f"this module was compiled against interface {name[8:]} of rtloop's Latest, and the installed rtloop has "
            "interface 1: recompile the module"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


cdef extern from *:
    """
    static inline void rt_name_latest(PyTypeObject *type) { type->tp_name = "rtloop.Latest"; }
    static inline int rt_add_to_latest(PyTypeObject *type, const char *name, PyObject *value) {
      const int rc = PyDict_SetItemString(type->tp_dict, name, value);
      PyType_Modified(type);
      return rc;
    }
    """
    void rt_name_latest(PyTypeObject *type)
    int rt_add_to_latest(PyTypeObject *type, const char *name, object value) except -1


Latest = _Latest_1

# The clocks of a loop, with their numbers in <time.h>.
_CLOCKS = {"monotonic": 1, "boottime": 7, "tai": 11, "realtime": 0}

# The class is known by the name that its users import, and has methods for Python by the names of those for Cython.
rt_name_latest(<PyTypeObject *>_Latest_1)
for _name, _method in (("write", write), ("read", read)):
    _method.__qualname__ = f"Latest.{_name}"
    rt_add_to_latest(<PyTypeObject *>_Latest_1, _name.encode(), _method)
