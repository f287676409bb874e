"""A step that sleeps to a second instant of its period: the how-to's example, and loops that are stopped meanwhile."""

from __future__ import annotations

import re
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rtloop import Task, analyze

pytestmark = pytest.mark.rt

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "be-paced-by-hardware.md"


def test_the_example_of_the_how_to_sends_and_reads_in_every_cycle(support: Any, tmp_path: Path) -> None:
    (code,) = [block for block in re.findall(r"```cython\n(.*?)```", PAGE.read_text(), re.S) if "TwoInstants" in block]
    source = tmp_path / "two_instants.pyx"
    source.write_text(code)
    support("build").compile_pyx(source, tmp_path)
    module = support("build").import_module(next(tmp_path.glob("two_instants.*.so")))
    loop = module.TwoInstants("2ms", strict=False)
    stats = loop.run(cycles=200)
    assert (loop.sent, loop.received) == (200, 200)
    assert stats.waiting.count == stats.execution.count == 190


def test_the_sleep_is_no_execution_time_and_no_violation(waits: ModuleType) -> None:
    stats = waits.Sleeper("2ms", offset_ns=1_000_000, guard="count", strict=False).run(cycles=100)
    assert stats.waiting.count == 90 and stats.guard["system_calls"] in (0, None)
    assert stats.execution.mean < 500_000 < stats.waiting.mean
    assert stats.response.min >= 1_000_000, "no step ends before the second instant"
    assert Task.from_stats(stats).suspension == stats.waiting.max
    assert "waited in step" in str(stats)


def test_a_stop_ends_a_sleep_of_an_hour(waits: ModuleType) -> None:
    loop = waits.Sleeper("10ms", offset_ns=3600 * 10**9, strict=False)
    loop.start()
    time.sleep(0.2)
    begin = time.monotonic()
    loop.stop()
    assert time.monotonic() - begin < 1 and (loop.sleeps, loop.stopped, loop.leaves) == (1, 1, 1)


def test_virtual_time_advances_and_the_analysis_knows_the_sleep(waits: ModuleType) -> None:
    stats = waits.Sleeper("1ms").simulate(cycles=100, execution="10us")
    assert (stats.waiting.max, stats.execution.max, stats.response.max) == (300_000, 10_000, 310_000)
    assert stats.missed == 0
    other = Task("other", "5ms", "1ms", priority=10)
    row = analyze([Task.from_stats(stats, priority=80), other])
    assert row[stats.name].verdict == row["other"].verdict == "meets"
