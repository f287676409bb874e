# cython: cdivision=True
"""Position control of a motor drive on a CAN bus, by a loop that is the master of the CANopen network."""

import socket
import struct

from libc.errno cimport EAGAIN, ECONNRESET, EIO, ENOBUFS, ETIMEDOUT, errno
from libc.math cimport M_PI, fmax, fmin, round
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset
from rtloop cimport RT_CONTINUE, Cycle, RTLoop

cdef extern from "<unistd.h>" nogil:
    int usleep(unsigned int us)

cdef extern from "<sys/socket.h>" nogil:
    enum: MSG_DONTWAIT, MSG_NOSIGNAL
    ssize_t recv(int fd, void *buffer, size_t size, int flags)
    ssize_t send(int fd, const void *buffer, size_t size, int flags)

cdef extern from "<linux/can.h>" nogil:
    enum: CAN_ERR_FLAG, CAN_EFF_FLAG, CAN_RTR_FLAG, CAN_SFF_MASK
    struct can_frame:
        uint32_t can_id
        uint8_t can_dlc
        uint8_t[8] data

cdef extern from "<linux/can/error.h>" nogil:
    enum: CAN_ERR_BUSOFF, CAN_ERR_RESTARTED

cdef extern from "<linux/can/raw.h>" nogil:  # not every build of Python has CAN_RAW_ERR_FILTER
    enum: SOL_CAN_RAW, CAN_RAW_FILTER, CAN_RAW_ERR_FILTER

cdef enum:
    QUEUE = 1024  # frames read per cycle at most
    MASTER = 127  # the loop's own node number

cdef enum:  # identifiers of CANopen; those of a node have its number added
    NMT = 0x000
    SYNC = 0x080
    EMERGENCY = 0x080
    TPDO1 = 0x180
    RPDO1 = 0x200
    TPDO2 = 0x280
    HEARTBEAT = 0x700

cdef enum:  # commands of the network management, and states in a heartbeat
    START = 1
    ENTER_PRE_OPERATIONAL = 128
    BOOT_UP = 0
    OPERATIONAL = 5

cdef enum:  # status and control words of CiA 402
    FAULT = 0x08
    READY_TO_SWITCH_ON = 0x21
    SWITCHED_ON = 0x23
    OPERATION_ENABLED = 0x27
    DISABLE_VOLTAGE = 0x00
    FAULT_RESET = 0x80
    SHUTDOWN = 0x06
    SWITCH_ON = 0x07
    ENABLE_OPERATION = 0x0F

cdef double COUNTS = 65536 / (2 * M_PI)  # of the encoder, per rad
cdef double TORQUE_MAX = 1000            # a thousandth of the rated torque is 1


# The layouts of the PDOs, little-endian like the processor. drive.dbc has the same layouts for other programs.
cdef packed struct Status:    # TPDO1
    uint16_t word
    int32_t position
cdef packed struct Motion:    # TPDO2
    int32_t velocity
cdef packed struct Command:   # RPDO1
    uint16_t word
    int16_t torque
cdef packed struct Emergency:
    uint16_t code
    uint8_t register

cdef enum Reason:
    NONE, NOT_STARTED, HEARTBEAT_LOST, NO_ANSWER, NOT_OPERATIONAL, DRIVE_FAULT

REASONS = (
    "no failure", "the drive did not become operational", "the drive's heartbeat is missing",
    "the drive does not answer SYNC", "the drive has left the state operational", "the drive reports a fault",
)  # fmt: skip


def open_bus(interface, node):
    """Return a socket that receives what a node sends and what the controller reports about the bus.

    Raises
    ------
    OSError
        If there is no such interface, or the kernel has no CAN.
    """
    bus = socket.socket(socket.AF_CAN, socket.SOCK_RAW, socket.CAN_RAW)
    cdef uint32_t exactly = CAN_SFF_MASK | CAN_EFF_FLAG | CAN_RTR_FLAG
    filters = b"".join(
        struct.pack("=II", base + node, exactly) for base in (EMERGENCY, TPDO1, TPDO2, HEARTBEAT)
    )
    try:
        bus.setsockopt(SOL_CAN_RAW, CAN_RAW_FILTER, filters)
        bus.setsockopt(SOL_CAN_RAW, CAN_RAW_ERR_FILTER, CAN_ERR_BUSOFF | CAN_ERR_RESTARTED)
        bus.bind((interface,))
    except OSError:
        bus.close()
        raise
    return bus


