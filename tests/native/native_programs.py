"""Compile the programs for the C11 headers with gcc and clang, under the sanitizers, and run them.

A new header gets a program ``test_<header>.c`` here, which returns 0 if all is well, and a row in the ``PROGRAMS`` of
the module ``test_*.py`` that it belongs to. With one of its ``BROKEN_`` macros, or built against headers with one of
its ``Mutation``s, the program has a known fault and must fail: a test that cannot fail tests nothing.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

HERE = Path(__file__).parent
INCLUDE = HERE.parents[1] / "rtloop" / "include"

DIALECT = ("-std=c11", "-D_GNU_SOURCE")
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Wno-sign-conversion", "-Werror")
MEMORY = "address,undefined"
THREADS = "thread"
UNDEFINED = "undefined"  # for programs with stacks of their own


@dataclass(frozen=True)
class Mutation:
    """A known fault as a change of one header: `old`, which is there once, becomes `new`."""

    header: str
    old: str
    new: str

    def write(self, folder: Path) -> Path:
        """Copy the headers, this one with the fault; returns the folder to include from."""
        include = Path(shutil.copytree(INCLUDE, folder / "include"))
        header = include / "rtloop" / self.header
        text = header.read_text()
        assert text.count(self.old) == 1, f"{self.header} has changed: write this mutation anew"
        header.write_text(text.replace(self.old, self.new))
        return include


@dataclass(frozen=True)
class Program:
    """A test program: its sanitizers, and its known faults, each with the sanitizer it must fail under."""

    sanitizers: tuple[str, ...]
    faults: dict[str, str] = field(default_factory=dict)
    mutations: dict[str, Mutation] = field(default_factory=dict)


def compile_c(compiler: str, source: Path, target: Path, *options: str, include: Path = INCLUDE) -> None:
    command = [compiler, *DIALECT, *WARNINGS, f"-I{include}", *options, str(source), "-o", str(target)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stderr}"


def run(program: Path) -> subprocess.CompletedProcess[str]:
    # At the end of a thread the sanitizers unmap its alternate signal stack, which here belongs to the loop.
    options = {
        "ASAN_OPTIONS": "detect_leaks=1:use_sigaltstack=0",
        "UBSAN_OPTIONS": "halt_on_error=1",
        "TSAN_OPTIONS": "halt_on_error=1:use_sigaltstack=0",
    }

    def execute(*command: str) -> subprocess.CompletedProcess[str]:
        # A program that a sanitizer has halted half-way may have children, and may ignore everything but SIGKILL.
        with subprocess.Popen(
            command, env=os.environ | options, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        ) as process:  # fmt: skip
            try:
                out, err = process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                out, err = process.communicate()
                err += "\nno end within a minute"
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    result = execute(str(program))
    # Older TSans do not know the address layout of newer kernels; a fixed one they know.
    if "unexpected memory mapping" in result.stderr and shutil.which("setarch"):
        result = execute("setarch", "--addr-no-randomize", str(program))
        if "unexpected memory mapping" in result.stderr or "failed to set personality" in result.stderr:
            pytest.skip(f"this compiler's TSan does not run on this kernel: {result.stderr.strip()}")
    return result


#: For programs that must fail: compiled in half the time, and no more than it takes to notice a fault.
BRIEF = (
    "-O0",
    "-Wno-error",
    "-DPATIENCE=20",  # a loop that a mutation keeps from its end is given up after 2 s
    "-DROUNDS=2000",  # of damage at random
)


def build(name: str, compiler: str, sanitizer: str, folder: Path, *options: str, include: Path = INCLUDE) -> Path:
    program = folder / name
    sanitize = [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
    if sanitizer == THREADS and compiler == "gcc":
        sanitize.append("-Wno-tsan")  # "fences are not supported": what they order is atomic here, so none is needed
    compile_c(compiler, HERE / f"test_{name}.c", program, "-O1", "-g", "-pthread", *sanitize, *options, include=include)
    return program


def assert_fails(program: Path) -> None:
    """Run a program that has a known fault, which it or its sanitizer has to report."""
    result = run(program)
    assert result.returncode != 0, "the known fault went unnoticed"
    assert any(word in result.stderr for word in ("check failed", "Sanitizer", "runtime error")), result.stderr


class HeaderTests:
    """Tests of each program in the PROGRAMS of a module; conftest.py hands out the rows."""

    def test_header(self, name, sanitizer, compiler, tmp_path):
        result = run(build(name, compiler, sanitizer, tmp_path))
        assert result.returncode == 0, result.stderr

    def test_known_wrong_variant_fails(self, program, name, fault, compiler, tmp_path):
        assert_fails(build(name, compiler, program.faults[fault], tmp_path, *BRIEF, f"-D{fault}"))

    @pytest.mark.skipif(
        os.environ.get("RTLOOP_MUTATIONS") == "0", reason="left out by RTLOOP_MUTATIONS=0; make native runs them"
    )
    def test_mutation_of_a_header_fails(self, program, name, mutation, tmp_path):
        compiler = shutil.which("gcc") or shutil.which("clang") or pytest.skip("neither gcc nor clang is installed")
        include = program.mutations[mutation].write(tmp_path)
        assert_fails(build(name, compiler, program.sanitizers[0], tmp_path, *BRIEF, include=include))
