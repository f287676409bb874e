"""Telemetry block of another process, mapped read-only and untrusted."""

from libc.errno cimport errno as c_errno
from libc.stdint cimport int64_t

from rtloop._os cimport MAP_FAILED, MAP_SHARED, PROT_READ, mmap, munmap
from rtloop.headers.atomics cimport rt_load_acquire, rt_load_relaxed
from rtloop.headers.telemetry cimport (
    RT_VIEW_MAX_RECORDS,
    RT_VIEW_MAX_TEXT,
    rt_bank_t,
    rt_telemetry_bytes,
    rt_telemetry_t,
    rt_view_copy_text,
    rt_view_is_sound,
)
from rtloop.telemetry.block cimport TelemetryReader

import os

#: About a tenth of a second, because a person waits, and the writer may have been killed during a write.
cdef int _ATTEMPTS = 50


cdef class ForeignBlock(TelemetryReader):
    """ForeignBlock(fd, size, read_usage)

    Telemetry block of another process.

    Parameters
    ----------
    fd : int
        Its file, which must be sealed against shrinking. It may be closed afterwards.
    size : int
        Bytes of the file.
    read_usage : callable
        Returns the usage of the loop's thread, or raises OSError if that is gone.

    Raises
    ------
    ValueError
        If it is not a block, is damaged, or is of another version.
    OSError
        If it cannot be mapped.
    """

    def __init__(self, int fd, size_t size, read_usage):
        cdef void *address
        if self._address is not NULL:
            raise RuntimeError("this block has been mapped before")
        if size == 0 or size > rt_telemetry_bytes(RT_VIEW_MAX_RECORDS, RT_VIEW_MAX_TEXT):
            raise ValueError(f"it has {size} bytes, which is not the size of a telemetry block")
        with nogil:
            address = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0)
        if address == MAP_FAILED:
            raise OSError(c_errno, f"mapping {size} bytes: {os.strerror(c_errno)}")
        self._address, self.size, self._read_usage, self._attempts = address, size, read_usage, _ATTEMPTS
        fault = self._open(address, size)
        if fault is not None:
            self.view.block = NULL
            raise ValueError(fault)

    def __dealloc__(self):
        if self._address is not NULL:
            munmap(self._address, self.size)

    @property
    def header(self):
        """Identity of the loop, as written by itself: plain values, copied."""
        cdef const rt_telemetry_t *t = _block(self)
        return {"pid": t.pid, "tid": t.tid, "period_ns": t.period, "phase_ns": t.phase, "clock": t.clock,
                "policy": t.policy, "priority": t.priority, "cpu": t.cpu, "name": t.name[:sizeof(t.name)]}

    @property
    def has_ended(self):
        """True if the loop has ended, normally or not."""
        return rt_load_acquire(&_block(self).ended) != 0

    @property
    def has_failed(self):
        """True if it has ended other than normally."""
        return self.has_ended and rt_load_relaxed(&_block(self).end_reason) != 0

    def text(self):
        """Return the description that the loop wrote; empty before that.

        Raises
        ------
        ValueError
            If its length is more than its room.
        """
        _block(self)
        cdef bytearray to = bytearray(self.view.text_capacity + 1)
        cdef char *room = to
        cdef int64_t length
        with nogil:
            length = rt_view_copy_text(&self.view, room)
        if length < 0:
            raise ValueError("its text does not end")
        return bytes(to[:length])

    cdef object _check(self, const rt_bank_t *bank):
        if not rt_view_is_sound(bank):
            raise ValueError("its histograms contradict its counters")

    cdef object _thread_usage(self):
        return self._read_usage()


cdef const rt_telemetry_t *_block(ForeignBlock self) except NULL:
    if self.view.block is NULL:
        raise RuntimeError("this block has not been mapped")
    return self.view.block
