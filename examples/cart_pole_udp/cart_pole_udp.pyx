"""Controller of a pole on a cart over UDP, at 1 kHz, with a log, a safe end, and answers that can be delayed."""

from libc.errno cimport EAGAIN, ECONNREFUSED, errno
from libc.math cimport fmax, fmin
from libc.stdint cimport int64_t
from rtloop cimport RT_STOP, Cycle, Ring, RTLoop

import socket

import numpy as np

cdef extern from "<sys/socket.h>" nogil:
    enum: MSG_DONTWAIT
    ssize_t recv(int fd, void *buffer, size_t size, int flags)
    ssize_t send(int fd, const void *buffer, size_t size, int flags)

cdef enum:
    PAST = 64                # number of states kept; a power of two
    QUEUE = 1024             # states read per cycle at most; a socket's queue holds fewer, unless SO_RCVBUF was raised


cdef struct State:           # plant -> controller, as in `rtloop demo`
    int64_t sequence
    int64_t time             # ns on CLOCK_MONOTONIC, of this state
    double x, v              # m, m/s, the cart, to the right
    double angle, rate       # rad, rad/s, the pole: 0 is upright, to the right


cdef struct Force:           # controller -> plant
    int64_t answers          # time of the state acted upon; 0: none yet
    double newtons           # on the cart, to the right


cdef struct Record:
    double t                 # s
    double angle, force      # rad, N
    int64_t age              # ns, of the newest state at the start of the step

RECORD = np.dtype([("t", "f8"), ("angle", "f8"), ("force", "f8"), ("age", "i8")], align=True)
assert RECORD.itemsize == sizeof(Record)

# The linear-quadratic regulator of `rtloop demo`: N per m, m/s, rad and rad/s.
cdef double[4] K = [31.62, 30.66, 135.73, 12.51]
cdef double MOST = 10        # N, limit of the motor


cdef class Controller(RTLoop):
    """Push the cart so that the pole on it stays up.

    With `delay=n` it acts on the state of n states ago, as a slow computer would. If nothing new has arrived for
    `patience` cycles, it assumes that the plant is gone and ends. However it ends, the last force sent is 0.
    """

    cdef public object plant                 # address of the plant
    cdef object socket
    cdef readonly Ring log
    cdef readonly int64_t heard, sent        # datagrams
    cdef readonly int64_t silent             # cycles in a row without a new state
    cdef readonly int64_t behind             # cycles that left states in the queue, because there were more than QUEUE
    cdef int64_t patience
    cdef int fd, delay
    cdef State[PAST] past                    # number n from 1 on is in past[n % PAST]
    cdef Force force

    def __init__(self, period, *, plant, delay=0, patience=200, **settings):
        super().__init__(period, **settings)
        if not 0 <= delay < PAST:
            raise ValueError(f"delay={delay} is not from 0 to {PAST - 1} states")
        self.plant, self.delay, self.patience = plant, delay, patience
        self.log = Ring(RECORD, 40_000)

    def setup(self):
        if self.socket is not None:
            self.socket.close()
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.connect(self.plant)
        self.fd = self.socket.fileno()
        self.heard = self.sent = self.silent = self.behind = self.force.answers = 0
        self.force.newtons = 0

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef int64_t before = self.heard
        cdef const State *s
        cdef Record record
        cdef int rc = self.hear()
        if rc < 0:
            return rc
        self.silent = 0 if self.heard > before else self.silent + 1
        if self.silent > self.patience:
            return RT_STOP
        if self.heard > self.delay:           # if none has arrived, the last state and force remain
            s = &self.past[(self.heard - self.delay) & (PAST - 1)]
            self.force.answers = s.time
            self.force.newtons = fmax(-MOST, fmin(MOST, K[0] * s.x + K[1] * s.v + K[2] * s.angle + K[3] * s.rate))
        rc = self.answer()                    # the first answer releases the pole
        s = &self.past[self.heard & (PAST - 1)]
        record.t, record.angle, record.force = cycle.t, s.angle, self.force.newtons
        record.age = cycle.start - s.time
        if self.heard:
            self.log.push(&record)
        return rc

    cdef int hear(self) noexcept nogil:
        """Read all states that have arrived; return 0 or a negative errno."""
        cdef State state
        cdef ssize_t size
        for _ in range(QUEUE):                # bounded
            size = recv(self.fd, &state, sizeof(state), MSG_DONTWAIT)  # rtloop: allow recv: it never waits
            if size < 0:
                return 0 if errno == EAGAIN or errno == ECONNREFUSED else -errno  # ECONNREFUSED: the plant is gone
            if size == <ssize_t>sizeof(state):
                self.heard += 1
                self.past[self.heard & (PAST - 1)] = state
        self.behind += 1                      # the newest state may be an old one
        return 0

    cdef int answer(self) noexcept nogil:
        # rtloop: allow send: it never waits
        if send(self.fd, &self.force, sizeof(Force), MSG_DONTWAIT) < 0:
            return 0 if errno == EAGAIN or errno == ECONNREFUSED else -errno
        self.sent += 1
        return 0

    cdef void leave(self) noexcept nogil:
        """Bring the motor to rest, however the loop ended."""
        self.force.newtons = 0
        self.answer()

    def close(self):
        super().close()
        if self.socket is not None:
            self.socket.close()
