"""Measure the cost of guards: of a clean cycle, of each kind of violation, and of the malloc library.

    python benchmarks/guards.py [--cycles 200000] [--pairs 9] [--no-instructions] [--json FILE]

benchmarks/guards.c runs the loop's own code with a step that does nothing and no pause between the cycles. The sides of
a row alternate. The rows:

    a clean cycle           guarded, compared with an unguarded one
    ... by getrusage        guarded without perf events: one system call after each cycle
    a system call in step   recorded or only counted, and let through, compared with the bare call
    an allowed call         named in guard_allow, compared with the bare call
    a page fault in step    sampled and counted, compared with the bare fault
    malloc + free           with the library loaded, on an unguarded thread, compared with the C library's
    malloc + free in step   counted, compared with the C library's

If valgrind is installed, and without --no-instructions, the script also counts the instructions that guards add to a
clean cycle (callgrind, the difference of two lengths). A loop with guard="off" runs different code without any guard,
so it pays nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from common import alternate, claim, exit_code, need, parser, positive, print_claims, run_script, say, write_json

import rtloop

SOURCE = Path(__file__).parent / "guards.c"
#: Label, our row, the row it is compared with, a flag that loads the library for ours, and the largest difference
#: allowed in ns, if the published contract names one.
ROWS = (
    ("a clean cycle, guarded", "guarded", "bare", False, 20),
    ("... faults by getrusage", "usage", "bare", False, None),
    ("a system call in step", "call", "bare-call", False, 3000),
    ("a call of guard_allow", "call-allowed", "bare-call", False, 3000),
    ("a page fault in step", "touch", "bare-touch", False, None),
    ("malloc + free, library loaded", "bare-malloc", "bare-malloc", True, None),
    ("malloc + free in step", "malloc", "bare-malloc", True, None),
)


def build(folder: Path) -> Path:
    program = folder / "guards"
    headers = Path(rtloop.get_include()) / "rtloop" / "include" / "rtloop"
    command = [need("gcc", "gcc"), "-std=gnu11", "-O2", f"-I{headers}", str(SOURCE), "-o", str(program), "-pthread"]
    subprocess.run(command, check=True)
    return program


def run(program: Path, row: str, cycles: int, *, is_loaded: bool = False) -> float | None:
    """Return the ns of a cycle, or None if this machine does not support the row."""
    environment = {**os.environ, "LD_PRELOAD": rtloop.guard.library()} if is_loaded else None
    done = subprocess.run(
        [str(program), row, str(cycles)], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    text = done.stdout.strip()
    return None if text == "unavailable" else float(text)


def instructions(program: Path, row: str) -> float:
    """Return the instructions of a cycle, as the difference of two lengths, which excludes the setup."""
    counts = []
    for cycles in (1000, 11000):
        command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", str(program), row, str(cycles)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        found = re.search(r"refs:\s+([\d,]+)", done.stderr)
        if found is None:
            raise ValueError(f"callgrind reported no number of instructions: {done.stderr}")
        counts.append(int(found[1].replace(",", "")))
    return (counts[1] - counts[0]) / 10_000


def main() -> int:
    options = parser(__doc__ or "", pairs=9)
    options.add_argument("--cycles", type=positive, default=200_000, metavar="N", help="cycles of a run (200000)")
    options.add_argument(
        "--no-instructions", action="store_true", help="do not count instructions, which takes a while"
    )
    args = options.parse_args()
    claims, costs = [], {}
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder))
        for label, ours, bare, is_loaded, most in ROWS:
            say(label)
            if run(program, ours, 1000, is_loaded=is_loaded) is None:
                say("  not on this kernel")
                continue
            found = alternate(
                {
                    "ours": lambda ours=ours, is_loaded=is_loaded: run(program, ours, args.cycles, is_loaded=is_loaded),
                    "bare": lambda bare=bare: run(program, bare, args.cycles),
                },
                args.pairs,
            )
            added = [a - b for a, b in zip(found["ours"], found["bare"], strict=True)]
            costs[ours if ours != bare else "loaded"] = added
            claims.append(claim(f"{label}: added", "ns", added, target=most))
        if args.no_instructions:
            say("instructions: not counted")
        elif shutil.which("valgrind"):
            say("instructions")
            added = [instructions(program, "ring") - instructions(program, "bare")]
            claims.append(claim("a clean cycle: added", "instructions", added, target=60))
        else:
            say("instructions: valgrind is not installed")
    print_claims("Cost of guards", claims)
    write_json(args.json, claims=claims, added_ns=costs)
    return exit_code(claims)


if __name__ == "__main__":
    run_script(main)
