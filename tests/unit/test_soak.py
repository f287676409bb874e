"""The soak's verdict: it fails on inconsistent accounts, on failed loops, and on faults without an explanation."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import json
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
    sys.modules.pop("soak", None)


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


@pytest.fixture
def hours(soak: ModuleType) -> ModuleType:
    """The program for hours at 200 us, as a module."""
    spec = importlib.util.spec_from_file_location("rtloop_test_hours", FOLDER / "hours.py")
    assert spec is not None and spec.loader is not None
    sys.modules.setdefault("soak", soak)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_blocks_add_up_to_the_page_of_the_run(hours: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def block(side: str, cpus: list[int], seconds: float) -> list[dict[str, object]]:
        latency = rtloop.Histogram.from_values([5_000, 20_000 + cpus[0], 900_000 if side == "rtloop" else 70_000])
        missed = 4 if side == "rtloop" else None
        return [{"latency": latency, "cycles": 3, "missed": missed, "conserved": True} for _ in cpus]

    sides = {side: functools.partial(block, side) for side in ("rtloop", "cyclictest")}
    monkeypatch.setattr(hours, "SIDES", sides)
    monkeypatch.setattr(hours, "load", lambda *_: contextlib.nullcontext("nothing"))
    content = json.loads(json.dumps(hours.measure(0.3, 0.01, 0)))
    blocks, cpus = content["blocks"], len({row["cpu"] for row in content["rows"]})
    assert blocks > 0 and len(content["rows"]) == 2 * cpus and content["lost"] == []
    for row in content["rows"]:
        assert row["cycles"] == row["latency"]["count"] == 3 * blocks
        assert row["missed"] == (4 * blocks if row["side"] == "rtloop" else None)
    facts = {"cpu": "X", "cpus": cpus, "kernel": "6.1", "preempt_rt": False, "is_virtual": True, "isolated_cpus": "",
             "time": "2026-11-30T01:02:03+00:00"}  # fmt: skip
    page = hours.page({"facts": facts, **content})
    (first, *_) = [line for line in page.splitlines() if ", rtloop |" in line]
    assert f"| {3 * blocks:,} | {4 * blocks:,} | 5 |" in first and first.endswith("| 900 |")
    assert "nothing" in page and "not PREEMPT_RT" in page and "49, 66" in page


def test_the_page_of_the_docs_is_that_of_the_figures(hours: ModuleType) -> None:
    (figures,) = (FOLDER / "results" / "hours").glob("*.json")
    content = json.loads(figures.read_text())
    assert all(row["conserved"] for row in content["rows"])
    page = FOLDER.parent / "docs" / "explanation" / "hours.md"
    assert page.read_text() == hours.page(content), f"python benchmarks/hours.py --render {figures} --page {page}"


def test_a_block_that_fails_takes_its_pair_with_it_and_is_counted(
    hours: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = itertools.count()

    def fails_at_times(cpus: list[int], seconds: float) -> list[dict[str, object]]:
        if next(calls) % 2:
            raise rtloop.RtloopError("cyclictest has not ended")
        return good(cpus, seconds)

    def good(cpus: list[int], seconds: float) -> list[dict[str, object]]:
        one = rtloop.Histogram.from_values([1])
        return [{"latency": one, "cycles": 1, "missed": 0, "conserved": True} for _ in cpus]

    monkeypatch.setattr(hours, "SIDES", {"rtloop": good, "cyclictest": fails_at_times})
    monkeypatch.setattr(hours, "load", lambda *_: contextlib.nullcontext("nothing"))
    content = hours.measure(0.3, 0.01, 0)
    assert content["lost"] and all("has not ended" in text for text in content["lost"])
    assert {row["cycles"] for row in content["rows"]} == {content["blocks"]}, "both sides have the same blocks"
