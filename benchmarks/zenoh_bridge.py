"""Measure the cost of a bridge: a loop's latency with and without, and bytes and CPU time of many loops.

    python benchmarks/zenoh_bridge.py [--pairs 9] [--seconds 2] [--loops 64] [--json FILE]

One loop runs all the time, and its statistics are reset for every slice. Slices with and without a bridge alternate.
The bridge publishes statistics ten times a second, and 1000 records a second, to a process that subscribes to
everything. Then one process runs a number of simulated loops, each with its own bridge that publishes once a second on
loopback, and a peer counts messages and bytes for ten seconds. Needs eclipse-zenoh, SCHED_FIFO and locked memory.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import Any

from common import claim, exit_code, need_module, parser, positive, print_claims, print_table, run_script, write_json

from rtloop import PyLoop, Ring, RTLoop, RtloopError

QUIET: dict[str, Any] = {"scouting": {"multicast": {"enabled": False}, "gossip": {"enabled": False}}}
COUNTER = """
import json, sys, time, rtloop.zenoh
session = rtloop.zenoh.open_session(json.loads(sys.argv[1]))
count = [0, 0]
def take(sample):
    count[0] += 1
    count[1] += len(sample.payload.to_bytes())
kept = session.declare_subscriber("rtloop/**", take)
print(flush=True)
for line in sys.stdin:
    print(json.dumps(count), flush=True)
"""


def free_address() -> str:
    """Return a local address on which no process listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp/127.0.0.1:{probe.getsockname()[1]}"


class Counter:
    """Process that subscribes to everything and counts it."""

    def __init__(self) -> None:
        address = free_address()
        here = {**QUIET, "mode": "router", "listen": {"endpoints": [address]}}
        self.there = {**QUIET, "mode": "client", "connect": {"endpoints": [address]}}
        self._process = subprocess.Popen([sys.executable, "-P", "-c", COUNTER, json.dumps(here)],
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
        self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def look(self) -> tuple[int, int]:
        """Return the number of messages and bytes received so far."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        messages, size = json.loads(self._line())
        return messages, size

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def compare(counter: Counter, pairs: int, seconds: float) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Return the latencies of slices with a bridge, and of those without."""
    from rtloop.zenoh import Bridge

    with_bridge: list[dict[str, float]] = []
    without: list[dict[str, float]] = []
    loop = RTLoop("1kHz", cpu=(os.cpu_count() or 1) - 1, record=4096)
    ring = Ring([("release", "i8"), ("x", "f8", 4)], 10_000)
    with loop:
        for k in range(2 * pairs):
            is_on = (k % 4) in (0, 3)  # on, off, off, on: neither side gains from coming first
            with ExitStack() as stack:
                if is_on:
                    stack.enter_context(Bridge(loop, key="rtloop/bench/one", config=counter.there, interval="100ms",
                                               signals={"x": ring}))  # fmt: skip
                time.sleep(0.5)
                loop.reset_stats()
                limit = time.monotonic() + seconds
                while time.monotonic() < limit:
                    time.sleep(0.05)
                    if is_on:
                        for _ in range(50):
                            ring.push((time.monotonic_ns(), (1, 2, 3, 4)))
                stats = loop.stats
            side = with_bridge if is_on else without
            side.append({str(q): float(stats.latency.percentile(q)) for q in (50, 99)})
    return with_bridge, without


def crowd(counter: Counter, loops: int, seconds: float = 10.0) -> dict[str, float]:
    """Return the traffic and the CPU time of a number of bridges."""
    from rtloop.zenoh import Bridge

    with ExitStack() as stack:
        for k in range(loops):
            loop = PyLoop(lambda cycle: None, "1kHz", name=f"loop{k}", record=64)
            loop.simulate(cycles=5000, latency=[10_000 + 100 * k, 20_000, 15_000])
            stack.enter_context(Bridge(loop, key=f"rtloop/bench/loop{k}", config=counter.there))
        time.sleep(3)
        before, cpu, begun = counter.look(), time.process_time(), time.monotonic()
        time.sleep(seconds)
        after, spent, took = counter.look(), time.process_time() - cpu, time.monotonic() - begun
    return {
        "loops": loops,
        "messages_per_second": (after[0] - before[0]) / took,
        "bytes_per_second_and_loop": (after[1] - before[1]) / took / loops,
        "bytes_per_message": (after[1] - before[1]) / max(1, after[0] - before[0]),
        "cpu_percent_per_loop": 100 * spent / took / loops,
    }


def main() -> int:
    """Run the benchmark."""
    made = parser(str(__doc__), pairs=9)
    made.add_argument("--seconds", type=positive, default=2, metavar="S", help="length of a slice (2)")
    made.add_argument("--loops", type=positive, default=64, metavar="N", help="number of simulated loops (64)")
    options = made.parse_args()
    need_module("zenoh", "eclipse-zenoh")
    counter = Counter()
    try:
        with_bridge, without = compare(counter, options.pairs, options.seconds)
        figures = crowd(counter, options.loops)
    except RtloopError as error:
        sys.exit(str(error))
    finally:
        counter.end()
    claims = []
    for q in ("50", "99"):
        ours, theirs = [one[q] for one in with_bridge], [one[q] for one in without]
        claims.append(claim(f"latency p{q} with a bridge", "ns", ours, "without", theirs, target=1.1))
    print_claims("Loop with and without a bridge", claims)
    print_table(
        f"{options.loops} simulated loops on loopback",
        ["figure", "value"],
        [[name, f"{value:,.2f}"] for name, value in figures.items()],
    )
    write_json(options.json, benchmark="zenoh_bridge", options=vars(options), claims=claims, crowd=figures)
    return exit_code(claims)


if __name__ == "__main__":
    run_script(main)
