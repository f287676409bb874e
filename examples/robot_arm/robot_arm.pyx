# cython: boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""A 7-axis impedance controller at 1 kHz, and a robot on UDP that stops when answers are late."""

from libc.errno cimport EAGAIN, ECONNREFUSED, EINTR, errno
from libc.math cimport fabs, fmax, fmin, sqrt
from libc.stdint cimport int64_t
from rtloop cimport RT_CONTINUE, RT_STOP, Cycle, Ring, RTLoop

import socket

import numpy as np

cdef extern from "<poll.h>" nogil:
    """
    /* ppoll(2) with a timeout in nanoseconds; <poll.h> declares it only with _GNU_SOURCE. */
    #include <signal.h>
    #include <time.h>
    int ppoll(struct pollfd *, nfds_t, const struct timespec *, const sigset_t *);
    static inline int poll_ns(int fd, int64_t ns) {
      struct pollfd one = {fd, POLLIN, 0};
      const struct timespec timeout = {ns / 1000000000, ns % 1000000000};
      return ppoll(&one, 1, &timeout, NULL);
    }
    """
    int poll_ns(int fd, int64_t ns)

cdef extern from "<sys/socket.h>" nogil:
    enum: MSG_DONTWAIT
    ctypedef unsigned int socklen_t
    cdef struct sockaddr:
        pass
    cdef struct sockaddr_storage:
        pass
    int connect(int fd, const sockaddr *address, socklen_t length)
    ssize_t recv(int fd, void *buffer, size_t size, int flags)
    ssize_t recvfrom(int fd, void *buffer, size_t size, int flags, sockaddr *address, socklen_t *length)
    ssize_t send(int fd, const void *buffer, size_t size, int flags)

cdef enum:
    AXES = 7
    QUEUE = 1024         # packets read per cycle at most; a socket's queue holds fewer, unless SO_RCVBUF was raised
    READY, MOVING, FINISHED, LATE, TORQUE  # modes of the robot; from FINISHED on its brakes are applied

MODES = {READY: "ready", MOVING: "moving", FINISHED: "finished", LATE: "answers too late", TORQUE: "torque limit"}


cdef struct State:           # robot -> controller
    int64_t number           # starting at 1
    int64_t time             # ns on CLOCK_MONOTONIC, when it was sent
    int64_t mode
    double[AXES] q, dq       # rad, rad/s


cdef struct Command:         # controller -> robot
    int64_t answers          # number of the state it was computed from
    int64_t last             # whether the motion is finished
    double[AXES] torque      # Nm, without gravity compensation, which the robot adds


cdef struct Record:
    double t                 # s
    double[AXES] q, torque   # rad, Nm
    int64_t age              # ns, of the state at the start of the step

RECORD = np.dtype([("t", "f8"), ("q", "f8", AXES), ("torque", "f8", AXES), ("age", "i8")], align=True)
assert RECORD.itemsize == sizeof(Record)

# Properties of the arm that both need (Nm, Nm/s, kg m^2), and the load of somebody leaning on it (Nm).
cdef double[AXES] MOST = [87, 87, 87, 87, 12, 12, 12]
cdef double RATE = 1000
cdef double[AXES] INERTIA = [1.5, 1.5, 1.0, 1.0, 0.3, 0.2, 0.1]
cdef double[AXES] LEAN = [10, 30, -8, 20, 4, 5, 2]
MOST_TORQUE, MOST_RATE, PUSH = tuple(MOST), RATE, tuple(LEAN)


