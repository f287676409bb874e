"""Stand-in for a robot: its side of FCI, version 10, for a first run and for tests without a robot or simulator.

It counts answers as the robot does: a cycle is answered if a command with the number of its state arrives before the
next state. Unlike a robot it waits for a late answer, `patience` seconds, so that a busy machine loses none. The arm is
seven independent masses with a damper.
"""

from __future__ import annotations

import argparse
import select
import socket
import struct
import sys
import time
from collections import deque

import numpy as np

# The layouts are written down here a second time, so that an error in those of franka.pyx is found.
STATE_BYTES, COMMAND_BYTES, JOINTS = 1377, 371, 7
AT = {"tau_J_d": 540, "q": 596, "q_d": 624, "dq": 652, "dq_d": 680, "ddq_d": 708}
GENERATOR, CONTROLLER, ERRORS, MODE, RATE = 1288, 1289, 1290, 1372, 1373
IDLE, MOVE, REFLEX = 1, 2, 4
COMMUNICATION, TORQUE_JUMP, JUMP = 25, 23, 17
REST = np.array([0, -0.785, 0, -2.356, 0, 1.571, 0.785])


class Robot:
    """One robot, which serves one client after the other."""

    def __init__(self, *, patience: float, deaf: tuple[int, int] = (0, 0), vanish: int = 0, port: int = 0) -> None:
        self.patience, self.deaf, self.vanish, self.tick = patience, deaf, vanish, 1e-3
        self.is_over = False
        self.listener = socket.create_server(("127.0.0.1", port))
        self.port = self.listener.getsockname()[1]
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.udp.setblocking(False)
        self.client: socket.socket | None = None
        self.address: tuple[str, int] | None = None
        self.received = b""
        self.number = self.moved = self.lost = self.lost_at_all = 0
        self.mode, self.modes, self.running, self.error = IDLE, (0, 3), 0, -1
        self.answers: deque[bool] = deque(maxlen=100)
        self.q, self.dq, self.tau = REST.copy(), np.zeros(JOINTS), np.zeros(JOINTS)
        self.q_d, self.dq_d, self.ddq_d = REST.copy(), np.zeros(JOINTS), np.zeros(JOINTS)

    def serve(self) -> None:
        """Send a state each millisecond, and take its answer, until `vanish` states of motion have been sent."""
        while not self.is_over and (not self.vanish or self.moved < self.vanish):
            begin = time.monotonic()
            self.handle_requests()
            if self.address is None:
                select.select([self.client or self.listener], [], [], 0.1)
                continue
            self.number += 1
            self.udp.sendto(self.state(), self.address)
            self.take_answer()
            self.simulate()
            time.sleep(max(0.0, begin + self.tick - time.monotonic()))

    def handle_requests(self) -> None:
        waiting, _, _ = select.select([self.client or self.listener], [], [], 0)
        if not waiting:
            return
        if self.client is None:
            self.client, _ = self.listener.accept()
            return
        data = self.client.recv(4096)
        if not data:
            self.client.close()
            self.client = self.address = None
            self.stop()
            return
        self.received += data
        while len(self.received) >= 12:
            command, number, size = struct.unpack_from("<III", self.received)
            if len(self.received) < size:
                break
            self.handle(command, number, self.received[12:size])
            self.received = self.received[size:]

    def handle(self, command: int, number: int, payload: bytes) -> None:
        if command == 0:
            version, port = struct.unpack("<HH", payload)
            assert self.client is not None
            self.address = (self.client.getpeername()[0], port)
            self.answer(0, number, 0 if version == 10 else 1, b"\x0a\x00")
        elif command == 1:
            controller, generator = struct.unpack_from("<II", payload)
            if len(payload) != 113 or self.mode != IDLE:
                self.answer(1, number, 7 if len(payload) != 113 else 5)
                return
            self.answer(1, number, 1)
            self.mode, self.modes, self.running = MOVE, (generator + 1, controller), number
            self.moved = self.lost = 0
            self.answers.clear()
            self.q_d[:], self.dq_d[:], self.ddq_d[:], self.tau[:] = self.q, 0, 0, 0
        elif command == 10:
            self.mode, self.error = IDLE, -1
            self.answer(command, number, 0)
        else:
            self.answer(command, number, 0)

    def answer(self, command: int, number: int, status: int, more: bytes = b"") -> None:
        assert self.client is not None
        self.client.sendall(struct.pack("<III", command, number, 13 + len(more)) + bytes([status]) + more)

    def state(self) -> bytes:
        packet = bytearray(STATE_BYTES)
        struct.pack_into("<Q", packet, 0, self.number)
        values = {"tau_J_d": self.tau, "q": self.q, "q_d": self.q_d, "dq": self.dq, "dq_d": self.dq_d}
        for name, value in (values | {"ddq_d": self.ddq_d}).items():
            struct.pack_into("<7f", packet, AT[name], *value)
        packet[GENERATOR], packet[CONTROLLER] = self.modes
        packet[MODE] = self.mode
        if self.error >= 0:
            packet[ERRORS + self.error] = 1
        struct.pack_into("<f", packet, RATE, sum(self.answers) / max(1, len(self.answers)))
        return bytes(packet)

    def take_answer(self) -> None:
        """Wait for the command to the newest state, and obey it."""
        if self.mode != MOVE:
            return
        self.moved += 1
        deadline = time.monotonic() + self.patience
        while select.select([self.udp], [], [], max(0.0, deadline - time.monotonic()))[0]:
            command = self.udp.recv(2048)
            if self.deaf[0] <= self.moved < self.deaf[1]:
                break
            if len(command) == COMMAND_BYTES and struct.unpack_from("<Q", command)[0] == self.number:
                self.answers.append(True)
                self.lost = 0
                self.obey(command)
                return
        self.answers.append(False)
        self.lost += 1
        self.lost_at_all += 1
        if self.lost >= 20:
            self.reflex(COMMUNICATION)

    def obey(self, command: bytes) -> None:
        q = np.frombuffer(command, "<f8", 7, 8)
        tau = np.frombuffer(command, "<f8", 7, 314)
        if (command[370] if self.modes[0] == 5 else command[313]) and self.mode == MOVE:
            number = self.running
            self.stop()
            self.answer(1, number, 0)
        elif self.modes[0] == 5:
            if np.abs(tau - self.tau).max() > 1.0001:
                self.reflex(TORQUE_JUMP)
            self.tau[:] = tau
        else:
            dq = (q - self.q_d) * 1e3
            ddq = (dq - self.dq_d) * 1e3
            if np.abs(ddq).max() > 10 or np.abs(ddq - self.ddq_d).max() > 6:
                self.reflex(JUMP)
                return
            self.q_d[:], self.dq_d[:], self.ddq_d[:] = q, dq, ddq

    def reflex(self, error: int) -> None:
        number = self.running
        self.stop()
        self.mode, self.error = REFLEX, error
        self.answer(1, number, 8)

    def stop(self) -> None:
        self.mode, self.modes, self.running = IDLE, (0, 3), 0
        self.tau[:] = self.dq[:] = self.dq_d[:] = self.ddq_d[:] = 0

    def simulate(self) -> None:
        if self.mode == MOVE and self.modes[0] == 5:
            self.dq += 1e-3 * (self.tau - self.dq) / 1.0
            self.q += 1e-3 * self.dq
        elif self.mode == MOVE:
            self.q[:], self.dq[:] = self.q_d, self.dq_d


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=1337, help="TCP port; 0: any free port, which is printed")
    parser.add_argument(
        "--patience", type=float, default=0.2, help="seconds that a late answer may take; a robot has 0"
    )
    parser.add_argument(
        "--deaf", type=int, nargs=2, default=(0, 0), metavar="N", help="ignore commands in these cycles"
    )
    parser.add_argument("--vanish", type=int, default=0, metavar="N", help="disappear after N cycles of motion")
    asked = parser.parse_args()
    robot = Robot(patience=asked.patience, deaf=tuple(asked.deaf), vanish=asked.vanish, port=asked.port)
    print(robot.port, flush=True)
    try:
        robot.serve()
    except KeyboardInterrupt:
        sys.exit(0)
