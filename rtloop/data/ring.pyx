"""A queue between a step and the rest of the program. How it works is in include/rtloop/ring.h."""

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.object cimport PyTypeObject
from libc.stdint cimport UINT64_MAX, uint64_t

import warnings
import weakref

import numpy as np

from rtloop.data.dtypes import as_items, plain_dtype
from rtloop.data.storage import Storage
from rtloop.errors import ConfigError, RTSetupWarning, StateError
from rtloop.system.grant import describe_refused


cdef extern from "../include/rtloop/ring.h" nogil:
    ctypedef struct rt_ring_t:
        uint64_t capacity
        uint64_t item_bytes

    uint64_t rt_ring_bytes(uint64_t item_bytes, uint64_t capacity)
    int rt_ring_init(rt_ring_t *ring, uint64_t item_bytes, uint64_t capacity)
    int rt_ring_push(rt_ring_t *ring, const void *item)
    int rt_ring_pop(rt_ring_t *ring, void *item)
    uint64_t rt_ring_push_many(rt_ring_t *ring, const void *items, uint64_t count)
    uint64_t rt_ring_pop_many(rt_ring_t *ring, void *items, uint64_t count)
    const void *rt_ring_front(rt_ring_t *ring, uint64_t *count)
    void rt_ring_consume(rt_ring_t *ring, uint64_t count)
    uint64_t rt_ring_length(const rt_ring_t *ring)
    uint64_t rt_ring_dropped(const rt_ring_t *ring)
    uint64_t rt_ring_high_water(const rt_ring_t *ring)


