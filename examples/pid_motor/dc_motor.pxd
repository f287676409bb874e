# cython: cdivision=True
"""A simulated DC motor with a load on its shaft, and an encoder of 40,000 counts per turn."""

from libc.math cimport fmin, round

cdef struct DCMotor:
    double current, speed, position     # A, rad/s, rad


cdef inline double turn(DCMotor *motor, double voltage, double dt) noexcept nogil:
    """Advance the motor, in steps of at most 20 us. Returns the angle that the encoder reads, rad."""
    cdef double resistance = 0.5        # ohm
    cdef double inductance = 1e-3       # H
    cdef double torque = 0.05           # Nm/A, and Vs/rad
    cdef double inertia = 1e-4          # kg m^2
    cdef double friction = 1e-4         # Nms/rad
    cdef double load = 0.05             # Nm
    cdef double count = 1.5708e-4       # rad
    cdef int steps = <int>(fmin(dt, 0.1) / 20e-6) + 1
    cdef double h = fmin(dt, 0.1) / steps
    for _ in range(steps):
        motor.current += h * (voltage - resistance * motor.current - torque * motor.speed) / inductance
        motor.speed += h * (torque * motor.current - friction * motor.speed - load) / inertia
        motor.position += h * motor.speed
    return count * round(motor.position / count)
