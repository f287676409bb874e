# cython: cdivision=True
"""PID control of a DC motor's angle at 1 kHz, whose gains and setpoint are parameters: they may change at any time."""

from libc.math cimport fmax, fmin, round
from rtloop cimport RT_CONTINUE, Cycle, RTLoop, SignalLog

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

    cdef readonly SignalLog log
    cdef double setpoint, kp, ki, kd            # parameters
    cdef double supply                          # V
    cdef double current, speed, position        # of the motor: A, rad/s, rad
    cdef readonly double voltage                # V, of the controller; 0 after the end
    cdef double integral, rate, angle           # of the controller: V, rad/s, rad

    def __init__(self, period, *, supply=24.0, **settings):
        super().__init__(period, **settings)
        self.supply = supply
        self.parameter("setpoint", &self.setpoint, 0.0).unit("rad")
        self.parameter("kp", &self.kp, 0.0).limits(0, None).unit("V/rad")
        self.parameter("ki", &self.ki, 0.0).limits(0, None).unit("V/(rad s)")
        self.parameter("kd", &self.kd, 0.0).limits(0, None).unit("Vs/rad")
        self.log = SignalLog(4000)  # four seconds
        self.log.add("setpoint", &self.setpoint)
        self.log.add("angle", &self.angle)
        self.log.add("voltage", &self.voltage)

    def setup(self):
        self.current = self.speed = self.position = self.voltage = self.integral = self.rate = self.angle = 0

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef double before = self.angle, error, asked
        self.turn(cycle.dt)
        self.angle = COUNT * round(self.position / COUNT)  # as read from the encoder
        self.rate += fmin(1.0, cycle.dt / FILTER) * ((self.angle - before) / cycle.dt - self.rate)
        error = self.setpoint - self.angle
        asked = self.kp * error + self.integral - self.kd * self.rate
        self.voltage = clip(asked, self.supply)
        if self.voltage == asked or (asked > 0) != (error > 0):
            self.integral = clip(self.integral + self.ki * error * cycle.dt, self.supply)
        self.log.sample(cycle)
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
            self.position += h * self.speed


cdef inline double clip(double value, double most) noexcept nogil:
    return fmax(-most, fmin(most, value))
