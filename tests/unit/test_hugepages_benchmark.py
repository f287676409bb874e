"""The benchmark of huge pages runs if the machine has any; otherwise it prints how to reserve them."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path

import pytest

from rtloop import HugeBuffer
from rtloop.memory.hugepage_supply import transparent_page_size

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "hugepages.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, PROGRAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_it_compares_the_pages_and_writes_the_facts(tmp_path: Path) -> None:
    if not transparent_page_size():
        pytest.skip("this kernel has no transparent huge pages")
    out = tmp_path / "out.json"
    done = run("--size", "4M", "--loads", 1000, "--pairs", 2, "--backing", "thp", "--json", out)
    assert done.returncode == 0, done.stderr
    written = json.loads(out.read_text())
    assert written["huge_bytes"] == {"pages": 0, "thp": 4 << 20}
    assert [len(times) for times in written["times"].values()] == [2, 2] and min(written["times"]["pages"]) > 0
    assert {"kernel", "cpu", "load"} <= set(written["facts"]) and "thp" in done.stdout


def test_what_the_machine_does_not_have_is_said() -> None:
    done = run("--size", 1 << 42, "--backing", "hugetlb", "--backing", "thp")
    assert done.returncode == 1 and "MemAvailable" in done.stderr
    done = run("--size", "4M", "--loads", 0)
    assert done.returncode == 2


@pytest.mark.filterwarnings("ignore::rtloop.RTSetupWarning")
def test_the_ring_visits_every_line_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PROGRAM.parent)
    import hugepages

    library, buffer = hugepages.load_library(), HugeBuffer(64 * 1000, backing="pages")
    words = buffer.array("u8")
    address = words.ctypes.data
    library.link_ring(address, buffer.nbytes)
    seen, at = set(), address
    while at not in seen:
        seen.add(at)
        at = ctypes.c_uint64.from_address(at).value
    assert len(seen) == 1000 and at == address