cdef class Arm(RTLoop):
    """Make each joint a spring with a damper: torque = K (home - q) - D dq, within limits, once per state.

    Safe stop: if a joint is too fast, all joints are only damped until the arm is at rest; then the loop ends. The loop
    also ends when the robot has stopped, or has sent nothing for `patience` cycles. For the demonstration,
    `lose=(a, n)` loses n answers from cycle a on. `ended_by` gives the reason.
    """

    cdef object socket
    cdef readonly Ring log
    cdef readonly int64_t limited, unheard  # cycles with a limited torque; cycles without a new state
    cdef readonly int64_t behind  # cycles that left states in the queue, because there were more than QUEUE
    cdef int fd, silent, patience, rested
    cdef int64_t why, lose_from, lose_to
    cdef bint braking
    cdef State state
    cdef Command command
    cdef double[AXES] home, K, D
    cdef double fast

    def __init__(self, period, *, robot, fast=2.0, patience=50, lose=(0, 0),
                 stiffness=(600, 600, 600, 600, 250, 150, 50), **settings):
        super().__init__(period, **settings)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.connect(robot)
        self.fd, self.fast, self.patience = self.socket.fileno(), fast, patience
        self.lose_from, self.lose_to = lose[0], lose[0] + lose[1]
        for i in range(AXES):
            self.K[i] = stiffness[i]
            self.D[i] = 2 * sqrt(self.K[i] * INERTIA[i])  # critical damping
        self.log = Ring(RECORD, 20_000)

    def setup(self):
        self.state.number = self.state.mode = self.command.answers = self.command.last = 0
        for i in range(AXES):
            self.command.torque[i] = 0
        self.silent = self.rested = self.why = self.limited = self.unheard = self.behind = 0
        self.braking = False
        self.socket.send(bytes(sizeof(Command)))  # answers no state, but tells the robot the address; it still waits

    cdef int enter(self) noexcept nogil:
        """Discard the states of before. The first answer, which starts the motion, is sent by the first step."""
        cdef int rc = self.hear()
        self.state.number = 0
        return rc

    cdef int wait(self, int64_t release) noexcept nogil:
        """Wait for the robot's state, with a timeout: the robot is the clock."""
        if poll_ns(self.fd, 10_000_000) < 0 and errno != EINTR:
            return -errno
        return RT_CONTINUE

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef int64_t before = self.state.number
        cdef Record record
        cdef double most
        cdef bint is_limited = False, is_at_rest = True
        cdef int i
        cdef int rc = self.hear()
        if rc < 0:
            return rc
        if self.state.number == before:
            self.unheard += 1
            self.silent += 1
            self.why = -1
            return RT_STOP if self.silent > self.patience else RT_CONTINUE
        self.silent, self.why = 0, self.state.mode
        if self.state.mode >= FINISHED:  # the brakes hold the arm
            return RT_STOP
        if before == 0:
            self.home = self.state.q
        for i in range(AXES):
            self.braking = self.braking or fabs(self.state.dq[i]) > self.fast
            is_at_rest = is_at_rest and fabs(self.state.dq[i]) < 0.01
        most = RATE * cycle.period * 1e-9  # change per cycle
        for i in range(AXES):
            record.torque[i] = -self.D[i] * self.state.dq[i]
            if not self.braking:
                record.torque[i] += self.K[i] * (self.home[i] - self.state.q[i])
            self.command.torque[i] += clip(clip(record.torque[i], MOST[i]) - self.command.torque[i], most)
            is_limited = is_limited or fabs(self.command.torque[i] - record.torque[i]) > 1e-9
        self.limited += is_limited
        self.rested = self.rested + 1 if self.braking and is_at_rest else 0
        self.command.answers = self.state.number
        if not self.lose_from <= <int64_t>cycle.index < self.lose_to:
            rc = self.answer()
        record.t, record.q, record.torque = cycle.t, self.state.q, self.command.torque
        record.age = cycle.start - self.state.time
        self.log.push(&record)
        return RT_STOP if self.rested > 100 else rc

    cdef int hear(self) noexcept nogil:
        """Read all states and keep the newest; return 0 or a negative errno."""
        cdef State state
        cdef ssize_t size
        for _ in range(QUEUE):  # bounded
            size = recv(self.fd, &state, sizeof(state), MSG_DONTWAIT)  # rtloop: allow recv: it never waits
            if size < 0:
                return 0 if errno == EAGAIN or errno == ECONNREFUSED else -errno  # ECONNREFUSED: there is no robot
            if size == sizeof(state):
                self.state = state
        self.behind += 1  # the newest state may be an old one
        return 0

    cdef int answer(self) noexcept nogil:
        # rtloop: allow send: it never waits
        if send(self.fd, &self.command, sizeof(Command), MSG_DONTWAIT) < 0 and errno not in (EAGAIN, ECONNREFUSED):
            return -errno
        return 0

    cdef void leave(self) noexcept nogil:
        """Tell the robot to apply its brakes, however the loop ended."""
        self.command.last = 1
        self.answer()

    @property
    def ended_by(self):
        """Reason why the loop ended."""
        if self.why < 0:
            return f"the robot has sent nothing for {self.silent} cycles"
        if self.why >= FINISHED:
            return f"the robot has stopped: {MODES[self.why]}"
        return "safe stop: a joint was too fast" if self.rested > 100 else "stopped on request"

    def close(self):
        super().close()
        self.socket.close()


cdef inline double clip(double value, double most) noexcept nogil:
    return fmax(-most, fmin(most, value))


