"""Loops on a grid of releases: the plain Python loop of a counterpart's user, and the figures of either side."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from counterpart_rows import Figures

PERIOD_NS = 1_000_000
PRIORITY = 80
WINDOW = 100
KEPT = "a step counts if it has ended before the next release"


def run_in_python(step: Callable[[], object], seconds: float) -> list[tuple[int, int]]:
    """Call a step at each release, as a careful Python program does; return each release with the end of its step.

    It sleeps to absolute releases, drops those that have passed, and has the real-time priority of the other side.
    """
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    cycles: list[tuple[int, int]] = []
    begin = time.monotonic_ns()
    release = begin + PERIOD_NS
    while release < begin + seconds * 1e9:
        left = release - time.monotonic_ns()
        if left > 0:
            time.sleep(left * 1e-9)
        step()
        now = time.monotonic_ns()
        cycles.append((release, now))
        release += PERIOD_NS * max(1, 1 + (now - release) // PERIOD_NS)
    return cycles


def run_in_rtloop(loop: Any, seconds: float) -> list[tuple[int, int]]:
    """Run a loop, which keeps a record of every cycle, in the same way."""
    records = loop.run(round(seconds * 1e9)).records
    return list(zip(records["release"].tolist(), records["end"].tolist(), strict=True))


def judge(cycles: list[tuple[int, int]], facts: dict[str, Any], period_ns: int = PERIOD_NS) -> Figures:
    """Return the figures of a run.

    A side that has a grid of its own gives the begin of each cycle as its release, which is rounded to that grid.
    """
    begin, end = np.array(cycles, "i8").T
    release = begin[0] + (begin - begin[0] + period_ns // 2) // period_ns * period_ns
    number = (release - release[0]) // period_ns
    kept: npt.NDArray[np.bool_] = np.zeros(number[-1] + 1, bool)
    kept[number[end <= release + period_ns]] = True
    window = min(WINDOW, len(kept))
    lowest = np.convolve(kept, np.ones(window) / window, "valid").min()
    ages = (end - begin) / 1000
    p50, p99, most = (float(np.percentile(ages, q)) for q in (50, 99, 100))
    return Figures(float(kept.mean()), float(lowest), (p50, p99, most), facts)
