"""Every C11 header by itself, and the tables of their programs."""

from __future__ import annotations

import platform
import re
import subprocess

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


@pytest.mark.skipif(platform.machine() != "x86_64", reason="compilers for arm64 have no -m32")
def test_a_32_bit_machine_is_refused_in_a_sentence_that_meson_says_as_well(compiler, tmp_path):
    source = tmp_path / "small.c"
    source.write_text('#include "rtloop/atomics.h"\n')
    command = [compiler, "-m32", "-ffreestanding", "-fsyntax-only", f"-I{INCLUDE}", str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    sentence = (
        "rtloop needs a 64-bit machine: its counters and times are 64-bit words that are read and written at once"
    )
    assert result.returncode != 0 and sentence in result.stderr
    assert (
        f"if meson.get_compiler('c').sizeof('void *') < 8\n  error('{sentence}"
        in (HERE.parents[1] / "meson.build").read_text()
    )


def test_every_program_is_in_one_table():
    tables = "".join(path.read_text() for path in HERE.glob("test_*.py"))
    listed = re.findall(r"^    \"(\w+)\": Program\(", tables, re.MULTILINE)
    assert sorted(listed) == sorted(path.stem.removeprefix("test_") for path in HERE.glob("test_*.c"))
