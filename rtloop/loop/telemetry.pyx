"""The block of memory in which a loop writes what happened, and consistent snapshots of it."""

from libc.stdlib cimport free
from libc.string cimport memcpy

from rtloop._os cimport munmap
from rtloop.system.memory_h cimport rt_memory_map_sealed, rt_memory_prefault

import errno
import os
import time
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from rtloop.data.histogram import Histogram
from rtloop.system.process import memory_lock

record_dtype = np.dtype([("release", "<i8"), ("start", "<i8"), ("end", "<i8")])

cdef int _TRIES = 1000
_ATTEMPTS = 200


class Snapshot(NamedTuple):
    """The raw content of a block at one moment; :class:`~rtloop.loop.stats.Stats` is made of it."""

    counters: dict
    histograms: tuple
    records: np.ndarray


def _task_usage(pid, tid):
    """Read a thread's account as getrusage(RUSAGE_THREAD) has it: minor, major, voluntary, involuntary."""
    root = f"/proc/{pid}/task/{tid}"
    with open(f"{root}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    switches = {}
    with open(f"{root}/status") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key.endswith("_switches"):
                switches[key] = int(value)
    return int(fields[7]), int(fields[9]), switches["voluntary_ctxt_switches"], switches["nonvoluntary_ctxt_switches"]


cdef class TelemetryBlock:
    """TelemetryBlock(name, record)

    A telemetry block of this process: mapped, prefaulted, and sealed against being resized.

    Parameters
    ----------
    name : str
        The loop's name.
    record : int
        How many of the last cycles keep their timestamps.
    """

    def __cinit__(self):
        self.fd = -1

    def __init__(self, name, record):
        # One more than is kept: the oldest record may be being overwritten while it is read.
        cdef uint64_t capacity = 1 << int(record).bit_length() if record else 0
        cdef void *address = NULL
        cdef bytes encoded = name.encode()
        cdef bytes file_name = b"rtloop:" + encoded[:200]
        cdef int rc
        self.size = rt_telemetry_bytes(capacity)
        rc = rt_memory_map_sealed(file_name, self.size, &address, &self.fd)
        if rc:
            raise OSError(-rc, f"telemetry block of {self.size} bytes: {os.strerror(-rc)}")
        self.block = <rt_telemetry_t *>address
        with nogil:
            rt_memory_prefault(self.block, self.size)
            rt_telemetry_init(self.block, capacity, capacity)
        self.block.record_keep = record
        encoded = _truncate_utf8(encoded, sizeof(self.block.name) - 1)
        memcpy(self.block.name, <char *>encoded, len(encoded))

    def lock(self):
        """Lock the block into memory. Returns 0 or a negative errno."""
        rc = memory_lock.acquire_range(<size_t>self.block, self.size)
        self._is_locked = rc == 0
        return rc

    def close(self):
        """Unlock the block and close its file. It stays mapped as long as anybody here may be reading it."""
        if self._is_locked:
            self._is_locked = False
            memory_lock.release_range(<size_t>self.block)
        fd, self.fd = self.fd, -1
        if fd >= 0:
            with suppress(OSError):  # a program that becomes a daemon closes all files, this one, too
                os.close(fd)

    def __dealloc__(self):
        if self.block is not NULL:
            munmap(self.block, self.size)

    def reset_idle_bank(self):
        """Clear the bank that the writer does not use, for it to turn to."""
        with nogil:
            rt_bank_clear(&self.block.banks[(rt_load_relaxed(&self.block.active) & 1) ^ 1])

    def snapshot(self, *, records=True):
        """Take a consistent copy without making the writer wait.

        Parameters
        ----------
        records : bool
            Whether to copy the ring of timestamps, too.

        Raises
        ------
        OSError
            EAGAIN where the writer left no gap in many attempts.
        """
        cdef rt_bank_t *bank = <rt_bank_t *>aligned_alloc(64, _BANK_BYTES)
        cdef uint64_t written = 0
        cdef int rc = 0
        if bank is NULL:
            raise MemoryError
        try:
            rt_bank_clear(bank)
            for attempt in range(_ATTEMPTS):
                with nogil:
                    rc = rt_telemetry_snapshot(self.block, bank, &written, _TRIES)
                if rc == 0:
                    break
                time.sleep(0.0001 * attempt)
            else:
                raise OSError(errno.EAGAIN, "the loop writes too fast for a consistent snapshot of its statistics")
            counters = dict(bank.counters)
            counters["usage"] = self._usage(&bank.counters)
            histograms = [_histogram(&bank.histograms[i]) for i in range(RT_HISTOGRAMS)]
            return Snapshot(counters, tuple(histograms), self._records(bank.counters.first_record, written, records))
        finally:
            free(bank)

    cdef object _usage(self, const rt_counters_t *counters):
        cdef const rt_usage_t *begin = &counters.usage_begin
        end = None
        if not rt_load_acquire(&self.block.ended) and self.block.tid:
            try:
                end = _task_usage(self.block.pid, self.block.tid)
            except (OSError, ValueError, IndexError, KeyError):
                if not self._has_ended_soon():
                    return (None,) * 4  # it cannot be told, and zero would be a lie
        if end is None:
            counters = &self.block.banks[rt_load_relaxed(&self.block.active) & 1].counters
            end = (counters.usage_end.minor_faults, counters.usage_end.major_faults,
                   counters.usage_end.voluntary_switches, counters.usage_end.involuntary_switches)
        before = (begin.minor_faults, begin.major_faults, begin.voluntary_switches, begin.involuntary_switches)
        return tuple(max(0, b - a) for a, b in zip(before, end, strict=True))

    cdef bint _has_ended_soon(self):
        """Whether the thread, which is gone from /proc, has closed its account."""
        for _ in range(100):
            if rt_load_acquire(&self.block.ended):
                return True
            time.sleep(0.001)
        return False

    cdef object _records(self, uint64_t first, uint64_t last, bint wanted):
        cdef uint64_t keep = self.block.record_keep
        if last - first > keep:
            first = last - keep
        if not wanted or last <= first:
            return np.empty(0, record_dtype)
        cdef uint64_t count
        array = np.empty(last - first, record_dtype)
        cdef size_t address = array.ctypes.data
        with nogil:
            count = rt_telemetry_copy_records(self.block, <rt_record_t *>address, first, last)
        return array if count == last - first else array[:count].copy()


cdef extern from *:
    """
    #define RT_BANK_BYTES sizeof(rt_bank_t)
    """
    size_t _BANK_BYTES "RT_BANK_BYTES"
    void *aligned_alloc(size_t alignment, size_t size) nogil


cdef object _histogram(const rt_histogram_t *h):
    counts = np.empty(RT_HISTOGRAM_BINS, np.uint64)
    cdef size_t address = counts.ctypes.data
    memcpy(<void *>address, h.counts, RT_HISTOGRAM_BINS * sizeof(uint64_t))
    is_empty = h.min > h.max
    return Histogram(counts, total=h.sum, minimum=0 if is_empty else h.min, maximum=0 if is_empty else h.max)


def _truncate_utf8(text, size):
    """Cut encoded text to at most `size` bytes without splitting a character."""
    return text[:size].decode(errors="ignore").encode()
