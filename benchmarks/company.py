"""Compare the wake-up latency of a loop beside busy Python threads with that of the same loop alone.

    python benchmarks/company.py [--seconds 3] [--pairs 5] [--json FILE]

Three loops of 1 kHz with an empty step run in turn: rtloop's, a plain Python loop that sleeps to absolute releases, and
that of loop-rate-limiters (pip install loop-rate-limiters). Each runs alone, and beside

    gil        a Python thread that computes, and so requests the GIL all the time
    allocate   a thread that allocates and frees
    import     a thread that imports modules repeatedly

The ratio compares loaded with alone within a pair. The Python loops run on an ordinary thread, as usual. The table also
shows their rates, because a loop that cannot keep up skips releases.

A step in Python with NumPy runs at 500 Hz beside the thread that computes: as a ProcessLoop, whose process has a GIL of
its own, and as a PyLoop in this one. Their claim compares the 99th percentiles of the time from a release to the end of
its step. Needs SCHED_FIFO and locked memory.
"""

from __future__ import annotations

import importlib
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
from common import (
    Claim,
    alternate,
    busy_python_thread,
    claim,
    exit_code,
    need_module,
    parser,
    print_claims,
    print_table,
    restless_thread,
    run_script,
    write_json,
)

from rtloop import Cycle, Histogram, ProcessLoop, PyLoop, RTLoop, RtloopError, Stats
from rtloop.machine.latency.load import Load

PERIOD_NS = 1_000_000
PYTHON_PERIOD_NS = 2_000_000
TARGET = 1.1
STEP_TARGET = 0.1
MATRIX, VECTOR = np.eye(8), np.ones(8)
MODULES = ("json.decoder", "csv", "html.parser", "xml.dom.minidom", "email.message", "decimal", "difflib")


def import_anew() -> None:
    """Import modules as if for the first time."""
    for name in MODULES:
        sys.modules.pop(name, None)
        importlib.import_module(name)


COMPANY: dict[str, Callable[[], object]] = {
    "alone": nullcontext,
    "gil": lambda: Load("gil"),
    "allocate": busy_python_thread,
    "import": lambda: restless_thread(import_anew),
}


def run_rtloop(seconds: float) -> tuple[float, float]:
    """Run rtloop's loop; return its median wake-up latency, ns, and its rate, Hz."""
    stats = RTLoop(PERIOD_NS, name="company").run(cycles=round(seconds * 1e9 / PERIOD_NS))
    return stats.latency.percentile(50), stats.cycles / stats.duration


def summary(latencies: list[int], begin: int) -> tuple[float, float]:
    """Return the median, ns, and the rate, Hz, for a list of latencies and its start time."""
    rate = len(latencies) / ((time.monotonic_ns() - begin) * 1e-9)
    return Histogram.from_values(latencies).percentile(50), rate


def run_plain(seconds: float) -> tuple[float, float]:
    """Run a plain Python loop, which sleeps to each release and drops those that have passed."""
    latencies: list[int] = []
    begin = time.monotonic_ns()
    release = begin + PERIOD_NS
    while release < begin + seconds * 1e9:
        left = release - time.monotonic_ns()
        if left > 0:
            time.sleep(left * 1e-9)
        now = time.monotonic_ns()
        latencies.append(now - release)
        release += PERIOD_NS * max(1, 1 + (now - release) // PERIOD_NS)
    return summary(latencies, begin)


def run_limiter(seconds: float) -> tuple[float, float]:
    """Run a loop with loop-rate-limiters; latencies are measured against its next tick."""
    limiter = need_module("loop_rate_limiters", "loop-rate-limiters").RateLimiter(1e9 / PERIOD_NS, warn=False)
    latencies: list[int] = []
    begin = time.monotonic_ns()
    limiter.sleep()
    while time.monotonic_ns() < begin + seconds * 1e9:
        planned = limiter.next_tick  # s on time.perf_counter
        limiter.sleep()
        latencies.append(max(0, round((time.perf_counter() - planned) * 1e9)))
    return summary(latencies, begin)


def multiply(cycle: Cycle) -> None:
    """Compute a little with NumPy, as a controller does."""
    MATRIX @ VECTOR


def run_python(kind: type[PyLoop] | type[ProcessLoop], seconds: float) -> Stats:
    """Run a step in Python at 500 Hz beside a thread that computes; return the statistics."""
    loop = kind(multiply, PYTHON_PERIOD_NS, name="company")
    with COMPANY["gil"]():  # type: ignore[attr-defined]
        return loop.run(cycles=round(seconds * 1e9 / PYTHON_PERIOD_NS))


LOOPS = {"rtloop": run_rtloop, "plain Python": run_plain, "loop-rate-limiters": run_limiter}


def missed_share(stats: Stats) -> float:
    """Return the share of releases that were missed."""
    return stats.missed / (stats.cycles + stats.missed)


def run_beside(run: Callable[[float], tuple[float, float]], kind: str, seconds: float) -> tuple[float, float]:
    """Run a loop beside one of the busy threads."""
    with COMPANY[kind]():  # type: ignore[attr-defined]
        return run(seconds)


def main() -> int:
    arguments = parser(__doc__ or "", seconds=3.0).parse_args()
    need_module("loop_rate_limiters", "loop-rate-limiters")
    sides = {
        (name, kind): lambda run=run, kind=kind: run_beside(run, kind, arguments.seconds)
        for name, run in LOOPS.items()
        for kind in COMPANY
    }
    try:
        found = alternate({f"{name}, {kind}": side for (name, kind), side in sides.items()}, arguments.pairs)
        steps = alternate(
            {kind.__name__: lambda kind=kind: run_python(kind, arguments.seconds) for kind in (ProcessLoop, PyLoop)},
            arguments.pairs,
        )
    except RtloopError as error:
        sys.exit(f"\n{error}")
    runs = {key: found[f"{key[0]}, {key[1]}"] for key in sides}
    claims: list[Claim] = []
    for name, kind in sides:
        if kind == "alone":
            continue
        loaded, alone = ([p50 / 1000 for p50, _ in runs[name, which]] for which in (kind, "alone"))
        target = TARGET if name == "rtloop" else None
        claims.append(claim(f"{name} beside {kind}, 50 %", "us", loaded, "alone", alone, target))
    rows = [[name, *(f"{statistics.median(rate for _, rate in runs[name, kind]):.0f} Hz" for kind in COMPANY)]
            for name in LOOPS]  # fmt: skip
    print_table("Rate, of the requested 1000 Hz", ["loop", *COMPANY], rows)
    print()
    rows = [[name, f"{statistics.median(missed_share(stats) for stats in each):.2%}"] for name, each in steps.items()]
    print_table("Releases missed beside the thread that computes, of 500 a second", ["step in Python", "missed"], rows)
    print()
    own, shared = (
        [stats.response.percentile(99) / 1000 for stats in steps[kind]] for kind in ("ProcessLoop", "PyLoop")
    )
    claims.append(claim("step in a ProcessLoop, 99 %", "us", own, "PyLoop", shared, STEP_TARGET))
    print_claims("Median wake-up latency beside busy Python threads", claims)
    write_json(
        arguments.json,
        benchmark="company",
        options=vars(arguments),
        runs={f"{name}, {kind}": values for (name, kind), values in runs.items()}
        | {
            name: [(stats.response.percentile(99), missed_share(stats)) for stats in each]
            for name, each in steps.items()
        },
        claims=claims,
    )
    return exit_code(claims)


if __name__ == "__main__":
    run_script(main)
