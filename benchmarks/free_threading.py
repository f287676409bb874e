"""Compare a PyLoop without a GIL with the same PyLoop with one, both in one free-threaded Python, beside busy threads.

    python3.14t benchmarks/free_threading.py [--seconds 3] [--pairs 5] [--json FILE]

A PyLoop of 500 Hz whose step counts to 100 runs in a process of its own, with PYTHON_GIL=0 and PYTHON_GIL=1 in turn:
alone, beside a thread that computes, beside one for each CPU, and beside a thread that makes cyclic garbage, which the
collector has to find. The time is that from a release to the first line of the step: the wake-up, and the wait for the
interpreter. Needs a free-threaded Python, and SCHED_FIFO, so that the loop waits for no CPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import threading
import time
from contextlib import ExitStack

from common import (
    Claim,
    alternate,
    claim,
    exit_code,
    parser,
    print_claims,
    print_table,
    restless_thread,
    run_script,
    write_json,
)

from rtloop import Cycle, Histogram, PyLoop

PERIOD_NS = 2_000_000


def compute() -> None:
    """Compute, without making objects that the collector would look at."""
    sum(range(1000))


def make_garbage() -> None:
    """Make objects that refer to each other, which only the collector frees."""
    for _ in range(1000):
        one: list[object] = []
        one.append(one)


COMPANY = {
    "alone": [],
    "one computes": [compute],
    "one per CPU computes": [compute] * len(os.sched_getaffinity(0)),
    "garbage": [make_garbage],
}


def measure(seconds: float, company: str) -> None:
    """Run the loop in this process, and print its figures as JSON."""
    latencies: list[int] = []

    def step(cycle: Cycle) -> None:
        latencies.append(time.monotonic_ns() - cycle.release)
        sum(range(100))

    loop = PyLoop(step, PERIOD_NS, lock_memory="off", record=0)
    with ExitStack() as stack:
        for work in COMPANY[company]:
            stack.enter_context(restless_thread(work))
        stats = loop.run(int(seconds * 1e9))
    histogram = Histogram.from_values(latencies[10:])
    print(json.dumps({
        "is_gil_enabled": sys._is_gil_enabled(),  # type: ignore[attr-defined]
        "threads": threading.active_count(),
        "done": stats.cycles / (stats.cycles + stats.missed),
        "p50": histogram.percentile(50),
        "p99": histogram.percentile(99),
    }))  # fmt: skip


def run_child(gil: str, seconds: float, company: str) -> dict[str, float]:
    """Run the loop in a new process, and return its figures."""
    command = [sys.executable, __file__, "--seconds", str(seconds), "--only", company]
    environment = {**os.environ, "PYTHON_GIL": gil}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    found = json.loads(done.stdout)
    if found["is_gil_enabled"] != (gil == "1"):
        sys.exit(f"PYTHON_GIL={gil} has no effect: a module has switched the GIL on\n{done.stderr}")
    return dict(found)


def main() -> int:
    made = parser(__doc__ or "", seconds=3.0)
    made.add_argument("--only", choices=COMPANY, help="run this one in this process, with the GIL as it is")
    arguments = made.parse_args()
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        sys.exit(
            "this Python has a GIL that cannot be switched off; fix: run this with a free-threaded one, python3.14t"
        )
    if arguments.only:
        measure(arguments.seconds, arguments.only)
        return 0
    sides = {
        f"{company}, {'with' if gil == '1' else 'no'} GIL": lambda gil=gil, company=company: run_child(
            gil, arguments.seconds, company
        )
        for company in COMPANY
        for gil in "01"
    }
    found = alternate(sides, arguments.pairs)
    claims: list[Claim] = []
    rows = []
    for company in COMPANY:
        free, held = found[f"{company}, no GIL"], found[f"{company}, with GIL"]
        for name, title in (("p50", "50 %"), ("p99", "99 %")):
            ours, peer = ([run[name] / 1000 for run in runs] for runs in (free, held))
            claims.append(claim(f"{company}, {title}", "us", ours, "with GIL", peer))
        shares = [sorted(run["done"] for run in runs)[len(runs) // 2] for runs in (free, held)]
        rows.append([company, *(f"{share:.1%}" for share in shares)])
    print_table("Releases that ran, of 500 a second", ["company", "no GIL", "with GIL"], rows)
    print()
    print_claims("From the release to the first line of the step", claims)
    write_json(arguments.json, benchmark="free_threading", options=vars(arguments), runs=found, claims=claims)
    return exit_code(claims)


if __name__ == "__main__":
    run_script(main)
