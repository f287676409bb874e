"""Cart and pole: their equations of motion, and the plant process's loop that simulates them in real time.

The pole is short, 10 cm, so that it needs a fast loop: with the gains of ``cartpole.pyx`` a delay of 4 ms has no
effect, 5 ms make it sway, and 30 ms make it sway by up to 40 degrees.
"""

import array
import math
import socket

from cpython cimport array
from libc.math cimport M_PI_2, cos, fabs, fmax, fmin, sin
from libc.stdint cimport int64_t, uint64_t

from rtloop cimport RT_CONTINUE, Cycle, RTLoop
from rtloop.demo.cartpole cimport Force, State
from rtloop._os cimport MSG_DONTWAIT, connect, recv, recvfrom, send, sockaddr, sockaddr_storage, socklen_t

cdef double CART = 0.5              # kg
cdef double POLE = 0.05             # kg
cdef double HALF = 0.05             # m, from the pivot to the middle of the pole
cdef double GRAVITY = 9.81          # m/s^2
cdef double MAX_FORCE = 10.0        # N, limit of the motor
cdef double TRIP = M_PI_2 / 2       # rad, where the limit switch cuts the motor: the pole has fallen

cdef double START = 0.05            # rad, where the hand holds the pole before it lets go
cdef double PUSH_FORCE = 0.5        # N, the strongest push against the tip of the pole
cdef double PUSH_EVERY = 0.5        # s
cdef double PUSH_LENGTH = 0.02      # s

cdef int64_t STEP_NS = 250_000      # the step of integration
cdef int64_t TRACE_STEPS = 20       # steps from one recorded point to the next

PARAMETERS = {
    "cart_kg": CART, "pole_kg": POLE, "half_length_m": HALF, "gravity": GRAVITY, "max_force_n": MAX_FORCE,
    "trip_rad": TRIP, "start_rad": START, "push_n": PUSH_FORCE, "push_every_s": PUSH_EVERY, "push_s": PUSH_LENGTH,
}


cdef inline Body derive(Body b, double force, double push) noexcept nogil:
    """Return the time derivative under a force on the cart and a push against the tip of the pole."""
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


