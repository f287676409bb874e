# cython: cdivision=True
"""Torque and joint-position control of a Franka robot over FCI, version 10, paced by the robot's states."""

import socket
import struct
import time

from libc.errno cimport EAGAIN, ECONNRESET, EINTR, EPROTO, ETIMEDOUT, errno
from libc.math cimport M_PI, cos, fabs, fmax, fmin, sin
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcpy, memmove, memset
from rtloop cimport RT_CONTINUE, Cycle, RTLoop

import numpy as np

cdef extern from "<errno.h>" nogil:
    enum: ECANCELED

cdef extern from "<poll.h>" nogil:
    enum: POLLIN
    struct pollfd:
        int fd
        short events
    int poll(pollfd *fds, unsigned long count, int timeout)

cdef extern from "<sys/socket.h>" nogil:
    enum: MSG_DONTWAIT, MSG_NOSIGNAL
    ssize_t recv(int fd, void *buffer, size_t size, int flags)
    ssize_t send(int fd, const void *buffer, size_t size, int flags)

cdef enum:
    QUEUE = 1024       # states read per cycle at most
    PATIENCE_MS = 20   # of one wait; stop() is noticed between two
    ENDING = 2000      # states that the end may take at most

# --- The codec: little-endian, packed. ---


cdef packed struct Header:
    uint32_t command
    uint32_t number
    uint32_t size  # with the header


#: The same layouts for Python; the names are those of libfranka's fields.
STATE = np.dtype([
    ("message_id", "<u8"), ("O_T_EE", "<f4", 16), ("O_T_EE_d", "<f4", 16), ("F_T_EE", "<f4", 16), ("EE_T_K", "<f4", 16),
    ("F_T_NE", "<f4", 16), ("NE_T_EE", "<f4", 16), ("m_ee", "<f4"), ("I_ee", "<f4", 9), ("F_x_Cee", "<f4", 3),
    ("m_load", "<f4"), ("I_load", "<f4", 9), ("F_x_Cload", "<f4", 3), ("elbow", "<f4", 2), ("elbow_d", "<f4", 2),
    ("tau_J", "<f4", 7), ("tau_J_d", "<f4", 7), ("dtau_J", "<f4", 7), ("q", "<f4", 7), ("q_d", "<f4", 7),
    ("dq", "<f4", 7), ("dq_d", "<f4", 7), ("ddq_d", "<f4", 7), ("joint_contact", "<f4", 7),
    ("cartesian_contact", "<f4", 6), ("joint_collision", "<f4", 7), ("cartesian_collision", "<f4", 6),
    ("tau_ext_hat_filtered", "<f4", 7), ("O_F_ext_hat_K", "<f4", 6), ("K_F_ext_hat_K", "<f4", 6),
    ("O_dP_EE_d", "<f4", 6), ("O_ddP_O", "<f4", 3), ("elbow_c", "<f4", 2), ("delbow_c", "<f4", 2),
    ("ddelbow_c", "<f4", 2), ("O_T_EE_c", "<f4", 16), ("O_dP_EE_c", "<f4", 6), ("O_ddP_EE_c", "<f4", 6),
    ("theta", "<f4", 7), ("dtheta", "<f4", 7), ("accelerometer_top", "<f4", 18), ("accelerometer_bottom", "<f4", 18),
    ("generator", "u1"), ("controller", "u1"), ("errors", "u1", 41), ("reflex_reason", "u1", 41),
    ("robot_mode", "u1"), ("success_rate", "<f4"),
])  # fmt: skip
COMMAND = np.dtype([
    ("message_id", "<u8"), ("q_c", "<f8", 7), ("dq_c", "<f8", 7), ("O_T_EE_c", "<f8", 16), ("O_dP_EE_c", "<f8", 6),
    ("elbow_c", "<f8", 2), ("valid_elbow", "u1"), ("motion_finished", "u1"), ("tau_J_d", "<f8", 7),
    ("torque_finished", "u1"),
])  # fmt: skip
assert STATE.itemsize == sizeof(State) == 1377 and COMMAND.itemsize == sizeof(Command) == 371

cdef enum:  # commands on TCP
    CONNECT = 0
    MOVE = 1
    STOP_MOVE = 2
    SET_COLLISION_BEHAVIOR = 3
    SET_JOINT_IMPEDANCE = 4
    AUTOMATIC_ERROR_RECOVERY = 10