cdef class Motor(RTLoop):
    """Turn the motor of a drive to an angle.

    A cycle reads what the drive has answered to the last SYNC, computes a torque, and sends it and the next SYNC. At
    that SYNC the drive applies the torque, and samples its position and velocity.

    Parameters
    ----------
    bus : str or socket.socket
        A CAN interface, or a socket that carries the same frames.
    node : int
        Number of the drive.
    heartbeat_ms : int
        Period of the loop's own heartbeat.
    silence_ms : int
        Time without a heartbeat of the drive, or without an answer, after which the loop fails.
    """

    cdef object bus, socket
    cdef int fd
    cdef readonly int node
    cdef int64_t beat_ns, silence_ns
    cdef int64_t next_beat, heard, answered, begun  # ns
    cdef Reason reason
    cdef double target, kp, kd
    cdef readonly double position, velocity, torque  # rad, rad/s, thousandths of the rated torque
    cdef Status status
    cdef Motion motion
    cdef bint has_status, is_operational, is_beat_fresh, is_resetting
    cdef readonly int state_of_drive           # in its newest heartbeat
    cdef readonly long syncs, answers          # SYNC sent, TPDO1 received
    cdef readonly long silent                  # cycles without a TPDO1, once the drive was operational
    cdef readonly long dropped                 # frames that found the queue full
    cdef readonly long bus_off, restarts       # as the controller reports them
    cdef readonly long emergencies, heartbeats
    cdef readonly int emergency_code, emergency_register  # of the newest

    def __init__(self, period, *, bus="can0", node=1, heartbeat_ms=50, silence_ms=200, **settings):
        super().__init__(period, **settings)
        self.bus, self.node, self.socket = bus, node, None
        self.beat_ns, self.silence_ns = heartbeat_ms * 1_000_000, silence_ms * 1_000_000
        self.parameter("target", &self.target, 0.0).limits(-100, 100).unit("rad")
        self.parameter("kp", &self.kp, 600.0).limits(0, None).unit("1/1000 per rad")
        self.parameter("kd", &self.kd, 120.0).limits(0, None).unit("1/1000 per rad/s")
        self.signal("target", &self.target).unit("rad")
        self.signal("position", &self.position).unit("rad")
        self.signal("velocity", &self.velocity).unit("rad/s")
        self.signal("torque", &self.torque).unit("1/1000")

    def setup(self):
        if self.socket is None:
            self.socket = open_bus(self.bus, self.node) if isinstance(self.bus, str) else self.bus
        self.fd = self.socket.fileno()
        self.has_status = self.is_operational = False
        self.state_of_drive, self.reason = -1, NONE
        self.syncs = self.answers = self.silent = self.dropped = self.heartbeats = 0
        self.bus_off = self.restarts = self.emergencies = 0
        self.emergency_code = self.emergency_register = 0
        self.torque = 0

    def close(self):
        super().close()
        if self.socket is not None and isinstance(self.bus, str):
            self.socket.close()
            self.socket = None

    def recover(self):
        """Let the next run reset a fault of the drive. Do so only after somebody has looked at the machine."""
        self.is_resetting = True

    @property
    def outcome(self):
        """The reason for which the run ended, in words."""
        return REASONS[self.reason]

    cdef int enter(self) noexcept nogil:
        """Discard what came before the loop."""
        cdef can_frame frame
        for _ in range(QUEUE):
            if recv(self.fd, &frame, sizeof(frame), MSG_DONTWAIT) < 0:
                return RT_CONTINUE if errno == EAGAIN else -errno
        return RT_CONTINUE

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef int rc
        if cycle.index == 0:
            self.heard = self.answered = self.next_beat = cycle.start
        rc = self.receive(cycle.start)
        if rc == 0:
            rc = self.judge(cycle.start)
        if rc == 0 and not self.is_operational and (cycle.index == 0 or self.is_beat_fresh):
            rc = self.manage(START)  # again at each heartbeat, because a frame may be dropped
        if rc == 0 and cycle.start >= self.next_beat:
            self.next_beat = cycle.start + self.beat_ns
            rc = self.beat()
        if rc == 0:
            rc = self.command(self.control())
        if rc == 0:
            rc = self.sync()
        return rc if rc < 0 else RT_CONTINUE

    # --- Receive. ---

    cdef int receive(self, int64_t now) noexcept nogil:
        """Read all frames that have come; return 0, or a negative errno."""
        cdef can_frame frame
        cdef long before = self.answers
        self.is_beat_fresh = False
        for _ in range(QUEUE):
            if recv(self.fd, &frame, sizeof(frame), MSG_DONTWAIT) < 0:  # rtloop: allow recv: it never waits
                if errno != EAGAIN:
                    return -errno
                break
            self.take(&frame, now)
        self.silent += self.is_operational and self.answers == before
        return 0

    cdef void take(self, const can_frame *frame, int64_t now) noexcept nogil:
        """Decode a frame; one with another identifier, or with too few bytes, is ignored."""
        cdef uint32_t identifier = frame.can_id - self.node
        cdef Emergency emergency
        if frame.can_id & CAN_ERR_FLAG:
            self.bus_off += (frame.can_id & CAN_ERR_BUSOFF) != 0
            self.restarts += (frame.can_id & CAN_ERR_RESTARTED) != 0
        elif identifier == TPDO1 and frame.can_dlc >= sizeof(Status):
            memcpy(&self.status, frame.data, sizeof(Status))
            self.position = self.status.position / COUNTS
            self.has_status = True
            self.answers += 1
            self.answered = now
        elif identifier == TPDO2 and frame.can_dlc >= sizeof(Motion):
            memcpy(&self.motion, frame.data, sizeof(Motion))
            self.velocity = self.motion.velocity / COUNTS
        elif identifier == HEARTBEAT and frame.can_dlc >= 1:
            self.state_of_drive = frame.data[0] & 0x7F
            self.heartbeats += 1
            self.heard = now
            self.is_beat_fresh = True
        elif identifier == EMERGENCY and frame.can_dlc >= sizeof(Emergency):
            memcpy(&emergency, frame.data, sizeof(Emergency))
            self.emergency_code, self.emergency_register = emergency.code, emergency.register
            self.emergencies += 1

    cdef int judge(self, int64_t now) noexcept nogil:
        """Return 0 if the drive works as it should, otherwise a negative errno, which ends the loop."""
        if not self.is_operational and self.state_of_drive == OPERATIONAL:
            self.is_operational = True
            self.answered = self.begun = now
        if now - self.heard > self.silence_ns:
            self.reason = HEARTBEAT_LOST if self.heartbeats else NOT_STARTED
            return -ETIMEDOUT
        if not self.is_operational:
            return 0
        if self.state_of_drive != OPERATIONAL:  # it has restarted, or another node has stopped it
            self.reason = NOT_OPERATIONAL
            return -ECONNRESET
        if self.has_status and self.status.word & FAULT and not self.is_resetting:
            self.reason = DRIVE_FAULT
            return -EIO
        if now - self.answered > self.silence_ns:
            self.reason = NO_ANSWER
            return -ETIMEDOUT
        if self.is_resetting and now - self.begun > self.silence_ns:
            self.is_resetting = False  # a fault that is still there ends the loop
        return 0

    # --- Compute. ---

    cdef uint16_t control(self) noexcept nogil:
        """Compute the torque; return the control word that leads the drive to "operation enabled"."""
        cdef int state = self.status.word & 0x6F
        self.torque = 0
        if not self.is_operational or not self.has_status:
            return DISABLE_VOLTAGE
        if state & FAULT:
            return FAULT_RESET
        if state == OPERATION_ENABLED:
            self.is_resetting = False
            self.torque = self.kp * (self.target - self.position) - self.kd * self.velocity
            self.torque = round(fmax(-TORQUE_MAX, fmin(TORQUE_MAX, self.torque)))
        if state == OPERATION_ENABLED or state == SWITCHED_ON:
            return ENABLE_OPERATION
        return SWITCH_ON if state == READY_TO_SWITCH_ON else SHUTDOWN

    # --- Send. ---

    cdef int transmit(self, uint32_t identifier, const void *data, uint8_t size) noexcept nogil:
        """Send a frame; return 0 if it is in the queue, 1 if the queue is full, or a negative errno."""
        cdef can_frame frame
        memset(&frame, 0, sizeof(frame))
        frame.can_id, frame.can_dlc = identifier, size
        memcpy(frame.data, data, size)
        # rtloop: allow send: it never waits
        if send(self.fd, &frame, sizeof(frame), MSG_DONTWAIT | MSG_NOSIGNAL) >= 0:
            return 0
        return 1 if errno == ENOBUFS or errno == EAGAIN else -errno

    cdef int count(self, int rc) noexcept nogil:
        """Count a frame that was dropped, which is no failure: the heartbeats show whether the bus still works."""
        self.dropped += rc == 1
        return 0 if rc == 1 else rc

    cdef int manage(self, uint8_t what) noexcept nogil:
        cdef uint8_t[2] data
        data[0], data[1] = what, <uint8_t>self.node
        return self.count(self.transmit(NMT, data, 2))

    cdef int beat(self) noexcept nogil:
        cdef uint8_t state = OPERATIONAL
        return self.count(self.transmit(HEARTBEAT + MASTER, &state, 1))

    cdef int command(self, uint16_t word) noexcept nogil:
        cdef Command data
        data.word, data.torque = word, <int16_t>self.torque
        return self.count(self.transmit(RPDO1 + self.node, &data, sizeof(data)))

    cdef int sync(self) noexcept nogil:
        cdef uint8_t nothing = 0
        cdef int rc = self.transmit(SYNC, &nothing, 0)
        self.syncs += rc == 0
        return self.count(rc)

    cdef void leave(self) noexcept nogil:
        """Switch the motor off and stop the node, however the loop ended. If the queue is full, wait for it."""
        cdef Command off
        cdef uint8_t[2] stop
        off.word, off.torque = DISABLE_VOLTAGE, 0
        stop[0], stop[1] = ENTER_PRE_OPERATIONAL, <uint8_t>self.node
        self.torque = 0
        self.insist(RPDO1 + self.node, &off, sizeof(off))
        self.insist(SYNC, stop, 0)  # at which the drive applies it
        self.insist(NMT, stop, 2)

    cdef void insist(self, uint32_t identifier, const void *data, uint8_t size) noexcept nogil:
        for _ in range(50):
            if self.transmit(identifier, data, size) <= 0:
                break
            usleep(1000)
