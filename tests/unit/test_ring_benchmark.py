"""The benchmark of the exchanges runs with every contestant in every part. Its figures are not judged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "ring.py"


@pytest.mark.skipif(
    not (shutil.which("gcc") and shutil.which("g++") and os.path.exists("/usr/include/boost/lockfree/spsc_queue.hpp")),
    reason="needs gcc, g++ and libboost-dev",
)
def test_the_benchmark_of_rings_has_every_contestant(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARK), "--pairs", "1", "--items", "3000", "--json", "out.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode in (0, 1), done.stderr
    claims = json.loads((tmp_path / "out.json").read_text())["claims"]
    assert {c["ours"] > 0 for c in claims} == {True}
    peers = [c["peer_name"] for c in claims]
    is_alone = len(os.sched_getaffinity(0)) < 2
    assert peers.count("boost::lockfree::spsc_queue") == (2 if is_alone else 4) and peers.count("") == 1
    assert peers.count("boost::lockfree::spsc_queue, capacity chosen at run time") == 2
    assert ("not measured" in done.stdout) == is_alone
