"""Compare the wake-up latency of an empty loop with those of cyclictest and jitterdebugger.

    python benchmarks/latency.py [--cpu 1] [--seconds 10] [--pairs 5] [--rows rtloop spin] [--json FILE]

All sleep to absolute releases on CLOCK_MONOTONIC, at the same priority, on the same CPU, with memory locked and
/dev/cpu_dma_latency at 0, and run in turn. rtloop's figures exclude the 10 cycles of its warm-up. The rows:

    rtloop      a loop that sleeps to its release, as cyclictest does
    spin        a loop with spin="auto"
    hog         as rtloop, beside a busy Python thread in the same process
    spin-hog    as spin, beside the same busy thread

The busy thread stays on the loop's CPU, so that each wake-up preempts it. Left to the kernel, it is on another CPU more
often beside cyclictest than beside a loop, and the CPU that it is on changes the median by a tenth. So the hog rows are
compared with a cyclictest beside the same thread. The first two are also compared with jitterdebugger. The table shows
the share of a CPU that the process took, which is the cost of spinning. Needs SCHED_FIFO, locked memory and cyclictest
(apt install rt-tests); if jitterdebugger is missing, it is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from common import (
    Claim,
    alternate,
    busy_python_thread,
    claim,
    exit_code,
    need,
    parser,
    print_claims,
    print_table,
    run_script,
    write_json,
)

from rtloop import Histogram, RTLoop, RtloopError
from rtloop.machine.latency.cyclictest import run_cyclictest

PEER, PEER_HOG, OTHER = "cyclictest", "cyclictest, busy thread", "jitterdebugger"
LABELS = {
    "rtloop": "rtloop",
    "spin": 'rtloop, spin="auto"',
    "hog": "rtloop, busy thread",
    "spin-hog": 'rtloop, spin="auto", busy thread',
}
PERCENTILES = (50, 99)
#: Largest ratios allowed between a loop's percentiles and the peer's: parity plus 5 % for noise; then those with spin.
TARGETS = {50: 1.05, 99: 1.05}
SPIN_TARGETS = {50: 0.02, 99: 0.5}

Runs = Mapping[str, Sequence[Mapping[str, float]]]


def figures(latency: Histogram) -> dict[str, float]:
    """Return the figures of one run, ns."""
    return {"count": latency.count, **{f"p{q}": latency.percentile(q) for q in PERCENTILES}, "max": latency.max}


def company(asked: argparse.Namespace, row: str) -> AbstractContextManager[None]:
    """Return a context manager that runs the load of a row: a busy Python thread on the loop's CPU, or nothing."""
    return busy_python_thread(asked.cpu) if row.endswith("hog") else nullcontext()


def count_cycles(asked: argparse.Namespace) -> int:
    """Return the number of cycles of a run, which is more than the warm-up."""
    return max(20, round(asked.seconds * 1e6 / asked.interval))


def run_peer(asked: argparse.Namespace, row: str) -> dict[str, float]:
    """Run cyclictest once."""
    with company(asked, row):
        latency = run_cyclictest(
            period_ns=asked.interval * 1000, cycles=count_cycles(asked), priority=asked.priority, cpu=asked.cpu
        )
    return figures(latency)


