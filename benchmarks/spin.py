"""Measure how fast spin="auto" adapts to a load that comes and goes, by the CPU time that spinning takes.

    python benchmarks/spin.py [--pairs 5] [--seconds 3] [--cpu 1] [--json FILE]

The loop runs at 1 kHz with spin="auto" and an empty step. Nearly all of its CPU time is spinning, which shows the
margin. The load is a loop of higher priority on the same CPU that computes for 100 us every 1.37 ms, and so makes some
wake-ups late. The margin has to grow, and has to shrink when the load has ended. It has adapted when it is within a
quarter of the change from its final value, and stays there for half a second, except for one sample of 50 ms. What a
stall of the machine does to it later does not count. Needs SCHED_FIFO and locked memory.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path

from common import claim, exit_code, parser, print_claims, run_script, say, write_json

from rtloop import PyLoop, RTLoop, RtloopError

PERIOD_NS = 1_000_000
LOAD_PERIOD_NS, LOAD_NS = 1_370_000, 100_000
SAMPLE_S = 0.05
STAY = 10  # samples
TARGET_S = 1.0
NAME = "margin"

Samples = list[tuple[float, float]]


def compute(cycle: object) -> None:
    """Occupy the CPU for the duration of the load."""
    end = time.monotonic_ns() + LOAD_NS
    while time.monotonic_ns() < end:
        pass


def find_thread() -> Path:
    """Return the path of the kernel's CPU-time accounting of the loop's thread."""
    for task in Path("/proc/self/task").iterdir():
        if (task / "comm").read_text().strip() == NAME:
            return task / "schedstat"
    raise RuntimeError(f"no thread is called {NAME}")


def watch(account: Path, seconds: float) -> Samples:
    """Sample the spinning time of a cycle every 50 ms: return pairs of the seconds since now and the time in us."""
    begin = last = time.monotonic()
    used = int(account.read_text().split()[0])
    samples: Samples = []
    while last - begin < seconds:
        time.sleep(SAMPLE_S)
        now, total = time.monotonic(), int(account.read_text().split()[0])
        samples.append((now - begin, (total - used) / 1000 / ((now - last) * 1e9 / PERIOD_NS)))
        last, used = now, total
    return samples


def level(samples: Samples) -> float:
    """Return the final level of the samples: the median of the last third."""
    return statistics.median(value for _, value in samples[-len(samples) // 3 :])


def time_to_follow(samples: Samples, before: float) -> float:
    """Return the time in s from which the samples stay near their final level; the last time if they never do."""
    end = level(samples)
    is_near = [abs(value - end) <= abs(end - before) / 4 for _, value in samples]
    times = [when for when, _ in samples]
    stays = (is_near[at] and is_near[at : at + STAY].count(False) <= 1 for at in range(len(times)))
    return next((when for when, has_adapted in zip(times, stays, strict=True) if has_adapted), times[-1])


def run_pair(account: Path, cpu: int, seconds: float) -> dict[str, float]:
    """Start and stop the load once."""
    alone = level(watch(account, seconds))
    with PyLoop(compute, LOAD_PERIOD_NS, priority=90, cpu=cpu, name="load"):
        coming = watch(account, seconds)
    going = watch(account, seconds)
    loaded = level(coming)
    return {
        "alone": alone,
        "loaded": loaded,
        "gone": level(going),
        "comes": time_to_follow(coming, alone),
        "goes": time_to_follow(going, loaded),
    }


def main() -> int:
    options = parser(__doc__ or "", seconds=3.0, of="duration of each phase: alone, with the load, and after it")
    cpus = sorted(os.sched_getaffinity(0))
    options.add_argument("--cpu", type=int, default=cpus[-1], help=f"CPU for both ({cpus[-1]})")
    asked = options.parse_args()
    found: list[dict[str, float]] = []
    try:
        with RTLoop(PERIOD_NS, spin="auto", cpu=asked.cpu, name=NAME) as loop:
            account = find_thread()
            for pair in range(asked.pairs):
                say(f"pair {pair + 1} of {asked.pairs}")
                found.append(run_pair(account, asked.cpu, asked.seconds))
            p50 = loop.stats.latency.percentile(50)
    except RtloopError as error:
        sys.exit(f"\n{error}")
    say("")
    claims = [
        claim("margin adapts to a starting load", "s", [one["comes"] for one in found], target=TARGET_S),
        claim("... and to an ending one", "s", [one["goes"] for one in found], target=TARGET_S),
        claim("spinning in a cycle of 1 ms, loaded vs. alone", "us", [one["loaded"] for one in found], "alone",
              [one["alone"] for one in found]),
    ]  # fmt: skip
    print_claims(f'Adaptation of spin="auto" to a load; median wake-up latency {p50:.0f} ns', claims)
    write_json(asked.json, benchmark="spin", options=vars(asked), runs=found, claims=claims)
    return exit_code(claims)


if __name__ == "__main__":
    run_script(main)
