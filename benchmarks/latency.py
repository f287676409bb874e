"""Wake-up latency of an empty loop beside that of cyclictest, the kernel developers' own measure.

    python benchmarks/latency.py [--cpu 1] [--seconds 10] [--pairs 5] [--rows rtloop spin] [--json FILE]

Both sleep to absolute releases on CLOCK_MONOTONIC, at the same priority, on the same CPU, with memory locked and
/dev/cpu_dma_latency at 0, and run in turn. rtloop's figures leave out the 10 cycles of its warm-up. The rows:

    rtloop      a loop that sleeps to its release, as cyclictest does
    spin        the same with spin="auto"
    hog         the first one beside a Python thread that never rests, in the same process
    spin-hog    both

The thread keeps a CPU awake, which helps whoever sleeps there: the rows beside it are compared with a cyclictest beside
it. Needs SCHED_FIFO, locked memory and cyclictest (apt install rt-tests).
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

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
    write_json,
)

from rtloop import Histogram, RTLoop, RtloopError

PEER, PEER_HOG = "cyclictest", "cyclictest, busy thread"
LABELS = {
    "rtloop": "rtloop",
    "spin": 'rtloop, spin="auto"',
    "hog": "rtloop, busy thread",
    "spin-hog": 'rtloop, spin="auto", busy thread',
}
PERCENTILES = (50, 99)
#: The most that the median of a loop without spin may be, in those of cyclictest.
TARGET = 1.15
#: The most that the median of a loop with spin may be, microseconds, whatever cyclictest does.
SPIN_TARGET_US = 1.0
#: cyclictest's histogram ends here, in ns; what is beyond it is only counted.
PEER_LIMIT_NS = 1_000_000

Runs = Mapping[str, Sequence[Mapping[str, float]]]


def parse_cyclictest(text: str) -> Histogram:
    """Return what ``cyclictest -q -N -h`` printed as a histogram; what overflowed its own is in the last bin.

    Raises
    ------
    ValueError
        Where there is no histogram of one thread in it.
    """
    bins = [(int(ns), int(count)) for ns, count in re.findall(r"^(\d+)[ \t]+(\d+)[ \t]*$", text, re.MULTILINE)]
    found = re.findall(r"^# (Max Latencies|Histogram Overflows): +(\d+)\s*$", text, re.MULTILINE)
    end = {key: int(value) for key, value in found}
    if not any(count for _, count in bins) or len(end) != 2:
        raise ValueError(f"no histogram of one thread in what {PEER} printed: {text[-300:]!r}")
    values: list[int] = []
    for ns, count in bins:
        values += [ns] * count
    values += [max(end["Max Latencies"], PEER_LIMIT_NS)] * end["Histogram Overflows"]
    return Histogram.from_values(values)


def figures(latency: Histogram) -> dict[str, float]:
    """Return the figures of one run, ns."""
    return {"count": latency.count, **{f"p{q}": latency.percentile(q) for q in PERCENTILES}, "max": latency.max}


def company(row: str) -> AbstractContextManager[None]:
    """Return what runs beside a row: a busy Python thread, or nothing."""
    return busy_python_thread() if row.endswith("hog") else nullcontext()


def count_cycles(asked: argparse.Namespace) -> int:
    """Return how many cycles a run has: more than the warm-up."""
    return max(20, round(asked.seconds * 1e6 / asked.interval))


def run_cyclictest(asked: argparse.Namespace, program: str, row: str) -> dict[str, float]:
    """Run cyclictest once."""
    command = [
        program, "-m", "-p", str(asked.priority), "-i", str(asked.interval), "-a", str(asked.cpu), "-t", "1",
        "-q", "-N", "-h", str(PEER_LIMIT_NS), "-l", str(count_cycles(asked)),
    ]  # fmt: skip
    with company(row):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=2 * asked.seconds + 30)
    if done.returncode:
        said = done.stderr.strip() or done.stdout[-300:]
        raise ValueError(f"{' '.join(command)} ended with {done.returncode}: {said}")
    return figures(parse_cyclictest(done.stdout))


def run_rtloop(asked: argparse.Namespace, row: str) -> dict[str, float]:
    """Run a loop once whose step does nothing."""
    loop = RTLoop(
        f"{asked.interval}us", cpu=asked.cpu, priority=asked.priority, name=row,
        spin="auto" if row.startswith("spin") else 0,
    )  # fmt: skip
    with company(row):
        stats = loop.run(cycles=count_cycles(asked))
    return {**figures(stats.latency), "missed": stats.missed, "overruns": stats.overruns}


def make_claims(runs: Runs) -> list[Claim]:
    """Compare every row with the cyclictest that had the same company, pair by pair."""
    claims = []
    for row, label in LABELS.items():
        peer = PEER_HOG if row.endswith("hog") else PEER
        for q in PERCENTILES if label in runs else ():
            ours, theirs = ([one[f"p{q}"] / 1000 for one in runs[name]] for name in (label, peer))
            target = TARGET if q == 50 and not row.startswith("spin") else None
            claims.append(claim(f"{label}, {q} %", "us", ours, peer, theirs, target))
            if q == 50 and row.startswith("spin"):
                claims.append(claim(f"{label}, 50 %, by itself", "us", ours, target=SPIN_TARGET_US))
    return claims


def format_ns(ns: float) -> str:
    """Write a duration in the unit that fits, with three significant digits."""
    for scale, unit in ((1e6, "ms"), (1e3, "us")):
        if ns >= scale:
            return f"{ns / scale:.3g} {unit}" if ns < 1000 * scale else f"{ns / scale:.0f} {unit}"
    return f"{ns:.0f} ns"


def make_rows(runs: Runs) -> list[list[str]]:
    """Return the medians over the runs, and the least and the greatest 50 %."""
    rows = []
    for label, found in runs.items():
        p50, p99, longest = ([one[name] for one in found] for name in ("p50", "p99", "max"))
        shown = [statistics.median(p50), min(p50), max(p50), statistics.median(p99), statistics.median(longest)]
        rows.append([label, *map(format_ns, shown)])
    return rows


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    options = parser(__doc__ or "")
    cpus = sorted(os.sched_getaffinity(0))
    options.add_argument("--seconds", type=float, default=10.0, help="how long each run takes (10)")
    options.add_argument("--interval", type=int, default=1000, metavar="US", help="the period, microseconds (1000)")
    options.add_argument("--priority", type=int, default=80, help="of SCHED_FIFO, for both (80)")
    options.add_argument("--cpu", type=int, default=cpus[-1], help=f"where both run ({cpus[-1]})")
    options.add_argument("--rows", nargs="+", choices=LABELS, default=list(LABELS), help="what is measured (all)")
    asked = options.parse_args(arguments)
    if asked.cpu not in cpus:
        options.error(f"--cpu {asked.cpu}: this process may run on {', '.join(map(str, cpus))}")
    if not 0 < asked.seconds <= 86400:
        options.error(f"--seconds {asked.seconds:g}: must be more than 0, and no more than a day")
    if asked.interval < 10:
        options.error(f"--interval {asked.interval}: must be at least 10 us")
    return asked


def main() -> None:
    asked = parse_options()
    program = need("cyclictest", "rt-tests")
    sides = {PEER: lambda: run_cyclictest(asked, program, "")}
    for row in dict.fromkeys(asked.rows):
        if row.endswith("hog"):
            sides.setdefault(PEER_HOG, lambda: run_cyclictest(asked, program, "hog"))
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
    except KeyboardInterrupt:
        sys.exit(130)
    claims = make_claims(runs)
    out = sys.stderr if asked.json == "-" else sys.stdout  # a document on stdout stands alone
    title = f"Wake-up latency, {asked.pairs} runs of {asked.seconds:g} s on CPU {asked.cpu}"
    print_table(title, ["median of the runs", "50 %", "(least", "greatest)", "99 %", "max"], make_rows(runs), file=out)
    print(file=out)
    print_claims("Beside cyclictest: medians, and the median of the pairs' ratios", claims, file=out)
    write_json(asked.json, benchmark="latency", unit="ns", options=vars(asked), runs=runs, claims=claims)
    sys.exit(exit_code(claims))


if __name__ == "__main__":
    main()
