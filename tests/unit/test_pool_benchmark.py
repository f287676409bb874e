"""The benchmark of the pools runs with every contestant in every part. Its figures are not judged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "pool.py"
CONTESTANTS = {
    "single", "shared", "mutex", "glibc malloc", "boost::pool", "boost::lockfree::stack", "pi-mutex",
}  # fmt: skip


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARK), "--pairs", "1", "--operations", "640", "--tail", "4000", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.skipif(
    not (shutil.which("gcc") and shutil.which("g++") and os.path.exists("/usr/include/boost/pool/pool.hpp")),
    reason="needs gcc, g++ and libboost-dev",
)
def test_the_benchmark_of_pools_has_every_contestant(tmp_path: Path) -> None:
    done = run(tmp_path, "--json", "out.json")
    assert done.returncode in (0, 1), done.stderr
    written = json.loads((tmp_path / "out.json").read_text())
    assert {c["ours"] > 0 and c["peer"] > 0 for c in written["claims"]} == {True}
    assert {"boost::pool", "glibc malloc", "boost::lockfree::stack", "pi-mutex"} <= {
        c["peer_name"] for c in written["claims"]
    }
    assert {c["name"] for c in written["claims"]} >= {
        f"single, {how}" for how in ("in turn", "batches of 8", "batches of 64")
    }
    assert written["tail_ns"].keys() >= CONTESTANTS
    assert all(p50 <= p99 <= p9999 <= worst for p50, p99, p9999, worst in written["tail_ns"].values())
    for name in written["missing"]:
        assert f"{name} is not installed; fix: apt install" in done.stdout


def test_a_library_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = run(tmp_path, "--preload", "/nowhere/libmine.so")
    assert done.returncode == 1 and "--preload /nowhere/libmine.so: there is no such file" in done.stderr
