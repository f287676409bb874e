"""The page of pitfalls: every test that it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/explanation/pitfalls.md"

PYTHON = re.compile(r"^\s*(?:async )?def (test_\w+)", re.MULTILINE)
NATIVE = re.compile(r"^static void (\w+)\(void\) \{", re.MULTILINE)


def rows(text: str) -> list[list[str]]:
    """Return the cells of each row of the page's tables, without the headings."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| What", "| ---"))]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def existing(folder: Path) -> set[str]:
    """Return the names of all tests: functions of Python and of the native programs."""
    python = (name for path in folder.rglob("test_*.py") for name in PYTHON.findall(path.read_text()))
    native = (name for path in folder.rglob("test_*.c") for name in NATIVE.findall(path.read_text()))
    return {*python, *native}


@pytest.fixture(scope="module")
def tests() -> set[str]:
    return existing(ROOT / "tests")


def test_the_page_has_its_rows() -> None:
    assert len(rows(PAGE.read_text())) >= 58


@pytest.mark.parametrize("row", rows(PAGE.read_text()), ids=lambda row: re.sub(r"\W+", "-", row[0])[:40])
def test_what_the_page_says_is_proved_by_tests_that_exist(row: list[str], tests: set[str]) -> None:
    assert len(row) == 3, "what happens, what rtloop does, and the tests"
    named = re.findall(r"`(\w+)`", row[2])
    assert named, "a claim without a test"
    assert set(named) <= tests


def test_tests_are_found_in_python_and_in_c_and_a_missing_one_is_missed(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text("def test_one():\n    pass\nclass T:\n    def test_two(self):\n        pass\n")
    (tmp_path / "test_b.c").write_text("static void sleeps_again(void) {\n}\nint main(void) {\n}\n")
    assert existing(tmp_path) == {"test_one", "test_two", "sleeps_again"}
