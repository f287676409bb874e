"""The example that `help(rtloop.numba)` shows."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest

pytest.importorskip("numba", reason="needs rtloop[numba]")

import rtloop.numba


def test_it_compiles_and_runs() -> None:
    text = (rtloop.numba.__doc__ or "").split("::\n\n", 1)[1]
    lines = text.splitlines()
    end = next(i for i, line in enumerate(lines) if line and not line.startswith(" "))
    found: dict[str, Any] = {}
    exec(textwrap.dedent("\n".join(lines[:end])), found)
    loop: rtloop.FunctionLoop = found["loop"]
    loop.data[:] = 0, 2
    assert loop.simulate(cycles=1000).cycles == 1000
    assert loop.data[0] == pytest.approx(2.0)
