"""The machines that the doctor examines."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SUPPORT = Path(__file__).parents[1] / "support"

# From here on, the test files of this folder can import from it.
spec = importlib.util.spec_from_file_location("rtloop_test_machines", SUPPORT / "machines.py")
assert spec is not None and spec.loader is not None
machines = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(machines)


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., Any]:
    """One of the machines, by name, with some of its files replaced, or taken away (None)."""

    def make(name: str, /, **changes: str | None) -> Any:
        files = machines.files_of(machines.FOLDER / name)
        for key, text in changes.items():
            if text is None:
                del files[key]
            else:
                files[key] = text
        return machines.unpack(files, tmp_path)

    return make
