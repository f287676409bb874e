# cython: cdivision=True
"""PID control of a DC motor's angle at 1 kHz; gains and setpoint come through a Latest, and may change any time."""

from libc.math cimport fmax, fmin, round
from rtloop cimport RT_CONTINUE, Cycle, Latest, Ring, RTLoop

import math

import numpy as np


cdef struct Parameters:
    double setpoint     # rad
    double kp, ki, kd   # V/rad, V/(rad s), Vs/rad


cdef struct Record:
    double t            # s
    Parameters used     # in this cycle
    double angle        # rad
    double voltage      # V

PARAMETERS = np.dtype([(name, "f8") for name in ("setpoint", "kp", "ki", "kd")], align=True)
RECORD = np.dtype([("t", "f8"), ("used", PARAMETERS), ("angle", "f8"), ("voltage", "f8")], align=True)
assert (PARAMETERS.itemsize, RECORD.itemsize) == (sizeof(Parameters), sizeof(Record))

cdef double RESISTANCE = 0.5    # ohm
cdef double INDUCTANCE = 1e-3   # H
cdef double TORQUE = 0.05       # Nm/A, and Vs/rad
cdef double INERTIA = 1e-4      # kg m^2
cdef double FRICTION = 1e-4     # Nms/rad
cdef double LOAD = 0.05         # Nm, load on the shaft
cdef double COUNT = 1.5708e-4   # rad per encoder count: 40,000 per turn
cdef double FILTER = 2e-3       # s, time constant of the rate filter


cdef class Motor(RTLoop):
    """Control a motor, and simulate it.

    The rate is computed from the angle, not from the error, so that a new setpoint causes no kick through kd. The
    integral is kept in volts, so that a new ki causes none either. It is frozen at the voltage limit (no windup).
    """

    cdef readonly Latest parameters
    cdef readonly Ring log
    cdef readonly dict tuned  # the values written last
    cdef Parameters now
    cdef double supply                          # V
    cdef double current, speed, angle           # of the motor: A, rad/s, rad
    cdef readonly double voltage                # V, of the controller; 0 after the end
    cdef double integral, rate, before          # of the controller: V, rad/s, rad

    def __init__(self, period, *, supply=24.0, **settings):
        super().__init__(period, **settings)
        self.supply = supply
        self.parameters = Latest(PARAMETERS)
        self.log = Ring(RECORD, 4000)  # four seconds
        self.tuned = dict.fromkeys(PARAMETERS.names, 0.0)

    def setup(self):
        self.current = self.speed = self.angle = self.voltage = self.integral = self.rate = self.before = 0

    def tune(self, **changes):
        """Change some parameters, all in the same cycle. Raise ValueError for values that the step cannot handle."""
        cdef Parameters new
        for name, value in changes.items():
            if name not in self.tuned:
                raise ValueError(f"{name!r} is not a parameter; the parameters are {', '.join(self.tuned)}")
            if not math.isfinite(value) or (name != "setpoint" and value < 0):
                raise ValueError(f"{name}={value} is not finite, or a gain below zero")
        self.tuned.update(changes)
        new = self.tuned  # Cython converts the dict to a struct
        self.parameters.write(&new)

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef Record record
        cdef double angle, error, asked
        self.turn(cycle.dt)
        angle = COUNT * round(self.angle / COUNT)  # as read from the encoder
        self.parameters.read(&self.now)
        self.rate += fmin(1.0, cycle.dt / FILTER) * ((angle - self.before) / cycle.dt - self.rate)
        self.before = angle
        error = self.now.setpoint - angle
        asked = self.now.kp * error + self.integral - self.now.kd * self.rate
        self.voltage = clip(asked, self.supply)
        if self.voltage == asked or (asked > 0) != (error > 0):
            self.integral = clip(self.integral + self.now.ki * error * cycle.dt, self.supply)
        record.t, record.used, record.angle, record.voltage = cycle.t, self.now, angle, self.voltage
        self.log.push(&record)
        return RT_CONTINUE

    cdef void leave(self) noexcept nogil:
        """Remove the voltage, however the loop ended. With a real motor, send it to the amplifier."""
        self.voltage = 0

    cdef void turn(self, double dt) noexcept nogil:
        """Advance the motor, in steps of at most 20 us."""
        cdef int steps = <int>(fmin(dt, 0.1) / 20e-6) + 1
        cdef double h = fmin(dt, 0.1) / steps
        for _ in range(steps):
            self.current += h * (self.voltage - RESISTANCE * self.current - TORQUE * self.speed) / INDUCTANCE
            self.speed += h * (TORQUE * self.current - FRICTION * self.speed - LOAD) / INERTIA
            self.angle += h * self.speed


cdef inline double clip(double value, double most) noexcept nogil:
    return fmax(-most, fmin(most, value))
