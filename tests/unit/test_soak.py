"""The soak's verdict: it fails on inconsistent accounts, on failed loops, and on faults without an explanation."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import rtloop

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The program, as a module."""
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("rtloop_test_soak", FOLDER / "soak.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("common", None)


@pytest.mark.parametrize("overrun", ["skip", "catch-up"])
def test_the_account_of_a_loop_is_whole_and_one_cycle_less_or_more_is_seen(soak: ModuleType, overrun: str) -> None:
    loop = rtloop.RTLoop("1ms", record=64, overrun=overrun)
    stats = loop.simulate(cycles=1000, execution=np.array([100_000] * 30 + [3_500_000]))
    assert stats.missed > 50 or overrun == "catch-up"
    assert soak.is_conserved(stats)
    for wrong in (-2, 5):
        damaged = replace(stats, cycles=stats.cycles + wrong)
        assert not soak.is_conserved(damaged)


def test_what_fails_a_soak(soak: ModuleType) -> None:
    guard = {"page_faults": {"minor": 0, "major": 0}, "system_calls": 0, "allocations": None}
    row = soak.Row("1 kHz", 1000, 3, 3, 0, guard, 990, 10, True, "stopped", {})
    assert row.in_step == "0 0 -"
    assert soak.judge([row], may_move=False) == []
    assert "not those of the grid" in soak.judge([row._replace(conserved=False)], may_move=True)[0]
    assert "has failed" in soak.judge([row._replace(state="failed")], may_move=True)[0]
    assert "989 records and 10 dropped" in soak.judge([row._replace(records=989)], may_move=True)[0]
    assert "2 system calls in step" in soak.judge([row._replace(guard=guard | {"system_calls": 2})], may_move=True)[0]
    assert "1 allocations in step" in soak.judge([row._replace(guard=guard | {"allocations": 1})], may_move=True)[0]
    assert "4 page faults" in soak.judge([row._replace(faults=4)], may_move=False)[0]
    assert soak.judge([row._replace(faults=4)], may_move=True) == [], "compaction moves locked pages"
