"""The benchmark of FunctionLoop runs and covers every variant. Its figures are not judged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "function_loop.py"


def test_the_benchmark_compares_every_side_with_a_subclass(tmp_path: Path) -> None:
    pytest.importorskip("numba")
    command = [sys.executable, str(BENCHMARK), "--pairs", "1", "--cycles", "2000", "--json", "out.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode in (0, 1), done.stderr
    written = json.loads((tmp_path / "out.json").read_text())
    assert len(written["claims"]) == 4
    assert all(c["ours"] > 0 and c["peer"] > 0 and c["peer_name"] == "Cython subclass" for c in written["claims"])
    assert set(written["ns"]) == {
        "subclass", "the same subclass", "a C function", "numba.cfunc", "numba.cfunc, by ctypes",
    }  # fmt: skip
