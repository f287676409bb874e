# cython: boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""A pole on a cart, and six laws that balance it. Each improves the one before, which it replaces in a running loop."""

import numpy as np

from libc.math cimport cos, fabs, fmax, fmin, sin
from rtloop cimport RT_CONTINUE, RT_STOP, Cycle, RTLoop

cdef double CART = 0.5              # kg
cdef double POLE = 0.05             # kg
cdef double HALF = 0.05             # m, from the pivot to the middle of the pole
cdef double GRAVITY = 9.81          # m/s^2
cdef double SLOPE = 0.4             # N, the table is not level
cdef double PUSH = 0.05             # N, against the tip of the pole, for 20 ms of every 512
cdef double MAX_FORCE = 10.0        # N, limit of the motor
cdef double FALLEN = 0.8            # rad
cdef int STEPS = 4                  # integration steps per cycle


cdef class Plant:
    """The cart and the pole, advanced by whichever law is in place. It outlives each of them."""

    cdef readonly double x, v       # m, m/s: the cart, to the right
    cdef readonly double angle, rate  # rad, rad/s: the pole; 0 is upright
    cdef readonly double force      # N, the last one
    cdef double[:, ::1] log
    cdef readonly Py_ssize_t count
    cdef readonly bint has_fallen

    def __init__(self, cycles=20_000):
        self.angle = 0.05
        self.log = np.zeros((cycles, 4))

    @property
    def samples(self):
        """One row a cycle: angle (rad), position (m), force (N), and the index of the cycle."""
        return np.asarray(self.log)[: self.count]

    cdef int move(self, double force, const Cycle *cycle) noexcept nogil:
        cdef double ml = POLE * HALF
        cdef double inertia = 4.0 / 3.0 * ml * HALF
        cdef double dt = cycle.dt / STEPS
        cdef double push = PUSH if cycle.index % 1024 < 20 else -PUSH if cycle.index % 512 < 20 else 0.0
        cdef double s, c, along, around, determinant
        self.force = fmax(-MAX_FORCE, fmin(MAX_FORCE, force))
        for _ in range(STEPS):
            s, c = sin(self.angle), cos(self.angle)
            along = self.force + SLOPE + push + ml * self.rate * self.rate * s
            around = ml * GRAVITY * s + 2 * HALF * push * c
            determinant = (CART + POLE) * inertia - (ml * c) * (ml * c)
            self.v += dt * (inertia * along - ml * c * around) / determinant
            self.rate += dt * ((CART + POLE) * around - ml * c * along) / determinant
            self.x += dt * self.v
            self.angle += dt * self.rate
        if self.count < self.log.shape[0]:
            self.log[self.count, 0], self.log[self.count, 1] = self.angle, self.x
            self.log[self.count, 2], self.log[self.count, 3] = self.force, <double>cycle.index
            self.count += 1
        self.has_fallen = fabs(self.angle) > FALLEN
        return RT_STOP if self.has_fallen else RT_CONTINUE


cdef class Law(RTLoop):
    """Base class of the laws: the plant, and the force of the last cycle, which the next law takes over."""

    cdef Plant plant
    cdef readonly double force

    def __init__(self, period, *, plant, **settings):
        super().__init__(period, **settings)
        self.plant = plant

    cdef int take_over(self, RTLoop former, const Cycle *cycle) noexcept nogil:
        self.force = (<Law>former).force    # every law derives from Law, so the cast is valid
        return RT_CONTINUE

    cdef double weigh(self, double x, double v, double angle, double rate) noexcept nogil:
        return x * self.plant.x + v * self.plant.v + angle * self.plant.angle + rate * self.plant.rate

    cdef int apply(self, double force, const Cycle *cycle) noexcept nogil:
        self.force = force
        return self.plant.move(force, cycle)

    cdef void leave(self) noexcept nogil:
        self.plant.force = 0


cdef class Upright(Law):
    """First law: balance the pole, and do not control the position of the cart."""

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        return self.apply(self.weigh(0, 0, 80.0, 6.0), cycle)


cdef class Slower(Law):
    """Brake the cart as well."""

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        return self.apply(self.weigh(0, 10.0, 100.0, 9.0), cycle)


cdef class Centred(Law):
    """Bring the cart back to the middle, as in rtloop demo. On a table that is not level it stops beside the middle."""

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        return self.apply(self.weigh(31.62, 30.66, 135.73, 12.51), cycle)


cdef class Integrating(Law):
    """Integrate the position. The first value of the integral makes the first force equal the former law's last one."""

    cdef double integral

    cdef double regulate(self) noexcept nogil:
        return self.weigh(31.62, 30.66, 135.73, 12.51) + self.integral

    cdef int take_over(self, RTLoop former, const Cycle *cycle) noexcept nogil:
        self.force = (<Law>former).force
        self.integral = 0
        self.integral = self.force - self.regulate()
        return RT_CONTINUE

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.integral += 15.0 * self.plant.x * cycle.dt
        return self.apply(self.regulate(), cycle)


cdef class Smooth(Integrating):
    """Limit how fast the force changes, to protect the gear; take over the integral of the former law."""

    cdef int take_over(self, RTLoop former, const Cycle *cycle) noexcept nogil:
        self.force = (<Law>former).force
        self.integral = (<Integrating>former).integral
        return RT_CONTINUE

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.integral += 15.0 * self.plant.x * cycle.dt
        return self.approach(self.regulate(), cycle)

    cdef int approach(self, double force, const Cycle *cycle) noexcept nogil:
        cdef double most = 1000.0 * cycle.dt    # 1000 N/s
        return self.apply(self.force + fmax(-most, fmin(most, force - self.force)), cycle)


cdef class Walking(Smooth):
    """Move the cart to and fro by 10 cm."""

    cdef double seconds

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.seconds += cycle.dt
        cdef double target = 0.1 * sin(1.5 * self.seconds)
        self.integral += 15.0 * (self.plant.x - target) * cycle.dt
        return self.approach(self.regulate() - 31.62 * target, cycle)
