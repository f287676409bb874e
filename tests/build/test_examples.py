"""Every example is built and run as its README says, and what the project's README shows is what is in the files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.parent for path in (ROOT / "examples").glob("*/run.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_builds_and_runs(example: Path, tmp_path: Path) -> None:
    for file in example.iterdir():
        if file.suffix in (".pyx", ".py"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    environment = {**os.environ, "PYTHONPATH": ""}
    for source in tmp_path.glob("*.pyx"):
        command = [sys.executable, "-m", "Cython.Build.Cythonize", "-i", source.name]
        built = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert built.returncode == 0, built.stdout + built.stderr
    done = subprocess.run(
        [sys.executable, "run.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "wake-up latency" in done.stdout
    assert (example / "README.md").read_text().count(example.name) > 0


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.parametrize("shown", ["examples/first_loop/first_loop.pyx", "rtloop/demo/cartpole.pyx"])
def test_the_readme_shows_the_files_as_they_are(shown: str) -> None:
    assert (ROOT / shown).read_text().strip() in (ROOT / "README.md").read_text()
