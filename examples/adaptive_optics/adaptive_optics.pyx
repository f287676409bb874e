# cython: boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""Adaptive optics: from the slopes of a wavefront sensor to the commands of a mirror, by BLAS in every cycle."""

from libc.math cimport sqrt

from rtloop cimport RT_CONTINUE, Cycle, Ring, RTLoop
from scipy.linalg.cython_blas cimport dgemv

import numpy as np


cdef struct Row:
    double open, closed  # RMS over the modes: of the turbulence, and of what the mirror leaves

ROW = np.dtype([("open", "f8"), ("closed", "f8")], align=True)


cdef inline void multiply(double factor, const double[:, ::1] matrix, const double *x, double *y) noexcept nogil:
    """Compute y = factor * matrix x + y; BLAS takes the rows of `matrix` as columns, hence the transposition."""
    cdef int rows = <int>matrix.shape[0], columns = <int>matrix.shape[1], one = 1
    cdef double keep = 1.0
    # rtloop: allow thread-pool: it is limited to one thread
    dgemv("t", &columns, &rows, &factor, <double *>&matrix[0, 0], &columns, <double *>x, &one, &keep, y, &one)


cdef class AdaptiveOptics(RTLoop):
    """Simulate the sensor, reconstruct the wavefront from its slopes, and integrate the mirror's commands.

    `sensor` turns modes into slopes, `reconstructor` slopes into modes. `turbulence` and `noise` have a row for each
    cycle, and are repeated. With a real camera, compute `slopes` from its frame instead.
    """

    cdef readonly object commands_array
    cdef const double[:, ::1] sensor, reconstructor, turbulence, noise
    cdef double[::1] commands, residual, slopes
    cdef Py_ssize_t modes, slopes_count, repeat
    cdef double gain, leak
    cdef readonly Ring log

    def __init__(self, period, *, sensor, reconstructor, turbulence, noise, **settings):
        super().__init__(period, **settings)
        self.sensor, self.reconstructor, self.turbulence, self.noise = sensor, reconstructor, turbulence, noise
        self.slopes_count, self.modes, self.repeat = sensor.shape[0], sensor.shape[1], len(turbulence)
        if reconstructor.shape != (self.modes, self.slopes_count) or turbulence.shape[1] != self.modes or (
                noise.shape != (self.repeat, self.slopes_count)):
            raise ValueError("the shapes of sensor, reconstructor, turbulence and noise do not match")
        self.commands_array = np.full(self.modes, 0.0)  # np.full touches each page, np.zeros none
        self.commands, self.residual = self.commands_array, np.full(self.modes, 0.0)
        self.slopes, self.log = np.full(self.slopes_count, 0.0), Ring(ROW, 65536)
        self.parameter("gain", &self.gain, 0.5).limits(0, 1)
        self.parameter("leak", &self.leak, 0.99).limits(0, 1)

    def setup(self):
        multiply(1.0, self.sensor, &self.residual[0], &self.slopes[0])  # BLAS takes its memory in the first call

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef Py_ssize_t i, row = <Py_ssize_t>(cycle.index % <Py_ssize_t>self.repeat)
        cdef Row out
        out.open = out.closed = 0
        for i in range(self.modes):
            self.residual[i] = self.turbulence[row, i] - self.commands[i]
            out.open += self.turbulence[row, i] ** 2
            out.closed += self.residual[i] ** 2
        for i in range(self.slopes_count):
            self.slopes[i] = self.noise[row, i]
        multiply(1.0, self.sensor, &self.residual[0], &self.slopes[0])
        for i in range(self.modes):
            self.commands[i] *= self.leak
        multiply(self.gain, self.reconstructor, &self.slopes[0], &self.commands[0])
        out.open, out.closed = sqrt(out.open / self.modes), sqrt(out.closed / self.modes)
        self.log.push(&out)
        return RT_CONTINUE

    cdef void leave(self) noexcept nogil:
        """Flatten the mirror, however the loop ended."""
        for i in range(self.modes):
            self.commands[i] = 0
