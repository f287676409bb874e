"""Block of a loop's guards: mapped for each guarded run, written by the loop's thread, read by all other threads.

This module contains the process's handler of SIGSYS (include/rtloop/guard_signal.h).
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from rtloop._os cimport RTLD_DEFAULT, dlsym, munmap
from rtloop.headers.atomics cimport rt_load_acquire, rt_load_relaxed_64
from rtloop.headers.guard cimport (
    RT_GUARD_ALLOWED,
    RT_GUARD_FAULTS_BY_SAMPLE,
    RT_GUARD_FAULTS_NONE,
    RT_GUARD_FRAMES,
    RT_GUARD_RANGES,
    rt_guard_close_faults,
    rt_guard_has_signal,
    rt_guard_register,
    rt_guard_t,
    rt_guard_unregister,
    rt_seqlock_read_begin,
    rt_seqlock_read_valid,
    rt_violation_t,
)
from rtloop.headers.memory cimport rt_memory_map, rt_memory_prefault
from rtloop.headers.telemetry cimport RT_GUARD_KINDS

import os
from typing import NamedTuple


class RawViolation(NamedTuple):
    """Violations of one kind at one place, as the loop's thread recorded them: addresses without names.

    Cycle, time, detail and frames are those of the first one. `least` and `most` are the limits of the details.
    """

    cycle: int
    last_cycle: int
    times: int
    time_ns: int
    last_time_ns: int
    kind: int
    detail: int
    least: int
    most: int
    function: int
    frames: tuple


def is_malloc_watched():
    """Return True if the library that counts allocations is loaded into this process."""
    return dlsym(RTLD_DEFAULT, b"rtloop_guard_attach") is not NULL


def has_signal():
    """Return True if SIGSYS still comes to the guards, False if other code has installed a handler since."""
    return rt_guard_has_signal() != 0


cdef class GuardBlock:
    """GuardBlock(*, is_stopping, warmup, allowed, code)
--

    Settings and results of the guards, shared between the loop's thread and the other threads.

    Parameters
    ----------
    is_stopping : bool
        True if a violation ends the run.
    warmup : int
        Number of first cycles that are not guarded.
    allowed : iterable of int
        Numbers of system calls that are not violations.
    code : sequence of (int, int, bool)
        Mappings of code, in order: first address, end, and True if it is the user's.
    """

    def __cinit__(self):
        self.guard = NULL
        self.migrated = 0  # pages that the kernel had moved before the run
        self.moved = None  # pages that it has moved during the run, once that has ended

    def __init__(self, *, is_stopping, warmup, allowed, code):
        cdef void *address = NULL
        rc = rt_memory_map(&address, sizeof(rt_guard_t))
        if rc:
            raise OSError(-rc, f"guard block of {sizeof(rt_guard_t)} bytes: {os.strerror(-rc)}")
        self.guard = <rt_guard_t *>address
        with nogil:
            rt_memory_prefault(self.guard, sizeof(rt_guard_t))
        self.guard.perf_fd[0] = self.guard.perf_fd[1] = -1  # 0 may be one of its own
        self.guard.is_stopping = is_stopping
        self.guard.warmup = warmup
        for number in allowed:
            if 0 <= number < RT_GUARD_ALLOWED:
                self.guard.allowed[<int>(number // 64)] |= <uint64_t>1 << <int>(number % 64)
        ranges = list(code)[:RT_GUARD_RANGES]
        for i in range(len(ranges)):
            self.guard.code[i].low, self.guard.code[i].high, self.guard.code[i].is_user = ranges[i]
        self.guard.ranges = len(ranges)
        self.guard.malloc_attach = <int (*)(rt_guard_t *, size_t) noexcept nogil>dlsym(
            RTLD_DEFAULT, b"rtloop_guard_attach")

    @property
    def address(self):
        """Address of the block."""
        return <size_t>self.guard

    @property
    def size(self):
        """Size of the block in bytes."""
        return sizeof(rt_guard_t)

    def register(self, low, size):
        """Route SIGSYS of the thread whose stacks begin at `low` to this block. Returns 0 or a negative errno."""
        rc = rt_guard_register(self.guard, <size_t>low, <size_t>low + <size_t>size)
        self._is_registered = rc == 0
        return rc

    @property
    def faults_are_sampled(self):
        """True if each page fault is recorded with its address, False if they are counted, None if neither."""
        if self.guard.faults == RT_GUARD_FAULTS_NONE:
            return None
        return self.guard.faults == RT_GUARD_FAULTS_BY_SAMPLE

    @property
    def results(self):
        """Results of arming the guards of page faults, system calls and allocations: 0 or a negative errno each."""
        return self.guard.faults_rc, self.guard.syscalls_rc, self.guard.malloc_rc

    def violations(self):
        """Copy the kept places, in the order in which they were found; the thread may be running."""
        cdef uint32_t sequence, places, i
        cdef int kind
        cdef rt_violation_t copy
        while self.guard is not NULL:
            sequence = rt_seqlock_read_begin(&self.guard.lock)
            found = []
            for kind in range(RT_GUARD_KINDS):
                places = rt_load_acquire(&self.guard.places[kind])
                for i in range(places):
                    memcpy(&copy, &self.guard.violations[kind][i], sizeof(copy))
                    found.append((copy.order, self._violation(&copy)))
            if rt_seqlock_read_valid(&self.guard.lock, sequence):
                return [violation for _, violation in sorted(found)]
        return []

    @property
    def unkept(self):
        """Number of violations of each kind that are at none of the kept places."""
        cdef int kind
        if self.guard is NULL:
            return ()
        return tuple([rt_load_relaxed_64(&self.guard.unkept[kind]) for kind in range(RT_GUARD_KINDS)])

    cdef object _violation(self, const rt_violation_t *v):
        frames = []
        for i in range(RT_GUARD_FRAMES):
            if v.frames[i] == 0:
                break
            frames.append(v.frames[i])
        return RawViolation(v.cycle, v.last_cycle, v.count, v.time, v.last_time, v.kind, v.detail, v.least, v.most,
                            v.function, tuple(frames))

    def close(self):
        """Release everything but the memory, which another thread may be reading. The loop's thread must have ended."""
        if self.guard is NULL:
            return
        if self._is_registered:
            self._is_registered = False
            rt_guard_unregister(self.guard)
        rt_guard_close_faults(self.guard)

    def __dealloc__(self):
        if self.guard is not NULL:
            munmap(self.guard, sizeof(rt_guard_t))
