# cython: boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""A co-simulation FMU (FMI 2.0) as a plant, one communication step per cycle, and a controller of its position.

The functions of the FMU are called through their addresses. Memory and messages go through C functions as well: those
of a Python master would need the GIL.
"""

from libc.errno cimport EIO
from libc.stdint cimport int64_t

from rtloop cimport RT_CONTINUE, Cycle, Ring, RTLoop

import ctypes

import numpy as np

cdef extern from *:
    """
    #include <stdatomic.h>
    static atomic_long fmu_messages;
    static void fmu_log(void *e, const char *instance, int status, const char *category, const char *text, ...) {
      (void)e, (void)instance, (void)status, (void)category, (void)text;
      atomic_fetch_add_explicit(&fmu_messages, 1, memory_order_relaxed);
    }
    static long fmu_logged(void) { return atomic_load(&fmu_messages); }
    """
    void fmu_log() noexcept nogil
    long fmu_logged() noexcept nogil

ctypedef int (*do_step_t)(void *fmu, double now, double length, int no_rollback) noexcept nogil
ctypedef int (*set_t)(void *fmu, const unsigned int *which, size_t count, const double *values) noexcept nogil
ctypedef int (*get_t)(void *fmu, const unsigned int *which, size_t count, double *values) noexcept nogil

cdef struct Row:
    double t, setpoint, force, position

ROW = np.dtype([(name, "f8") for name in ("t", "setpoint", "force", "position")], align=True)


def logger_address():
    """Return the address of a logger that only counts."""
    return <size_t>&fmu_log


def messages():
    """Return how many messages the FMUs of this process have logged."""
    return fmu_logged()


cdef size_t address(function) except 0:
    """Return the address of a function that ctypes has loaded."""
    return ctypes.cast(function, ctypes.c_void_p).value


cdef class Controlled(RTLoop):
    """Advance the FMU by one period, and by one more for each missed release; control its output by its input."""

    cdef object slave  # keeps the library loaded
    cdef void *fmu
    cdef do_step_t do_step
    cdef set_t set_real
    cdef get_t get_real
    cdef unsigned int input, output
    cdef double setpoint, kp, ki, kd, force, last, integral
    cdef bint is_closed
    cdef int64_t done  # communication steps
    cdef readonly Ring log

    def __init__(self, slave, input, output, *, period="1kHz", force=None, **settings):
        super().__init__(period, **settings)
        self.slave, self.log = slave, Ring(ROW, 65536)
        self.fmu = <void *><size_t>slave.component
        self.do_step = <do_step_t>address(slave.dll.fmi2DoStep)
        self.set_real = <set_t>address(slave.dll.fmi2SetReal)
        self.get_real = <get_t>address(slave.dll.fmi2GetReal)
        self.input, self.output = input, output
        self.is_closed, self.force = force is None, force or 0
        self.parameter("setpoint", &self.setpoint, -0.5).limits(-1, 1).unit("m")
        self.parameter("kp", &self.kp, 2e3).limits(0, 1e5).unit("N/m")
        self.parameter("ki", &self.ki, 4e5).limits(0, 1e7).unit("N/(m s)")
        self.parameter("kd", &self.kd, 80.0).limits(0, 1e3).unit("Ns/m")

    def setup(self):
        if self.get_real(self.fmu, &self.output, 1, &self.last):
            raise RuntimeError("the FMU does not give its output; initialise it first")

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef Row row
        cdef double position, h = cycle.period * 1e-9
        cdef int64_t steps = min(1 + cycle.missed, <int64_t>100)
        if self.set_real(self.fmu, &self.input, 1, &self.force) > 1:  # 0 is OK, 1 a warning
            return -EIO
        for _ in range(steps):  # each ends where the next begins, to the last bit
            if self.do_step(self.fmu, self.done * h, (self.done + 1) * h - self.done * h, 1) > 1:
                return -EIO
            self.done += 1
        if self.get_real(self.fmu, &self.output, 1, &position) > 1:
            return -EIO
        row.t, row.setpoint, row.force, row.position = self.done * h, self.setpoint, self.force, position
        self.log.push(&row)
        if self.is_closed:
            self.integral += self.ki * (self.setpoint - position) * cycle.dt
            self.force = self.kp * (self.setpoint - position) + self.integral
            self.force -= self.kd * (position - self.last) / cycle.dt
        self.last = position
        return RT_CONTINUE
