"""Measure the time from start() to the first release, and from stop() to the joined thread.

    python benchmarks/start_stop.py [--pairs 20] [--interval 1000] [--json FILE]

Another loop keeps all memory locked meanwhile, so that only the loop's own work is measured: its stack, its telemetry
block, its thread, and everything read back from the kernel. The first release of a loop is one period, at most a
millisecond, after the thread is ready. Needs SCHED_FIFO and locked memory.
"""

from __future__ import annotations

import sys
import time

from common import claim, exit_code, parser, positive, print_claims, run_script, say, write_json

from rtloop import RTLoop, RtloopError

START_TARGET_MS = 10.0
#: Time allowed for stop() beyond a period.
STOP_MORE_MS = 1.0


def once(interval_us: int) -> tuple[float, float]:
    """Start and stop a loop; return the milliseconds to the first release and the duration of stop()."""
    loop = RTLoop(f"{interval_us}us", priority=80, name="measured")
    begin = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    loop.start()
    time.sleep(0.02)
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    loop.stop()
    end = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    first = int(loop.stats.records["release"][0])
    return (first - begin) / 1e6, (end - before) / 1e6


def main() -> int:
    options = parser(__doc__ or "", pairs=20)
    options.add_argument("--interval", type=positive, default=1000, metavar="US", help="the period (1000)")
    arguments = options.parse_args()
    period_ms = arguments.interval / 1000
    try:
        with RTLoop("10ms", priority=2, name="holds the memory locked"):
            once(arguments.interval)  # imports modules at the first start
            found = []
            for number in range(arguments.pairs):
                say(f"start {number + 1} of {arguments.pairs}")
                found.append(once(arguments.interval))
    except RtloopError as error:
        sys.exit(f"\n{error}")
    say("")
    starts, stops = zip(*found, strict=True)
    claims = [
        claim("start() to the first release, memory locked already", "ms", starts, target=START_TARGET_MS),
        claim(f"stop() to joined, period {period_ms:g} ms", "ms", stops, target=period_ms + STOP_MORE_MS),
    ]
    print_claims(f"Start and stop, median of {arguments.pairs}", claims)
    write_json(arguments.json, benchmark="start_stop", options=vars(arguments), ms=found, claims=claims)
    return exit_code(claims)


if __name__ == "__main__":
    run_script(main)
