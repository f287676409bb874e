"""Loop whose step touches much memory, so that it meets pages that are being moved."""

import mmap

import numpy as np

from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Toucher(RTLoop):
    cdef unsigned char[::1] _memory
    cdef Py_ssize_t _place

    def setup(self):
        self._memory = np.frombuffer(mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)
        self._memory[:] = 1

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef Py_ssize_t _i
        for _i in range(256):
            self._place = (self._place + 4096 * 61) % (64 << 20)
            self._memory[self._place] += 1
        return RT_CONTINUE