def run_jitterdebugger(asked: argparse.Namespace) -> dict[str, float]:
    """Run jitterdebugger once, with one thread on one CPU, and return ns."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            OTHER, "-N", "-i", str(asked.interval), "-l", str(count_cycles(asked)), "-p", str(asked.priority),
            "-a", str(asked.cpu), "-o", folder,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=2 * asked.seconds + 30)
        results = Path(folder, "results.json")
        if done.returncode or not results.exists():
            raise ValueError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
        return figures(parse_jitterdebugger(results.read_text()))


def parse_jitterdebugger(text: str) -> Histogram:
    """Parse jitterdebugger's histogram of its one CPU.

    Raises
    ------
    ValueError
        If the text does not have the histogram of exactly one CPU.
    """
    cpus = json.loads(text).get("cpu", {})
    if len(cpus) != 1:
        raise ValueError(f"{OTHER} measured {len(cpus)} CPUs, not one")
    (found,) = cpus.values()
    return Histogram.from_values([int(ns) for ns, count in found["histogram"].items() for _ in range(count)])


def run_rtloop(asked: argparse.Namespace, row: str) -> dict[str, float]:
    """Run a loop with an empty step once."""
    loop = RTLoop(
        f"{asked.interval}us", cpu=asked.cpu, priority=asked.priority, name=row,
        spin="auto" if row.startswith("spin") else 0,
    )  # fmt: skip
    with company(asked, row):
        before, begin = time.process_time(), time.monotonic()
        stats = loop.run(cycles=count_cycles(asked))
        share = (time.process_time() - before) / (time.monotonic() - begin)
    return {**figures(stats.latency), "missed": stats.missed, "overruns": stats.overruns, "cpu_share": share}


def make_claims(runs: Runs) -> list[Claim]:
    """Compare every row with cyclictest under the same load, pair by pair, and the first two with jitterdebugger."""
    claims = []
    for row, label in LABELS.items():
        targets = SPIN_TARGETS if row.startswith("spin") else TARGETS
        for peer in (PEER_HOG if row.endswith("hog") else PEER, *([OTHER] if row in ("rtloop", "spin") else [])):
            for q in PERCENTILES if label in runs and peer in runs else ():
                ours, theirs = ([one[f"p{q}"] / 1000 for one in runs[name]] for name in (label, peer))
                claims.append(claim(f"{label}, {q} %", "us", ours, peer, theirs, targets[q]))
    return claims


def format_ns(ns: float) -> str:
    """Format a duration in a suitable unit, with three significant digits."""
    for scale, unit in ((1e6, "ms"), (1e3, "us")):
        if ns >= scale:
            return f"{ns / scale:.3g} {unit}" if ns < 1000 * scale else f"{ns / scale:.0f} {unit}"
    return f"{ns:.0f} ns"


def make_rows(runs: Runs) -> list[list[str]]:
    """Return the medians over the runs, and the smallest and largest 50 %."""
    rows = []
    for label, found in runs.items():
        p50, p99, longest = ([one[name] for one in found] for name in ("p50", "p99", "max"))
        shown = [statistics.median(p50), min(p50), max(p50), statistics.median(p99), statistics.median(longest)]
        shares = [one["cpu_share"] for one in found if "cpu_share" in one and "busy" not in label]
        rows.append([label, *map(format_ns, shown), f"{statistics.median(shares):.1%}" if shares else "-"])
    return rows


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    options = parser(__doc__ or "", seconds=10.0)
    cpus = sorted(os.sched_getaffinity(0))
    options.add_argument("--interval", type=int, default=1000, metavar="US", help="the period, microseconds (1000)")
    options.add_argument("--priority", type=int, default=80, help="SCHED_FIFO priority for all (80)")
    options.add_argument("--cpu", type=int, default=cpus[-1], help=f"CPU for all ({cpus[-1]})")
    options.add_argument("--rows", nargs="+", choices=LABELS, default=list(LABELS), help="rows to measure (all)")
    asked = options.parse_args(arguments)
    if asked.cpu not in cpus:
        options.error(f"--cpu {asked.cpu}: this process may run on {', '.join(map(str, cpus))}")
    if not 0 < asked.seconds <= 86400:
        options.error(f"--seconds {asked.seconds:g}: must be more than 0 and at most a day")
    if asked.interval < 10:
        options.error(f"--interval {asked.interval}: must be at least 10 us")
    return asked


def main() -> None:
    asked = parse_options()
    need("cyclictest", "rt-tests")
    sides = {PEER: lambda: run_peer(asked, "")}
    if shutil.which(OTHER):
        sides[OTHER] = lambda: run_jitterdebugger(asked)
    else:
        print(f"not measured: {OTHER} is not installed; fix: sudo apt install {OTHER}", file=sys.stderr)
    for row in dict.fromkeys(asked.rows):
        if row.endswith("hog"):
            sides.setdefault(PEER_HOG, lambda: run_peer(asked, "hog"))
        sides[LABELS[row]] = lambda row=row: run_rtloop(asked, row)
    print(
        f"{asked.pairs} runs of each of {len(sides)}: about {asked.pairs * len(sides) * (asked.seconds + 1):.0f} s",
        file=sys.stderr,
        flush=True,
    )
    try:
        runs = alternate(sides, asked.pairs)
    except (RtloopError, ValueError) as error:
        sys.exit(f"\n{error}")
    claims = make_claims(runs)
    title = f"Wake-up latency, {asked.pairs} runs of {asked.seconds:g} s on CPU {asked.cpu}"
    print_table(title, ["median of the runs", "50 %", "(min", "max)", "99 %", "max", "CPU"], make_rows(runs))
    print()
    print_claims("Comparison: medians, and the median of the pairs' ratios", claims)
    write_json(asked.json, benchmark="latency", unit="ns", options=vars(asked), runs=runs, claims=claims)
    sys.exit(exit_code(claims))


if __name__ == "__main__":
    run_script(main)
