"""Count the user-space instructions of a cycle with an empty step and all statistics, and those of cyclictest -h.

A period of 20 ms is counted by itself, and so is one that is not a whole number of nanoseconds, which carries a
remainder. Eight parameters that do not change, and signals, are the differences of loops with the same step, of which
one has neither. The signals are doubles in a row, every other double of a row, and floats of 4 bytes in a row.

    python benchmarks/instructions.py [--cycles 1000] [--json FILE]

callgrind counts the instructions of the loop's own thread in two runs that differ by a number of cycles. The difference
of the counts divided by the cycles is exact on any machine, busy or not. A cycle with a new minimum or maximum takes
more; most of them come early, so the first cycles, as many as are counted, belong to both runs of a plain loop. The
programs sleep to releases 5 ms or more apart, so that they are on time under emulation; a run with a late cycle is
repeated. Under valgrind there is no vDSO: for all of them, reading the clock counts up to the C library or a system
call.

Needs valgrind and cyclictest (apt install valgrind rt-tests).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from common import claim, exit_code, need, parser, positive, print_claims, run_script, say, write_json

TARGET, FRACTION_TARGET, PARAMETERS_TARGET = 120, 150, 12
SIGNALS_TARGET, SIGNAL_TARGET = 10, 3  # for all together, and for each
PERIOD_US = 5000
#: Of a slow loop, whose intervals are too long for single precision.
SLOW_PERIOD_US = 20_000
#: Of the loops with and without parameters and signals: under emulation their first cycle is late by more than 5 ms.
LIVE_PERIOD_US = 15_000
#: A period of 5,008,347.24... ns.
FRACTION = "59900/300Hz"
#: Signals to count: their number, the distance of their fields in memory, in fields, and their type.
SIGNALS = (
    *((number, 1, "f8") for number in (1, 2, 3, 4, 8, 16)),
    *((number, 2, "f8") for number in (2, 8, 16)),
    (6, 1, "f4"),
)
TRIES = 5
BASE = 200
#: Patterns of the measured threads: ours by a function unique to it; theirs by its number, as its names are stripped.
OURS, THEIRS = r"^fn=\S*_6rtloop_4loop_4loop__body(?:'\d+)?$", r"^thread: 2$"
OURS_LIVE = OURS.replace("__body", "__(?:live|sampled)_body")
#: A loop whose step is pthread_equal(3) of the C library: the two addresses differ, so it returns 0.
LIVE = """
import ctypes, sys
import numpy as np
from rtloop import FunctionLoop
step = ctypes.cast(ctypes.CDLL(None).pthread_equal, ctypes.c_void_p).value
data = np.zeros((), [(name, "{kind}") for name in "abcdefghijklmnopqrstuvwxyzABCDEF"])
loop = FunctionLoop(step, "{period}", data=data, parameters=data.dtype.names[:{parameters}],
                    signals=data.dtype.names[::{gap}][:{signals}], strict=False, policy="other", lock_memory="off",
                    dma_latency=None)
stats = loop.run(cycles={cycles})
print("late" if stats.overruns or stats.late else "in time")
"""
LOOP = """
import sys
from rtloop import RTLoop
loop = RTLoop("{period}", strict=False, policy="other", lock_memory="off", dma_latency=None)
stats = loop.run(cycles={cycles})
print("late" if stats.overruns or stats.late else "in time")
"""


def count(command: list[str], cycles: int, thread: str) -> int | None:
    """Run a command under callgrind; return the instructions of the measured thread, or None after a late cycle."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        done = subprocess.run(
            ["valgrind", "--tool=callgrind", "--separate-threads=yes", "--compress-strings=no",
             f"--callgrind-out-file={out}", *command],
            capture_output=True, text=True, timeout=300 + cycles * LIVE_PERIOD_US * 2e-6, check=False,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip
        if done.returncode:
            raise ValueError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-500:]}")
        if done.stdout.strip() == "late":
            return None
        counts = []
        for path in Path(folder).iterdir():
            text = path.read_text(errors="replace")
            total = re.search(r"^(?:summary|totals): (\d+)", text, re.MULTILINE)
            if total and re.search(thread, text, re.MULTILINE):
                counts.append(int(total.group(1)))
    if len(counts) != 1:
        raise ValueError(f"{len(counts)} threads of {command[0]} match, expected 1")
    return counts[0]


