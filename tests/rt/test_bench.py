"""The benchmarks that need locked memory and SCHED_FIFO run, and tell what they claim. No time is judged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
RUNS = {
    "start_stop": ("--pairs 2", 2),
    "locked_memory": ("--pairs 1", 6),
    "snapshot": ("--pairs 1 --seconds 0.5", 6),
    "spin": ("--pairs 1 --seconds 0.5", 3),
    "scaling": ("--pairs 1 --seconds 0.1", 20),
}


@pytest.mark.rt
@pytest.mark.parametrize("script", RUNS)
def test_a_benchmark_runs_and_has_all_its_claims(script: str, tmp_path: Path) -> None:
    options, claims = RUNS[script]
    out = tmp_path / "out.json"
    command = [sys.executable, str(FOLDER / f"{script}.py"), *options.split(), "--json", str(out)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert out.exists(), done.stderr
    written = json.loads(out.read_text())
    assert len(written["claims"]) == claims
    assert all(claim["ours"] > 0 or claim["unit"] == "%" for claim in written["claims"]), "no release need be missed"
