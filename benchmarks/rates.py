"""The highest rate that is held: fewer than one release in a thousand missed, sleeping and spinning, and cyclictest.

    python benchmarks/rates.py [--seconds 10] [--pairs 3] [--json FILE]

Rates of a list are tried from the lowest; each contestant goes on for as long as it holds them, for a second each, and
the highest that it held is then held for `--seconds`. One of three attempts will do, and the best of the pairs counts,
for all of them: a virtual machine that is not run for 10 ms has missed more than that share by itself, at any rate.
Missed, for all of them, is what their latencies say: one of L misses L / period releases. All run under SCHED_FIFO on
one CPU; needs cyclictest (apt install rt-tests). Where kernel.sched_rt_runtime_us leaves real-time threads 95 % of a
CPU, spinning is stopped for the rest.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from common import Claim, claim, exit_code, need, parser, print_claims, run_script, say, write_json

from rtloop import Histogram, RTLoop, RtloopError
from rtloop.tools.latency.cyclictest import run_cyclictest

RATES_KHZ = (1, 2, 4, 5, 8, 10, 20, 25, 40, 50, 100, 125, 200, 250)
MOST_MISSED = 0.001
ATTEMPTS = 3
SPIN_TARGET_KHZ = 100
PRIORITY = 80


def missed_share(latency: Histogram, period_ns: int) -> float:
    """Return which share of the releases were missed by what came too late."""
    missed = int((latency.counts * (latency.edges[:-1] // period_ns)).sum())
    return missed / max(1, latency.count + missed)


def run_loop(period_ns: int, cycles: int, cpu: int, *, spin: bool) -> Histogram:
    """Run our loop once."""
    # Spinning for nine tenths of the time leaves the kernel its share (sched_rt_runtime_us).
    loop = RTLoop(
        period_ns, cpu=cpu, priority=PRIORITY, spin=period_ns * 9 // 10 if spin else 0, record=1024, name="rate"
    )
    return loop.run(cycles=cycles).latency


def contestants(cpu: int) -> dict[str, Callable[[int, int], Histogram]]:
    """Return what runs so many cycles of a period, by name."""
    return {
        "rtloop, sleeping": lambda period, cycles: run_loop(period, cycles, cpu, spin=False),
        "rtloop, spinning": lambda period, cycles: run_loop(period, cycles, cpu, spin=True),
        "cyclictest": lambda period, cycles: run_cyclictest(
            period_ns=period, cycles=cycles, priority=PRIORITY, cpu=cpu
        ),
    }


def is_held(run: Callable[[int, int], Histogram], rate: float, seconds: float) -> bool:
    """Whether a rate, in kHz, is held for so long in one of a few attempts."""
    period, cycles = round(1_000_000 / rate), round(rate * 1000 * seconds)
    return any(missed_share(run(period, cycles), period) < MOST_MISSED for _ in range(ATTEMPTS))


def highest(run: Callable[[int, int], Histogram], seconds: float, name: str) -> float:
    """Return the highest rate that is held, kHz."""
    held = [0.0]
    for rate in RATES_KHZ:
        say(f"{name}: {rate} kHz")
        if not is_held(run, rate, 1):
            break
        held.append(rate)
    while held[-1]:
        say(f"{name}: {held[-1]:g} kHz for {seconds:g} s")
        if is_held(run, held[-1], seconds):
            break
        held.pop()
    return held[-1]


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    options = parser(__doc__ or "", pairs=3, seconds=10.0, of="how long the highest rate is held")
    cpu = max(os.sched_getaffinity(0))
    options.add_argument("--cpu", type=int, default=cpu, help=f"where they run ({cpu})")
    return options.parse_args()


def main() -> int:
    arguments = parse_options()
    need("cyclictest", "rt-tests")
    found: dict[str, list[float]] = {}
    try:
        for _ in range(arguments.pairs):
            for name, run in contestants(arguments.cpu).items():
                found.setdefault(name, []).append(highest(run, arguments.seconds, name))
    except RtloopError as error:
        sys.exit(f"\n{error}")
    say("")
    # A claim is that a figure is small: here it is the shortest period that is held.
    ours, spinning, theirs = (
        [1000 / max(found[name]) if any(found[name]) else float("inf")]
        for name in ("rtloop, sleeping", "rtloop, spinning", "cyclictest")
    )
    claims: list[Claim] = [
        claim("shortest period held, sleeping", "us", ours, "cyclictest", theirs, 1.0),
        claim("shortest period held, spinning", "us", spinning, target=1000 / SPIN_TARGET_KHZ),
    ]
    print_claims(f"The highest rate held for {arguments.seconds:g} s, as its period", claims)
    write_json(arguments.json, benchmark="rates", options=vars(arguments), khz=found, claims=claims)
    return exit_code(claims)


if __name__ == "__main__":
    run_script(main)