cdef enum:  # modes in the state
    GENERATOR_IDLE = 0
    CONTROLLER_OTHER = 3
    ROBOT_IDLE = 1
    ROBOT_MOVE = 2

#: Answers of the robot to a command; Move is answered twice, at its start and at its end.
STATUS = (
    "success", "motion started", "preempted", "preempted: activated safety functions", "preempted: safety violation",
    "not possible in the present mode", "start at a singular pose", "invalid argument", "reflex", "emergency stop",
    "input error", "aborted",
)  # fmt: skip
ROBOT_MODE = ("other", "idle", "move", "guiding", "reflex", "user stopped", "automatic error recovery")
TAU_MAX = (87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0)        # Nm
SPEED_MAX = (2.0, 1.0, 1.5, 1.25, 3.0, 1.5, 3.0)            # rad/s, below an FR3's limits at any position
cdef double MARGIN = 0.95  # of the limits, because states and commands are rounded


class FrankaError(RuntimeError):
    """The robot refused a command, or did not answer."""


def encode(number, command, payload=b""):
    """Return a request on TCP: its header, and the payload."""
    return struct.pack("<III", command, number, 12 + len(payload)) + payload


def encode_move(number, controller, generator):
    """Return a Move; tolerances of path and goal are libfranka's defaults."""
    tolerance = (10.0, 3.12, 2 * M_PI)
    values = struct.pack("<II3d3dB7d", controller, generator, *tolerance, *tolerance, 0, *[0.0] * JOINTS)
    return encode(number, MOVE, values)


cdef inline int at_most(int rc) noexcept nogil:
    return rc if rc < 0 else RT_CONTINUE


