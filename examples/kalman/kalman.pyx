# cython: boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""A Kalman filter on NumPy arrays: angle, rate and gyroscope bias from two noisy sensors at 1 kHz."""

from libc.errno cimport EDOM
from libc.math cimport isfinite, llround, sqrt

from rtloop cimport RT_CONTINUE, RT_STOP, Cycle, RTLoop

import numpy as np

cdef enum:
    STATES = 3   # angle, rate, bias of the gyroscope: rad, rad/s, rad/s
    SENSORS = 2  # inclinometer, gyroscope: rad, rad/s

ROW = ("angle", "rate", "bias", "std_angle", "std_rate", "std_bias", "dt")


cdef class Kalman(RTLoop):
    """Estimate from one row of `measured` in each cycle. `estimates` has a row for each, NaN if that cycle did not run.

    Each array has two names: the NumPy array, for Python, and a memoryview of the same memory, for the step. Both are
    created here, once. A step that created, sliced or assigned one would allocate or count references.
    """

    cdef readonly object state, covariance, estimates  # x, P and log, for Python
    cdef readonly object noise_density, sensor_std, observed
    cdef double[::1] x, R, q, PH
    cdef double[:, ::1] P, F, H, FP, log
    cdef const double[:, ::1] measured

    def __init__(self, period, *, measured, noise_density=(20.0, 1e-4), sensor_std=(0.05, 0.01), **settings):
        super().__init__(period, **settings)
        self.measured = np.ascontiguousarray(measured, float)
        if self.measured.shape[1] != SENSORS:
            raise ValueError(f"measured has {self.measured.shape[1]} columns instead of one per sensor, {SENSORS}")
        self.noise_density = np.array(noise_density, float)  # rad^2/s^3 of the rate, rad^2/s^3 of the bias
        self.sensor_std = np.array(sensor_std, float)        # rad, rad/s
        self.observed = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
        self.state, self.covariance = np.zeros(STATES), np.eye(STATES)
        # np.full writes to every page. Each page of np.zeros or np.empty would fault when first touched.
        self.estimates = np.full((len(measured), len(ROW)), np.nan)
        self.x, self.P, self.log = self.state, self.covariance, self.estimates
        self.q, self.R, self.H = self.noise_density, self.sensor_std**2, self.observed
        self.F, self.FP, self.PH = np.eye(STATES), np.zeros((STATES, STATES)), np.zeros(STATES)

    def setup(self):  # each run starts from scratch
        self.state[:] = 0
        self.covariance[:] = np.eye(STATES)
        self.estimates[:] = np.nan

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef long long k = llround(cycle.t * 1e9 / cycle.period)  # skips the rows of missed releases
        cdef int i
        if k >= self.measured.shape[0]:
            return RT_STOP
        self.predict(cycle.dt)  # over the time since the last cycle that ran
        for i in range(SENSORS):
            self.correct(i, self.measured[k, i])
        for i in range(STATES):
            if not isfinite(self.x[i]):
                return -EDOM
            self.log[k, i] = self.x[i]
            self.log[k, STATES + i] = sqrt(self.P[i, i])
        self.log[k, 2 * STATES] = cycle.dt
        return RT_CONTINUE

    cdef void predict(self, double dt) noexcept nogil:
        """Compute x = F x, P = F P F' + Q. White noise drives the rate, and the bias is a random walk."""
        cdef int i, j, k
        self.F[0, 1] = dt
        self.x[0] += dt * self.x[1]
        for i in range(STATES):
            for j in range(STATES):
                self.FP[i, j] = 0
                for k in range(STATES):
                    self.FP[i, j] += self.F[i, k] * self.P[k, j]
        for i in range(STATES):
            for j in range(STATES):
                self.P[i, j] = 0
                for k in range(STATES):
                    self.P[i, j] += self.FP[i, k] * self.F[j, k]
        self.P[0, 0] += self.q[0] * dt * dt * dt / 3
        self.P[0, 1] += self.q[0] * dt * dt / 2
        self.P[1, 0] += self.q[0] * dt * dt / 2
        self.P[1, 1] += self.q[0] * dt
        self.P[2, 2] += self.q[1] * dt

    cdef void correct(self, int sensor, double z) noexcept nogil:
        """Correct by one sensor. Because the noises are independent, sensors one by one give the same result as all at
        once, with a division by a number instead of a matrix inversion."""
        cdef double variance = self.R[sensor]
        cdef double innovation = z
        cdef int i, j
        for i in range(STATES):
            self.PH[i] = 0
            for j in range(STATES):
                self.PH[i] += self.P[i, j] * self.H[sensor, j]
            innovation -= self.H[sensor, i] * self.x[i]
        for i in range(STATES):
            variance += self.H[sensor, i] * self.PH[i]
        for i in range(STATES):
            self.x[i] += self.PH[i] / variance * innovation
            for j in range(STATES):
                self.P[i, j] -= self.PH[i] * self.PH[j] / variance
