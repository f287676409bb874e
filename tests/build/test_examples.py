"""Every example is built and run as its README says, and what the project's README shows is what is in the files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rtloop

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.parent for path in (ROOT / "examples").glob("*/run.py"))
#: Arguments that shorten a run.
SHORT = {
    "adaptive_optics": ["--duration", "500ms", "--modes", "100"],
    "fmu": ["--seconds", "0.5"],
    "humanoid": ["--seconds", "0.5", "--virtual", "1s"],
    "mpc": ["--seconds", "0.5", "--campaign", "1"],
    "mujoco": ["--seconds", "1"],
}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_builds_and_runs(
    example: Path, built_example: Callable[[str], Path], example_cache: dict[str, str], tmp_path: Path
) -> None:
    if "rtloop.zenoh" in (example / "run.py").read_text():
        pytest.importorskip("zenoh", reason="Zenoh is missing: pip install 'rtloop[zenoh]'")
    folder = built_example(example.name)
    if "rtloop.build(" not in (example / "run.py").read_text():  # which finds what it has compiled by its path
        folder = shutil.copytree(folder, tmp_path / example.name)
    done = subprocess.run(
        [sys.executable, "run.py", *SHORT.get(example.name, [])],
        cwd=folder,
        env={**os.environ, **example_cache, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=200,  # vision_loop starts seven processes
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "wake-up latency" in done.stdout
    assert (example / "README.md").read_text().count(example.name) > 0


def test_there_are_examples() -> None:
    assert EXAMPLES


def test_each_folder_is_an_example_with_what_it_takes() -> None:
    """A folder without run.py would be passed over above."""
    folders = {path for path in (ROOT / "examples").iterdir() if path.is_dir() and path.name != "__pycache__"}
    image = {ROOT / "examples" / "container"}  # built by podman or docker, not run by Python
    assert folders == {*EXAMPLES, *image}
    for folder in folders - image:
        readme = (folder / "README.md").read_text()
        assert readme.startswith("# ")
        assert f"cd examples/{folder.name}\n" in readme


@pytest.mark.parametrize(
    ("page", "shown"),
    [
        ("README.md", "examples/first_loop/first_loop.pyx"),
        ("README.md", "examples/first_loop/run.py"),
        ("docs/how-to/function-loop.md", "examples/functions/numba_step.py"),
        ("docs/how-to/function-loop.md", "examples/functions/python_step.py"),
        ("docs/how-to/function-loop.md", "examples/functions/process_step.py"),
    ],
)
def test_a_page_shows_the_files_as_they_are(page: str, shown: str) -> None:
    assert (ROOT / shown).read_text().strip() in (ROOT / page).read_text()


def blocks(page: str, language: str) -> list[str]:
    """Return the code of that language on a page of the docs."""
    found = re.findall(r"^```(.*?)\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    return [code for name, code in found if name == language]


def test_the_step_in_c_of_the_docs_compiles_as_they_say_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = "docs/how-to/function-loop.md"
    monkeypatch.chdir(tmp_path)
    (code,) = (block for block in blocks(page, "c") if "#include" in block)
    Path("step.c").write_text(code)
    (command,) = (block for block in blocks(page, "") if block.startswith("cc "))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run(["sh", "-ec", command], check=True, env={**os.environ, "PATH": path})
    (python,) = (block for block in blocks(page, "python") if "CDLL" in block)
    found: dict[str, Any] = {"np": np, "rtloop": rtloop}
    exec(python, found)
    loop = found["loop"]
    loop.data[0] = 2.0
    loop.simulate(cycles=1000)
    assert loop.data[1] == pytest.approx(2.0)
