"""The other side of the loop: a motor drive, a CANopen node made with the packages canopen and python-can."""

import argparse
import math
import socket
import time

import can
import canopen
from bus import connect
from canopen.objectdictionary import INTEGER16, INTEGER32, UNSIGNED8, UNSIGNED16, UNSIGNED32

NODE, MASTER = 1, 127
COUNTS = 65536 / (2 * math.pi)  # of the encoder, per rad
ACCELERATION = 200.0  # rad/s^2, at the rated torque
#: PDOs of the drive: communication object, mapping object, identifier, mapped objects.
PDOS = (
    (0x1800, 0x1A00, 0x180 + NODE, (0x6041, 0x6064)),
    (0x1801, 0x1A01, 0x280 + NODE, (0x606C,)),
    (0x1400, 0x1600, 0x200 + NODE, (0x6040, 0x6071)),
)
EACH_SYNC = 1  # transmission type
HEARTBEAT_ERROR = 0x8130  # emergency code of CiA 301


def dictionary() -> canopen.ObjectDictionary:
    """Return the objects of the drive, which a manufacturer delivers as an EDS file."""
    made = canopen.ObjectDictionary()

    def variable(name: str, index: int, subindex: int, kind: int, value: int) -> canopen.objectdictionary.ODVariable:
        one = canopen.objectdictionary.ODVariable(name, index, subindex)
        one.data_type, one.default = kind, value
        return one

    for name, index, kind, value in (
        ("device type", 0x1000, UNSIGNED32, 0x00020192),  # a servo drive of CiA 402
        ("error register", 0x1001, UNSIGNED8, 0),
        ("communication cycle period", 0x1006, UNSIGNED32, 0),  # us
        ("producer heartbeat time", 0x1017, UNSIGNED16, 0),  # ms
        ("control word", 0x6040, UNSIGNED16, 0),
        ("status word", 0x6041, UNSIGNED16, 0x40),
        ("position actual value", 0x6064, INTEGER32, 0),
        ("velocity actual value", 0x606C, INTEGER32, 0),
        ("target torque", 0x6071, INTEGER16, 0),
    ):
        made.add_object(variable(name, index, 0, kind, value))
    lists = {0x1016: ("consumer heartbeat time", [(UNSIGNED32, 0)])}  # node and ms
    for communication, mapping, identifier, objects in PDOS:
        lists[communication] = "PDO communication", [(UNSIGNED32, identifier), (UNSIGNED8, EACH_SYNC)]
        mapped = [(UNSIGNED32, index << 16 | len(made[index])) for index in objects]
        lists[mapping] = "PDO mapping", mapped
    for index, (name, entries) in lists.items():
        record = canopen.objectdictionary.ODRecord(name, index)
        record.add_member(variable("number of entries", index, 0, UNSIGNED8, len(entries)))
        for subindex, (kind, value) in enumerate(entries, 1):
            record.add_member(variable(f"entry {subindex}", index, subindex, kind, value))
        made.add_object(record)
    return made


def configure(link: str | socket.socket, period_us: int, heartbeat_ms: int, silence_ms: int) -> None:
    """Configure the drive by SDO, as its master, and check that its PDOs have the layout that the loop expects.

    Raises
    ------
    canopen.SdoError
        If the drive does not answer, or refuses a value.
    RuntimeError
        If its PDOs have another layout.
    """
    network = canopen.Network(connect(link)).connect()
    try:
        node = network.add_node(NODE, dictionary())
        node.sdo.RESPONSE_TIMEOUT = 5
        for communication, mapping, identifier, objects in PDOS:
            entries = [node.sdo[mapping][k + 1].raw >> 16 for k in range(node.sdo[mapping][0].raw)]
            if node.sdo[communication][1].raw & 0x7FF != identifier or tuple(entries) != objects:
                raise RuntimeError(f"the PDO of object {communication:#x} is not {identifier:#x} with {objects}")
            node.sdo[communication][2].raw = EACH_SYNC
        node.sdo[0x1006].raw = period_us
        node.sdo[0x1016][1].raw = MASTER << 16 | silence_ms
        node.sdo[0x1017].raw = heartbeat_ms
    finally:
        network.disconnect()


