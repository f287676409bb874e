# cython: cdivision=True
"""Two loops that follow a sensor's clock: one waits for each message, the other moves its own grid."""

from libc.errno cimport EAGAIN, EINTR, ETIMEDOUT, errno
from libc.math cimport fmax, fmin, llround
from libc.stdint cimport int64_t, uint64_t
from rtloop cimport RT_CONTINUE, Cycle, Ring, RTLoop

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
    ssize_t recv(int fd, void *buffer, size_t size, int flags)
    ssize_t send(int fd, const void *buffer, size_t size, int flags)

cdef enum:
    QUEUE = 1024     # messages read per cycle at most; a socket's queue holds fewer, unless SO_RCVBUF was raised


cdef struct Message:
    uint64_t number
    int64_t tick   # ns on CLOCK_MONOTONIC, time of measurement according to the sensor
    double value


cdef struct Record:
    uint64_t number  # of the newest message, starting at 1; 0: none yet
    int64_t start    # ns, of the cycle
    int64_t age      # ns, of the message at that time; -1: none yet
    int64_t error    # ns, phase error of a Follower's release
    double ppm       # a Follower's estimate of how fast the sensor's clock is

RECORD = np.dtype([("number", "u8"), ("start", "i8"), ("age", "i8"), ("error", "i8"), ("ppm", "f8")], align=True)
assert RECORD.itemsize == sizeof(Record)


cdef class Listener(RTLoop):
    """Base of both: a socket for the sensor's messages, and a log."""

    cdef object socket
    cdef readonly object address
    cdef readonly Ring log
    cdef readonly int64_t behind  # cycles that left messages in the queue, because there were more than QUEUE
    cdef int fd
    cdef Message message  # the newest one

    def __init__(self, period, **settings):
        super().__init__(period, **settings)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.fd, self.address = self.socket.fileno(), self.socket.getsockname()
        self.log = Ring(RECORD, 20_000)

    def close(self):
        super().close()
        self.socket.close()

    cdef int enter(self) noexcept nogil:
        """Discard what arrived before the loop was ready for it."""
        cdef int rc = self.hear()
        self.message.number = self.message.tick = self.behind = 0
        return rc if rc < 0 else RT_CONTINUE

    cdef int hear(self) noexcept nogil:
        """Read all messages and keep the newest; return how many there were, or a negative errno."""
        cdef Message message
        cdef ssize_t size
        cdef int count
        for count in range(QUEUE):  # bounded
            size = recv(self.fd, &message, sizeof(message), MSG_DONTWAIT)  # rtloop: allow recv: it never waits
            if size < 0:
                return count if errno == EAGAIN else -errno
            if size == sizeof(message):
                self.message = message
        self.behind += 1  # the newest message may be an old one
        return QUEUE

    cdef void note(self, const Cycle *cycle, int64_t error, double ppm) noexcept nogil:
        cdef Record record
        record.number, record.start = self.message.number, cycle.start
        record.age = cycle.start - self.message.tick if self.message.number else -1
        record.error, record.ppm = error, ppm
        self.log.push(&record)


cdef inline double clip(double value, double limit) noexcept nogil:
    return fmax(-limit, fmin(limit, value))


cdef inline int64_t fold(int64_t ns, int64_t period) noexcept nogil:
    """Return the distance to the nearest multiple of the period."""
    return ns - period * llround(<double>ns / period)


cdef class Waiter(Listener):
    """Run a step for each message: `wait` ends with it, and the loop fails after `patience` timeouts in a row."""

    cdef int64_t timeout        # ns
    cdef int patience, silent
    cdef readonly int64_t timeouts

    def __init__(self, period, *, patience=50, **settings):
        super().__init__(period, **settings)
        self.timeout, self.patience = 2 * self.settings.period_ns, patience

    cdef int wait(self, int64_t release) noexcept nogil:
        """Wait for a message, for at most two periods, because stop() is noticed only between two waits."""
        cdef int rc = poll_ns(self.fd, self.timeout)
        if rc < 0 and errno != EINTR:
            return -errno
        rc = self.hear()
        if rc < 0:
            return rc
        if rc > 0:
            self.silent = 0
            return RT_CONTINUE
        self.silent += 1
        self.timeouts += 1
        return -ETIMEDOUT if self.silent >= self.patience else RT_CONTINUE  # -ETIMEDOUT fails the loop

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.note(cycle, 0, 0)  # place for the controller; self.message.value is old if self.silent > 0
        return RT_CONTINUE


cdef class Follower(Listener):
    """Release `delay` after each tick of the sensor, with a phase-locked loop that moves the grid by `shift`.

    It is proportional and integral, with a damping of 0.7. The integral is the rate difference of the two clocks.
    """

    cdef int64_t delay, error  # ns
    cdef double kp, ki, drift  # drift: ns per period
    cdef uint64_t seen

    def __init__(self, period, *, int64_t delay, double bandwidth=5.0, **settings):
        super().__init__(period, **settings)
        omega = 2 * np.pi * bandwidth * self.settings.period_ns * 1e-9  # bandwidth in Hz
        self.delay, self.kp, self.ki = delay, 2 * 0.7 * omega, omega**2

    def setup(self):
        self.drift = self.seen = self.error = 0

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef double move
        cdef int rc = self.hear()
        if rc < 0:
            return rc
        if self.message.number != self.seen:  # without a new message, keep the rate found so far
            self.seen = self.message.number
            self.error = fold(cycle.release - self.message.tick - self.delay, cycle.period)
            self.drift = clip(self.drift - self.ki * self.error, cycle.period / 100)  # no clock is further off
            move = self.drift - self.kp * self.error
        else:
            move = self.drift
        self.shift(llround(clip(move, cycle.period / 10)))  # small moves do not disturb the controller
        self.note(cycle, self.error, -self.drift / cycle.period * 1e6)
        return RT_CONTINUE


cdef class Sensor(RTLoop):
    """Simulate the sensor on its own clock: one message per tick, except for the ticks from `quiet` up to `until`.

    The reported time of the tick is wrong by up to `noise` (ns), uniformly distributed.
    """

    cdef object sockets
    cdef int[8] fds
    cdef int listeners
    cdef uint64_t quiet, until, seed
    cdef int64_t noise

    def __init__(self, period, *, to, noise=0, quiet=0, until=0, **settings):
        super().__init__(period, **settings)
        if len(to) > 8:
            raise ValueError(f"to has {len(to)} addresses; a sensor sends to at most 8")
        self.noise, self.seed = noise, 1
        self.sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in to]
        for i, (one, address) in enumerate(zip(self.sockets, to, strict=True)):
            one.connect(address)
            self.fds[i] = one.fileno()
        self.listeners = len(to)
        self.quiet, self.until = quiet, until

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef Message message
        cdef int i
        self.seed ^= self.seed << 13  # xorshift64
        self.seed ^= self.seed >> 7
        self.seed ^= self.seed << 17
        message.tick = cycle.release + <int64_t>(self.seed >> 1) % (2 * self.noise + 1) - self.noise
        message.number, message.value = cycle.index + 1, cycle.t
        if self.quiet <= cycle.index < self.until:
            return RT_CONTINUE
        for i in range(self.listeners):
            # rtloop: allow send: it never waits
            send(self.fds[i], &message, sizeof(message), MSG_DONTWAIT)
        return RT_CONTINUE

    def close(self):
        super().close()
        for one in self.sockets:
            one.close()