cdef class _Ring_1:
    """Ring(dtype, capacity, *, when_full='drop')
--

    A queue of items of one type, from one thread to one other: the loop's and Python's, or those of two loops.

    Neither side ever waits for the other. The memory is prefaulted, and locked; where the kernel refuses the lock, an
    RTSetupWarning has the fix, and ``is_locked`` is False. A forked child sees an empty ring without room.

    Parameters
    ----------
    dtype : dtype
        The items' type: a number, or a struct of them.
    capacity : int
        How many items there is room for.
    when_full : {"drop"}
        What becomes of an item that there is no room for: it is dropped, and counted in `dropped`.

    Attributes
    ----------
    dtype : numpy.dtype
        The items' type.

    Raises
    ------
    ConfigError
        On a type or a number that can never work.
    MemoryError
        Where it is more memory than the machine, or the control group, has left.

    Notes
    -----
    One thread at a time may push, and one at a time take out: `pop`, `drain` and `view`. From Python any thread may do
    either, for the interpreter lets one do it at a time.

    From Cython:

    ``cdef bint push(self, const void *item) noexcept nogil``
        Returns False iff the ring is full.
    ``cdef bint pop(self, void *item) noexcept nogil``
        Returns False iff the ring is empty.
    ``cdef uint64_t push_many(self, const void *items, uint64_t count) noexcept nogil``
        Returns how many were put in.
    ``cdef uint64_t pop_many(self, void *items, uint64_t count) noexcept nogil``
        Returns how many were taken out.

    The inline forms of ``rtloop/include/rtloop/ring.h`` (see :func:`rtloop.get_include`) take
    ``<rt_ring_t *>ring.handle``.

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

    def __init__(self, dtype, capacity, *, when_full="drop"):
        cdef uint64_t item_bytes, places, size
        cdef void *address
        if self.handle is not NULL:
            raise StateError("a ring is made once: others may be using it; make a new one")
        if when_full != "drop":
            raise ConfigError(f'when_full={when_full!r}: a ring can only drop what is too much; give "drop"')
        item = plain_dtype(dtype)
        if isinstance(capacity, bool) or not hasattr(capacity, "__index__"):
            raise ConfigError(f"capacity={capacity!r} is not a number of items; give an int")
        number = int(capacity.__index__())
        if not 0 < number < 1 << 48:
            raise ConfigError(f"capacity={capacity!r} must be at least 1, and less than 2**48")
        item_bytes, places = item.itemsize, number
        size = rt_ring_bytes(item_bytes, places)
        if size == 0:
            raise ConfigError(f"capacity={capacity!r} items of {item_bytes} bytes are more than there are addresses")
        storage = Storage(size, "a ring")
        address = <void *><size_t>storage.address
        rt_ring_init(<rt_ring_t *>address, item_bytes, places)
        if storage.grant is not None:
            text = describe_refused(storage.grant)
            warnings.warn(f"Ring({item}, {number}) may be paged out.\n{text}", RTSetupWarning, stacklevel=1)
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

    @property
    def capacity(self):
        """How many items there is room for."""
        return _ring(self).capacity

    @property
    def dropped(self):
        """How many items there was no room for."""
        return rt_ring_dropped(_ring(self))

    @property
    def high_water(self):
        """The most items that were ever in the ring, rounded up to a sixteenth of the capacity."""
        return rt_ring_high_water(_ring(self))

    @property
    def is_locked(self):
        """Whether the kernel keeps the memory from being paged out, asked now."""
        return _ring(self).capacity != 0 and self._owner.is_locked

    def drain(self, limit=None):
        """Take out all items, or at most `limit`, the oldest first.

        Parameters
        ----------
        limit : int, optional
            How many at most.

        Returns
        -------
        numpy.ndarray
            A copy, of the ring's dtype.
        """
        cdef uint64_t count = rt_ring_length(_consumed(self)), most = UINT64_MAX
        cdef size_t address
        if limit is not None:
            if isinstance(limit, bool) or not hasattr(limit, "__index__") or limit < 0:
                raise ConfigError(f"limit={limit!r} is not a number of items; give an int, or None for all")
            most = min(int(limit.__index__()), 1 << 48)
        array = np.empty(min(count, most), self.dtype)
        address, most = array.ctypes.data, len(array)
        # Asked again: meanwhile another thread may have taken some, or be looking at them.
        count = rt_ring_pop_many(_consumed(self), <void *>address, most)
        return array[:count]

    def view(self):
        """Look at the oldest items in place, and take them out at the end of a ``with`` statement.

        The array has the items that are one piece of memory: where the ring's memory begins anew, the rest comes next
        time. At the end of the statement it becomes empty.

        Raises
        ------
        BufferError
            At the end of the statement, where a part of the array is still in use: the items then stay in the ring,
            and nobody can take any out before that part is gone.
        StateError
            Where a view is in use already.

        Examples
        --------
        >>> with ring.view() as items:
        ...     total = items["angle"].sum()
        """
        _ring(self)
        return _View(self)

    def __len__(self):
        return rt_ring_length(_ring(self))

    def __bool__(self):
        return True  # an empty ring is one, too

    @property
    def ends(self):
        """The names of the loop that writes and the loop that reads, where a chain of a group says so, or None."""
        return self._owner.ends if self._owner is not None else None

    @ends.setter
    def ends(self, pair):
        self._owner.ends = pair

    def __repr__(self):
        between = "" if self.ends is None else f", {' to '.join(self.ends)}"
        return f"Ring({str(self.dtype)!r}, {self.capacity}, dropped={self.dropped}{between})"


def push(_Ring_1 self not None, value):
    """Put in one item, or an array of them.

    Parameters
    ----------
    value : scalar, tuple or dict of a struct's fields, or one-dimensional array
        What becomes an item of the ring's dtype, or several.

    Returns
    -------
    int
        How many were put in: fewer than were given where the ring is full. The rest is dropped, and counted.

    Raises
    ------
    ConfigError
        On what the dtype has no place for.
    StateError
        In a forked child.
    """
    cdef rt_ring_t *ring = _ring(self)
    cdef size_t address
    cdef uint64_t count
    if ring.capacity == 0:
        raise StateError("this process is a fork, and rings do not survive a fork: make a new one here")
    array = as_items(value, self.dtype)
    if array.ndim > 1:
        raise ConfigError(f"an array of {array.shape} items has no order; give one dimension: array.ravel()")
    address, count = array.ctypes.data, array.size
    return rt_ring_push_many(ring, <const void *>address, count)


def pop(_Ring_1 self not None):
    """Take out the oldest item.

    Returns
    -------
    NumPy scalar or None
        A copy, or None where the ring is empty.
    """
    cdef size_t address
    _ring(self)
    array = np.empty(1, self.dtype)
    address = array.ctypes.data
    return array[0] if rt_ring_pop(_consumed(self), <void *>address) else None  # no other thread between these two


cdef rt_ring_t *_ring(_Ring_1 ring) except NULL:
    if ring.handle is NULL:
        raise StateError("this ring was never made: a subclass has not called super().__init__()")
    return <rt_ring_t *>ring.handle


cdef rt_ring_t *_consumed(_Ring_1 self) except NULL:
    cdef rt_ring_t *ring = _ring(self)
    cdef _Loan loan = self._loan
    if loan.exports or loan.is_lent:
        raise BufferError(_IN_USE)
    return ring


_IN_USE = "items of this ring are in use: leave the with statement, and delete the parts of its array that were kept"


cdef class _Loan:
    """Items lent to an array, which keeps the memory, and is counted."""

    cdef object _storage
    cdef const void *address
    cdef uint64_t count
    cdef Py_ssize_t nbytes
    cdef Py_ssize_t exports
    cdef bint is_lent

    def __cinit__(self, storage):
        self._storage = storage

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, <void *>self.address, self.nbytes, 1, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.exports -= 1


cdef class _View:
    """The with statement of a view."""

    cdef _Ring_1 _ring
    cdef object _array

    def __cinit__(self, _Ring_1 ring):
        self._ring = ring

    def __enter__(self):
        cdef _Loan loan = self._ring._loan
        if loan.is_lent:
            raise StateError("a view of this ring is in use already")
        _consumed(self._ring)
        loan.is_lent = True
        try:
            loan.address = rt_ring_front(_ring(self._ring), &loan.count)
            loan.nbytes = loan.count * _ring(self._ring).item_bytes
            # A slice of it: NumPy gives the slices of a slice the same base, which so lives as long as any of them.
            self._array = np.frombuffer(loan, self._ring.dtype)[:] if loan.count else np.empty(0, self._ring.dtype)
            # A memoryview of the array does not count as a part of it: it gets to keep the memory.
            weakref.finalize(self._array, id, loan).atexit = False
        except BaseException:
            loan.is_lent = False
            raise
        return self._array

    def __exit__(self, *exception):
        cdef _Loan loan = self._ring._loan
        array, self._array = self._array, None
        if array is None:
            raise StateError("no items are looked at here: this with statement has ended already")
        loan.is_lent = False
        array.__setstate__((1, (0,), array.dtype, False, b""))
        if loan.exports:
            raise BufferError("a part of the array is in use: keep a copy instead. The items stay in the ring")
        if _ring(self._ring).capacity:  # a forked child has inherited the statement, and not the items
            rt_ring_consume(_ring(self._ring), loan.count)


def __getattr__(name):
    if name.startswith("_Ring_") and name[6:].isdigit():
        raise ImportError(
            f"this module was compiled against interface {name[6:]} of rtloop's Ring, and the installed rtloop has "
            "interface 1: recompile the module"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


cdef extern from *:
    """
    static inline void rt_name_ring(PyTypeObject *type) { type->tp_name = "rtloop.Ring"; }
    static inline int rt_add_to_ring(PyTypeObject *type, const char *name, PyObject *value) {
      const int rc = PyDict_SetItemString(type->tp_dict, name, value);
      PyType_Modified(type);
      return rc;
    }
    """
    void rt_name_ring(PyTypeObject *type)
    int rt_add_to_ring(PyTypeObject *type, const char *name, object value) except -1


Ring = _Ring_1

# The class is known by the name that its users import, and has methods for Python by the names of those for Cython.
rt_name_ring(<PyTypeObject *>_Ring_1)
for _name, _method in (("push", push), ("pop", pop)):
    _method.__qualname__ = f"Ring.{_name}"
    rt_add_to_ring(<PyTypeObject *>_Ring_1, _name.encode(), _method)
