# cython: boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""Keep 64 kHz samples, 64 per cycle, in a HugeBuffer, filter them to 8 kHz, and pass on spectra in Pool blocks."""

from libc.math cimport M_PI, fmod, sin
from libc.stdint cimport int64_t
from libc.string cimport memcpy
from rtloop cimport RT_CONTINUE, Cycle, HugeBuffer, Pool, Ring, RTLoop

import numpy as np

cdef enum:
    BLOCK = 64        # samples per cycle
    DECIMATION = 8    # one in this many is kept, after filtering
    TAPS = 128        # taps of the filter
    POINTS = 256      # per spectrum: one every 32 cycles, lines 31.25 Hz apart

cdef double SAMPLING = 64_000  # 1/s
RATE, KEPT = SAMPLING, SAMPLING / DECIMATION


cdef struct Frame:
    int64_t first     # index of the sample at which its first value was filtered
    double[POINTS] re, im

FRAME = np.dtype([("first", "i8"), ("re", "f8", POINTS), ("im", "f8", POINTS)], align=True)
assert FRAME.itemsize == sizeof(Frame)


cdef class Analyser(RTLoop):
    """Filter, transform, pass on. Blocks go out through the ring, and come back through the pool."""

    cdef readonly HugeBuffer memory
    cdef readonly Pool pool
    cdef readonly Ring full
    cdef readonly object history, taps, window
    cdef readonly int64_t dropped  # spectra for which there was no block
    cdef double *sample            # the history, a circular buffer of the last `mask + 1`
    cdef int64_t mask
    cdef double[::1] tap, weight, cosine, sine
    cdef int[::1] reversed
    cdef Frame *frame              # the one being filled, or NULL
    cdef int filled

    def __init__(self, period="1kHz", *, history="16M", blocks=16, **settings):
        super().__init__(period, **settings)
        self.memory = HugeBuffer(history)
        self.history = self.memory.array("f8")
        self.sample, self.mask = <double *>self.memory.data, len(self.history) - 1
        if len(self.history) & self.mask:
            raise ValueError(f"history={history!r} is not a power of two")
        self.pool = Pool(sizeof(Frame), blocks)
        self.full = Ring(np.uintp, blocks)  # of addresses, with room for all blocks, so that a push never fails
        k = np.arange(TAPS) - (TAPS - 1) / 2
        self.taps = np.sinc(2 * 3600 / RATE * k) * np.hamming(TAPS)  # passes up to 3.6 kHz
        self.taps /= self.taps.sum()
        self.window = np.hanning(POINTS)
        self.tap, self.weight = self.taps, self.window
        angle = 2 * np.pi * np.arange(POINTS // 2) / POINTS
        self.cosine, self.sine = np.cos(angle), -np.sin(angle)
        bits = POINTS.bit_length() - 1
        self.reversed = np.array([int(f"{i:0{bits}b}"[::-1], 2) for i in range(POINTS)], np.intc)

    def setup(self):
        self.history[:] = 0
        self.frame, self.filled, self.dropped = NULL, 0, 0

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef int64_t first = <int64_t>cycle.index * BLOCK
        cdef int i
        self.acquire(first)
        for i in range(1, BLOCK // DECIMATION + 1):
            self.keep(first + i * DECIMATION - 1)
        return RT_CONTINUE

    cdef void acquire(self, int64_t first) noexcept nogil:
        """Put a cycle's samples into the history. This is a tone, a sweep, and a loud 10 kHz to filter out."""
        cdef int64_t n
        cdef double t, s
        for n in range(first, first + BLOCK):
            t = n / SAMPLING
            s = fmod(t, 2.0)
            self.sample[n & self.mask] = (
                sin(2 * M_PI * 1000 * t) + sin(2 * M_PI * (500 + 750 * s) * s) + 10 * sin(2 * M_PI * 10_000 * t)
            )

    cdef void keep(self, int64_t n) noexcept nogil:
        """Filter up to sample n, store the result in the frame, and pass the frame on when it is full."""
        cdef double y = 0
        cdef int k
        if self.filled == 0:
            self.frame = <Frame *>self.pool.alloc()
            if self.frame is not NULL:
                self.frame.first = n
        for k in range(TAPS):
            y += self.tap[k] * self.sample[(n - k) & self.mask]
        if self.frame is not NULL:
            k = self.reversed[self.filled]  # bit-reversed, for the transform
            self.frame.re[k], self.frame.im[k] = y * self.weight[self.filled], 0
        self.filled += 1
        if self.filled < POINTS:
            return
        self.filled = 0
        if self.frame is NULL:              # the consumer has all blocks; do not wait for it
            self.dropped += 1
            return
        self.transform(self.frame.re, self.frame.im)
        self.full.push(&self.frame)         # now owned by the consumer
        self.frame = NULL

    cdef void transform(self, double *re, double *im) noexcept nogil:
        """Fourier transform in place, of values in bit-reversed order (Cooley and Tukey, radix 2)."""
        cdef int half = 1, group, j, a, b, turn
        cdef double x, y
        while half < POINTS:
            turn = POINTS // (2 * half)
            for group in range(turn):
                for j in range(half):
                    a = 2 * half * group + j
                    b = a + half
                    x = re[b] * self.cosine[j * turn] - im[b] * self.sine[j * turn]
                    y = re[b] * self.sine[j * turn] + im[b] * self.cosine[j * turn]
                    re[b], im[b] = re[a] - x, im[a] - y
                    re[a], im[a] = re[a] + x, im[a] + y
            half *= 2

    cdef void leave(self) noexcept nogil:
        if self.frame is not NULL:
            self.pool.free(self.frame)
            self.frame = NULL

    def drain(self):
        """Return the spectra since the last call, and return their blocks to the pool."""
        cdef Frame *frame
        cdef size_t to
        frames = np.empty(self.pool.capacity, FRAME)
        for i in range(len(frames)):
            if not self.full.pop(&frame):
                return frames[:i]
            to = frames[i:].ctypes.data
            memcpy(<void *>to, frame, sizeof(Frame))
            self.pool.free(frame)
        return frames