cdef inline double push_at(uint64_t seed, int64_t t_ns) noexcept nogil:
    """Return the push at a time: the same for the same seed, whatever the controller does."""
    cdef int64_t every = <int64_t>(PUSH_EVERY * 1e9)
    cdef int64_t number = t_ns // every
    if number == 0 or t_ns - number * every >= <int64_t>(PUSH_LENGTH * 1e9):
        return 0.0
    cdef uint64_t z = seed + <uint64_t>number * <uint64_t>0x9E3779B97F4A7C15      # SplitMix64
    z = (z ^ (z >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * <uint64_t>0x94D049BB133111EB
    z ^= z >> 31
    cdef double strength = PUSH_FORCE * (0.5 + <double>(z >> 12) / <double>(1 << 52) / 2.0)
    return strength if z & 1 else -strength


def advance(state, double seconds, double force=0.0, double push=0.0):
    """Move a state ``(x, v, angle, rate)`` on in time, the force and the push held.

    Parameters
    ----------
    state : sequence of float
        Metres, metres a second, radians, radians a second.
    seconds : float
        Duration; divided into equal steps of at most the plant's own 250 us.
    force, push : float
        Newtons, on the cart and against the tip of the pole.
    """
    cdef Body b
    b.x, b.v, b.angle, b.rate = state
    cdef int64_t steps = max(1, math.ceil(seconds * 1e9 / STEP_NS - 1e-9))
    cdef double dt = seconds / steps
    for _ in range(steps):
        b = integrate(b, force, push, dt)
    return b.x, b.v, b.angle, b.rate


def energy(state):
    """Return the energy in joules, potential energy zero at the pivot."""
    _, v, angle, rate = state
    ml = POLE * HALF
    kinetic = 0.5 * (CART + POLE) * v * v + ml * v * rate * cos(angle) + 0.5 * (4.0 / 3.0 * ml * HALF) * rate * rate
    return kinetic + ml * GRAVITY * cos(angle)


def push(seed, seconds):
    """Return the push in newtons that the plant gives the pole at a time after the hand let go."""
    return push_at(<uint64_t>seed, <int64_t>(seconds * 1e9))


cdef class Plant(RTLoop):
    """Simulate the cart and the pole in real time, and talk to a controller over UDP.

    A hand holds the pole until the first datagram comes. From then on the state moves with the clock, in fixed steps,
    whether or not a controller answers; the newest force holds until the next one.
    """

    def __init__(self, period, *, duration_ns, seed, **settings):
        super().__init__(period, **settings)
        self._seed = seed
        self._duration_ns = duration_ns
        self._body.angle = START
        self._worst = START
        self._fell_ns = -1

    def setup(self):
        self._trace = array.array("d", bytes(16 * (self._duration_ns // (STEP_NS * TRACE_STEPS) + 2)))
        self._points = self._trace.data.as_doubles
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._fd = self._socket.fileno()

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef State state
        if self._released:
            self.live(cycle.start)      # with the previous force: a new one cannot act on the past
        self.listen(cycle.start)
        if self._released:
            state.sequence = self._sequence
            state.time_ns = self._now
            state.x, state.v, state.angle, state.rate = self._body.x, self._body.v, self._body.angle, self._body.rate
            self._sequence += 1
            # rtloop: allow send: it never waits, and without a listener the plant carries on
            send(self._fd, &state, sizeof(state), MSG_DONTWAIT)
        return RT_CONTINUE

    cdef void listen(self, int64_t now) noexcept nogil:
        """Receive from the controller; its first datagram makes it the peer and releases the pole."""
        cdef Force force
        cdef sockaddr_storage address
        cdef socklen_t length = sizeof(address)
        cdef ssize_t size
        while not self._released:
            # rtloop: allow recvfrom: it never waits
            size = recvfrom(self._fd, &force, sizeof(force), MSG_DONTWAIT, <sockaddr *>&address, &length)
            if size < 0:
                return
            # rtloop: allow connect: on a datagram socket it only stores the address
            if size == <ssize_t>sizeof(force) and connect(self._fd, <sockaddr *>&address, length) == 0:
                self._released = True
                self._now = now
        # rtloop: allow recv: it never waits
        while (size := recv(self._fd, &force, sizeof(force), MSG_DONTWAIT)) >= 0:
            if size == <ssize_t>sizeof(force):
                self._force = fmax(-MAX_FORCE, fmin(MAX_FORCE, force.newtons))
                self._answers = force.answers
                self._heard += 1

    cdef void live(self, int64_t now) noexcept nogil:
        """Integrate up to the present in whole steps."""
        if self._t < self._duration_ns and self._answers and now - self._answers > self._oldest:
            self._oldest = now - self._answers
        while self._now + STEP_NS <= now and self._t < self._duration_ns:
            if self._t % (STEP_NS * TRACE_STEPS) == 0:
                self._points[2 * self._count] = self._body.x
                self._points[2 * self._count + 1] = self._body.angle
                self._count += 1
            if fabs(self._body.angle) < M_PI_2:
                self._body = integrate(
                    self._body, 0.0 if self._tripped else self._force, push_at(self._seed, self._t), 1e-9 * STEP_NS,
                )
            else:
                self._body.angle = M_PI_2 if self._body.angle > 0 else -M_PI_2      # lying flat
                self._body.v = self._body.rate = 0.0
            self._now += STEP_NS
            self._t += STEP_NS
            self._worst = fmax(self._worst, fmin(fabs(self._body.angle), M_PI_2))
            if not self._tripped and fabs(self._body.angle) > TRIP:
                self._tripped = True
                self._fell_ns = self._t
        if self._t >= self._duration_ns:
            self._now = now

    def close(self):
        """Stop for good, and close the socket."""
        super().close()
        if self._socket is not None:
            self._socket.close()

    @property
    def port(self):
        """The UDP port on the loopback interface."""
        return self._socket.getsockname()[1]

    def report(self):
        """Return the pole's report, as a dict that JSON can hold; call it after the loop has stopped."""
        points = self._trace[:2 * self._count]
        return {
            "observed_s": self._t / 1e9,
            "fell_at_s": None if self._fell_ns < 0 else self._fell_ns / 1e9,
            "worst_angle_deg": math.degrees(self._worst),
            "oldest_state_ms": self._oldest / 1e6,
            "states_sent": self._sequence,
            "forces_received": self._heard,
            "trace": {
                "interval_s": STEP_NS * TRACE_STEPS / 1e9,
                "position_m": [round(x, 5) for x in points[0::2]],
                "angle_deg": [round(math.degrees(angle), 4) for angle in points[1::2]],
            },
        }
