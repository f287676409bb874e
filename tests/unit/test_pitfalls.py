"""Every pitfall of real-time Python on Linux that rtloop knows of has a test that bears its number."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

#: The rows, by their sections: memory, thread, time (clocks), Python, security.
PITFALLS = [f"{section}{number}" for section, count in {"M": 16, "T": 16, "C": 8, "P": 13, "S": 5}.items()
            for number in range(1, count + 1)]  # fmt: skip

#: ``def test_M8_T6_...``, and in C a comment before the function: ``/* C2: ...``.
PYTHON = re.compile(r"^\s*def test_((?:[MTCPS]\d+_)+)", re.MULTILINE)
NATIVE = re.compile(r"^/\* ([MTCPS]\d+): .*\*/\nstatic void \w+\(void\) \{", re.MULTILINE)


def numbers_in(folder: Path) -> set[str]:
    """Return the numbers that tests bear in their names."""
    found: set[str] = set()
    for path in folder.rglob("test_*.py"):
        for numbers in PYTHON.findall(path.read_text()):
            found.update(numbers.strip("_").split("_"))
    for path in folder.rglob("test_*.c"):
        found.update(NATIVE.findall(path.read_text()))
    return found


@pytest.mark.parametrize("number", PITFALLS)
def test_the_pitfall_has_a_test_that_bears_its_number(number: str) -> None:
    assert number in numbers_in(TESTS)


def test_no_test_bears_a_number_that_there_is_not() -> None:
    assert numbers_in(TESTS) <= set(PITFALLS)


def test_numbers_are_found_in_python_and_in_c(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text("def test_M1_T16_both():\n    pass\ndef test_Mango():\n    # M2\n    pass\n")
    (tmp_path / "test_b.c").write_text("/* C6: said. */\nstatic void f(void) {\n/* C7: of nothing */\n")
    assert numbers_in(tmp_path) == {"M1", "T16", "C6"}
