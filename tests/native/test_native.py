"""The C11 headers by themselves, with gcc and clang, under the sanitizers.

A new header gets a program ``test_<header>.c`` here, which returns 0 if all is well, and a line in ``PROGRAMS``.
With one of its ``BROKEN_`` macros the program or the header has a known fault and must fail: a test that cannot fail
tests nothing.
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
HEADERS = sorted((INCLUDE / "rtloop").glob("*.h"))

DIALECT = ("-std=c11", "-D_GNU_SOURCE")
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Wno-sign-conversion", "-Werror")
MEMORY = "address,undefined"
THREADS = "thread"


@dataclass(frozen=True)
class Program:
    """A test program: its sanitizers, and its known faults, each with the sanitizer it must fail under."""

    sanitizers: tuple[str, ...]
    faults: dict[str, str] = field(default_factory=dict)


PROGRAMS = {
    "histogram": Program(
        (MEMORY, THREADS),
        {"BROKEN_OCTAVE": MEMORY, "BROKEN_COUNT": MEMORY, "BROKEN_RANGE": MEMORY, "BROKEN_STORE": THREADS},
    ),
    "loop": Program((MEMORY, THREADS)),
    "schedule": Program((MEMORY,), {"BROKEN_MISSED": MEMORY}),
    "telemetry": Program((MEMORY, THREADS), {"BROKEN_SEQLOCK": MEMORY}),
}


@pytest.fixture(params=["gcc", "clang"], scope="session")
def compiler(request) -> str:
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return request.param


def compile_c(compiler: str, source: Path, target: Path, *options: str) -> None:
    command = [compiler, *DIALECT, *WARNINGS, f"-I{INCLUDE}", *options, str(source), "-o", str(target)]
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


def build(name: str, compiler: str, sanitizer: str, folder: Path, *options: str) -> Path:
    program = folder / name
    sanitize = [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
    if sanitizer == THREADS and compiler == "gcc":
        sanitize.append("-Wno-tsan")  # "fences are not supported": what they order is atomic here, so none is needed
    compile_c(compiler, HERE / f"test_{name}.c", program, "-O1", "-g", "-pthread", *sanitize, *options)
    return program


@pytest.mark.parametrize(("name", "sanitizer"), [(name, s) for name in PROGRAMS for s in PROGRAMS[name].sanitizers])
def test_header(name, sanitizer, compiler, tmp_path):
    result = run(build(name, compiler, sanitizer, tmp_path))
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(("name", "fault"), [(name, fault) for name in PROGRAMS for fault in PROGRAMS[name].faults])
def test_known_wrong_variant_fails(name, fault, compiler, tmp_path):
    sanitizer = PROGRAMS[name].faults[fault]
    result = run(build(name, compiler, sanitizer, tmp_path, f"-D{fault}", "-Wno-error"))
    assert result.returncode != 0, "the known fault went unnoticed"
    assert any(word in result.stderr for word in ("check failed", "Sanitizer", "runtime error")), result.stderr


@pytest.mark.parametrize("header", HEADERS, ids=lambda path: path.name)
def test_header_stands_alone(header, compiler, tmp_path):
    """It compiles by itself, twice in one file, and unused."""
    source = tmp_path / "alone.c"
    source.write_text(f'#include "rtloop/{header.name}"\n' * 2 + "int main(void) { return 0; }\n")
    compile_c(compiler, source, tmp_path / "alone", "-O2", "-pthread")


def test_every_program_is_listed():
    assert {path.stem.removeprefix("test_") for path in HERE.glob("test_*.c")} == set(PROGRAMS)
