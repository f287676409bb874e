"""Stand-in for a bus: one EtherCAT slave on a raw socket, for a first run and for tests without hardware or simulator.

It has the registers of a slave that a master needs to reach OP and to exchange process data: states, EEPROM, FMMUs,
the watchdog of the outputs, and a clock that drifts. Its outputs are a speed and its inputs the position of an ideal
motor, one 32-bit integer each. Unlike a real slave, it answers only when it gets the CPU.
"""

from __future__ import annotations

import argparse
import os
import socket
import struct
import time

ETHERCAT = 0x88A4
INIT, PRE_OP, SAFE_OP, OP, ERROR = 1, 2, 4, 8, 0x10
BROKEN, WATCHDOG = 0x0011, 0x001B  # error codes: invalid requested state, watchdog of the outputs
OUTPUTS, INPUTS = 0x1000, 0x1100  # addresses of the process data
STATION, ALIAS, FEATURES, DL_STATUS, AL_CONTROL, AL_STATUS, AL_CODE = 0x10, 0x12, 0x08, 0x110, 0x120, 0x130, 0x134
EEPROM_COMMAND, EEPROM_ADDRESS, EEPROM_DATA, FMMUS = 0x502, 0x504, 0x508, 0x600
RECEIVED, SYSTEM_TIME, RECEIVED_64, OFFSET = 0x900, 0x910, 0x918, 0x920


