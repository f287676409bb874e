"""Control law of the demo in plain Python, paced as such loops usually are, for comparison with rtloop."""

from __future__ import annotations

import math
import resource
import socket
import struct
import time
from contextlib import ExitStack, suppress

from rtloop.demo.cartpole import GAINS

__all__ = ["PlainCartPole"]

STATE = struct.Struct("=qq4d")  # sequence, time_ns, x, v, angle, rate: State in cartpole.pxd
FORCE = struct.Struct("=qd")  # answers, newtons: Force in cartpole.pxd


class PlainCartPole:
    """``CartPole`` in plain Python: sleep until the release, take the newest state, answer with a force.

    The releases are absolute, so that the pace does not drift, and missed ones are skipped, as in the loop that it is
    compared with.

    Parameters
    ----------
    period_ns : int
        The time from one release to the next.
    plant : tuple
        Host and port of the plant.

    Attributes
    ----------
    records : list of tuple
        (release, start, end) of every cycle, in seconds of ``time.perf_counter``.
    missed : int
        Releases without a cycle.
    overruns : int
        Cycles that ended after the next release.
    duration : float
        Duration of the run, in seconds.
    worst_latency : float
        The largest wake-up latency so far, in seconds; counted after the warm-up cycles.
    angle : float
        The pole's angle as last received, in radians.
    page_faults : tuple of int
        Minor and major page faults of the loop's thread after the warm-up cycles.
    """

    def __init__(self, period_ns: int, *, plant: tuple[str, int], warmup: int = 10) -> None:
        self.records: list[tuple[float, float, float]] = []
        self.missed = 0
        self.overruns = 0
        self.duration = 0.0
        self.worst_latency = 0.0
        self.angle = 0.0
        self.page_faults = (0, 0)
        self._period = period_ns / 1e9
        self._plant = plant
        self._warmup = warmup
        self._stop = False
        self._state = (0, 0, 0.0, 0.0, 0.0, 0.0)

    def run(self, seconds: float) -> None:
        """Run the loop for a duration in the calling thread."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, ExitStack() as stack:
            sock.setblocking(False)
            sock.connect(self._plant)
            stack.callback(self._leave, sock)
            faults = (0, 0)
            releases = math.ceil(seconds / self._period - 1e-9)
            begin = time.perf_counter()
            first = begin + self._period
            number = 0
            while number < releases and not self._stop:
                release = first + number * self._period
                delay = release - time.perf_counter()
                if delay > 0:
                    time.sleep(delay)
                start = time.perf_counter()
                self._step(sock)
                end = time.perf_counter()

                self.records.append((release, start, end))
                if len(self.records) > self._warmup:
                    self.worst_latency = max(self.worst_latency, start - release)
                elif len(self.records) == self._warmup:
                    faults = _page_faults()
                number += 1
                late = end - (first + number * self._period)
                if late > 0:  # skip missed releases, keep the grid
                    self.overruns += 1
                    dropped = min(math.ceil(late / self._period), releases - number)
                    self.missed += dropped
                    number += dropped
            self.duration = time.perf_counter() - begin
            minor, major = _page_faults()
            self.page_faults = (minor - faults[0], major - faults[1])

    def _step(self, sock: socket.socket) -> None:
        with suppress(BlockingIOError):
            for _ in range(1024):  # drain the queue, bounded: it holds fewer, and only the newest state counts
                self._state = STATE.unpack(sock.recv(STATE.size))
        _, answers, x, v, self.angle, rate = self._state
        newtons = GAINS[0] * x + GAINS[1] * v + GAINS[2] * self.angle + GAINS[3] * rate
        with suppress(BlockingIOError):
            sock.send(FORCE.pack(answers, newtons))

    def _leave(self, sock: socket.socket) -> None:
        """Take the force away, however the loop ended."""
        with suppress(OSError):
            sock.send(FORCE.pack(self._state[1], 0.0))

    def stop(self) -> None:
        """Make ``run`` return after the cycle that it is in."""
        self._stop = True


def _page_faults() -> tuple[int, int]:
    usage = resource.getrusage(resource.RUSAGE_THREAD)
    return usage.ru_minflt, usage.ru_majflt
