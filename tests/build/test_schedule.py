"""The longest tests are begun first, and of those in real time only one runs at a time."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("xdist", reason="the order of tests is that of pytest-xdist")

ROOT = Path(__file__).parents[2]

#: A test file that notes when each of its tests began and ended, in which process.
NOTES = """
import json, os, time
from pathlib import Path
import pytest

@pytest.mark.parametrize("number", range({count}))
def test_it(number):
    begun = time.monotonic()
    time.sleep({seconds})
    line = json.dumps([{name!r}, begun, time.monotonic(), os.getpid()])
    (Path({folder!r}) / f"{name}-{{number}}").write_text(line)
"""


@pytest.fixture
def schedule(support: Callable[[str], ModuleType]) -> ModuleType:
    return support("schedule")


def test_the_tests_of_a_file_stay_together_but_for_those_that_share_nothing(schedule: ModuleType) -> None:
    assert schedule.unit_of("tests/unit/test_x.py::test_a[1]") == schedule.unit_of("tests/unit/test_x.py::TestB::test")
    assert schedule.unit_of("tests/native/test_x.py::test_a") != schedule.unit_of("tests/native/test_x.py::test_b")
    assert schedule.unit_of("tests/rt/test_x.py::test_a") == schedule.unit_of("tests/rt/test_y.py::test_a")


def test_the_longest_are_begun_first(schedule: ModuleType) -> None:
    assert schedule.LONG and len(set(schedule.LONG)) == len(schedule.LONG)
    for name in schedule.LONG:
        assert (ROOT / name).is_file(), f"{name} is gone: the table of tests/support/schedule.py is old"
        assert schedule.unit_of(f"{name}::test_a") == name
    first, second, *_, last = schedule.LONG
    order = [schedule.unit_of("tests/rt/test_x.py::test_a"), first, second, last, "tests/build/test_x.py"]
    assert sorted(["tests/unit/test_x.py", *reversed(order)], key=schedule.rank) == [*order, "tests/unit/test_x.py"]


def test_what_changes_the_machine_runs_alone() -> None:
    """Such as CLOCK_TAI, with which other tests pace their loops and stamp their values."""
    rule = r"^ALONE := \$\(patsubst %,tests/rt/test_%\.py,(.*)\)$"
    (names,) = re.findall(rule, (ROOT / "Makefile").read_text(), re.M)
    alone = {ROOT / f"tests/rt/test_{name}.py" for name in names.split()}
    assert all(path.is_file() for path in alone)
    changes = re.compile(r'support\("tai"\)|^\w+ = Path\("/(proc/sys|sys/fs)/', re.M)
    found = {path for path in (ROOT / "tests").rglob("test_*.py") if changes.search(path.read_text())}
    assert found and found <= alone, f"for ALONE in the Makefile: {sorted(map(str, found - alone))}"


def test_of_the_tests_in_real_time_only_one_runs_at_a_time_and_others_beside_it(tmp_path: Path) -> None:
    notes, tests = tmp_path / "notes", tmp_path / "tests"
    notes.mkdir()
    tests.mkdir()
    (tests / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    shutil.copytree(ROOT / "tests" / "support", tests / "support", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "pytest.ini").touch()
    for name, count in (("rt/test_a", 4), ("rt/test_b", 4), ("unit/test_c", 8), ("native/test_d", 8)):
        path = tests / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(NOTES.format(count=count, seconds=0.1, name=path.stem, folder=str(notes)))
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "tests"], cwd=tmp_path, env={**os.environ, "PYTEST_ADDOPTS": ""}, timeout=170,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    runs = [json.loads(path.read_text()) for path in notes.iterdir()]
    assert len(runs) == 24
    processes = {name: {process for which, _, _, process in runs if which == name} for name, *_ in runs}
    (alone,) = processes["test_a"] | processes["test_b"]
    assert len(processes["test_c"]) == 1
    spans = sorted((begin, end) for _, begin, end, process in runs if process == alone)
    beside = [(begin, end) for _, begin, end, process in runs if process != alone]
    assert any(begin < spans[-1][1] and end > spans[0][0] for begin, end in beside), "the others do not wait for them"
