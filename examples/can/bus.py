"""Buses for python-can: on a CAN interface, or on a socket that carries SocketCAN's frames."""

import select
import socket
import struct

import can

FRAME = struct.Struct("=IB3x8s")  # struct can_frame of <linux/can.h>


class FrameBus(can.BusABC):
    """A bus on any socket, such as one of a socket.socketpair, where the kernel has no CAN."""

    def __init__(self, link: socket.socket) -> None:
        super().__init__(channel=link)
        self.link, self.channel_info = link, "frames on a socket"

    def send(self, msg: can.Message, timeout: float | None = None) -> None:
        identifier = msg.arbitration_id
        for is_set, flag in (
            (msg.is_extended_id, socket.CAN_EFF_FLAG),
            (msg.is_remote_frame, socket.CAN_RTR_FLAG),
            (msg.is_error_frame, socket.CAN_ERR_FLAG),
        ):
            identifier |= flag if is_set else 0
        self.link.send(FRAME.pack(identifier, msg.dlc, bytes(msg.data).ljust(8, b"\0")))

    def _recv_internal(self, timeout: float | None) -> tuple[can.Message | None, bool]:
        if not select.select([self.link], [], [], timeout)[0]:
            return None, False
        identifier, size, data = FRAME.unpack(self.link.recv(FRAME.size))
        return can.Message(
            arbitration_id=identifier & socket.CAN_EFF_MASK,
            is_extended_id=bool(identifier & socket.CAN_EFF_FLAG),
            is_remote_frame=bool(identifier & socket.CAN_RTR_FLAG),
            is_error_frame=bool(identifier & socket.CAN_ERR_FLAG),
            dlc=size,
            data=data[:size],
        ), False


def connect(link: str | socket.socket) -> can.BusABC:
    """Return a bus of python-can on a CAN interface, or on such a socket."""
    return can.Bus(interface="socketcan", channel=link) if isinstance(link, str) else FrameBus(link)
