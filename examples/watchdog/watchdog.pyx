# cython: cdivision=True
"""A drive whose encoder falls silent: its step waits forever, and the group's watchdog removes the voltage."""

from rtloop cimport RT_CONTINUE, RT_STOP, Cycle, RTLoop


cdef class Motor:
    """A simulated motor. Other threads may read and write one value at a time."""

    cdef volatile double voltage  # V
    cdef volatile double brake    # 0 to 1
    cdef volatile double speed    # rad/s

    @property
    def state(self):
        """Voltage, V, and speed, rad/s."""
        return self.voltage, self.speed

    cdef void turn(self, double dt) noexcept nogil:
        self.speed = self.speed + dt * (20 * self.voltage - (1 + 20 * self.brake) * self.speed)


cdef class Drive(RTLoop):
    """Hold the speed. The encoder stops answering at cycle `silent_at`."""

    cdef readonly Motor motor
    cdef long silent_at
    cdef volatile bint is_safe

    def __init__(self, *args, Motor motor not None, silent_at, **settings):
        super().__init__(*args, **settings)
        self.motor, self.silent_at = motor, silent_at

    cdef int enter(self) noexcept nogil:
        self.is_safe = False
        return RT_CONTINUE

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        while <long>cycle.index >= self.silent_at and not self.is_safe:
            pass  # the mistake: an unbounded wait for the encoder
        if not self.is_safe:
            self.motor.voltage = 0.2 * (100 - self.motor.speed)
        return RT_CONTINUE

    cdef int safe(self) noexcept nogil:
        """Remove the voltage. The watchdog calls this on its own thread while step hangs."""
        self.motor.voltage = 0
        self.is_safe = True  # if step ever continues, it leaves the motor alone
        return 0

    cdef void leave(self) noexcept nogil:
        """Remove the voltage at every other end: Ctrl-C, a signal, a failure of this loop or of another."""
        self.motor.voltage = 0


cdef class Brake(RTLoop):
    """Simulate the motor. When the drive has failed, bring it to rest, then end."""

    cdef readonly Motor motor

    def __init__(self, *args, Motor motor not None, **settings):
        super().__init__(*args, **settings)
        self.motor = motor

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.motor.turn(cycle.dt)
        return RT_STOP if self.motor.brake > 0 and self.motor.speed < 0.1 else RT_CONTINUE

    cdef int on_peer_failure(self) noexcept nogil:
        """Continue, with the brake applied. Called on this loop's own thread, between two cycles."""
        self.motor.brake = 1
        return RT_CONTINUE

    cdef void leave(self) noexcept nogil:
        """Leave the motor with the brake applied, however this loop ended."""
        self.motor.brake = 1
