"""Run loops under every load at once, for any duration, with cyclictest beside them as the control.

    python benchmarks/soak.py [--duration 1min] [--json FILE]

A loop of 1 kHz and one of 5 kHz run together with all memory locked and the guards counting, while hackbench, memory,
fork, compaction and a busy Python thread load the machine. Each is the controller of examples/exchange: it reads its
parameters from a Latest, which a Python thread keeps writing, and pushes a record of each cycle into a Ring, which that
thread drains.

The table at the end has these columns for each loop: its cycles, missed releases and overruns; the page faults of the
run; the guards' counts in step (page faults, system calls, allocations); the records drained and dropped; conservation;
and the wake-up latency as a ratio to cyclictest's in the same minutes. Conservation means that cycles and missed
releases add up to the releases of the grid. The exit code is 1 if releases or records do not add up, a loop has failed,
the guards saw a system call or an allocation, or a page fault occurred that compaction does not explain. Latency does
not affect it.

Needs SCHED_FIFO, locked memory, Cython and a C compiler (for rtloop.build). If hackbench or cyclictest (apt install
rt-tests) is missing, it is left out, and the table shows it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from common import facts, print_table, run_script, say, writable

import rtloop
from rtloop import Histogram, RTLoop, Stats
from rtloop.machine.latency.cyclictest import run_cyclictest
from rtloop.machine.latency.load import Load
from rtloop.stats.findings import elapsed_releases
from rtloop.units import format_duration, parse_duration

LOOPS = {"1 kHz": "1ms", "5 kHz": "200us"}
LOADS = ("hackbench", "memory", "fork", "gil")
COMPACT, MAY_MOVE = Path("/proc/sys/vm/compact_memory"), Path("/proc/sys/vm/compact_unevictable_allowed")
CONTROL_NS = 1_000_000
PERCENTILES = (50, 99)
CONTROLLER = Path(__file__).parents[1] / "examples" / "exchange" / "exchange.pyx"
HEADS = ["loop", "cycles", "missed", "overruns", "page faults", "in step", "records", "dropped", "conserved",
         "p50/cyclictest", "p99/cyclictest"]  # fmt: skip


class Row(NamedTuple):
    """Result of one loop."""

    loop: str
    cycles: int
    missed: int
    overruns: int
    faults: int
    guard: dict[str, Any]
    records: int
    dropped: int
    conserved: bool
    state: str
    ratios: dict[str, float]

    @property
    def in_step(self) -> str:
        """Counts of the guards: page faults, system calls and allocations; a dash means not counted."""
        faults = self.guard["page_faults"]
        counts = (faults and sum(faults.values()), self.guard["system_calls"], self.guard["allocations"])
        return " ".join("-" if count is None else str(count) for count in counts)


def is_conserved(stats: Stats) -> bool:
    """Return True if every release from the first to the last was run or missed, and none twice."""
    elapsed = elapsed_releases(stats)
    return elapsed is not None and elapsed[0] <= stats.cycles + stats.missed <= elapsed[1]


def judge(rows: list[Row], *, may_move: bool) -> list[str]:
    """Return a sentence for each failure."""
    found = []
    for row in rows:
        if not row.conserved:
            found.append(f"{row.loop}: {row.cycles} cycles and {row.missed} missed releases are not those of the grid")
        if row.state != "stopped":
            found.append(f"{row.loop}: the loop has {row.state}")
        if row.records + row.dropped != row.cycles:
            found.append(f"{row.loop}: {row.records} records and {row.dropped} dropped are not {row.cycles} cycles")
        if row.faults and not may_move:
            found.append(f"{row.loop}: {row.faults} page faults, although nothing may move locked pages")
        for what in ("system_calls", "allocations"):
            if row.guard[what]:
                found.append(f"{row.loop}: {row.guard[what]} {what.replace('_', ' ')} in step")
    return found


@contextmanager
def compaction() -> Iterator[bool]:
    """Make the kernel compact memory every second; yield False if that is not permitted."""
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(1):
            COMPACT.write_text("1")

    try:
        COMPACT.write_text("1")
    except OSError:
        yield False
        return
    thread = threading.Thread(target=work, name="compaction", daemon=True)
    thread.start()
    try:
        yield True
    finally:
        stop.set()
        thread.join()


def control(duration_ns: int, into: list[Histogram]) -> None:
    """Run cyclictest for as long as the loops run."""
    into.append(run_cyclictest(period_ns=CONTROL_NS, cycles=max(1, duration_ns // CONTROL_NS), priority=79, cpu=0))


class Exchange:
    """Peer of the loops' Latest and Ring on an ordinary Python thread, with its usual delays."""

    def __init__(self, loops: dict[str, Any]) -> None:
        self.loops = loops
        self.records = dict.fromkeys(loops, 0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="exchange", daemon=True)

    def __enter__(self) -> Exchange:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.drain()

    def drain(self) -> None:
        """Drain the rings."""
        for name, loop in self.loops.items():
            self.records[name] += len(loop.log.drain())

    def _work(self) -> None:
        setpoint = 0.0
        while not self._stop.wait(0.05):
            setpoint = 0.1 - setpoint
            for loop in self.loops.values():
                loop.parameters.write((setpoint, 900.0, 60.0))
            self.drain()


