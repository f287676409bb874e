# cython: cdivision=True
"""The cart-pole of `rtloop demo`, controller and plant, as two loops that share a struct instead of a socket."""

from libc.math cimport M_PI_2, cos, fabs, fmax, fmin, sin
from libc.stdint cimport uint64_t
from rtloop cimport RT_CONTINUE, RT_STOP, Cycle, RTLoop

cdef double CART = 0.5              # kg
cdef double POLE = 0.05             # kg
cdef double HALF = 0.05             # m, from the pivot to the middle of the pole
cdef double GRAVITY = 9.81          # m/s^2
cdef double MAX_FORCE = 10.0        # N, limit of the motor
cdef double PUSH = 0.5              # N, largest push against the tip of the pole
cdef int STEPS = 4                  # integration steps per cycle of the plant

# The linear-quadratic regulator of the demo: N per m, m/s, rad and rad/s.
cdef double[4] K = [31.62, 30.66, 135.73, 12.51]


cdef struct Body:
    double x, v                     # m, m/s: the cart, to the right
    double angle, rate              # rad, rad/s: the pole; 0 is upright


cdef inline Body derive(Body b, double force, double push) noexcept nogil:
    cdef double s = sin(b.angle)
    cdef double c = cos(b.angle)
    cdef double ml = POLE * HALF
    cdef double inertia = 4.0 / 3.0 * ml * HALF
    cdef double along = force + push + ml * b.rate * b.rate * s
    cdef double around = ml * GRAVITY * s + 2.0 * HALF * push * c
    cdef double determinant = (CART + POLE) * inertia - (ml * c) * (ml * c)
    cdef Body d
    d.x = b.v
    d.v = (inertia * along - ml * c * around) / determinant
    d.angle = b.rate
    d.rate = ((CART + POLE) * around - ml * c * along) / determinant
    return d


cdef inline Body move(Body b, Body d, double dt) noexcept nogil:
    b.x += d.x * dt
    b.v += d.v * dt
    b.angle += d.angle * dt
    b.rate += d.rate * dt
    return b


cdef inline Body integrate(Body b, double force, double push, double dt) noexcept nogil:
    """Return the body one classical Runge-Kutta step later."""
    cdef Body k1 = derive(b, force, push)
    cdef Body k2 = derive(move(b, k1, 0.5 * dt), force, push)
    cdef Body k3 = derive(move(b, k2, 0.5 * dt), force, push)
    cdef Body k4 = derive(move(b, k3, dt), force, push)
    b = move(b, k1, dt / 6.0)
    b = move(b, k2, dt / 3.0)
    b = move(b, k3, dt / 3.0)
    return move(b, k4, dt / 6.0)


cdef class Plant(RTLoop):
    """Advance the cart and the pole by the elapsed time in every cycle. Stop when the pole has fallen."""

    cdef Body body
    cdef double force
    cdef uint64_t seed
    cdef readonly double worst      # rad, largest angle so far

    def setup(self):                # the same start for every run
        self.body = Body(0, 0, 0.05, 0)
        self.force = self.worst = 0
        self.seed = 1

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef double push = self.push() if cycle.index % 512 < 20 else 0.0
        for _ in range(STEPS):
            self.body = integrate(self.body, self.force, push, cycle.dt / STEPS)
        self.worst = fmax(self.worst, fabs(self.body.angle))
        return RT_CONTINUE if fabs(self.body.angle) < M_PI_2 else RT_STOP

    cdef double push(self) noexcept nogil:
        """Return a random push against the tip of the pole, N (xorshift64)."""
        self.seed ^= self.seed << 13
        self.seed ^= self.seed >> 7
        self.seed ^= self.seed << 17
        return PUSH * (<double>(self.seed >> 11) / <double>(1 << 52) - 1.0)

    @property
    def degrees(self):
        """Largest angle so far, in degrees."""
        return self.worst / M_PI_2 * 90


cdef class Controller(RTLoop):
    """Push the cart so that the pole on it stays up."""

    cdef Plant plant

    def __init__(self, period, *, plant, **settings):
        super().__init__(period, **settings)
        self.plant = plant

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef Body b = self.plant.body
        cdef double force = K[0] * b.x + K[1] * b.v + K[2] * b.angle + K[3] * b.rate
        self.plant.force = fmax(-MAX_FORCE, fmin(MAX_FORCE, force))
        return RT_CONTINUE

    cdef void leave(self) noexcept nogil:
        """Push no longer, however the loop ended."""
        self.plant.force = 0