def difference(make: Callable[[int], list[str]], cycles: int, thread: str, name: str, base: int = BASE) -> float:
    """Return the instructions of one cycle after the first `base`."""
    counts = []
    for length in (base, base + cycles):
        for attempt in range(TRIES):
            say(f"{name}: {length} cycles" + (f", again ({attempt})" if attempt else ""))
            found = count(make(length), length, thread)
            if found is not None:
                counts.append(found)
                break
        else:
            raise ValueError(
                f"{name}: at least one of {length} cycles was late in each of {TRIES} runs; the machine is too busy"
            )
    return (counts[1] - counts[0]) / cycles


def describe(signals: int, gap: int, kind: str) -> str:
    """Name a case."""
    where = "" if signals == 1 else " in a row" if gap == 1 else " with gaps"
    return f"{signals} signal{'s' if signals > 1 else ''}{' of 4 bytes' if kind == 'f4' else ''}{where}"


def main() -> int:
    options = parser(__doc__ or "", pairs=1)
    options.add_argument("--cycles", type=positive, default=1000, metavar="N", help="number of cycles to count (1000)")
    arguments = options.parse_args()
    need("valgrind", "valgrind")
    need("cyclictest", "rt-tests")

    def loop(cycles: int, period: str = f"{PERIOD_US}us") -> list[str]:
        return [sys.executable, "-P", "-c", LOOP.format(period=period, cycles=cycles)]

    def fraction(cycles: int) -> list[str]:
        return loop(cycles, FRACTION)

    def live(parameters: int, signals: int, gap: int, kind: str, cycles: int) -> list[str]:
        what = {"parameters": parameters, "signals": signals, "gap": gap, "kind": kind}
        return [sys.executable, "-P", "-c", LIVE.format(period=f"{LIVE_PERIOD_US}us", cycles=cycles, **what)]

    def more(name: str, plain: float, parameters: int = 0, signals: int = 0, gap: int = 1, kind: str = "f8") -> float:
        make = partial(live, parameters, signals, gap, kind)
        return difference(make, arguments.cycles, OURS_LIVE, f"rtloop, {name}") - plain

    def settled(make: Callable[[int], list[str]], name: str) -> float:
        return difference(make, arguments.cycles, OURS, name, base=max(BASE, arguments.cycles))

    def cyclictest(cycles: int) -> list[str]:
        return ["cyclictest", "-q", "-t1", f"-i{PERIOD_US}", f"-l{cycles}", "-h1000000", "-N"]

    try:
        ours = settled(loop, "rtloop")
        slow = settled(partial(loop, period=f"{SLOW_PERIOD_US}us"), "rtloop, a slow loop")
        fractional = settled(fraction, "rtloop, fractional period")
        plain = difference(partial(live, 0, 0, 1, "f8"), arguments.cycles, OURS, "rtloop, a function")
        eight = more("eight parameters", plain, parameters=8)
        sampled = [(case, more(describe(*case), plain, 0, *case)) for case in SIGNALS]
        theirs = difference(cyclictest, arguments.cycles, THEIRS, "cyclictest -h")
    except (ValueError, subprocess.TimeoutExpired) as error:
        sys.exit(f"\n{error}")
    say("")
    claims = [
        claim("instructions of a cycle", "instr.", [ours], target=TARGET),
        claim("of a period of 20 ms", "instr.", [slow], target=TARGET),
        claim("of a fractional period", "instr.", [fractional], target=FRACTION_TARGET),
        claim("more with eight parameters", "instr.", [eight], target=PARAMETERS_TARGET),
        *(
            claim(f"more with {describe(*case)}", "instr.", [found], target=SIGNALS_TARGET + case[0] * SIGNAL_TARGET)
            for case, found in sampled
        ),
        claim("instructions of a cycle", "instr.", [ours], "cyclictest -h", [theirs], 1.0),
    ]
    print_claims("User-space instructions of a cycle with an empty step", claims)
    write_json(arguments.json, benchmark="instructions", cycles=arguments.cycles, claims=claims)
    return exit_code(claims)


if __name__ == "__main__":
    run_script(main)
