"""Runs of cyclictest, the kernel developers' own tool (rt-tests), and its output as a histogram."""

from __future__ import annotations

import re
import shutil
import subprocess

from rtloop.errors import RtloopError
from rtloop.stats.histogram import Histogram

__all__ = ["find_cyclictest", "parse_cyclictest", "run_cyclictest"]

#: End of cyclictest's own histogram, ns; beyond it values are only counted.
LIMIT_NS = 1_000_000


def find_cyclictest() -> str:
    """Return its path.

    Raises
    ------
    RtloopError
        If it is not installed.
    """
    path = shutil.which("cyclictest")
    if path is None:
        raise RtloopError("cyclictest is not installed, so there is nothing to compare with: sudo apt install rt-tests")
    return path


def parse_cyclictest(text: str) -> Histogram:
    """Read the output of ``cyclictest -q -N -h`` as a histogram.

    Only the number and the largest of the values beyond its own histogram are known: the others count as the least
    possible.

    Raises
    ------
    ValueError
        If it does not contain the histogram of one thread.
    """
    bins = [(int(ns), int(count)) for ns, count in re.findall(r"^(\d+)[ \t]+(\d+)[ \t]*$", text, re.MULTILINE)]
    found = re.findall(r"^# (Max Latencies|Histogram Overflows): +(\d+)\s*$", text, re.MULTILINE)
    end = {key: int(value) for key, value in found}
    if not any(count for _, count in bins) or len(end) != 2:
        raise ValueError(f"no histogram of one thread in what cyclictest printed: {text[-300:]!r}")
    values: list[int] = []
    for ns, count in bins:
        values += [ns] * count
    overflows = end["Histogram Overflows"]
    values += [LIMIT_NS] * (overflows - 1) + [max(end["Max Latencies"], LIMIT_NS)] * (overflows > 0)
    return Histogram.from_values(values)


def run_cyclictest(*, period_ns: int, cycles: int, priority: int, cpu: int, program: str | None = None) -> Histogram:
    """Run one thread of cyclictest, with all memory locked, on one CPU.

    Parameters
    ----------
    period_ns : int
        The period, a multiple of 1000.
    cycles, priority, cpu : int
        Number of cycles, priority under SCHED_FIFO, CPU.
    program : str, optional
        Its path; found by default.

    Raises
    ------
    RtloopError
        If it is not installed, or fails.
    """
    command = [
        program or find_cyclictest(), "-m", "-p", str(priority), "-i", str(period_ns // 1000), "-a", str(cpu),
        "-t", "1", "-q", "-N", "-h", str(LIMIT_NS), "-l", str(cycles),
    ]  # fmt: skip
    limit = 2 * cycles * period_ns * 1e-9 + 30
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
    if done.returncode:
        said = done.stderr.strip() or done.stdout[-300:]
        raise RtloopError(f"{' '.join(command)} ended with {done.returncode}: {said}")
    try:
        return parse_cyclictest(done.stdout)
    except ValueError as error:
        raise RtloopError(str(error)) from None
