"""Measure the cost of a cycle with more loops in a process, shorter periods, and more records kept.

    python benchmarks/scaling.py [--seconds 2] [--pairs 3] [--json FILE]

The cost is the CPU time of the loop's thread per cycle, by the kernel's accounting (/proc/PID/task/TID/schedstat,
Documentation/scheduler/sched-stats.rst). Most of it is the sleep's system call and the wake-up. For start(), a snapshot
and stop() it is the CPU time of the ordinary threads for each loop. It includes the interrupts that wake the loops, and
these loops are therefore slow. The target is a flat cost: no more than the first of the row. Another loop keeps all
memory locked meanwhile. Needs SCHED_FIFO and locked memory.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from common import Claim, claim, exit_code, parser, print_claims, run_script, say, write_json

from rtloop import RTLoop, RtloopError

LOOPS = (1, 2, 4, 8, 16, 64)
PERIODS_US = (10_000, 1000, 100, 20, 10)
RECORDS = (10, 12, 14, 16, 18, 20, 22, 24)
PRIORITY = 80
#: Largest ratio that still counts as flat, with noise.
TARGET = 1.25


def threads() -> set[int]:
    """Return the thread ids of this process."""
    return {int(path.name) for path in Path("/proc/self/task").iterdir()}


def cpu_ns(tid: int) -> int:
    """Return the CPU time of a thread of this process, ns."""
    return int(Path(f"/proc/self/task/{tid}/schedstat").read_text().split()[0])


class Cost(NamedTuple):
    """CPU time of a cycle, ns; share of missed releases; CPU time of ordinary threads for each loop, ms."""

    cycle: float
    missed: float
    start: float
    snapshot: float
    stop: float


def ordinary_ms() -> float:
    """Return the CPU time of the threads that are not a loop's, ms."""
    used = 0
    for tid in threads():
        with suppress(OSError):  # it may have ended
            # The clock of the thread, pthread_getcpuclockid(3): schedstat of a running thread is that of its last tick.
            used += 0 if _is_loops(tid) else time.clock_gettime_ns((~tid << 3) | 6)
    return used / 1e6


def cost(count: int, period_us: int, records: int, seconds: float) -> Cost:
    """Return the cost of `count` loops."""
    used = [ordinary_ms()]
    with ExitStack() as stack:
        cpus = sorted(os.sched_getaffinity(0))
        before = threads()
        loops = [
            RTLoop(f"{period_us}us", priority=PRIORITY, cpu=cpus[i % len(cpus)], record=1 << records, name=f"scale {i}")
            for i in range(count)
        ]
        for loop in loops:
            stack.enter_context(loop)
        used.append(ordinary_ms())
        tids = [tid for tid in threads() - before if _is_loops(tid)]
        if len(tids) != count:
            raise ValueError(f"{len(tids)} threads for {count} loops")
        time.sleep(0.1)
        begin = sum(map(cpu_ns, tids)), [loop.stats for loop in loops]
        time.sleep(seconds)
        used.append(ordinary_ms())
        end = sum(map(cpu_ns, tids)), [loop.stats for loop in loops]
        used.append(ordinary_ms())
    cycles, missed = (
        sum(getattr(now, name) - getattr(then, name) for then, now in zip(begin[1], end[1], strict=True))
        for name in ("cycles", "missed")
    )
    ordinary = [(used[1] - used[0]) / count, (used[3] - used[2]) / count, (ordinary_ms() - used[3]) / count]
    return Cost((end[0] - begin[0]) / max(1, cycles), missed / max(1, cycles + missed), *ordinary)


def _is_loops(tid: int) -> bool:
    return os.sched_getparam(tid).sched_priority == PRIORITY


def row(name: str, costs: dict[str, list[Cost]]) -> list[Claim]:
    """Compare the costs of a row with its first."""
    first, *others = costs
    claims = [
        claim(
            f"a cycle, {label}", "ns", [one.cycle for one in costs[label]], first, [one.cycle for one in costs[first]],
            TARGET if name != "period" else None,
        )
        for label in others
    ]  # fmt: skip
    if name == "loops":
        last = others[-1]
        claims.append(claim(f"releases missed, {last}", "%", [100 * one.missed for one in costs[last]]))
    return claims


def control(costs: dict[str, list[Cost]]) -> list[Claim]:
    """Compare the cost of starting, reading and stopping a loop among many with that of one alone."""
    one, many = costs
    return [
        claim(f"{what} of a loop, {many}", "ms", [getattr(cost, what) for cost in costs[many]],
              one, [getattr(cost, what) for cost in costs[one]], TARGET)
        for what in ("start", "snapshot", "stop")
    ]  # fmt: skip


def main() -> int:
    arguments = parser(__doc__ or "", pairs=3, seconds=1.0).parse_args()
    seconds = arguments.seconds
    rows: dict[str, dict[str, tuple[int, int, int]]] = {
        "loops": {f"{n} loop{'s' * (n > 1)} of 1 kHz": (n, 1000, 12) for n in LOOPS},
        "control": {f"{n} loop{'s' * (n > 1)} of 20 Hz": (n, 50_000, 12) for n in (LOOPS[0], LOOPS[-1])},
        "period": {f"period {us:g} us": (1, us, 12) for us in PERIODS_US},
        "records": {f"2^{n} records": (1, 1000, n) for n in RECORDS},
    }
    found: dict[str, dict[str, list[Cost]]] = {name: {label: [] for label in cases} for name, cases in rows.items()}
    try:
        with RTLoop("10ms", priority=2, name="holds the memory locked"):
            cost(1, 1000, 10, 0.1)  # imports modules
            for _ in range(arguments.pairs):
                for name, cases in rows.items():
                    for label, case in cases.items():
                        say(f"{name}: {label}")
                        found[name][label].append(cost(*case, seconds))
    except (RtloopError, ValueError) as error:
        sys.exit(f"\n{error}")
    say("")
    claims = [
        made for name, costs in found.items() for made in (control(costs) if name == "control" else row(name, costs))
    ]
    print_claims("CPU time of a cycle, by loops, period and records", claims)
    write_json(arguments.json, benchmark="scaling", options=vars(arguments), costs=found, claims=claims)
    return exit_code(claims)


if __name__ == "__main__":
    run_script(main)
