"""Telemetry block: the memory that a loop writes its figures to, and consistent snapshots of it."""

from libc.stdint cimport UINT64_MAX, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy

from rtloop._os cimport aligned_alloc, munmap
from rtloop.headers.atomics cimport rt_load_acquire, rt_load_relaxed
from rtloop.headers.memory cimport rt_memory_map, rt_memory_map_sealed, rt_memory_prefault
from rtloop.headers.telemetry cimport (
    RT_BANK_BYTES,
    RT_EXECUTION,
    RT_HISTOGRAM_BINS,
    RT_INTERVAL,
    RT_LATENCY,
    RT_RESPONSE,
    RT_TELEMETRY_VERSION,
    RT_VIEW_HEADER,
    RT_VIEW_MAGIC,
    RT_VIEW_OK,
    RT_VIEW_RECORDS,
    RT_VIEW_SHORT,
    RT_VIEW_TEXT,
    RT_VIEW_TOTAL,
    RT_VIEW_VERSION,
    RT_WAITING,
    rt_bank_clear,
    rt_bank_t,
    rt_counters_t,
    rt_histogram_counts,
    rt_histogram_t,
    rt_record_t,
    rt_telemetry_bytes,
    rt_telemetry_init,
    rt_telemetry_snapshot,
    rt_telemetry_t,
    rt_telemetry_write_text,
    rt_usage_t,
    rt_view_copy_records,
    rt_view_count,
    rt_view_open,
)

import errno
import os
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from rtloop.process.nap import nap
from rtloop.stats.histogram import Histogram
from rtloop.memory.process_lock import memory_lock
from rtloop.system.fileio import read_text
from rtloop.telemetry.record_log import RecordLog
from rtloop.telemetry.thread_usage import thread_usage

record_dtype = np.dtype([("release", "<i8"), ("start", "<i8"), ("end", "<i8")])

cdef int _TRIES = 1000
cdef int _ATTEMPTS = 200
#: Room for the settings and grants as JSON, which are about 5 KiB if everything was refused.
cdef uint64_t _TEXT_BYTES = 16384
#: From this many records on, a snapshot that lacks the oldest costs less than a ring of twice the size.
_MANY_RECORDS = 1 << 15


class Snapshot(NamedTuple):
    """Raw content of a block at one moment, which a :class:`~rtloop.stats.stats.Stats` is made from."""

    counters: dict
    histograms: tuple
    records: np.ndarray


