"""Measure the memory that a loop locks in a Python process with NumPy, in each mode of lock_memory.

    python benchmarks/locked_memory.py [--json FILE]

Each mode runs in a process of its own. VmLck of /proc/self/status (proc_pid_status(5)) is the locked address space,
which limits such as RLIMIT_MEMLOCK count. `Locked` of /proc/self/smaps_rollup is the part of it that is in memory.
"""

from __future__ import annotations

import json
import subprocess
import sys

from common import Claim, claim, exit_code, parser, print_claims, run_script, say, write_json

MODES = {"all": None, "onfault": None, "own": 8.0}
PROGRAM = """
import json, re, sys, time
import numpy
from rtloop import RTLoop
with RTLoop("1ms", lock_memory=sys.argv[1], name="locked") as loop:
    time.sleep(0.1)
    status = open("/proc/self/status").read()
    rollup = open("/proc/self/smaps_rollup").read()
print(json.dumps([int(re.search(name + r":\\s+(\\d+) kB", text).group(1))
                  for name, text in (("VmLck", status), ("Locked", rollup))]))
"""


def main() -> int:
    arguments = parser(__doc__ or "", pairs=3).parse_args()
    claims: list[Claim] = []
    for mode, target in MODES.items():
        locked, present = [], []
        for number in range(arguments.pairs):
            say(f"{mode} {number + 1}")
            command = [sys.executable, "-P", "-c", PROGRAM, mode]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            if done.returncode:
                sys.exit(f"\nlock_memory={mode!r}: {done.stderr.strip().splitlines()[-1]}")
            kib = json.loads(done.stdout)
            locked.append(kib[0] / 1024)
            present.append(kib[1] / 1024)
        claims.append(claim(f"lock_memory={mode!r}: VmLck", "MiB", locked, target=target))
        claims.append(claim(f"lock_memory={mode!r}: in memory", "MiB", present))
    say("")
    print_claims("Locked memory of a loop in a Python process with NumPy", claims)
    write_json(arguments.json, benchmark="locked_memory", claims=claims)
    return exit_code(claims)


if __name__ == "__main__":
    run_script(main)
