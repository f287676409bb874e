# cython: cdivision=True
"""PID control of a DC motor's angle at 1 kHz: gains and setpoint may change at any time, and anybody may look on."""

from dc_motor cimport DCMotor, turn
from libc.math cimport fmax, fmin
from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Motor(RTLoop):
    cdef double setpoint, kp, ki, kd, supply    # rad, V/rad, V/(rad s), Vs/rad, V
    cdef readonly double angle, voltage         # rad, V
    cdef double rate, integral                  # rad/s, V
    cdef DCMotor motor                          # simulated

    def __init__(self, period, *, supply=24.0, **settings):
        super().__init__(period, **settings)
        self.supply = supply
        self.parameter("setpoint", &self.setpoint, 0.0).unit("rad")
        self.parameter("kp", &self.kp, 0.0).limits(0, None).unit("V/rad")
        self.parameter("ki", &self.ki, 0.0).limits(0, None).unit("V/(rad s)")
        self.parameter("kd", &self.kd, 0.0).limits(0, None).unit("Vs/rad")
        self.signal("setpoint", &self.setpoint).unit("rad")
        self.signal("angle", &self.angle).unit("rad")
        self.signal("voltage", &self.voltage).unit("V")

    def setup(self):
        self.motor = DCMotor(0, 0, 0)
        self.angle = self.rate = self.integral = 0

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef double before = self.angle, error, asked
        self.angle = turn(&self.motor, self.voltage, cycle.dt)
        self.rate += fmin(1.0, cycle.dt / 2e-3) * ((self.angle - before) / cycle.dt - self.rate)  # a filter of 2 ms
        error = self.setpoint - self.angle
        asked = self.kp * error + self.integral - self.kd * self.rate
        self.voltage = fmax(-self.supply, fmin(self.supply, asked))
        if self.voltage == asked or (asked > 0) != (error > 0):  # at the limit the integral would wind up
            self.integral = fmax(-self.supply, fmin(self.supply, self.integral + self.ki * error * cycle.dt))
        return RT_CONTINUE

    cdef void leave(self) noexcept nogil:
        self.voltage = 0  # however the loop ended; with a real motor, send it to the amplifier
