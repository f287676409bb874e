"""The benchmark of shared exchanges runs with every way that is installed, and names the others. No time is judged."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "exchanges.py"
#: The peers that a Python has anyway, and those that have to be installed: their modules, by their names in the table.
ALWAYS = {"shared_memory + lock", "Unix socket"}
INSTALLED = {"iceoryx2": "iceoryx2", "Zenoh": "zenoh"}


def test_every_peer_is_measured_or_named_as_missing(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARK), "--only", "processes", "--pairs", "1", "--messages", "5"]
    done = subprocess.run(
        [*command, "--sizes", "64", "--json", "out.json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    content = json.loads((tmp_path / "out.json").read_text())
    missing = {name for name, module in INSTALLED.items() if importlib.util.find_spec(module) is None}
    peers = [claim["peer_name"] for claim in content["claims"]]
    assert set(peers) == ALWAYS | set(INSTALLED) - missing and len(peers) == 3 * len(set(peers))
    assert min(min(claim["ours"], claim["peer"]) for claim in content["claims"]) > 0
    assert set(content["missing"]) == missing
    assert all(f"not measured: {name} is not installed; fix: pip install" in done.stdout for name in missing)
