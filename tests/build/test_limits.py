"""The test suite itself never hangs: a test that does, and a worker that is killed, end it, and are named."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def make_test(folder: Path, **files: str) -> subprocess.CompletedProcess[str]:
    """Run test files as `make test` does, on one worker, with this suite's conftest.py."""
    pytest.importorskip("xdist")
    (folder / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    shutil.copytree(ROOT / "tests" / "support", folder / "support", ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    (found,) = re.findall(r"-n \$\$workers (--dist .*?) \"\$\$@\"", (ROOT / "Makefile").read_text())
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "1", *found.split(), "-p", "no:cacheprovider", "."],
        cwd=folder,
        env={**os.environ, "RTLOOP_TEST_WATCHDOG_S": "1", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_a_test_that_hangs_ends_the_run_with_its_name_and_where_it_hangs(tmp_path: Path) -> None:
    done = make_test(
        tmp_path,
        test_a="import time\ndef test_hangs():\n    time.sleep(1000)\n",
        test_b="def test_after(): pass\n",
    )
    assert done.returncode == 1
    assert "crashed while running 'test_a.py::test_hangs'" in done.stdout
    assert "in test_hangs" in done.stderr, "the stack"


def test_a_worker_that_is_killed_ends_the_run_with_the_test_it_was_at(tmp_path: Path) -> None:
    done = make_test(
        tmp_path,
        test_a="import os\ndef test_is_killed():\n    os.kill(os.getpid(), 9)\n",
        test_b="def test_after(): pass\n",
    )
    assert done.returncode == 1
    assert "crashed while running 'test_a.py::test_is_killed'" in done.stdout


@pytest.mark.parametrize(
    ("program", "code", "is_ended"),
    [
        ("exit 3", 3, False),
        ("exit 0", 0, False),
        ("sleep 100", 124, True),
        ("trap '' TERM; sleep 100 & wait", 124, True),  # as programs under ThreadSanitizer
    ],
)
def test_what_takes_longer_than_its_limit_is_ended_with_all_that_it_started(
    program: str, code: int, is_ended: bool
) -> None:
    limit = "0.5" if is_ended else "100"
    done = subprocess.run(
        [str(ROOT / ".ci" / "limit"), limit, "sh", "-c", program],
        stdin=subprocess.DEVNULL,
        capture_output=True,  # whose end comes when the last process that has it is gone
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code
    assert ("not done after 0.5, hence ended: sh -c " + program in done.stderr) == is_ended
