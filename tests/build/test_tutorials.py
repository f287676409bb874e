"""Every tutorial is walked: its commands run as they are printed, and print what the page shows."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TUTORIALS = [path for path in sorted((DOCS / "tutorials").glob("*.md")) if "```console" in path.read_text()]
NEEDS_PRIVILEGES = ["tune-a-machine"]


def load_walk() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rtloop_docs_walk", DOCS / "walk.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


walk = load_walk()


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=[pytest.mark.rt] if p.stem in NEEDS_PRIVILEGES else [], id=p.stem) for p in TUTORIALS],
)
def test_a_tutorial_is_walked_as_printed(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "numba" in page.read_text():
        pytest.importorskip("numba")
    for folder in ("examples", "docs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.c", "*.so", "build"))
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("RTLOOP_CACHE_DIR", str(tmp_path / "cache"))
    outcomes = walk.walk(tmp_path / "docs" / "tutorials" / page.name, tmp_path, timeout=100)
    assert outcomes
    wrong = walk.complain(outcomes, DOCS / "outputs")
    assert not wrong, "\n\n".join(wrong)


def test_there_are_tutorials_and_all_outputs_are_shown() -> None:
    shown = [name for page in TUTORIALS for _, names in walk.read(page, set_up=True) for name in names]
    assert sorted(shown) == sorted(path.name for path in (DOCS / "outputs").iterdir())


def test_a_walk_runs_one_shell_and_stops_at_nothing(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- set up -->\n\n```console\n$ exit 3\n```\n\n"
        "```console\n$ cd sub\n$ printf 'cycles    7\\n'\n```\n\n"
        "```{literalinclude} ../outputs/a.txt\n```\n\n"
        "```console\n$ false\n$ sudo touch run.png\n```\n\n![A run](../outputs/run.png)\n\n"
        "```console\n$ exit 0\n$ true\n```\n"
    )
    (tmp_path / "sub").mkdir()
    outcomes = walk.walk(page, tmp_path)
    assert [o.command for o in outcomes] == [
        "cd sub",
        "printf 'cycles    7\\n'",
        "false",
        "sudo touch run.png",
        "exit 0",
        "true",
    ]
    assert [o.code for o in outcomes] == [0, 0, 1, 0, None, None]
    assert outcomes[1].output.strip() == "cycles    7"
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    (outputs / "a.txt").write_text("cycles      1,000\n")
    wrong = walk.complain(outcomes, outputs)
    assert len(wrong) == 4  # false, the missing picture, and two commands that were not reached
    (outputs / "a.txt").write_text("turns      1,000\n")
    assert len(walk.complain(outcomes, outputs)) == 5
    walk.write(outcomes[:4], tmp_path, outputs)
    assert (outputs / "a.txt").read_text() == "cycles    7\n"
    assert (outputs / "run.png").exists()


def test_the_structure_of_an_output_is_its_rows_of_figures() -> None:
    text = "Sine-1: 1 kHz, fifo 80\n\nwake-up latency   7 us  8 us\n CPU   50 %\nhow: x  1\n\ngranted   x 1\nmore  2\n"
    assert walk.structure(text) == ["wake-up latency", "CPU"]