cdef class Robot(RTLoop):
    """Simulate the robot's computer: send a state in each cycle, and expect the answer before the next.

    Without an answer it continues with the last torque; after `tolerance` such cycles in a row it applies its brakes.
    Somebody leans on the arm with `push` times the usual load, for `push_for` seconds, starting `push_at` seconds after
    its first move.
    """

    cdef object socket
    cdef readonly object address
    cdef int fd, tolerance, silent, mode
    cdef readonly int64_t moves, answered, late, longest  # cycles; longest: in a row without an answer
    cdef readonly double work, lost, moving  # work: J, by the push and the motors; lost: J, to friction; moving: s
    cdef double push_at, push_for, push
    cdef State state
    cdef double[AXES] torque

    def __init__(self, period, *, port=0, tolerance=20, push_at=0.5, push_for=0.5, push=1.0, **settings):
        super().__init__(period, **settings)
        self.tolerance, self.push_at, self.push_for, self.push = tolerance, push_at, push_for, push
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", port))
        self.fd, self.address = self.socket.fileno(), self.socket.getsockname()

    def setup(self):
        self.mode, self.silent, self.moves, self.answered, self.late, self.longest = READY, 0, 0, 0, 0, 0
        self.work, self.lost, self.moving, self.state.number = 0, 0, 0, 0
        for i, q in enumerate((0.0, -0.785, 0.0, -2.356, 0.0, 1.571, 0.785)):
            self.state.q[i], self.state.dq[i], self.torque[i] = q, 0, 0

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.hear()
        if self.mode == MOVING:
            self.moves += 1
            if self.silent == 0:
                self.answered += 1
            else:
                self.late += 1
                self.longest = max(self.longest, self.silent)
                if self.silent > self.tolerance:
                    self.mode = LATE
            self.silent += 1
        if self.mode >= MOVING:
            self.move(cycle.dt)
        self.state.number += 1
        self.state.time, self.state.mode = cycle.start, self.mode
        # rtloop: allow send: it never waits, and a missing listener is not the robot's failure
        send(self.fd, &self.state, sizeof(State), MSG_DONTWAIT)
        return RT_CONTINUE

    cdef void hear(self) noexcept nogil:
        """Read all commands: the first sender is the controller, and only an answer to the last state counts."""
        cdef Command command
        cdef sockaddr_storage address
        cdef socklen_t length
        cdef ssize_t size
        for _ in range(QUEUE):
            length = sizeof(address)
            # rtloop: allow recvfrom: it never waits
            size = recvfrom(self.fd, &command, sizeof(command), MSG_DONTWAIT, <sockaddr *>&address, &length)
            if size < 0:
                return
            if size != sizeof(command):
                continue
            if self.mode == READY and command.answers == 0:
                # rtloop: allow connect: of a datagram socket, which only stores the address
                connect(self.fd, <sockaddr *>&address, length)
            elif command.last and self.mode == MOVING:
                self.mode = FINISHED
            elif command.answers == self.state.number and self.mode in (READY, MOVING):
                self.silent, self.mode, self.torque = 0, MOVING, command.torque
                for i in range(AXES):
                    if not fabs(command.torque[i]) <= MOST[i]:  # also NaN
                        self.mode = TORQUE

    cdef void move(self, double dt) noexcept nogil:
        """Advance the joints, each independently, in steps of at most 0.1 ms."""
        cdef double torque, friction, h
        cdef int steps = <int>(fmin(dt, 0.1) / 1e-4) + 1
        cdef int i
        h = fmin(dt, 0.1) / steps
        for _ in range(steps):
            for i in range(AXES):
                torque = self.torque[i]
                if self.push_at <= self.moving < self.push_at + self.push_for:
                    torque += self.push * LEAN[i]
                friction = -0.5 * INERTIA[i] * self.state.dq[i]
                if self.mode != MOVING:
                    torque, friction = 0, -50 * INERTIA[i] * self.state.dq[i]  # the brakes
                self.work += torque * self.state.dq[i] * h
                self.lost -= friction * self.state.dq[i] * h
                self.state.dq[i] += (torque + friction) / INERTIA[i] * h
                self.state.q[i] += self.state.dq[i] * h
            self.moving += h

    @property
    def report(self):
        """Mode and counts at the end."""
        return {"mode": MODES[self.mode], "moves": self.moves, "answered": self.answered, "late": self.late,
                "longest": self.longest}

    @property
    def energy(self):
        """Kinetic energy, J."""
        return sum(0.5 * INERTIA[i] * self.state.dq[i] ** 2 for i in range(AXES))

    def close(self):
        super().close()
        self.socket.close()
