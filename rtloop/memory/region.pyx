"""Region: the memory that an object exports, and requests to the kernel about it."""

from cpython.buffer cimport PyBUF_ANY_CONTIGUOUS, PyBUF_FORMAT, PyBUF_STRIDES, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t

from rtloop.memory.kernel cimport advise_region, prefault_stack_region
from rtloop.headers.memory cimport rt_memory_populate, rt_memory_resident_bytes, rt_memory_stack_left

cimport cython

import mmap

from rtloop.errors import ConfigError


cdef class Region:
    """Region(buffer, name="buffer")

    Memory of an object, which can be neither resized nor freed until :meth:`release`.

    Parameters
    ----------
    buffer : object
        Anything with the buffer protocol whose memory is in one piece: a NumPy array, bytearray, mmap, bytes.
    name : str
        Its name in error messages.
    """

    def __init__(self, buffer, name="buffer"):
        try:
            PyObject_GetBuffer(buffer, &self._view, PyBUF_ANY_CONTIGUOUS | PyBUF_STRIDES | PyBUF_FORMAT)
        except TypeError:
            raise ConfigError(f"{name} is a {type(buffer).__name__}, which does not export memory: pass a NumPy array, "
                              "bytearray, mmap or another object with the buffer protocol") from None
        except (BufferError, ValueError) as error:
            raise ConfigError(f"{name}: {error}: its memory is not in one piece; pass a contiguous copy") from None
        self._is_held = True
        if self._view.len == 0:
            self.release()
            raise ConfigError(f"{name} is empty: it has no memory")

    def __dealloc__(self):
        if self._is_held:
            PyBuffer_Release(&self._view)

    @property
    def address(self):
        """Address of the first byte."""
        return <size_t>self._view.buf

    @property
    def nbytes(self):
        """Size in bytes."""
        return self._view.len

    @property
    def is_readonly(self):
        """True if the object does not allow writing."""
        return bool(self._view.readonly)

    def is_of(self, buffer):
        """Return True if this is the present or former memory of that object."""
        return self._is_held and <object>self._view.obj is buffer

    def release(self):
        """Release the object."""
        cdef bint was_held
        with cython.critical_section(self):
            was_held, self._is_held = self._is_held, False
        if was_held:
            PyBuffer_Release(&self._view)

    def prefault(self):
        """Make every page present, and writable if the object is. Returns 0 or a negative errno."""
        cdef int rc
        cdef bint is_writable = not self._view.readonly
        with nogil:
            rc = rt_memory_populate(self._view.buf, self._view.len, is_writable)
        return rc

    def resident_bytes(self):
        """Return how many bytes, in whole pages, are in memory now (mincore(2)), or a negative errno."""
        cdef int64_t count
        with nogil:
            count = rt_memory_resident_bytes(self._view.buf, self._view.len)
        return count

    def advise(self, int advice):
        """Call madvise(2) on the whole pages inside the region.

        Returns
        -------
        tuple of int
            0 or a negative errno, and the number of bytes that the advice applies to: 0 without a whole page.
        """
        cdef size_t page = mmap.PAGESIZE
        cdef size_t begin = (<size_t>self._view.buf + page - 1) // page * page
        cdef size_t end = (<size_t>self._view.buf + self._view.len) // page * page
        cdef int rc
        if end <= begin:
            return 0, 0
        with nogil:
            rc = advise_region(<void *>begin, end - begin, advice)
        return rc, end - begin


def touch_stack(size_t size):
    """Touch the next `size` bytes of the calling thread's stack. Returns 0 or a negative errno."""
    return prefault_stack_region(size)


def stack_left():
    """Return how many bytes of stack the calling thread has left, or a negative errno."""
    return rt_memory_stack_left()
