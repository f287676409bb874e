"""Count who runs on a CPU while a loop runs there: each switch of the scheduler, by thread; run as root.

    python tenants.py --cpu 3 [--cycles N] [--period 10ms] [--json]

A thread is the loop's, one of the program's own, one that the kernel has bound to that CPU, or another one. 0 of the
last kind is what an isolation promises.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import rtloop
from rtloop.machine.isolation.kernel import Kernel

TRACING = Path("/sys/kernel/tracing")
#: By the thread that stops running, because not every kernel traces what happens in its idle thread.
_SWITCH = re.compile(r"sched_switch: prev_comm=(.*) prev_pid=(\d+) prev_prio=")
#: Kinds of threads, in the order of the table.
KINDS = ("loop", "program", "bound", "other")


class Switches:
    """A trace of the scheduler's switches on one CPU, in an instance of its own."""

    def __init__(self, cpu: int) -> None:
        self.cpu, self.folder = cpu, TRACING / "instances" / f"rtloop-tenants-{os.getpid()}"

    def __enter__(self) -> Switches:
        self.folder.mkdir()
        try:
            (self.folder / "trace_clock").write_text("mono")
            (self.folder / "tracing_cpumask").write_text(f"{1 << self.cpu:x}")
            (self.folder / "buffer_size_kb").write_text("8192")
            (self.folder / "events" / "sched" / "sched_switch" / "enable").write_text("1")
        except BaseException:
            self.folder.rmdir()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.folder.rmdir()

    def stop(self) -> Counter[tuple[int, str]]:
        """Stop, and return how often each thread ran until a switch."""
        (self.folder / "events" / "sched" / "sched_switch" / "enable").write_text("0")
        statistics = (self.folder / "per_cpu" / f"cpu{self.cpu}" / "stats").read_text()
        lost = re.search(r"^overrun: (\d+)", statistics, re.MULTILINE)
        if lost is None or int(lost[1]):
            raise RuntimeError(f"the trace is not complete: {lost and lost[0]}")
        found: Counter[tuple[int, str]] = Counter()
        with (self.folder / "per_cpu" / f"cpu{self.cpu}" / "trace").open() as lines:
            for line in lines:
                if match := _SWITCH.search(line):
                    found[int(match[2]), match[1]] += 1
        return found


def kind_of(tid: int, loop: int, bound: set[int]) -> str:
    """Return the kind of a thread; empty for the idle one."""
    if tid == 0:
        return ""
    if tid == loop:
        return "loop"
    if os.path.exists(f"/proc/self/task/{tid}"):
        return "program"
    return "bound" if tid in bound else "other"


def measure(cpu: int, cycles: int, period: str) -> dict[str, Any]:
    """Run a loop on a CPU; return its figures and how often threads of each kind ran."""
    loop = rtloop.RTLoop(period, cpu=cpu, name="tenant", overrun="skip")
    with Switches(cpu) as switches:
        with loop:
            tid = next(int(name) for name in os.listdir("/proc/self/task") if is_named(int(name), "tenant"))
            while loop.stats.cycles < cycles:
                time.sleep(0.2)
            counts = switches.stop()
            threads = list(Kernel().threads())
        bound = {thread.tid for thread in threads if thread.is_kernel and thread.cpus == (cpu,)}
        kinds: Counter[str] = Counter()
        others: Counter[str] = Counter()
        for (number, name), count in counts.items():
            kind = kind_of(number, tid, bound)
            kinds[kind] += count
            if kind == "other":
                others[name] += count
    stats = loop.stats
    return {
        "cycles": stats.cycles, "max_us": stats.latency.max_ns / 1e3, "p99_us": stats.latency.p99_ns / 1e3,
        "involuntary": stats.context_switches[1],
        **{kind: kinds[kind] for kind in KINDS}, "others": dict(others.most_common(8)),
    }  # fmt: skip


def is_named(tid: int, name: str) -> bool:
    try:
        return Path(f"/proc/self/task/{tid}/comm").read_text().strip().startswith(name)
    except OSError:
        return False


def cyclictest(cpu: int, cycles: int) -> dict[str, int]:
    """Run cyclictest on a CPU; return its largest latency in microseconds, if this machine has it."""
    if shutil.which("cyclictest") is None:
        return {}
    command = ["cyclictest", "-q", "-m", "-p", "80", "-t", "1", "-a", str(cpu), "-i", "10000", "-l", str(cycles)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    match = re.search(r"Max:\s*(\d+)", output)
    return {"cyclictest_max_us": int(match[1])} if match else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", type=int, required=True)
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--period", default="10ms")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    arguments = parser.parse_args()
    found = measure(arguments.cpu, arguments.cycles, arguments.period) | cyclictest(arguments.cpu, arguments.cycles)
    if arguments.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:<18} {value}")


if __name__ == "__main__":
    main()
