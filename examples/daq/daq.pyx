# cython: cdivision=True
"""Acquire two channels of a 16-bit converter at 10 kHz: each numbered sample goes into a Ring."""

from libc.math cimport M_PI, exp, fmod, llround, sin
from libc.stdint cimport int16_t, int64_t, uint64_t
from rtloop cimport RT_CONTINUE, Cycle, Ring, RTLoop

import numpy as np


cdef struct Sample:
    int64_t number        # of its release; a gap is a missed release, or a full ring
    int64_t release       # ns
    int16_t[2] code       # raw values of the converter

SAMPLE = np.dtype([("number", "i8"), ("release", "i8"), ("code", "i2", 2)], align=True)
assert SAMPLE.itemsize == sizeof(Sample)

VOLT = 10 / 32768.0       # per code: 16 bits for -10 V to 10 V
cdef double CODE = VOLT
cdef double NOISE = 0.02  # V, uniform, in both directions


cdef class Acquisition(RTLoop):
    """Read the converter in each cycle. However late the ring is drained, the step does not wait."""

    cdef readonly Ring log
    cdef uint64_t seed

    def __init__(self, period, *, capacity=20_000, **settings):
        super().__init__(period, **settings)
        self.log = Ring(SAMPLE, capacity)  # two seconds at 10 kHz

    def setup(self):
        self.seed = 1

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef Sample sample
        sample.number = llround(cycle.t * 1e9 / cycle.period)
        sample.release = cycle.release
        self.convert(sample.number * 1e-9 * cycle.period, sample.code)
        self.log.push(&sample)  # a full ring drops and counts it
        return RT_CONTINUE

    cdef void convert(self, double t, int16_t *code) noexcept nogil:
        """Simulate the converter: a bell, struck twice a second, with some mains hum; and a rotating machine."""
        cdef double since = fmod(t, 0.5)
        cdef double bell = exp(-6 * since) * (2 * sin(2 * M_PI * 440 * t) + sin(2 * M_PI * 1187 * t))
        code[0] = <int16_t>llround((bell + 0.2 * sin(2 * M_PI * 50 * t) + self.noise()) / CODE)
        code[1] = <int16_t>llround((sin(2 * M_PI * 25 * t) + 0.3 * sin(2 * M_PI * 175 * t) + self.noise()) / CODE)

    cdef double noise(self) noexcept nogil:
        self.seed ^= self.seed << 13  # xorshift64
        self.seed ^= self.seed >> 7
        self.seed ^= self.seed << 17
        return NOISE * (<double>(self.seed >> 11) / <double>(1 << 52) - 1)
