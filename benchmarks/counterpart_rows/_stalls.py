"""Stalls of the machine: wake-ups of cyclictest, at the loop's priority on each CPU, that came late."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time

import numpy as np
import numpy.typing as npt

LATE_US = 300
MARGIN_NS = 2_000_000
START_S = 1.0


class Stalls:
    """cyclictest beside a run: a context manager, and its late wake-ups afterwards.

    Attributes
    ----------
    spans : array, or None
        Begin and end of each, ns on CLOCK_MONOTONIC; None if there is no cyclictest.
    """

    def __init__(self, priority: int) -> None:
        self.priority, self.begin = priority, 0
        self.process: subprocess.Popen[str] | None = None
        self.spans: npt.NDArray[np.int64] | None = None

    def __enter__(self) -> Stalls:
        if shutil.which("cyclictest"):
            command = ["cyclictest", "-m", "-q", "-S", f"-p{self.priority}", "-i1000", "-d0", f"--spike={LATE_US}",
                       "--spike-nodes=200000"]  # fmt: skip
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            time.sleep(START_S)  # what comes late in its start is not a stall
        self.begin = time.monotonic_ns()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is None:
            return
        self.process.send_signal(signal.SIGINT)
        try:
            text = self.process.communicate(timeout=30)[0]
        finally:
            self.process.kill()
            self.process.wait()
        spans = spans_of(text)
        self.spans = spans[spans[:, 0] > self.begin]

    @property
    def longest_us(self) -> float:
        """Longest of them."""
        if self.spans is None or not len(self.spans):
            return 0.0
        return float((self.spans[:, 1] - self.spans[:, 0]).max() / 1000)

    def longer_than(self, seconds: float) -> list[tuple[float, float]]:
        """Return begin, s since the start, and length, ms, of those that are longer."""
        spans = [] if self.spans is None else self.spans.tolist()
        return [(round((begin - self.begin) / 1e9, 3), round((end - begin) / 1e6, 3))
                for begin, end in spans if end - begin > seconds * 1e9]  # fmt: skip

    def covers(self, begin: npt.NDArray[np.int64], end: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return for each of some spans whether it is within 2 ms of a stall."""
        if self.spans is None or not len(self.spans):
            return np.zeros(len(begin), bool)
        return np.array([bool(((self.spans[:, 0] < b + MARGIN_NS) & (self.spans[:, 1] > a - MARGIN_NS)).any())
                         for a, b in zip(begin.tolist(), end.tolist(), strict=True)], bool)  # fmt: skip


def spans_of(text: str) -> npt.NDArray[np.int64]:
    """Return begin and end of each late wake-up, ns, of what ``cyclictest --spike`` has printed."""
    found = re.findall(r"Spike: +(\d+): TS: +(\d+)", text)
    late = np.array([(int(us), int(at)) for us, at in found], "i8").reshape(-1, 2) * 1000
    return np.column_stack([late[:, 1] - late[:, 0], late[:, 1]])
