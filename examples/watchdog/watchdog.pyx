# cython: cdivision=True
"""A drive whose encoder falls silent: its step waits for ever, and the watchdog of the group takes the voltage away."""

from rtloop cimport RT_CONTINUE, RT_STOP, Cycle, RTLoop


cdef class Motor:
    """A simulated one. Whoever uses it from another thread reads and writes one value at a time."""

    cdef volatile double voltage  # V
    cdef volatile double brake    # 0 to 1
    cdef volatile double speed    # rad/s

    @property
    def state(self):
        """The voltage, V, and the speed, rad/s."""
        return self.voltage, self.speed

    cdef void turn(self, double dt) noexcept nogil:
        self.speed = self.speed + dt * (20 * self.voltage - (1 + 20 * self.brake) * self.speed)


cdef class Drive(RTLoop):
    """Hold the speed. The encoder answers until cycle `silent_at`; from then on it does not."""

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
            pass  # what nobody should write: it waits for the encoder, for as long as it takes
        if not self.is_safe:
            self.motor.voltage = 0.2 * (100 - self.motor.speed)
        return RT_CONTINUE

    cdef int safe(self) noexcept nogil:
        """Called by the watchdog, on its thread, while step hangs in the middle of what it does."""
        self.motor.voltage = 0
        self.is_safe = True  # and step, should it ever go on, leaves the motor alone
        return 0


cdef class Brake(RTLoop):
    """Be the motor; and when the drive has failed, bring it to rest before this loop ends, too."""

    cdef readonly Motor motor

    def __init__(self, *args, Motor motor not None, **settings):
        super().__init__(*args, **settings)
        self.motor = motor

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.motor.turn(cycle.dt)
        return RT_STOP if self.motor.brake > 0 and self.motor.speed < 0.1 else RT_CONTINUE

    cdef int on_peer_failure(self) noexcept nogil:
        """Called on this loop's own thread, between two cycles: go on, with the brake."""
        self.motor.brake = 1
        return RT_CONTINUE
