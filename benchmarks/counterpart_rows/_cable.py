"""Record an EtherCAT bus: when each frame with process data was sent, and what came back, timestamped by the kernel."""

from __future__ import annotations

import socket
import struct
from array import array
from typing import Any

import numpy as np
import numpy.typing as npt

from counterpart_rows._packets import PACKET_OUTGOING, Packets

ETH_P_ALL, ETHERCAT = 3, 0x88A4
LRW = 12
WINDOW = 100


class Cable(Packets):
    """Context manager that records the frames at the master's end of a cable. Needs root."""

    def __init__(self, interface: str) -> None:
        super().__init__(interface, ETH_P_ALL, socket.SOCK_RAW)
        self.at, self.index, self.wkc = array("q"), array("B"), array("i")

    def take(self, packet: bytes, at: int, address: tuple[Any, ...]) -> None:
        if address[1] != ETHERCAT or len(packet) < 28 or packet[16] != LRW:
            return
        (size,) = struct.unpack_from("<H", packet, 22)
        (wkc,) = struct.unpack_from("<H", packet, 26 + (size & 0x7FF))
        self.at.append(at)
        self.index.append(packet[17])
        self.wkc.append(-1 if address[2] == PACKET_OUTGOING else wkc)

    def exchanges(self) -> Exchanges:
        """Return the recorded frames with process data."""
        return Exchanges(np.array(self.at, "i8"), np.array(self.index), np.array(self.wkc, "i4"))


class Exchanges:
    """Frames with process data, from the first with the full working counter to the last.

    Attributes
    ----------
    sent : array of int
        When each was sent, ns.
    is_valid : array of bool
        Whether it came back with the full working counter, before the next one was sent.
    expected : int
        The full working counter: the highest seen.
    """

    def __init__(self, at: npt.NDArray[Any], index: npt.NDArray[Any], wkc: npt.NDArray[Any]) -> None:
        out = np.flatnonzero(wkc < 0)
        self.expected = int(wkc.max(initial=0))
        valid = np.zeros(len(out), bool)
        for number, (begin, end) in enumerate(zip(out.tolist(), [*out[1:].tolist(), len(wkc)], strict=True)):
            back = slice(begin + 1, end)
            valid[number] = bool(((index[back] == index[begin]) & (wkc[back] == self.expected)).any())
        whole = np.flatnonzero(valid)
        part = slice(whole[0], whole[-1] + 1) if self.expected and len(whole) else slice(0, 0)
        self.sent, self.is_valid = at[out[part]], valid[part]

    def judge(self, period_ns: int) -> tuple[float, float, tuple[float, float, float]]:
        """Return the share of slots that were kept, the lowest share in any 100 slots, and how far frames were off, us.

        A slot is one period. It is kept if a frame was sent in the half period before or after its instant, and came
        back valid. The instants are a grid through the mean phase of all frames; a frame is off by its distance from
        the nearest: median, 99th percentile, maximum.
        """
        if not len(self.sent):
            return 0.0, 0.0, (np.nan,) * 3
        turns = np.exp(2j * np.pi * (self.sent % period_ns) / period_ns)
        phase = np.angle(turns.mean()) / (2 * np.pi) * period_ns
        slot, beyond = np.divmod(self.sent - self.sent[0] + (self.sent[0] - phase) % period_ns + period_ns // 2,
                                 period_ns)  # fmt: skip
        slot = (slot - slot[0]).astype("i8")
        kept = np.zeros(slot[-1] + 1, bool)
        kept[slot[self.is_valid]] = True
        window = min(WINDOW, len(kept))
        lowest = float(np.convolve(kept, np.ones(window) / window, "valid").min())
        p50, p99, most = (float(np.percentile(abs(beyond - period_ns // 2) / 1000, q)) for q in (50, 99, 100))
        return float(kept.mean()), lowest, (p50, p99, most)
