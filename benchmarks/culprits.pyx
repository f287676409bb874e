"""Loop whose step touches much memory, and measures how long it waits for pages that are being moved."""

import mmap

import numpy as np

from libc.time cimport timespec
from posix.time cimport CLOCK_MONOTONIC, clock_gettime

from rtloop cimport RT_CONTINUE, Cycle, RTLoop


def page_frames(pid, pages):
    """Return the frames of some pages of a process (Documentation/admin-guide/mm/pagemap.rst)."""
    first, last = int(min(pages)) // 4096, int(max(pages)) // 4096
    with open(f"/proc/{pid}/pagemap", "rb") as file:
        file.seek(first * 8)
        entries = np.frombuffer(file.read((last - first + 1) * 8), np.uint64)[np.asarray(pages) // 4096 - first]
    return (entries & np.uint64((1 << 55) - 1)).astype(np.int64)


cdef extern from "<sys/resource.h>" nogil:
    struct rusage:
        long ru_nvcsw
    int RUSAGE_THREAD
    int getrusage(int who, rusage *usage)


cdef inline long long _now() noexcept nogil:
    cdef timespec time
    clock_gettime(CLOCK_MONOTONIC, &time)
    return time.tv_sec * 1_000_000_000LL + time.tv_nsec


cdef inline long _sleeps() noexcept nogil:
    """Return how often this thread has given up the CPU to wait for something."""
    cdef rusage usage
    getrusage(RUSAGE_THREAD, &usage)
    return usage.ru_nvcsw


cdef class Toucher(RTLoop):
    """Touches 16384 pages, 4096 a cycle. A touch in which the thread slept waited for a page that was moved.

    They are those of 96 MiB that lie in the fewest blocks of 128 MiB.
    """

    cdef long long[::1] _pages
    cdef Py_ssize_t _place
    cdef object _memory
    cdef long long[:, ::1] _spikes
    cdef Py_ssize_t _count

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._spikes = np.zeros((1 << 16, 2), np.int64)

    @property
    def spikes(self):
        """Begins and ends of the touches that waited, ns on CLOCK_MONOTONIC."""
        return np.asarray(self._spikes)[:self._count].tolist()

    cdef inline void _log(self, long long begin, long long end) noexcept nogil:
        if self._count < self._spikes.shape[0]:
            self._spikes[self._count, 0] = begin
            self._spikes[self._count, 1] = end
            self._count += 1

    @property
    def pages(self):
        return np.asarray(self._pages).tolist()

    def setup(self):
        area = mmap.mmap(-1, 96 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._memory = memory = np.frombuffer(area, np.uint8)
        memory[::4096] = 1
        pages = memory.ctypes.data + np.arange(len(memory) // 4096) * 4096
        frames = page_frames("self", pages)
        _, block, pages_in = np.unique(frames >> 15, return_inverse=True, return_counts=True)
        self._pages = pages[np.argsort(-pages_in[block], kind="stable")[:16384]]

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef Py_ssize_t _i
        cdef long _sleeps_before = _sleeps(), _sleeps_now
        cdef long long _before = _now(), _after
        for _i in range(4096):
            self._place = (self._place + 61) % 16384
            (<unsigned char *>self._pages[self._place])[0] += 1
            _after = _now()
            if _after - _before > 10_000:
                _sleeps_now = _sleeps()
                if _sleeps_now != _sleeps_before:
                    self._log(_before, _after)
                _sleeps_before = _sleeps_now
            _before = _after
        return RT_CONTINUE
