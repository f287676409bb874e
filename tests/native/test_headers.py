"""Every C11 header by itself, and the tables of their programs."""

from __future__ import annotations

import re

import pytest
from native_programs import HERE, INCLUDE, compile_c, run

HEADERS = sorted((INCLUDE / "rtloop").glob("*.h"))


@pytest.mark.parametrize("header", HEADERS, ids=lambda path: path.name)
def test_header_stands_alone(header, compiler, tmp_path):
    """It compiles by itself, twice in one file, and unused."""
    source = tmp_path / "alone.c"
    source.write_text(f'#include "rtloop/{header.name}"\n' * 2 + "int main(void) { return 0; }\n")
    compile_c(compiler, source, tmp_path / "alone", "-O2", "-pthread")


@pytest.mark.parametrize("level", ["-O2", "-O3"])
def test_no_optimizer_leaves_out_the_touch_of_a_page(level, compiler, tmp_path):
    """It may omit writing back what was read. Then the first write of a cycle is a page fault."""
    compile_c(compiler, HERE / "touched_pages.c", tmp_path / "touched", level)
    result = run(tmp_path / "touched")
    assert result.returncode == 0, result.stderr


def test_every_program_is_in_one_table():
    tables = "".join(path.read_text() for path in HERE.glob("test_*.py"))
    listed = re.findall(r"^    \"(\w+)\": Program\(", tables, re.MULTILINE)
    assert sorted(listed) == sorted(path.stem.removeprefix("test_") for path in HERE.glob("test_*.c"))