cdef class Franka(RTLoop):
    """Base of the controllers: connection, pacing by the robot, Move, and its end.

    Each cycle answers the newest state. `step` computes, and the next `wait` sends, before it waits for a state: so a
    step makes no system call. A subclass overrides `control`, which writes the command for a state.

    Parameters
    ----------
    host : str
        The robot's address.
    swing : sequence of float
        Amplitude of the reference of each joint, rad.
    frequency : float
        Of the swing, Hz.
    collision : tuple of float, optional
        Torque (Nm) and force (N) at which the robot stops with a reflex; otherwise its own settings stay.
    silence_ms : int
        Time without a state until the loop fails, and its end gives up.
    """

    def __init__(self, period="1kHz", *, host="127.0.0.1", port=1337, swing=(0, 0, 0, 0.1, 0, 0.1, 0), frequency=0.25,
                 collision=None, silence_ms=100, **settings):
        super().__init__(period, **settings)
        self.host, self.port, self.collision, self.tcp = host, port, collision, None
        cdef double[::1] amplitudes = np.ascontiguousarray(swing, float)
        if len(swing) != JOINTS:
            raise ValueError(f"swing={swing!r} has {len(swing)} values; the robot has {JOINTS} joints")
        memcpy(self.swing, &amplitudes[0], sizeof(self.swing))
        self.tau_max = [MARGIN * limit for limit in TAU_MAX]
        self.frequency, self.status, self.refused = frequency, -1, -1
        self.silent_max = max(1, silence_ms // PATIENCE_MS)
        self.signal("success_rate", &self.rate)
        self.signal("error", &self.error).unit("rad")  # the greatest of the joints
        self.signal("mode", &self.mode)

    # --- Python: connection, settings, recovery. ---

    def setup(self):
        """Connect, wait for the first state, and send the settings. The arm does not move before the first cycle."""
        if self.tcp is None:
            self.connect()
        self.number += 1
        cdef bytes move = encode_move(self.number, self.controller, self.generator)
        memcpy(self.move, <const char *>move, sizeof(self.move))
        self.has_command = self.is_asked = self.is_moving = self.is_started = self.is_ending = False
        self.silent, self.answer_size, self.status, self.refused = 0, 0, -1, -1
        self.answered = self.behind = 0
        self.phase = self.pace = 0
        self.lowest_rate = 1

    def connect(self):
        """Connect to the robot. Raises FrankaError if it refuses."""
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("", 0))
        self.udp.settimeout(10)
        try:
            self.tcp = socket.create_connection((self.host, self.port), timeout=10)
            self.tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.request(CONNECT, struct.pack("<HH", 10, self.udp.getsockname()[1]))
            _, robot = self.udp.recvfrom(sizeof(State))
            self.udp.connect(robot)  # commands go where the states come from
            if self.collision is not None:
                torque, force = self.collision
                self.request(SET_COLLISION_BEHAVIOR, struct.pack("<52d", *[torque] * 28, *[force] * 24))
        except OSError as error:
            self.disconnect()
            raise FrankaError(f"no robot at {self.host}, TCP port {self.port}: {error}") from None
        except FrankaError:
            self.disconnect()
            raise
        self.tcp_fd, self.udp_fd = self.tcp.fileno(), self.udp.fileno()

    def disconnect(self):
        """Close the connection; the next run connects again."""
        for one in (self.tcp, self.udp):
            if one is not None:
                one.close()
        self.tcp = None

    def close(self):
        super().close()
        self.disconnect()

    def request(self, command, payload=b""):
        """Send a command on TCP and wait for its answer, while the loop does not run. Raises FrankaError."""
        self.number += 1
        self.tcp.sendall(encode(self.number, command, payload))
        while True:  # an answer to an earlier command may come first, such as the final answer to a Move
            code, number, size = struct.unpack("<III", self.receive(12))
            status = self.receive(size - 12)[0]
            if (code, number) == (command, self.number):
                break
        if status:
            raise FrankaError(f"the robot answers command {command} with {status}: {STATUS[status]}")

    def receive(self, size):
        data = b""
        while len(data) < size:
            more = self.tcp.recv(size - len(data))
            if not more:
                raise FrankaError("the robot has closed the connection")
            data += more
        return data

    def recover(self):
        """Recover from a reflex, between two runs. Raises FrankaError, also if the robot is not idle after 20 s."""
        if self.tcp is None:
            self.connect()
        self.request(AUTOMATIC_ERROR_RECOVERY)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if self.read_newest() > 0 and self.state.robot_mode == ROBOT_IDLE:
                return
            time.sleep(0.01)
        raise FrankaError(f"the robot is in mode {self.state.robot_mode} after the recovery")

    @property
    def newest(self):
        """The newest state, as a record of STATE."""
        return np.frombuffer((<const char *>&self.state)[:sizeof(State)], STATE)[0]

    @property
    def errors(self):
        """Numbers of the errors in the newest state."""
        return np.flatnonzero(self.newest["errors"]).tolist()

    @property
    def outcome(self):
        """Sentence about the newest Move."""
        if self.refused >= 0:
            return f"Move was refused with {self.refused}: {STATUS[self.refused]}"
        if self.status < 0:
            return "Move has no final answer" if self.is_asked else "Move was not sent"
        return f"Move ended with {self.status}: {STATUS[self.status]}"

    def decode(self, bytes packet):
        """Take a packet as if the robot had sent it, for tests and simulate(); returns the record."""
        if len(packet) != sizeof(State):
            raise ValueError(f"a state has {sizeof(State)} bytes, this packet has {len(packet)}")
        memcpy(&self.state, <const char *>packet, sizeof(State))
        return self.newest

    def answer_to(self, bytes packet):
        """Return the command, as bytes, that the controller computes for a packet of a moving robot."""
        self.decode(packet)
        if not self.is_moving:
            self.begin()
        self.compute()
        return (<const char *>&self.command)[:sizeof(Command)]

    # --- The loop's thread. ---

    cdef void control(self) noexcept nogil:
        """Write the command for self.state and self.reference; a subclass overrides this."""

    cdef int enter(self) noexcept nogil:
        """Discard the states that came during the start: each would be answered late."""
        cdef int rc
        for _ in range(QUEUE):
            rc = self.read_newest()
            if rc <= 0:
                break
        return at_most(rc)

    cdef int wait(self, int64_t release) noexcept nogil:
        """Send what the step has computed, then wait for the next state."""
        cdef int rc = self.send_command()
        if rc < 0:
            return rc
        if not self.is_asked:
            self.is_asked = True
            if send(self.tcp_fd, self.move, sizeof(self.move), MSG_DONTWAIT | MSG_NOSIGNAL) != sizeof(self.move):
                return -EPROTO
        rc = self.next_state()
        if rc < 0:
            return rc
        self.silent = 0 if rc else self.silent + 1
        if self.silent >= self.silent_max:
            return -ETIMEDOUT
        if not self.is_moving:
            return at_most(self.await_start())
        if rc:
            self.device_cycle(self.state.message_id)
        return RT_CONTINUE

    cdef int send_command(self) noexcept nogil:
        if not self.has_command:
            return 0
        self.has_command = False
        if send(self.udp_fd, &self.command, sizeof(Command), MSG_DONTWAIT) < 0 and errno != EAGAIN:
            return -errno
        return 0

    cdef int next_state(self) noexcept nogil:
        """Wait for a state, but not long, and keep the newest; return the number of states, or a negative errno."""
        cdef pollfd ready
        ready.fd, ready.events = self.udp_fd, POLLIN
        if poll(&ready, 1, PATIENCE_MS) < 0 and errno != EINTR:
            return -errno
        return self.read_newest()

    cdef int read_newest(self) noexcept nogil:
        """Empty the queue without waiting; return how many states there were, or a negative errno."""
        cdef State state
        cdef ssize_t size
        cdef int count = 0
        self.is_fresh = False
        for _ in range(QUEUE):
            size = recv(self.udp_fd, &state, sizeof(State), MSG_DONTWAIT)
            if size < 0:
                return count if errno == EAGAIN else -errno
            if size == sizeof(State) and (not count or state.message_id > self.state.message_id):
                memcpy(&self.state, &state, sizeof(State))
                self.is_fresh = True
                count += 1
        self.behind += 1
        return count

    cdef int await_start(self) noexcept nogil:
        """Read the first answer to Move; the robot moves from the first state in mode "move"."""
        cdef int status = self.read_answer()
        if status > 1:
            self.refused = status
            return -ECANCELED
        if status < 0 and status != -EAGAIN:
            return status
        self.is_started = self.is_started or status == 1
        if self.is_started and self.is_fresh and self.state.robot_mode == ROBOT_MOVE:
            self.begin()
            self.device_cycle(self.state.message_id)
        return RT_CONTINUE

    cdef void begin(self) noexcept nogil:
        """Begin the motion where the robot holds the arm."""
        self.is_moving = True
        self.last = self.state.message_id
        for i in range(JOINTS):
            self.start[i] = self.reference[i] = self.state.q_d[i]

    cdef int read_answer(self) noexcept nogil:
        """Return the status of an answer to the Move, -EAGAIN if none is complete, or another negative errno."""
        cdef Header header
        cdef int status
        cdef ssize_t size = recv(
            self.tcp_fd, &self.answer[self.answer_size], sizeof(self.answer) - self.answer_size, MSG_DONTWAIT
        )
        if size == 0:
            return -ECONNRESET
        if size < 0 and errno != EAGAIN:
            return -errno
        self.answer_size += <size_t>size if size > 0 else 0
        while self.answer_size >= sizeof(Header):
            memcpy(&header, self.answer, sizeof(Header))
            if header.size <= sizeof(Header) or header.size > sizeof(self.answer):
                return -EPROTO
            if self.answer_size < header.size:
                break
            status = self.answer[sizeof(Header)]
            self.answer_size -= header.size
            memmove(self.answer, &self.answer[header.size], self.answer_size)
            if header.command == MOVE and has_number(self.move, header.number):
                return status
        return -EAGAIN

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.mode = self.state.robot_mode
        if not (self.is_moving and self.is_fresh):
            return RT_CONTINUE
        if self.state.robot_mode != ROBOT_MOVE:
            return -ECANCELED  # a reflex, a user stop: see `outcome` and `errors`
        self.compute()
        self.answered += 1
        self.rate = self.state.success_rate
        if self.answered > 100:
            self.lowest_rate = fmin(self.lowest_rate, self.rate)
        return RT_CONTINUE

    cdef void compute(self) noexcept nogil:
        """Move the reference by the time of the robot since the last state, and write the command."""
        cdef double omega = 2 * M_PI * self.frequency
        cdef double dt = 1e-3 * <double>(self.state.message_id - self.last)
        self.last = self.state.message_id
        # The reference begins and ends smoothly, because its own time does.
        self.pace = clip(self.pace + clip((0.0 if self.is_ending else 1.0) - self.pace, 2 * dt), 1)
        self.phase += self.pace * dt
        memset(&self.command, 0, sizeof(Command))
        self.command.message_id = self.state.message_id
        self.error = 0
        for i in range(JOINTS):
            self.reference[i] = self.start[i] + self.swing[i] * 0.5 * (1 - cos(omega * self.phase))
            self.speed[i] = self.swing[i] * 0.5 * omega * sin(omega * self.phase) * self.pace
            self.error = fmax(self.error, fabs(self.reference[i] - self.state.q[i]))
        self.control()
        self.has_command = True

    cdef void command_torques(self, const double *tau) noexcept nogil:
        """Write torques to the command, within the limits of the joints, and of a change in one cycle."""
        cdef double before
        for i in range(JOINTS):
            # The robot refuses jumps: 1000 Nm/s from what it last received, which may not be what was last sent.
            before = self.state.tau_J_d[i]
            self.command.tau_J_d[i] = clip(before + clip(tau[i] - before, MARGIN), self.tau_max[i])

    cdef void leave(self) noexcept nogil:
        """Bring the arm to rest and end the Move, however the loop ended; without states it gives up."""
        cdef int rc, quiet = 0, stopped = 0
        cdef int answers = 0
        self.is_ending = True
        if not self.is_asked:
            return
        for _ in range(ENDING):
            if self.is_moving and self.send_command() < 0:
                break
            rc = self.next_state()
            if rc < 0:
                break
            quiet = 0 if rc else quiet + 1
            if quiet >= self.silent_max:
                break
            if not self.is_moving and self.await_start() < 0:
                break
            if not rc or not self.is_moving:
                continue
            if self.state.robot_mode != ROBOT_MOVE or (
                self.state.generator == GENERATOR_IDLE and self.state.controller == CONTROLLER_OTHER
            ):
                break
            self.compute()
            stopped += self.pace == 0
            if stopped and (self.is_at_rest() or stopped > 500):  # once set, the flag stays
                stopped = 501
                if self.generator == 4:
                    self.command.torque_finished = 1
                else:
                    self.command.motion_finished = 1
        while self.status < 0 and answers < 500:  # the final answer to Move comes soon after
            rc = self.read_answer()
            if rc >= 0 and rc != 1:
                self.status = rc
            elif rc != -EAGAIN and rc != 1:
                break
            answers += 1
            if self.next_state() < 0:  # states go on in the meantime, and are the clock here
                break
            if not self.is_fresh:
                answers += 100

    cdef bint is_at_rest(self) noexcept nogil:
        for i in range(JOINTS):
            if fabs(self.state.dq[i]) > 0.02:
                return False
        return True


