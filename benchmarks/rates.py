"""Find the highest sustained rate of rtloop, sleeping and spinning, and of cyclictest: under 0.1 % missed releases.

    python benchmarks/rates.py [--seconds 10] [--pairs 3] [--json FILE]

Each contestant tries the rates of a list from the lowest, for a second each, as long as it sustains them. It then has
to sustain the highest of these for `--seconds`. For every contestant, one of three attempts is enough and the best of
the pairs counts, because a virtual machine that is suspended for 10 ms exceeds 0.1 % at any rate. Missed releases are
derived from the latencies, for all contestants alike: a latency L misses L / period releases. All run under SCHED_FIFO
on one CPU. If kernel.sched_rt_runtime_us leaves real-time threads 95 % of a CPU, a spinning loop is stopped for the
rest. Needs cyclictest (apt install rt-tests).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from common import Claim, claim, exit_code, need, parser, print_claims, run_script, say, write_json

from rtloop import Histogram, RTLoop, RtloopError
from rtloop.machine.latency.cyclictest import run_cyclictest

RATES_KHZ = (1, 2, 4, 5, 8, 10, 20, 25, 40, 50, 100, 125, 200, 250)
MOST_MISSED = 0.001
ATTEMPTS = 3
SPIN_TARGET_KHZ = 100
PRIORITY = 80


def missed_share(latency: Histogram, period_ns: int) -> float:
    """Return the share of releases that were missed, by the latencies."""
    missed = int((latency.counts * (latency.edges[:-1] // period_ns)).sum())
    return missed / max(1, latency.count + missed)


def run_loop(period_ns: int, cycles: int, cpu: int, *, spin: bool) -> Histogram:
    """Run rtloop's loop once."""
    # Spinning for nine tenths of the period leaves the kernel its share (sched_rt_runtime_us).
    loop = RTLoop(
        period_ns, cpu=cpu, priority=PRIORITY, spin=period_ns * 9 // 10 if spin else 0, record=1024, name="rate"
    )
    return loop.run(cycles=cycles).latency


def contestants(cpu: int) -> dict[str, Callable[[int, int], Histogram]]:
    """Return functions by name that run a number of cycles of a period."""
    return {
        "rtloop, sleeping": lambda period, cycles: run_loop(period, cycles, cpu, spin=False),
        "rtloop, spinning": lambda period, cycles: run_loop(period, cycles, cpu, spin=True),
        "cyclictest": lambda period, cycles: run_cyclictest(
            period_ns=period, cycles=cycles, priority=PRIORITY, cpu=cpu
        ),
    }


def is_held(run: Callable[[int, int], Histogram], rate: float, seconds: float) -> bool:
    """Return True if a rate, in kHz, is sustained for `seconds` in one of a few attempts."""
    period, cycles = round(1_000_000 / rate), round(rate * 1000 * seconds)
    return any(missed_share(run(period, cycles), period) < MOST_MISSED for _ in range(ATTEMPTS))


def highest(run: Callable[[int, int], Histogram], seconds: float, name: str) -> float:
    """Return the highest sustained rate, kHz."""
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
    options = parser(__doc__ or "", pairs=3, seconds=10.0, of="time for which the highest rate must be sustained")
    cpu = max(os.sched_getaffinity(0))
    options.add_argument("--cpu", type=int, default=cpu, help=f"CPU for all of them ({cpu})")
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
    # A claim bounds a figure from above, so rates are compared by their periods.
    ours, spinning, theirs = (
        [1000 / max(found[name]) if any(found[name]) else float("inf")]
        for name in ("rtloop, sleeping", "rtloop, spinning", "cyclictest")
    )
    claims: list[Claim] = [
        claim("shortest sustained period, sleeping", "us", ours, "cyclictest", theirs, 1.0),
        claim("shortest sustained period, spinning", "us", spinning, target=1000 / SPIN_TARGET_KHZ),
    ]
    print_claims(f"Highest rate sustained for {arguments.seconds:g} s, as its period", claims)
    write_json(arguments.json, benchmark="rates", options=vars(arguments), khz=found, claims=claims)
    return exit_code(claims)


if __name__ == "__main__":
    run_script(main)
