"""The benchmark of a watched loop runs, its readers really look, and the others do not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "attach.py"

pytestmark = [
    pytest.mark.rt,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a CPU for the loop and one for the watcher"),
]


def test_every_row_is_measured_and_compared(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARK), "--pairs", "2", "--seconds", "0.3", "--json", "out.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode in (0, 1), done.stderr
    document = json.loads((tmp_path / "out.json").read_text())
    runs = document["runs"]
    assert list(runs) == ["nobody", "10hz", "flat-out", "busy"]
    looks = {row: [one["looks"] for one in found] for row, found in runs.items()}
    assert looks["nobody"] == looks["busy"] == [0, 0]
    assert all(1 <= count <= 10 for count in looks["10hz"]) and min(looks["flat-out"]) > max(looks["10hz"])
    assert all(one["count"] > 100 for found in runs.values() for one in found), "300 cycles each"
    compared = [(claim["name"], claim["peer_name"]) for claim in document["claims"] if claim["target"]]
    assert compared == [
        ("10 Hz, 50 %", "unwatched"),
        ("10 Hz, 99 %", "unwatched"),
        ("flat out, 50 %", "busy process"),
        ("flat out, 99 %", "busy process"),
    ]


def test_no_cpu_for_the_watcher_is_said_so() -> None:
    command = ["taskset", "-c", str(min(os.sched_getaffinity(0))), sys.executable, str(BENCHMARK)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "the loop and the watcher need a CPU each" in done.stderr