def soak(duration_ns: int) -> tuple[list[Row], list[str]]:
    """Run everything; return a row for each loop, and the loads that ran."""
    controller: Any = rtloop.build(CONTROLLER).Follower
    loads: list[str] = []
    peer: list[Histogram] = []
    with ExitStack() as stack:
        for kind in LOADS:
            if kind == "hackbench" and shutil.which(kind) is None:
                continue
            stack.enter_context(Load(kind))
            loads.append(kind)
        if stack.enter_context(compaction()):
            loads.append("compaction")
        loops: dict[str, RTLoop] = {
            name: controller(period, priority=80 + index, guard="count", name=f"soak {name}")
            for index, (name, period) in enumerate(LOOPS.items())
        }
        exchange = stack.enter_context(Exchange(loops))
        for loop in loops.values():
            stack.enter_context(loop)
        beside = threading.Thread(target=control, args=(duration_ns, peer), daemon=True)
        if shutil.which("cyclictest"):
            beside.start()
        time.sleep(0.5)
        before = {name: sum(loop.stats.page_faults) for name, loop in loops.items()}
        end = time.monotonic_ns() + duration_ns
        while (left := end - time.monotonic_ns()) > 0:
            say(f"{format_duration(left, 0)} to go: " + ", ".join(f"{name} {loops[name].state}" for name in loops))
            time.sleep(min(1, left * 1e-9))
        for loop in loops.values():
            loop.stop("30s")  # some 200 processes compete for the CPU, and one may be moving a page that the loop needs
        say("")
        if beside.ident:
            beside.join(duration_ns * 1e-9 + 60)
    rows = []
    for name, loop in loops.items():
        stats = loop.stats
        ratios = {}
        for percent in PERCENTILES if peer else ():
            ratios[f"p{percent}"] = stats.latency.percentile(percent) / max(1, peer[0].percentile(percent))
        rows.append(
            Row(
                name, stats.cycles, stats.missed, stats.overruns, sum(stats.page_faults) - before[name], stats.guard,
                exchange.records[name], loop.log.dropped, is_conserved(stats), loop.state, ratios,
            )
        )  # fmt: skip
    return rows, loads


def main() -> int:
    """Run the soak, and print its table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--duration", default="1min", metavar="TIME", help='duration of the soak: "1min", "1h" (1min)')
    options.add_argument(
        "--json", type=writable, metavar="FILE", help="write the figures and the machine's facts here; - for stdout"
    )
    chosen = options.parse_args()
    rtloop.guard.reexec()  # so that allocations in step are counted as well
    duration = parse_duration(chosen.duration, "duration", minimum=1)
    rows, loads = soak(duration)
    may_move = "compaction" in loads and MAY_MOVE.exists() and MAY_MOVE.read_text().strip() != "0"
    to_stdout = chosen.json == "-"
    print_table(
        f"{format_duration(duration)} under {', '.join(loads)}",
        HEADS,
        [
            [
                row.loop, str(row.cycles), str(row.missed), str(row.overruns), str(row.faults), row.in_step,
                str(row.records), str(row.dropped), "yes" if row.conserved else "NO",
                *(f"{row.ratios[f'p{p}']:.2f}" if row.ratios else "-" for p in PERCENTILES),
            ]
            for row in rows
        ],
        file=sys.stderr if to_stdout else None,
    )  # fmt: skip
    print("in step: page faults, system calls and allocations counted by the guards", file=sys.stderr)
    failed = judge(rows, may_move=may_move)
    if may_move:
        print(
            "page faults are not judged: vm.compact_unevictable_allowed lets compaction move locked pages",
            file=sys.stderr,
        )
    for text in failed:
        print(text, file=sys.stderr)
    if chosen.json:
        said: dict[str, Any] = {
            "duration_ns": duration, "loads": loads, "may_move": may_move, "failed": failed,
            "loops": [row._asdict() for row in rows], "machine": facts(),
        }  # fmt: skip
        text = json.dumps(said, indent=1, default=str)
        print(text) if to_stdout else Path(chosen.json).write_text(text + "\n")
    return int(bool(failed))


if __name__ == "__main__":
    run_script(main)