cdef inline bint has_number(const uint8_t *move, uint32_t number) noexcept nogil:
    cdef Header header
    memcpy(&header, move, sizeof(Header))
    return header.number == number


cdef class Torque(Franka):
    """Joint impedance by torques: a spring and a damper to the reference; the robot adds gravity and friction."""

    cdef double[7] stiffness, damping
    cdef double scale

    def __init__(self, *args, scale=1.0, **settings):
        super().__init__(*args, **settings)
        self.controller, self.generator = 2, 4
        self.stiffness = [400, 400, 400, 400, 150, 100, 40]  # Nm/rad
        self.damping = [40, 40, 40, 40, 15, 12, 6]           # Nm s/rad
        self.parameter("stiffness", &self.scale, scale).limits(0.2, 2)

    cdef void control(self) noexcept nogil:
        cdef double[7] tau
        for i in range(JOINTS):
            tau[i] = self.scale * self.stiffness[i] * (self.reference[i] - self.state.q[i])
            tau[i] -= self.damping[i] * self.state.dq[i]
        self.command_torques(tau)


cdef class Position(Franka):
    """Joint positions for the robot's own controller, which follow the reference within limits of speed and jerk."""

    cdef double[7] speed_max
    cdef double bandwidth  # rad/s
    cdef double acceleration_max, jerk_max

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.controller, self.generator = 0, 0
        self.speed_max = [MARGIN * limit for limit in SPEED_MAX]
        self.acceleration_max, self.jerk_max, self.bandwidth = 0.5 * 10, 0.5 * 5000, 40

    cdef void control(self) noexcept nogil:
        cdef double dt = 1e-3, speed, acceleration
        for i in range(JOINTS):
            # From the robot's own last command: if a cycle was lost, it has continued without ours.
            # Critically damped: a jump to the reference would overshoot at the limit of acceleration, and swing.
            acceleration = self.bandwidth * self.bandwidth * (self.reference[i] - self.state.q_d[i])
            acceleration += 2 * self.bandwidth * (self.speed[i] - self.state.dq_d[i])
            acceleration = clip(acceleration, self.acceleration_max)
            acceleration = self.state.ddq_d[i] + clip(acceleration - self.state.ddq_d[i], self.jerk_max * dt)
            speed = clip(self.state.dq_d[i] + acceleration * dt, self.speed_max[i])
            self.command.q_c[i] = self.state.q_d[i] + speed * dt