def category(kind: int, data: bytes) -> bytes:
    """Return one category of the EEPROM."""
    data += bytes(len(data) % 2)
    return struct.pack("<HH", kind, len(data) // 2) + data


def eeprom() -> bytes:
    """Return what the EEPROM says: who the slave is, and which process data it has."""
    head = bytearray(128)
    struct.pack_into("<IIII", head, 16, 0x0ADD, 1, 1, 1)  # vendor, product, revision, serial number
    name = b"Motor"
    managers = struct.pack("<HHBBBB", OUTPUTS, 4, 0x64, 0, 1, 3) + struct.pack("<HHBBBB", INPUTS, 4, 0x20, 0, 1, 4)
    return bytes(head) + b"".join([
        category(10, bytes([1, len(name)]) + name),
        category(40, bytes([1, 2])),
        category(41, managers),
        category(50, struct.pack("<HBBBBHHBBBBH", 0x1A00, 1, 1, 0, 0, 0, 0x6000, 1, 0, 4, 32, 0)),
        category(51, struct.pack("<HBBBBHHBBBBH", 0x1600, 1, 0, 0, 0, 0, 0x7000, 1, 0, 4, 32, 0)),
        b"\xff\xff",
    ])  # fmt: skip


class Slave:
    """The registers of one slave, and the motor behind them."""

    def __init__(self, drift_ppm: float = 0, watchdog_s: float = 0.1) -> None:
        self.memory = bytearray(1 << 16)
        self.eeprom = eeprom() + bytes(512)
        self.rate, self.watchdog_s = 1 + drift_ppm * 1e-6, watchdog_s
        self.start = self.fed = time.monotonic_ns()
        self.position = 0.0
        self.put(0, "<BBHBBBB", 0x11, 0, 1, 8, 8, 8, 0x0F)  # type, revision, build, FMMUs, managers, RAM, ports
        self.put(FEATURES, "<H", 0x0C)  # a clock of 64 bits
        self.put(DL_STATUS, "<H", 0x0201 | 0x5400 | 0x10)  # a cable at port 0 alone
        self.put(AL_STATUS, "<H", INIT)

    def put(self, at: int, layout: str, *values: int) -> None:
        struct.pack_into(layout, self.memory, at, *values)

    def get(self, at: int, layout: str) -> int:
        value: int = struct.unpack_from(layout, self.memory, at)[0]
        return value

    @property
    def clock(self) -> int:
        """Time of its own oscillator, ns."""
        return int((time.monotonic_ns() - self.start) * self.rate)

    def read(self, at: int, size: int) -> bytes:
        if at <= SYSTEM_TIME < at + size:
            self.put(SYSTEM_TIME, "<Q", (self.clock + self.get(OFFSET, "<q")) % 2**64)
        return bytes(self.memory[at : at + size])

    def write(self, at: int, data: bytes) -> None:
        if at == RECEIVED:  # latches the time of arrival
            self.put(RECEIVED, "<I", self.clock % 2**32)
            self.put(RECEIVED_64, "<Q", self.clock)
            return
        if at == SYSTEM_TIME:  # of another slave's clock; this one is the reference
            return
        self.memory[at : at + len(data)] = data
        if at == AL_CONTROL:
            self.request(data[0])
        elif at == EEPROM_COMMAND:
            # A command may come with the address behind it.
            word = self.get(EEPROM_ADDRESS, "<I")
            self.memory[EEPROM_DATA : EEPROM_DATA + 4] = self.eeprom[2 * word : 2 * word + 4].ljust(4, b"\xff")
            self.put(EEPROM_COMMAND, "<H", 0)

    def request(self, control: int) -> None:
        """Change the state as the master asks, one step up or any number down."""
        state, wanted = self.memory[AL_STATUS], control & 0x0F
        if state & ERROR and not control & ERROR:
            return  # the master has to acknowledge the error first
        state &= 0x0F
        steps = {INIT: (INIT, PRE_OP), PRE_OP: (PRE_OP, SAFE_OP), SAFE_OP: (SAFE_OP, OP), OP: (OP,)}
        if wanted in steps[state] or wanted < state:
            self.put(AL_STATUS, "<HHH", wanted, 0, 0)
        else:
            self.put(AL_STATUS, "<HHH", state | ERROR, 0, BROKEN)
        self.fed = time.monotonic_ns()

    def move(self) -> None:
        """Advance the motor, and look at the watchdog of its outputs."""
        now = time.monotonic_ns()
        passed = (now - self.fed) * 1e-9
        if self.memory[AL_STATUS] == OP:
            if passed > self.watchdog_s:
                self.put(AL_STATUS, "<HHH", SAFE_OP | ERROR, 0, WATCHDOG)
            else:
                self.position += passed * self.get(OUTPUTS, "<i")
                self.put(INPUTS, "<i", int(self.position))
        self.fed = now

    def logical(self, command: int, address: int, data: bytearray) -> int:
        """Exchange the process data that the FMMUs map; return what is added to the working counter."""
        if self.memory[AL_STATUS] & 0x0F < SAFE_OP:
            return 0
        self.move()
        counted = 0
        for at in range(FMMUS, FMMUS + 64, 16):
            start, size, _, _, physical, _, kind, is_on = struct.unpack_from("<IHBBHBBB", self.memory, at)
            here = start - address
            if not is_on or here < 0 or here + size > len(data):
                continue
            if kind & 1 and command in (10, 12):
                data[here : here + size] = self.memory[physical : physical + size]
                counted += 1
            if kind & 2 and command in (11, 12):
                self.memory[physical : physical + size] = data[here : here + size]
                counted += 1 if command == 11 else 2
        return counted

    def serve(self, command: int, address: int, data: bytearray) -> tuple[int, int]:
        """Process one datagram in place; return its address for the next slave, and its working counter."""
        if command in (10, 11, 12):
            return address, self.logical(command, address, data)
        node, at = address & 0xFFFF, address >> 16
        if command in (1, 2, 3, 13):  # by position: the slave at which it has counted up to 0
            is_mine, address = node == 0, (node + 1) % 2**16 | at << 16
        elif command in (7, 8, 9):
            is_mine, address = True, (node + 1) % 2**16 | at << 16
        else:
            is_mine = node == self.get(STATION, "<H")
        if not is_mine:
            return address, 0
        new = bytes(data)
        is_read, is_written = command in (1, 3, 4, 6, 7, 9, 13, 14), command in (2, 3, 5, 6, 8, 9)
        if is_read:
            old = self.read(at, len(data))
            data[:] = bytes(a | b for a, b in zip(old, new, strict=True)) if command in (7, 9) else old
        if is_written:
            self.write(at, new)
        return address, is_read + is_written * (2 if is_read else 1)

    def process(self, frame: bytearray) -> None:
        """Process all datagrams of a frame in place, as it passes."""
        at, more = 16, True
        while more and at + 12 <= len(frame):
            command, _, address, size = struct.unpack_from("<BBIH", frame, at)
            more, size = bool(size & 0x8000), size & 0x07FF
            data = frame[at + 10 : at + 10 + size]
            address, counted = self.serve(command, address, data)
            struct.pack_into("<I", frame, at + 2, address)
            frame[at + 10 : at + 10 + size] = data
            (counter,) = struct.unpack_from("<H", frame, at + 10 + size)
            struct.pack_into("<H", frame, at + 10 + size, (counter + counted) % 2**16)
            at += 12 + size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("interface", help="for example one end of a veth pair, of which the master has the other")
    parser.add_argument("--drift", type=float, default=0, metavar="PPM", help="by how much its clock runs fast")
    parser.add_argument("--watchdog", type=float, default=0.1, metavar="S", help="time without outputs until OP ends")
    parser.add_argument("--priority", type=int, default=0, help="real-time priority, below the loop's; 0: none")
    options = parser.parse_args()
    if options.priority:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(options.priority))
    slave = Slave(options.drift, options.watchdog)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERCAT)) as wire:
        wire.bind((options.interface, ETHERCAT))
        print("ready", flush=True)
        while True:
            try:
                frame = bytearray(wire.recv(2048))
                slave.process(frame)
                frame[6] |= 2  # as each slave marks what it has processed
                wire.send(frame)
            except OSError:  # the cable is unplugged
                time.sleep(0.01)


if __name__ == "__main__":
    main()
