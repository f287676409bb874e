"""Views of a ring: access to items in place, which are taken out afterwards."""

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.object cimport PyObject

cimport cython
cimport numpy as cnp

from rtloop._python cimport Py_REFCNT
from rtloop.data.exchange.side cimport fields_of, rearm
from rtloop.headers.ring cimport rt_ring_consume, rt_ring_front, rt_ring_t

import numpy as np

from rtloop.errors import StateError


cnp.import_array()


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


cdef class Loan:
    """Loan(storage)
--

    The array that a ring lends.

    The array is a slice of another one, its base. NumPy gives all parts of the array, and their parts, this same base:
    the number of references to the base tells whether a part is in use. A memoryview of the array itself does not
    count, nor does an array of another class or of ``np.lib.stride_tricks``. These keep the array, and with it the
    memory.

    While `is_lent` is set, all belongs to the thread of the with statement. Otherwise it is used in a critical section
    of the ring.
    """

    def __cinit__(self, storage):
        self._storage = storage

    cdef int check_returned(self) except -1:
        """Raise a BufferError if items are lent, or a part of the array is still in use."""
        if self.is_lent or self.is_in_use():
            raise BufferError(_IN_USE)
        return 0

    cdef object lend(self, rt_ring_t *ring, dtype):
        cdef _Items items = _Items(self._storage)
        items._address = rt_ring_front(ring, &self.count)
        items._size = self.count * ring.item_bytes
        self._base = np.frombuffer(items, dtype) if self.count else np.empty(0, dtype)
        self._array = self._base[:]
        return self._array

    cdef void end(self):
        """Make the array empty, also for code that still refers to it."""
        cdef cnp.ndarray array
        for array in (self._array, self._base):
            for axis in range(cnp.PyArray_NDIM(array)):
                cnp.PyArray_DIMS(array)[axis] = 0

    cdef bint is_in_use(self):
        """Return True if a part of the array is in use; otherwise forget the array."""
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


cdef class View:
    """View(ring, loan)
--

    The with statement of a view of a ring.
    """

    def __cinit__(self, ring, Loan loan):
        self._ring = ring
        self._loan = loan

    def __enter__(self):
        cdef rt_ring_t *ring
        with cython.critical_section(self._ring):
            if self._loan.is_lent:
                raise StateError("another view of this ring is in use")
            self._loan.check_returned()
            ring = <rt_ring_t *>fields_of(self._ring).handle
            self._loan.is_lent = True
        try:
            array = self._loan.lend(ring, self._ring.dtype)
        except BaseException:
            self._loan.is_lent = False
            raise
        self._is_open = True
        return array

    def __exit__(self, *exception):
        cdef rt_ring_t *ring
        with cython.critical_section(self._ring):
            if not self._is_open:
                raise StateError("this view is closed: its with statement has ended")
            self._is_open = False
            self._loan.end()
            self._loan.is_lent = False
            if self._loan.is_in_use():
                raise BufferError("a part of the array is in use: keep a copy instead. The items stay in the ring")
            ring = <rt_ring_t *>fields_of(self._ring).handle
            if ring.capacity:  # a forked child has inherited the statement, and not the items
                rt_ring_consume(ring, self._loan.count)
        rearm(<object>fields_of(self._ring).owner)
