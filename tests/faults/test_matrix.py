"""Every system call and allocation of a setup fails in turn, once or every time, with each of its errnos."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent

#: The calls that each operation is known to make: a sweep that misses one of them sees too little.
LOOP = {"memfd_create", "ftruncate", "fcntl", "mmap", "mprotect", "madvise", "pthread_create", "sched_setattr"}
CALLS = {
    "loop": LOOP | {"mlockall", "mlock", "setrlimit", "pread", "write", "open"},
    "loop, lock_memory=own": LOOP | {"mlock", "setrlimit", "open"},
    "loop, strict=False": LOOP | {"mlock", "setrlimit", "open"},
    "loop of an ordinary thread": LOOP,
    "watchdog of a group": LOOP,
    "watchdog, lock_memory=own": LOOP | {"mlock", "setrlimit", "open"},
    "ring, latest, pool": {"mmap", "mlock", "madvise"},
    "buffer": {"mmap", "mlock", "calloc"},
    "simulation": {"calloc"},
}
NEED_PRIVILEGE = {"loop", "loop, lock_memory=own", "loop, strict=False", "watchdog, lock_memory=own"}


@pytest.fixture(scope="module")
def matrix() -> ModuleType:
    """The program that makes the calls fail."""
    spec = importlib.util.spec_from_file_location("rtloop_test_matrix", HERE / "matrix.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def library(matrix: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that makes calls fail."""
    compiler = os.environ.get("CC", "cc").split()[0]
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    built: Path = matrix.build(tmp_path_factory.mktemp("faults"))
    return built


@pytest.mark.parametrize(
    "operation", [pytest.param(name, marks=[pytest.mark.rt] if name in NEED_PRIVILEGE else []) for name in CALLS]
)
def test_no_failure_of_a_call_leaves_anything_and_a_retry_works(
    matrix: ModuleType, library: Path, operation: str
) -> None:
    rows: list[dict[str, Any]] = matrix.run(library, operation)
    assert CALLS[operation] <= {row["call"] for row in rows}
    for row in rows:
        assert row["meant"], row
        assert row["left"] == {}, row
        assert row["retry"] == "without loss", row


def test_a_table_counts_what_was_left_behind(matrix: ModuleType) -> None:
    row = {"call": "mmap", "errno": "ENOMEM", "outcome": "refused", "error": "SetupError", "left": {"files": 1}}
    assert "| `mmap` | ENOMEM | 2 | 2 (SetupError) | 0 | 0 | 1 |" in matrix.table([row, row | {"left": {}}])
