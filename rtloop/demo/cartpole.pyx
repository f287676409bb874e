"""Controller of ``rtloop demo``: keeps a pole upright on a cart, over UDP, a thousand times a second."""

import socket

from libc.errno cimport EAGAIN, errno
from rtloop cimport RT_CONTINUE, Cycle, RTLoop
from rtloop.demo.cartpole cimport Force, State
from rtloop._os cimport MSG_DONTWAIT, recv, send

# The linear-quadratic regulator for Q = diag(10, 1, 100, 1), R = 0.01: N per m, m/s, rad and rad/s.
cdef double[4] K = [31.62, 30.66, 135.73, 12.51]
GAINS = tuple(K)


cdef class CartPole(RTLoop):
    """Push the cart so that the pole on it stays up."""

    cdef object socket, plant
    cdef int fd
    cdef State state            # the newest one that came
    cdef Force force            # the last one sent

    def __init__(self, period, *, plant, **settings):
        super().__init__(period, **settings)
        self.plant = plant

    def setup(self):
        if self.socket is not None:
            self.socket.close()
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.connect(self.plant)
        self.fd = self.socket.fileno()

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef State s
        cdef ssize_t n = 0
        for _ in range(1024):       # drain the queue, bounded: it holds fewer, and only the newest state counts
            n = recv(self.fd, &s, sizeof(s), MSG_DONTWAIT)  # rtloop: allow recv: it never waits
            if n < 0:
                break
            if n == <ssize_t>sizeof(s):
                self.state = s
        if n < 0 and errno != EAGAIN:
            return -errno

        s = self.state              # if none came, the last state and force are kept
        self.force.answers = s.time_ns
        self.force.newtons = K[0] * s.x + K[1] * s.v + K[2] * s.angle + K[3] * s.rate
        # rtloop: allow send: nor does it
        if send(self.fd, &self.force, sizeof(Force), MSG_DONTWAIT) < 0 and errno != EAGAIN:
            return -errno
        return RT_CONTINUE

    cdef void leave(self) noexcept nogil:
        self.force.newtons = 0      # however the loop ends, the motor does not keep its last force
        send(self.fd, &self.force, sizeof(Force), MSG_DONTWAIT)

    def close(self):
        super().close()
        if self.socket is not None:
            self.socket.close()

    @property
    def angle(self):
        """The pole's angle as last received, in radians; readable while the loop runs."""
        return self.state.angle
