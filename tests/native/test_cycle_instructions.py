"""Instructions of a cycle: under a ceiling, and as few in a loop of 20 Hz as in one of 1 kHz."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from native_programs import HERE, compile_c

#: Ten less than the target of `benchmarks/instructions.py`, which also counts the clock and the step.
CEILING = 110
FEW, MORE = 1000, 5000


def count(program: Path, period_ns: int, cycles: int, folder: Path) -> int:
    """Return the instructions of the loop's own code, without those of the clock, the sleep and the step."""
    out = folder / "callgrind"
    command = ["valgrind", "--tool=callgrind", "--compress-strings=no", f"--callgrind-out-file={out}"]
    done = subprocess.run(
        [*command, str(program), str(period_ns), str(cycles)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    # A line ends with its cost. The line after "calls=" has the cost of the callee, which has its own lines.
    text = re.sub(r"^calls=.*\n.*\n", "", out.read_text(), flags=re.MULTILINE)
    total = 0
    for name, lines in re.findall(r"^fn=(\S+)\n((?:(?!fn=).*\n)*)", text, flags=re.MULTILINE):
        if name.split(".")[0] == "run" or name.startswith("rt_"):  # gcc adds ".constprop.0"
            total += sum(int(cost) for cost in re.findall(r"^[+*\-\d]\S* (\d+)$", lines, flags=re.MULTILINE))
    return total


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the ceiling is that of x86-64")
@pytest.mark.skipif(not shutil.which("valgrind"), reason="valgrind, which counts the instructions, is not installed")
def test_a_cycle_takes_as_few_instructions_in_a_slow_loop_as_in_a_fast_one(tmp_path: Path) -> None:
    program = tmp_path / "cycle_instructions"
    compile_c("gcc", HERE / "cycle_instructions.c", program, "-O3", "-g", "-pthread", "-fno-strict-aliasing")
    found = {}
    for hertz in (1000, 50, 20):
        few, more = (count(program, 1_000_000_000 // hertz, cycles, tmp_path) for cycles in (FEW, MORE))
        found[hertz] = (more - few) / (MORE - FEW)
    assert min(found.values()) > 0 and max(found.values()) <= CEILING, found
    assert max(found.values()) - min(found.values()) < 1, found
