# cython: cdivision=True
"""Position control of a simulated motor in three loops: current at 10 kHz, velocity at 1 kHz, plan at 100 Hz."""

from libc.math cimport M_PI, cos, sin
from libc.stdint cimport int64_t

from rtloop cimport RT_CONTINUE, Cycle, Latest, Ring, RTLoop

import numpy as np


cdef struct Motion:
    int64_t release           # ns, of the cycle that measured it
    double position, velocity  # rad, rad/s


cdef struct Setpoint:
    int64_t seen   # ns, release of the motion that it was computed from
    double value   # rad/s from the plan, A from the velocity loop


cdef struct Record:
    int64_t release  # ns
    int64_t seen     # ns, as in the setpoint that this cycle followed
    double current, velocity, position  # A, rad/s, rad

MOTION = np.dtype([("release", "i8"), ("position", "f8"), ("velocity", "f8")], align=True)
SETPOINT = np.dtype([("seen", "i8"), ("value", "f8")], align=True)
RECORD = np.dtype(
    [("release", "i8"), ("seen", "i8"), ("current", "f8"), ("velocity", "f8"), ("position", "f8")], align=True
)
assert (MOTION.itemsize, SETPOINT.itemsize, RECORD.itemsize) == (sizeof(Motion), sizeof(Setpoint), sizeof(Record))

cdef double RESISTANCE = 0.5    # ohm
cdef double INDUCTANCE = 1e-3   # H
cdef double TORQUE = 0.05       # Nm/A, and Vs/rad
cdef double INERTIA = 1e-4      # kg m^2
cdef double FRICTION = 1e-4     # Nms/rad
cdef double SUPPLY = 24         # V
cdef double LIMIT = 10          # A


cdef inline double clip(double value, double limit) noexcept nogil:
    return limit if value > limit else -limit if value < -limit else value


cdef class Current(RTLoop):
    """Set the voltage so that the current follows, and simulate the motor. Each reader has its own Latest."""

    cdef readonly Latest setpoint, to_velocity, to_planning
    cdef readonly Ring log
    cdef Setpoint asked
    cdef double current, velocity, position, integral
    cdef readonly double voltage  # V; 0 after the end

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.setpoint, self.to_velocity, self.to_planning = Latest(SETPOINT), Latest(MOTION), Latest(MOTION)
        self.log = Ring(RECORD, 20_000)  # two seconds

    cdef void turn(self, double dt) noexcept nogil:
        """Advance the motor by `dt`, in small steps."""
        cdef int steps = <int>(clip(dt, 0.01) / 20e-6) + 1
        cdef double h = clip(dt, 0.01) / steps
        for _ in range(steps):
            self.current += h * (self.voltage - RESISTANCE * self.current - TORQUE * self.velocity) / INDUCTANCE
            self.velocity += h * (TORQUE * self.current - FRICTION * self.velocity) / INERTIA
            self.position += h * self.velocity

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef Motion motion
        cdef Record record
        cdef double error
        self.turn(cycle.dt)
        motion.release, motion.position, motion.velocity = cycle.release, self.position, self.velocity
        self.to_velocity.write(&motion)
        self.to_planning.write(&motion)
        self.setpoint.read(&self.asked)
        error = self.asked.value - self.current
        self.integral = clip(self.integral + 1500 * error * cycle.dt, SUPPLY)
        self.voltage = clip(3 * error + self.integral, SUPPLY)
        record.release, record.seen = cycle.release, self.asked.seen
        record.current, record.velocity, record.position = self.current, self.velocity, self.position
        self.log.push(&record)
        return RT_CONTINUE

    cdef void leave(self) noexcept nogil:
        """Remove the voltage, however the loop ended."""
        self.voltage = 0


cdef class Velocity(RTLoop):
    """Set the current so that the velocity follows."""

    cdef Latest motion, current
    cdef readonly Latest setpoint
    cdef Motion seen
    cdef Setpoint asked
    cdef double integral

    def __init__(self, period, Current inner, **settings):
        super().__init__(period, **settings)
        self.motion, self.current, self.setpoint = inner.to_velocity, inner.setpoint, Latest(SETPOINT)

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef Setpoint setpoint
        cdef double error
        self.setpoint.read(&self.asked)
        self.motion.read(&self.seen)
        error = self.asked.value - self.seen.velocity
        self.integral = clip(self.integral + 36 * error * cycle.dt, LIMIT)
        setpoint.seen, setpoint.value = self.seen.release, clip(0.6 * error + self.integral, LIMIT)
        self.current.write(&setpoint)
        return RT_CONTINUE

    cdef void leave(self) noexcept nogil:
        """Ask for no current: if the current loop is still running, it must not hold the last torque."""
        cdef Setpoint rest
        rest.seen, rest.value = self.seen.release, 0
        self.current.write(&rest)


cdef class Planning(RTLoop):
    """Command the velocity that swings the motor from 0 to 2 rad and back every two seconds."""

    cdef Latest motion, velocity
    cdef Motion seen
    cdef readonly double error

    def __init__(self, period, Current motor, Velocity inner, **settings):
        super().__init__(period, **settings)
        self.motion, self.velocity = motor.to_planning, inner.setpoint

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef Setpoint setpoint
        self.motion.read(&self.seen)
        self.error = 1 - cos(M_PI * cycle.t) - self.seen.position
        setpoint.seen, setpoint.value = self.seen.release, M_PI * sin(M_PI * cycle.t) + 30 * self.error
        self.velocity.write(&setpoint)
        return RT_CONTINUE

    cdef void leave(self) noexcept nogil:
        """Ask for standstill: if the velocity loop is still running, it brakes the motor."""
        cdef Setpoint rest
        rest.seen, rest.value = self.seen.release, 0
        self.velocity.write(&rest)
