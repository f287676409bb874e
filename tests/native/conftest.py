"""Rows of the tables of programs as tests, and the compilers."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
pytest.register_assert_rewrite("native_programs")

#: Arguments for whose values a test is repeated, and the fields of a program that list these values.
ROWS = {"sanitizer": "sanitizers", "fault": "faults", "mutation": "mutations"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Repeat a test for each row of its module's PROGRAMS."""
    for word in ROWS.keys() & set(metafunc.fixturenames):
        programs = metafunc.module.PROGRAMS
        rows = [(name, row) for name, program in programs.items() for row in getattr(program, ROWS[word])]
        metafunc.parametrize(("name", word), rows, ids=[f"{name}-{row}" for name, row in rows])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out a test for which no program has a row, instead of skipping it."""
    here = Path(__file__).parent
    items[:] = [item for item in items if item.path.parent != here or not item.name.endswith("NOTSET]")]


@pytest.fixture
def program(request, name):
    return request.module.PROGRAMS[name]


@pytest.fixture(params=["gcc", "clang"], scope="session")
def compiler(request) -> str:
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return request.param
