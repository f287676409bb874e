"""Measure the cost of a cycle with more loops in a process, shorter periods, and more records kept.

    python benchmarks/scaling.py [--seconds 2] [--pairs 3] [--json FILE]

The cost is the CPU time of the loop's thread per cycle, by the kernel's accounting (/proc/PID/task/TID/schedstat,
Documentation/scheduler/sched-stats.rst). Most of it is the sleep's system call and the wake-up. The target is a flat
cost: no more than the first of the row. Needs SCHED_FIFO and locked memory.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from common import Claim, claim, exit_code, parser, print_claims, run_script, say, write_json

from rtloop import RTLoop, RtloopError

LOOPS = (1, 2, 4, 8, 16)
PERIODS_US = (10_000, 1000, 100, 20, 10)
RECORDS = (10, 12, 14, 16, 18, 20, 22, 24)
#: Largest ratio that still counts as flat, with noise.
TARGET = 1.25


def threads() -> set[int]:
    """Return the thread ids of this process."""
    return {int(path.name) for path in Path("/proc/self/task").iterdir()}


def cpu_ns(tid: int) -> int:
    """Return the CPU time of a thread of this process, ns."""
    return int(Path(f"/proc/self/task/{tid}/schedstat").read_text().split()[0])


def cost(count: int, period_us: int, records: int, seconds: float) -> float:
    """Return the CPU time of a cycle of `count` loops, ns."""
    with ExitStack() as stack:
        cpus = sorted(os.sched_getaffinity(0))
        before = threads()
        loops = [
            RTLoop(f"{period_us}us", priority=80, cpu=cpus[i % len(cpus)], record=1 << records, name=f"scale {i}")
            for i in range(count)
        ]
        for loop in loops:
            stack.enter_context(loop)
        tids = [tid for tid in threads() - before if _is_loops(tid)]
        if len(tids) != count:
            raise ValueError(f"{len(tids)} threads for {count} loops")
        time.sleep(0.1)
        begin = sum(map(cpu_ns, tids)), sum(loop.stats.cycles for loop in loops)
        time.sleep(seconds)
        end = sum(map(cpu_ns, tids)), sum(loop.stats.cycles for loop in loops)
    return (end[0] - begin[0]) / max(1, end[1] - begin[1])


def _is_loops(tid: int) -> bool:
    return os.sched_getscheduler(tid) & ~os.SCHED_RESET_ON_FORK == os.SCHED_FIFO


def row(name: str, costs: dict[str, list[float]]) -> list[Claim]:
    """Compare the costs of a row with its first."""
    labels = list(costs)
    return [
        claim(
            f"a cycle, {label}", "ns", costs[label], labels[0], costs[labels[0]], TARGET if name != "period" else None
        )
        for label in labels[1:]
    ]


def main() -> int:
    arguments = parser(__doc__ or "", pairs=3, seconds=1.0).parse_args()
    seconds = arguments.seconds
    rows: dict[str, dict[str, tuple[int, int, int]]] = {
        "loops": {f"{n} loop{'s' * (n > 1)} of 1 kHz": (n, 1000, 12) for n in LOOPS},
        "period": {f"period {us:g} us": (1, us, 12) for us in PERIODS_US},
        "records": {f"2^{n} records": (1, 1000, n) for n in RECORDS},
    }
    found: dict[str, dict[str, list[float]]] = {name: {label: [] for label in cases} for name, cases in rows.items()}
    try:
        for _ in range(arguments.pairs):
            for name, cases in rows.items():
                for label, case in cases.items():
                    say(f"{name}: {label}")
                    found[name][label].append(cost(*case, seconds))
    except (RtloopError, ValueError) as error:
        sys.exit(f"\n{error}")
    say("")
    claims = [made for name, costs in found.items() for made in row(name, costs)]
    print_claims("CPU time of a cycle, by loops, period and records", claims)
    write_json(arguments.json, benchmark="scaling", options=vars(arguments), ns=found, claims=claims)
    return exit_code(claims)


if __name__ == "__main__":
    run_script(main)
