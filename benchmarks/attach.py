"""Compare the wake-up latency of a loop that another process reads with that of the same loop unread.

    python benchmarks/attach.py [--cpu 1] [--seconds 1] [--pairs 30] [--rows 10hz flat-out] [--json FILE]

One loop runs all the time, on a CPU of its own. Its statistics are reset for every slice, and the slices alternate. On
another CPU a process either reads the loop or does not: it finds the loop through /proc and reads, as `rtloop top`
does, the table's figures and the timestamps of the last 4096 cycles. The rows:

    10hz        reads ten times a second
    flat-out    reads without a pause
    busy        does not read but computes: the effect of an awake neighbour alone

A reader cannot make the loop wait, but it keeps a CPU awake, so flat-out is compared with busy. Needs SCHED_FIFO,
locked memory and two CPUs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from common import Claim, alternate, claim, exit_code, parser, print_claims, print_table, run_script, write_json
from latency import figures, format_ns

from rtloop import RTLoop, RtloopError

ALONE = "nobody"
LABELS = {"10hz": "10 Hz", "flat-out": "flat out", "busy": "busy process, no reader"}
PERCENTILES = (50, 99)
#: Largest ratio allowed between the percentiles of the watched and the unwatched loop.
TARGETS = {50: 1.05, 99: 1.10}

WATCHER = """
import os, select, sys, time
from rtloop.tools.top.sampler import Sampler
os.sched_setaffinity(0, {int(sys.argv[2])})
sampler, row, looks = Sampler(int(sys.argv[1])), "nobody", 0
while True:
    pause = {"nobody": None, "10hz": 0.1}.get(row, 0)
    if select.select([sys.stdin], [], [], pause)[0]:
        row = sys.stdin.readline().strip()  # before the answer, which may prompt the next line
        print(looks, flush=True)
        looks = 0
        if not row:
            break
    elif row == "busy":
        sum(i * i for i in range(1000))
    else:
        looks += len(sampler.sample(records=4096).rows)
"""

Runs = Mapping[str, Sequence[Mapping[str, float]]]


class Watcher:
    """Process on another CPU that reads the loops of this one, on command."""

    def __init__(self, cpu: int) -> None:
        command = [sys.executable, "-P", "-c", WATCHER, str(os.getpid()), str(cpu)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def watch(self, row: str) -> int:
        """Start watching as this row does, and return the number of readings in the previous row."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(row + "\n")
        line = self._process.stdout.readline()
        if not line:
            raise ValueError("the watching process has ended")
        return int(line)

    def end(self) -> None:
        """End the process."""
        self._process.communicate("\n", timeout=60)


def run_slice(asked: argparse.Namespace, loop: RTLoop, watcher: Watcher, row: str) -> dict[str, float]:
    """Measure the loop for one slice, watched as this row does."""
    watcher.watch(row)
    time.sleep(0.05)
    loop.reset_stats()
    time.sleep(asked.seconds)
    stats = loop.stats
    looks = watcher.watch(ALONE)
    if row in ("10hz", "flat-out") and not looks:
        raise ValueError(f"{row}: the watching process did not find the loop")
    faults = sum(stats.page_faults)
    return {**figures(stats.latency), "missed": stats.missed, "looks": looks, "page_faults": faults}


def make_claims(runs: Runs) -> list[Claim]:
    """Compare each watched loop with the unwatched one, and flat out with a busy process, pair by pair."""

    def us(row: str, q: int) -> list[float]:
        return [one[f"p{q}"] / 1000 for one in runs[row]]

    claims = []
    for row, label in LABELS.items():
        for q in PERCENTILES if row in runs else ():
            target = TARGETS[q] if row == "10hz" else None
            claims.append(claim(f"{label}, {q} %", "us", us(row, q), "unwatched", us(ALONE, q), target))
            if row == "flat-out" and "busy" in runs:
                claims.append(claim(f"{label}, {q} %", "us", us(row, q), "busy process", us("busy", q), TARGETS[q]))
    return claims


def make_rows(runs: Runs) -> list[list[str]]:
    """Return the medians over the runs."""
    rows = []
    for row, found in runs.items():
        p50, p99, longest, looks, faults = (
            [one[name] for one in found] for name in ("p50", "p99", "max", "looks", "page_faults")
        )
        shown = [format_ns(statistics.median(values)) for values in (p50, p99, longest)]
        rows.append([LABELS.get(row, "unwatched"), *shown, f"{statistics.median(looks):,.0f}", f"{sum(faults):g}"])
    return rows


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    options = parser(__doc__ or "", pairs=30, seconds=1.0, of="length of a slice")
    cpus = sorted(os.sched_getaffinity(0))
    options.add_argument("--interval", type=int, default=1000, metavar="US", help="the period, microseconds (1000)")
    options.add_argument("--priority", type=int, default=80, help="SCHED_FIFO priority (80)")
    options.add_argument("--cpu", type=int, default=cpus[-1], help=f"CPU of the loop ({cpus[-1]})")
    options.add_argument("--rows", nargs="+", choices=LABELS, default=list(LABELS), help="rows to measure (all)")
    asked = options.parse_args(arguments)
    others = [cpu for cpu in cpus if cpu != asked.cpu]
    if asked.cpu not in cpus or not others:
        options.error(f"--cpu {asked.cpu}: the loop and the watcher need a CPU each, out of {cpus}")
    if not 0 < asked.seconds <= 86400:
        options.error(f"--seconds {asked.seconds:g}: must be more than 0 and at most a day")
    if asked.interval < 10:
        options.error(f"--interval {asked.interval}: must be at least 10 us")
    asked.watcher_cpu = others[0]
    return asked


def main() -> None:
    asked = parse_options()
    rows = [ALONE, *(row for row in LABELS if row in asked.rows)]
    seconds = asked.pairs * len(rows) * (asked.seconds + 0.1)
    print(f"{asked.pairs} slices of each of {len(rows)}: about {seconds:.0f} s", file=sys.stderr, flush=True)
    watcher = Watcher(asked.watcher_cpu)
    try:
        with RTLoop(f"{asked.interval}us", cpu=asked.cpu, priority=asked.priority, name="watched") as loop:
            runs = alternate({row: lambda row=row: run_slice(asked, loop, watcher, row) for row in rows}, asked.pairs)
    except (RtloopError, ValueError) as error:
        sys.exit(f"\n{error}")
    finally:
        watcher.end()
    claims = make_claims(runs)
    title = f"Wake-up latency of a watched loop, {asked.pairs} slices of {asked.seconds:g} s each on CPU {asked.cpu}"
    heads = ["median of the slices", "50 %", "99 %", "max", "readings", "page faults"]
    print_table(title, heads, make_rows(runs))
    print()
    print_claims("Medians, and the median of the pairs' ratios", claims)
    write_json(asked.json, benchmark="attach", unit="ns", options=vars(asked), runs=runs, claims=claims)
    sys.exit(exit_code(claims))


if __name__ == "__main__":
    run_script(main)