cdef class TelemetryReader:
    """Reader of a telemetry block, in the process of the loop or in another."""

    def __cinit__(self):
        self._attempts = _ATTEMPTS
        self._log = RecordLog(record_dtype)

    cdef object _open(self, const void *address, size_t size):
        """Open a mapped block, without taking ownership. Returns None, or the fault as text."""
        cdef int rc
        with nogil:
            rc = rt_view_open(&self.view, address, size)
        return None if rc == RT_VIEW_OK else _faults()[rc].format(size=size, version=self.view.version)

    cdef object _check(self, const rt_bank_t *bank):
        """Raise if a snapshot cannot have been written by a loop. A block of this process needs no check."""

    cdef object _thread_usage(self):
        """Return the usage of the running thread; raise OSError if it is gone."""
        raise NotImplementedError

    def snapshot(self, *, records=True):
        """Take a consistent copy, without making the writer wait.

        Parameters
        ----------
        records : bool or int
            Copy the timestamps, too; an int limits their number.

        Raises
        ------
        OSError
            EAGAIN if the writer left no gap in many attempts.
        """
        cdef rt_bank_t *bank = <rt_bank_t *>aligned_alloc(64, RT_BANK_BYTES)
        cdef uint64_t written = 0
        cdef int rc = 0
        if bank is NULL:
            raise MemoryError
        try:
            if self.view.block is NULL:
                raise ValueError("there is no block to read")
            rt_bank_clear(bank)
            for attempt in range(self._attempts):
                with nogil:
                    rc = rt_telemetry_snapshot(self.view.block, bank, &written, _TRIES)
                if rc == 0:
                    break
                nap(0.0001 * attempt)
            else:
                raise OSError(errno.EAGAIN, "the loop writes too fast for a consistent snapshot of its statistics, or "
                                            "was stopped in the middle of writing")
            self._check(bank)
            counters = dict(bank.counters)
            counters["usage"] = self._usage_since_begin(&bank.counters)
            _order_steps(counters)
            histograms = [_histogram(&bank.histograms[which])
                          for which in (RT_LATENCY, RT_EXECUTION, RT_RESPONSE, RT_INTERVAL, RT_WAITING)]
            most = UINT64_MAX if records is True else int(records)
            return Snapshot(counters, tuple(histograms), self._records(bank.counters.first_record, written, most))
        finally:
            free(bank)

    cdef object _usage_since_begin(self, const rt_counters_t *counters):
        cdef const rt_usage_t *begin = &counters.usage_begin
        end = None
        if not rt_load_acquire(&self.view.block.ended):
            try:
                end = self._thread_usage()
            except (OSError, ValueError, IndexError, KeyError):
                if not self._has_ended_soon():
                    return (None,) * 4  # unknown, which is not zero
        if end is None:
            counters = &self.view.block.banks[rt_load_relaxed(&self.view.block.active) & 1].counters
            end = (counters.usage_end.minor_faults, counters.usage_end.major_faults,
                   counters.usage_end.voluntary_switches, counters.usage_end.involuntary_switches)
        before = (begin.minor_faults, begin.major_faults, begin.voluntary_switches, begin.involuntary_switches)
        return tuple(max(0, b - a) for a, b in zip(before, end, strict=True))

    cdef bint _has_ended_soon(self):
        """Return whether the thread, which is gone from /proc, has stored its final usage."""
        for _ in range(100):
            if rt_load_acquire(&self.view.block.ended):
                return True
            nap(0.001)
        return False

    cdef object _records(self, uint64_t first, uint64_t last, uint64_t most):
        cdef uint64_t count = rt_view_count(&self.view, first, last, most)
        return self._log.read(self._copy_records, last, count)

    def _copy_records(self, array, uint64_t last):
        """Copy the records before number `last`, as many as fit into an array. Returns how many those are."""
        if self.view.block is NULL:
            raise ValueError("there is no block to read")
        cdef size_t address = array.ctypes.data
        cdef uint64_t count = len(array)
        with nogil:
            count = rt_view_copy_records(&self.view, <rt_record_t *>address, last, count)
        return count