class Drive:
    """The node, its state machine of CiA 402, and a motor without friction, which moves one period at each SYNC."""

    def __init__(self, link: str | socket.socket) -> None:
        self.network = canopen.Network(connect(link))
        self.node = canopen.LocalNode(NODE, dictionary())
        self.network.add_node(self.node)
        self.position = self.velocity = 0.0  # rad, rad/s
        self.syncs = 0
        self.heard = math.inf  # time of the master's last heartbeat, s
        self.node.rpdo.read()
        self.node.tpdo.read()
        self.network.subscribe(0x80, self.on_sync)
        self.network.subscribe(0x700 + MASTER, self.on_heartbeat)
        self.node.nmt.state = "INITIALISING"  # announces the boot-up
        self.node.nmt.state = "PRE-OPERATIONAL"

    @property
    def status(self) -> int:
        """Status word."""
        return int(self.node.sdo[0x6041].raw)

    def on_heartbeat(self, identifier: int, data: bytearray, timestamp: float) -> None:
        self.heard = time.monotonic()

    def on_sync(self, identifier: int, data: bytearray, timestamp: float) -> None:
        """Apply the newest command, move on by one period, and answer."""
        if self.node.nmt.state != "OPERATIONAL":
            return
        self.syncs += 1
        word, torque = (variable.raw for variable in self.node.rpdo[1])
        status = self.next_status(word)
        dt = self.node.sdo[0x1006].raw * 1e-6
        if status == 0x27:
            self.velocity += dt * ACCELERATION * torque / 1000
        else:
            self.velocity = 0.0  # the brake
        self.position += dt * self.velocity
        self.node.sdo[0x6041].raw = status
        for pdo, values in ((1, (status, round(self.position * COUNTS))), (2, (round(self.velocity * COUNTS),))):
            for variable, value in zip(self.node.tpdo[pdo], values, strict=True):
                variable.raw = value
            self.node.tpdo[pdo].transmit()

    def next_status(self, word: int) -> int:
        """Return the status word that follows from a control word."""
        status = self.status
        if status & 0x08:
            return 0x40 if word & 0x80 else status
        if not word & 0x02:
            return 0x40  # "disable voltage" leads to "switch on disabled" from anywhere
        return {(0x40, 0x06): 0x21, (0x21, 0x07): 0x23, (0x23, 0x0F): 0x27}.get((status, word & 0x0F), status)

    def fail(self, code: int) -> None:
        """Switch the motor off, report an emergency, and stay in the state "fault"."""
        self.velocity = 0.0
        self.node.sdo[0x6041].raw = 0x08
        self.node.emcy.send(code, register=0x11)

    def poll(self, timeout: float = 0.0) -> can.Message | None:
        """Handle one frame, if one comes in that time, and return it; check the master's heartbeat."""
        frame = self.network.bus.recv(timeout)
        if frame is not None and not frame.is_error_frame:
            self.network.notify(frame.arbitration_id, frame.data, frame.timestamp)
        patience = (self.node.sdo[0x1016][1].raw & 0xFFFF) / 1000
        if self.node.nmt.state != "OPERATIONAL":
            self.heard = math.inf  # the watch begins with the next heartbeat
        elif patience and time.monotonic() - self.heard > patience:
            self.fail(HEARTBEAT_ERROR)
            self.node.nmt.state = "PRE-OPERATIONAL"
        return frame


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--interface", help="a CAN interface, such as vcan0")
    where.add_argument("--fd", type=int, help="number of an inherited socket that carries frames")
    parser.add_argument("--fail-after", type=int, metavar="SYNCS", help="report a fault after so many SYNCs")
    options = parser.parse_args()
    drive = Drive(options.interface or socket.socket(fileno=options.fd))
    print("ready", flush=True)
    while True:
        drive.poll(0.01)
        if options.fail_after is not None and drive.syncs == options.fail_after and not drive.status & 0x08:
            drive.fail(0x2310)  # overcurrent at the output


if __name__ == "__main__":
    main()
