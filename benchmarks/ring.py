"""Compare rtloop's Ring with boost's single-producer, single-consumer queue, and measure Latest.

    python benchmarks/ring.py [--pairs 9] [--items 1000000] [--json FILE]

Needs gcc, g++ and boost's headers (apt install g++ libboost-dev). All contestants run in one process, in turn: a push
and a pop of one item on one CPU, and items between two threads, each on a CPU of its own. The ratio between two threads
compares times; 1.5 times the throughput is two thirds of the time. One of boost's queues knows its capacity at compile
time, so that it needs no load and no mask for it; the other chooses it at run time, as a Ring does. The runs on one CPU
are divided into rounds of some tens of microseconds, most of which end before something interrupts them.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path

from common import build_peers, claim, exit_code, parser, positive, print_claims, run_script, say, write_json

HERE = Path(__file__).parent / "ring_peers"
PEER = "boost::lockfree::spsc_queue"
PEER_OF_OUR_KIND = f"{PEER}, capacity chosen at run time"
#: Parts of a run on one CPU.
ROUNDS = 200


def run(program: Path, *arguments: object) -> dict[str, list[float]]:
    """Run the contestants, and return the nanoseconds of each in each round."""
    say(f"{arguments[0]}")
    found = defaultdict(list)
    done = subprocess.run([str(program), *map(str, arguments)], check=True, capture_output=True, text=True, timeout=600)
    for line in done.stdout.splitlines():
        name, ns = line.split()
        found[name].append(float(ns))
    say("")
    return dict(found)


def main() -> int:
    options = parser(__doc__ or "", pairs=9)
    options.add_argument("--items", type=positive, default=1_000_000, metavar="N", help="items of one run (1000000)")
    arguments = options.parse_args()
    cpus = sorted(os.sched_getaffinity(0))
    claims = []
    with tempfile.TemporaryDirectory() as folder:
        program = build_peers(HERE, Path(folder), "lockfree/spsc_queue.hpp")
        single = run(program, "single", arguments.pairs * ROUNDS, max(1, arguments.items // ROUNDS))
        for size, target in ((8, 1.1), (64, 1.2)):
            name = f"push and pop of {size} bytes, one thread"
            for peer, kind in ((PEER, "boost"), (PEER_OF_OUR_KIND, "chosen")):
                claims.append(claim(name, "ns", single[f"ring-{size}"], peer, single[f"{kind}-{size}"], target))
        claims.append(claim("Latest: write and read of 64 bytes", "ns", single["latest-64"], target=20))
        if len(cpus) > 1:
            two = run(program, "threads", arguments.pairs, arguments.items, cpus[0], cpus[1])
            for size in (8, 64):
                name = f"items of {size} bytes between two threads"
                claims.append(claim(name, "ns", two[f"ring-{size}"], PEER, two[f"boost-{size}"], 1 / 1.5))
    print_claims("Exchanges", claims)
    if len(cpus) < 2:
        print(f"not measured: two threads, because this process may run on CPU {cpus[0]} only; fix: taskset -c 0,1")
    write_json(arguments.json, benchmark="ring", claims=[made._asdict() for made in claims])
    return exit_code(claims)


if __name__ == "__main__":
    run_script(main)