cdef class TelemetryBlock(TelemetryReader):
    """TelemetryBlock(name, record)

    A telemetry block of this process: mapped, prefaulted, and sealed against being resized.

    Parameters
    ----------
    name : str
        Name of the loop.
    record : int
        Number of last cycles whose timestamps are kept.
    is_shared : bool
        False for a block that no other process can read, for want of memfd_create(2).
    """

    def __cinit__(self):
        self.fd = -1

    def __init__(self, name, record, *, is_shared=True):
        # A ring of few records has more places than it keeps, because the oldest may be overwritten while it is read.
        cdef uint64_t capacity = 1 << (int(record) - (record >= _MANY_RECORDS)).bit_length() if record else 0
        cdef uint64_t keep = record
        cdef void *address = NULL
        cdef bytes encoded = name.encode()
        cdef bytes file_name = b"rtloop:" + encoded[:200]
        cdef int rc
        self.size = rt_telemetry_bytes(capacity, _TEXT_BYTES)
        if is_shared:
            rc = rt_memory_map_sealed(file_name, self.size, &address, &self.fd)
        else:
            rc = rt_memory_map(&address, self.size)
        if rc:
            raise OSError(-rc, f"telemetry block of {self.size} bytes: {os.strerror(-rc)}")
        if is_shared:
            self._inode = os.fstat(self.fd).st_ino
        self.block = <rt_telemetry_t *>address
        with nogil:
            rt_memory_prefault(self.block, self.size)
            rt_telemetry_init(self.block, capacity, keep, _TEXT_BYTES)
        encoded = _truncate_utf8(encoded, sizeof(self.block.name) - 1)
        memcpy(self.block.name, <char *>encoded, len(encoded))
        fault = self._open(self.block, self.size)
        if fault is not None:
            raise AssertionError(fault)

    def describe(self, bytes text not None):
        """Write the description of the loop, before its thread runs and after a swap. Returns whether it fits."""
        if self.block is NULL:
            raise RuntimeError("this block has not been mapped")
        return rt_telemetry_write_text(self.block, text, len(text)) == 0

    def sign(self, pid, tid, settings, clock, thread):
        """Write the identity of the loop; `thread` is the granted policy, priority and first CPU."""
        if self.block is NULL:
            raise RuntimeError("this block has not been mapped")
        self.block.pid, self.block.tid, self.block.clock = pid, tid, clock
        self.block.period, self.block.phase = settings.period_ns, settings.phase_ns
        self.block.policy, self.block.priority, self.block.cpu = thread

    def lock(self):
        """Lock the block into memory. Returns 0 or a negative errno."""
        rc = memory_lock.acquire_range(<size_t>self.block, self.size)
        self._is_locked = rc == 0
        return rc

    def close(self):
        """Unlock the block and close its file. It stays mapped as long as this object exists."""
        if self._is_locked:
            self._is_locked = False
            memory_lock.release_range(<size_t>self.block)
        fd, self.fd = self.fd, -1
        if fd >= 0:
            with suppress(OSError):  # a program that became a daemon may have closed all files
                if os.fstat(fd).st_ino == self._inode:  # and the number may belong to another file by now
                    os.close(fd)

    def __dealloc__(self):
        cdef void *address = self.block
        cdef size_t size = self.size
        if address is not NULL:
            with nogil:
                munmap(address, size)

    def reset_idle_bank(self):
        """Clear the bank that the writer does not use, before it is told to swap."""
        if self.block is NULL:
            raise RuntimeError("this block has not been mapped")
        with nogil:
            rt_bank_clear(&self.block.banks[(rt_load_relaxed(&self.block.active) & 1) ^ 1])

    cdef object _thread_usage(self):
        if not self.block.tid:
            return 0, 0, 0, 0  # the thread has not reported yet
        task = f"/proc/{self.block.pid}/task/{self.block.tid}"
        return thread_usage(read_text(f"{task}/stat"), read_text(f"{task}/status"))


cdef object _histogram(const rt_histogram_t *h):
    counts = np.empty(RT_HISTOGRAM_BINS, np.uint64)
    cdef uint64_t[::1] bins = counts
    rt_histogram_counts(h, &bins[0])
    counts.flags.writeable = False
    is_empty = h.min > h.max
    squares = <object>h.squares_high << 64 | <object>h.squares_low
    return Histogram(
        counts, total=h.sum, squares=squares, minimum=0 if is_empty else h.min, maximum=0 if is_empty else h.max
    )


def _order_steps(counters):
    """Bring the steps of the clock that are kept into their order: their sizes, and the cycles before each."""
    steps, sizes, records = counters["clock_steps"], counters.pop("step_sizes"), counters.pop("step_records")
    kept = len(sizes)
    order = [number % kept for number in range(max(0, steps - kept), steps)] if steps < 1 << 62 else []
    counters["clock_step_sizes"] = tuple(sizes[i] for i in order)
    counters["clock_step_cycles"] = tuple(max(0, records[i] - counters["first_record"]) for i in order)


def _truncate_utf8(text, size):
    """Cut encoded text to at most `size` bytes without splitting a character."""
    return text[:size].decode(errors="ignore").encode()


def _faults():
    """Return the faults of a block as text, by the number that rt_view_open returns."""
    return {
        RT_VIEW_SHORT: "it has {size} bytes, fewer than a header",
        RT_VIEW_MAGIC: "it does not begin like a telemetry block",
        RT_VIEW_VERSION: "it is of version {version}, and this rtloop reads version " f"{RT_TELEMETRY_VERSION}: "
                         "watch a loop with the rtloop that runs it",
        RT_VIEW_HEADER: "its header has another size",
        RT_VIEW_RECORDS: "its ring of records has an impossible size",
        RT_VIEW_TEXT: "its text has an impossible size",
        RT_VIEW_TOTAL: "its parts do not add up to its {size} bytes",
    }
