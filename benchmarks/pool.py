"""Compare rtloop's pools with boost's, general mallocs and a hand-written mutex pool: alloc and free of 256 bytes.

    python benchmarks/pool.py [--pairs 200] [--operations 5120] [--tail 500000] [--preload LIBRARY ...] [--json FILE]

Needs gcc, g++ and boost's headers (apt install g++ libboost-dev). All contestants run in one process on one core, in
turn. LD_PRELOAD replaces the C library's malloc by another one (apt install libjemalloc2 libtcmalloc-minimal4
libmimalloc2.0), in a process of its own in which our pools run as well.

Each contestant runs for some tens of microseconds, in 200 rounds, so that most runs end before something interrupts
them. In batches of 8 and of 64 allocs, and then as many frees, the one block that a single pool caches does not help.
The tail is that of one free and one alloc of a block that was
held for a long time, under a load that fragments the heap. It includes reading the clock.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from common import build_peers, claim, exit_code, parser, print_claims, print_table, run_script, say, write_json

HERE = Path(__file__).parent / "pool_peers"
#: Other mallocs and their Debian packages.
LIBRARIES = {
    "libjemalloc.so.2": "libjemalloc2",
    "libtcmalloc_minimal.so.4": "libtcmalloc-minimal4",
    "libmimalloc.so.2": "libmimalloc2.0",
}
FOLDERS = (f"/usr/lib/{platform.machine()}-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib")
#: Our pool, the peer, and the largest ratio allowed in turn and in batches; "on par" means within a tenth.
TARGETS = (
    ("single", "boost::pool", 2.0, 2.0),
    ("single", "malloc", 1.0, 1.0),
    ("shared", "boost::lockfree::stack", 0.6, 0.6),
    ("mutex", "pi-mutex", 1.1, None),
)
#: Sizes of the batches; 1 is an alloc and a free in turn.
BATCHES = (1, 8, 64)


def find_libraries(more: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return the paths of the other mallocs by name, and the names of those that are not installed."""
    found = {Path(path).name: path for path in more}
    missing = []
    for path in more:
        if not Path(path).exists():
            sys.exit(f"--preload {path}: there is no such file")
    for name in LIBRARIES:
        path = next((f"{folder}/{name}" for folder in FOLDERS if Path(folder, name).exists()), "")
        if path:
            found.setdefault(name, path)
        elif name not in found:
            missing.append(name)
    return found, missing


def run(program: Path, *arguments: object, preload: str = "") -> list[list[str]]:
    """Run the contestants on one core, and return the words of each line that they print."""
    say(f"{arguments[0]} with {Path(preload).name or 'the C library'}")
    cpu = max(os.sched_getaffinity(0))
    done = subprocess.run(
        [str(program), *map(str, arguments)],
        env={**os.environ, "LD_PRELOAD": preload}, check=True, capture_output=True, text=True, timeout=600,
        preexec_fn=lambda: os.sched_setaffinity(0, {cpu}),
    )  # fmt: skip
    say("")
    return [line.split() for line in done.stdout.splitlines()]


def times(program: Path, batch: int, pairs: int, operations: int, preload: str = "") -> dict[str, list[float]]:
    """Return the nanoseconds of an alloc and a free for each contestant in each round."""
    found = defaultdict(list)
    mode = ("pairs", pairs, operations) if batch == 1 else ("batches", pairs, operations, batch)
    for name, ns in run(program, *mode, preload=preload):
        found[name].append(float(ns))
    return dict(found)


def main() -> int:
    options = parser(__doc__ or "", pairs=200)
    options.add_argument("--operations", type=int, default=5120, metavar="N", help="allocs of one run (5120)")
    options.add_argument("--tail", type=int, default=500_000, metavar="N", help="allocs that the tail is of (500000)")
    options.add_argument("--preload", action="append", default=[], metavar="LIBRARY", help="another malloc")
    arguments = options.parse_args()
    libraries, missing = find_libraries(arguments.preload)
    claims, tails = [], {}
    with tempfile.TemporaryDirectory() as folder:
        program = build_peers(HERE, Path(folder), "pool/pool.hpp")
        for batch in BATCHES:
            how = "in turn" if batch == 1 else f"batches of {batch}"
            for name, path in {"glibc malloc": "", **libraries}.items():
                found = times(program, batch, arguments.pairs, arguments.operations, path)
                for ours, peer, in_turn, in_batches in TARGETS:
                    if not path or peer == "malloc":
                        shown, target = name if peer == "malloc" else peer, in_turn if batch == 1 else in_batches
                        claims.append(claim(f"{ours}, {how}", "ns", found[ours], shown, found[peer], target))
        for name, path in {"glibc malloc": "", **libraries}.items():
            for contestant, *values in run(program, "tail", arguments.tail, preload=path):
                if not path or contestant == "malloc":
                    tails[name if contestant == "malloc" else contestant] = [int(value) for value in values]
    print_claims("an alloc and a free of 256 bytes", claims)
    print()
    rows = [[name, *map(str, values)] for name, values in tails.items()]
    print_table(
        "the tail under a load that fragments the heap, ns", ["contestant", "p50", "p99", "p99.99", "max"], rows
    )
    print("From 99.99 % on, interruptions of the CPU outweigh the measured operations: compare on an idle machine.")
    for name in missing:
        print(f"not measured: {name} is not installed; fix: apt install {LIBRARIES[name]}, or --preload PATH/{name}")
    write_json(
        arguments.json,
        benchmark="pool",
        claims=[made._asdict() for made in claims],
        tail_ns=tails,
        missing={name: f"apt install {LIBRARIES[name]}" for name in missing},
    )
    return exit_code(claims)


if __name__ == "__main__":
    run_script(main)
