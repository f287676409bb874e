"""Read a Franka robot's protocol off the loopback device: when each state and each command was sent, by the kernel."""

from __future__ import annotations

import socket
import struct
import time
from array import array
from typing import Any

import numpy as np
import numpy.typing as npt

from counterpart_rows._packets import PACKET_OUTGOING, Packets

STATE_BYTES, COMMAND_BYTES = 1377, 371
MODE, RATE = 1372, 1373
MOVE = 2
WINDOW = 100
ETH_P_IP = 0x0800


class Wire(Packets):
    """Record of the states and commands between a server's UDP port and its client; a context manager. Needs root."""

    def __init__(self) -> None:
        super().__init__("lo", ETH_P_IP, socket.SOCK_DGRAM)
        self.state_id, self.state_at, self.mode, self.rate = array("Q"), array("q"), array("B"), array("f")
        self.command_id, self.command_at = array("Q"), array("q")
        self.to_monotonic = time.monotonic_ns() - time.time_ns()

    def take(self, packet: bytes, at: int, address: tuple[Any, ...]) -> None:
        if address[2] == PACKET_OUTGOING or packet[9] != socket.IPPROTO_UDP:
            return
        begin = (packet[0] & 15) * 4 + 8
        size = len(packet) - begin
        if size not in (STATE_BYTES, COMMAND_BYTES):
            return
        (number,) = struct.unpack_from("<Q", packet, begin)
        if size == COMMAND_BYTES:
            self.command_id.append(number)
            self.command_at.append(at + self.to_monotonic)
        else:
            self.state_id.append(number)
            self.state_at.append(at + self.to_monotonic)
            self.mode.append(packet[begin + MODE])
            self.rate.append(struct.unpack_from("<f", packet, begin + RATE)[0])

    def cycles(self) -> Cycles:
        """Return what is known of every cycle that the referee has counted."""
        arrays = (self.state_id, self.state_at, self.mode, self.rate, self.command_id, self.command_at)
        return Cycles(*(np.array(one) for one in arrays))


class Cycles:
    """Cycles of all motions: what the referee counted, and what was on the wire.

    Attributes
    ----------
    kept : array of bool
        Whether the referee counted an answer, from the success rates in its states.
    in_time : array of bool
        Whether the answer was on the wire before the next state.
    at, until : array of int
        When the state, and the next one, were sent; ns on CLOCK_MONOTONIC.
    age : array of float
        From the state to its answer, us; without those that have none.
    lowest : float
        Lowest rate in a state, from the 100th of a motion on.
    """

    def __init__(
        self,
        state_id: npt.NDArray[Any],
        state_at: npt.NDArray[Any],
        mode: npt.NDArray[Any],
        rate: npt.NDArray[Any],
        command_id: npt.NDArray[Any],
        command_at: npt.NDArray[Any],
    ) -> None:
        answered = dict(zip(command_id.tolist()[::-1], command_at.tolist()[::-1], strict=True))  # the first of each
        kept: list[bool] = []
        numbers: list[int] = []
        self.lowest = 1.0
        self.motions = 0
        moving = np.flatnonzero((mode == MOVE) & (rate > 0))
        for motion in np.split(moving, np.flatnonzero(np.diff(moving) > 1) + 1) if len(moving) else []:
            self.motions += 1
            counted = received(rate[motion])
            if len(motion) >= WINDOW:
                self.lowest = min(self.lowest, float(rate[motion][WINDOW - 1 :].min()))
            # The rate in a state is about the cycle that the state before has begun.
            numbers += [index - 1 for index in motion.tolist()]
            kept += counted
        self.kept = np.array(kept, bool)
        place = np.array(numbers, int)
        self.at, self.until = state_at[place], state_at[place + 1]
        replies = np.array([answered.get(number, 0) for number in state_id[place].tolist()], "i8")
        self.in_time = (replies > 0) & (replies < self.until)
        self.age = (replies - self.at)[replies > 0] / 1000


def received(rates: npt.NDArray[Any]) -> list[bool]:
    """Return which cycles were answered, from the referee's rates over up to 100 cycles.

    Raises
    ------
    ValueError
        If no sequence of answered and lost cycles has these rates, because a state was not recorded.
    """
    found: list[bool] = []
    before = 0
    for number, rate in enumerate(rates.tolist()):
        now = round(rate * min(number + 1, WINDOW))
        new = now - before + (found[number - WINDOW] if number >= WINDOW else 0)
        if new not in (0, 1):
            raise ValueError(f"the rate of state {number} of a motion, {rate:.3f}, does not follow from those before")
        found.append(bool(new))
        before = now
    return found
