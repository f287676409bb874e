"""Read packets off an interface, timestamped by the kernel."""

from __future__ import annotations

import socket
import struct
import threading
import time
from abc import ABC, abstractmethod
from typing import Any, Self

SO_TIMESTAMPNS, SO_RCVBUFFORCE, PACKET_OUTGOING = 35, 33, 4


class Packets(ABC):
    """Context manager that passes each packet of an interface to `take`, on a thread of its own. Needs root.

    Parameters
    ----------
    interface : str
        Its name.
    protocol : int
        Protocol of the packets, as in an Ethernet header; a socket of one protocol does not see what is sent.
    kind : socket.SocketKind
        SOCK_RAW for packets with their Ethernet header, SOCK_DGRAM for packets without.
    """

    def __init__(self, interface: str, protocol: int, kind: socket.SocketKind) -> None:
        self.socket = socket.socket(socket.AF_PACKET, kind, socket.htons(protocol))
        self.socket.bind((interface, protocol))
        self.socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 256 << 20)
        self.socket.settimeout(0.2)
        self.is_over = threading.Event()
        self.thread = threading.Thread(target=self.read, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        time.sleep(0.3)
        self.is_over.set()
        self.thread.join()
        self.socket.close()

    def read(self) -> None:
        while not self.is_over.is_set():
            try:
                packet, ancillary, _, address = self.socket.recvmsg(2048, 64)
            except TimeoutError:
                continue
            seconds, ns = struct.unpack("qq", ancillary[0][2])
            self.take(packet, seconds * 1_000_000_000 + ns, address)

    @abstractmethod
    def take(self, packet: bytes, at: int, address: tuple[Any, ...]) -> None:
        """Keep what is wanted of a packet that passed at `at`, ns since the epoch; `address` as in packet(7)."""
