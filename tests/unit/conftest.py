"""The machines that the doctor examines."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SUPPORT = Path(__file__).parents[1] / "support"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"rtloop_test_{name}", SUPPORT / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# From here on, the test files of this folder can import from them.
machines = _load("machines")
_load("isolated_machine")


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
