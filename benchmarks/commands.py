"""Measure how long a user waits for the package and for the command line.

    python benchmarks/commands.py [--pairs 20] [--json FILE]

Each figure is that of a new process, whose files are in the page cache: `import rtloop` after NumPy, `rtloop --help`
from the start of the process to its end, and `rtloop run` of a file that is compiled already, from the start of the
process to the loop's first release. They include the start of Python itself, which the table shows beside them. The CPU
time of the whole `rtloop run` depends little on other work on the machine.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import alternate, claim, exit_code, parser, print_claims, run_script, write_json

from rtloop import Stats

IMPORT_TARGET_MS, HELP_TARGET_MS, RUN_TARGET_MS = 8.0, 150.0, 300.0
EXAMPLE = Path(__file__).parents[1] / "examples" / "first_loop" / "first_loop.pyx"
IMPORT = """
import numpy, time
begin = time.perf_counter_ns()
import rtloop
print((time.perf_counter_ns() - begin) / 1e6)
"""


def run(*command: str) -> str:
    """Run a process of this Python in a folder without modules, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-P", *command], capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "COLUMNS": "80"},
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return done.stdout


def duration(*command: str) -> float:
    """Return the milliseconds that a process takes."""
    begin = time.perf_counter_ns()
    run(*command)
    return (time.perf_counter_ns() - begin) / 1e6


def cpu_ms() -> float:
    """Return the CPU time of all child processes that have ended, ms."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (used.ru_utime + used.ru_stime) * 1000


def first_release(saved: Path) -> tuple[float, float]:
    """Run the example for 20 cycles.

    Returns the time from the start of the process to its first release, and its CPU time, both in ms.
    """
    used = cpu_ms()
    begin = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    run("-m", "rtloop", "run", str(EXAMPLE), "--cycles", "20", "--record", str(saved))
    used = cpu_ms() - used
    return (int(Stats.load(saved).records["release"][0]) - begin) / 1e6, used


def main() -> int:
    arguments = parser(__doc__ or "", pairs=20).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder, "run.npz")
        first_release(saved)  # compiles it
        found = alternate(
            {
                "python": lambda: duration("-c", "pass"),
                "import": lambda: float(run("-c", IMPORT)),
                "help": lambda: duration("-m", "rtloop", "--help"),
                "run": lambda: first_release(saved),
            },
            arguments.pairs,
        )
    firsts, used = zip(*found["run"], strict=True)
    claims = [
        claim("Python alone: python -c pass", "ms", found["python"]),
        claim("import rtloop, after NumPy", "ms", found["import"], target=IMPORT_TARGET_MS),
        claim("rtloop --help", "ms", found["help"], target=HELP_TARGET_MS),
        claim("rtloop run of a compiled file, to the first release", "ms", firsts, target=RUN_TARGET_MS),
        claim("rtloop run of a compiled file, CPU time", "ms", used),
    ]
    print_claims(f"Import and commands, median of {arguments.pairs}", claims)
    write_json(arguments.json, benchmark="commands", options=vars(arguments), ms=found, claims=claims)
    return exit_code(claims)


if __name__ == "__main__":
    run_script(main)
