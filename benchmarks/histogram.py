"""Compare the time to record a duration in a histogram with that of HdrHistogram from PyPI.

    python benchmarks/histogram.py [--pairs 9] [--operations 4000000] [--json FILE]

Ours is the header that the loop includes, compiled by gcc -O2, with durations of 1 to 10 us. HdrHistogram is called
from Python, as a Python program would use it (pip install hdrhistogram). Needs gcc.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path

from common import claim, exit_code, need, need_module, parser, positive, print_claims, run_script, say, write_json

import rtloop

TARGET_NS = 5.0
SOURCE = Path(__file__).with_name("histogram.c")
OPTIONS = ["-std=gnu11", "-O2"]


def ours(pairs: int, operations: int) -> list[float]:
    """Return the nanoseconds to record a duration in rtloop's histogram, for each round."""
    headers = Path(rtloop.get_include()) / "rtloop" / "include"
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "histogram"
        say("compiling histogram.c")
        subprocess.run([need("gcc", "gcc"), *OPTIONS, f"-I{headers}", str(SOURCE), "-o", str(program)], check=True)
        say("rtloop's histogram")
        done = subprocess.run(
            [str(program), str(pairs), str(operations)], capture_output=True, text=True, check=True, timeout=600
        )
    return [float(line) for line in done.stdout.split()]


def theirs(pairs: int, operations: int) -> list[float]:
    """Return the nanoseconds to record a duration in HdrHistogram, for each round."""
    record = need_module("hdrh.histogram", "hdrhistogram").HdrHistogram(1, 1 << 40, 2).record_value
    found = []
    for _ in range(pairs):
        say("HdrHistogram")
        begin = time.perf_counter_ns()
        for value in range(1000, 1000 + operations):
            record(value)
        found.append((time.perf_counter_ns() - begin) / operations)
    return found


def main() -> int:
    options = parser(__doc__ or "", pairs=9)
    options.add_argument(
        "--operations", type=positive, default=4_000_000, metavar="N", help="operations of one run (4000000)"
    )
    arguments = options.parse_args()
    mine = ours(arguments.pairs, arguments.operations)
    peer = theirs(arguments.pairs, max(1, arguments.operations // 100))
    say("")
    claims = [
        claim("record a duration", "ns", mine, target=TARGET_NS),
        claim("record a duration", "ns", mine, "hdrhistogram, from Python", peer, 1.0),
    ]
    print_claims("Histograms", claims)
    write_json(arguments.json, benchmark="histogram", claims=claims)
    return exit_code(claims)


if __name__ == "__main__":
    run_script(main)
