"""The benchmark that observes and tunes a loop from all sides: its checks find what they look for."""

from __future__ import annotations

import importlib
import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rtloop_test_waiting import wait_until

from rtloop import Histogram, PyLoop

pytest.importorskip("bokeh", reason="one reader is that of rtloop scope, which needs: pip install 'rtloop[scope]'")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
GAINS = {f"gain{i}": (0, 1e12) for i in range(8)}
VALUES = [f"value{i}" for i in range(16)]


@pytest.fixture
def observers(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The program, as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("observers")
    sys.modules.pop("observers", None)
    sys.modules.pop("common", None)


@pytest.fixture
def loop(ordinary: dict[str, Any]) -> Iterator[PyLoop]:
    """A loop in Python with the names and values of the benchmark's own."""
    data = np.zeros((), [(name, "f8") for name in (*GAINS, *VALUES)])
    gains, values = data.view((float, 24))[:8], data.view((float, 24))[8:]
    gains[:] = np.arange(8)

    def step(cycle: Any) -> None:
        assert (gains == gains[0] + np.arange(8)).all(), "a torn set"
        values[:] = cycle.index + np.arange(16)

    units = dict.fromkeys(VALUES, "")
    with PyLoop(step, "2ms", name="observed", data=data, parameters=GAINS, signals=units, **ordinary) as made:
        yield made


class UntilSet:
    """An end that has come when the loop's first parameter has been set a few times."""

    def __init__(self, loop: PyLoop) -> None:
        self._loop = loop

    def __gt__(self, now: float) -> bool:
        return bool(self._loop.parameters["gain0"] < 5)


def test_readers_and_a_writer_of_a_loop(observers: ModuleType, loop: PyLoop) -> None:
    """They find nothing torn, and what they have not read is counted as lost."""
    found: dict[str, Any] = {}
    stop, observing = threading.Event(), threading.Event()
    observing.set()
    reader = threading.Thread(target=observers.play_python, args=(loop, observing, stop, found))
    reader.start()

    def ready() -> float:
        cycles = loop.stats.cycles
        wait_until(lambda: loop.stats.cycles > cycles + 5, "the loop does not run")
        return 0.0

    seen = observers.play_scope(os.getpid(), ready)
    written = observers.play_writer(os.getpid(), lambda: UntilSet(loop))
    stop.set()
    reader.join()
    loop.stop()
    assert written["sets"] >= 5 and loop.parameters.refused == 0
    for row in (found, seen):
        assert row["samples"] > 0 and row["torn"] == 0 and row["untold"] == 0


def test_what_is_torn_or_missing_is_counted(observers: ModuleType) -> None:
    records = np.zeros(10, [("cycle", "u8"), *((name, "f8") for name in VALUES)])
    records["cycle"] = np.arange(10)
    for number, name in enumerate(VALUES):
        records[name] = np.arange(10) + number
    records["value7"][3] += 1
    check = observers.Check()
    check.take(records[:5])
    check.take(records[7:])
    assert check.row(lost=2) == {"samples": 8, "torn": 1, "lost": 2, "untold": 0}
    assert check.row(lost=0)["untold"] == 2


def test_every_other_block_is_alone(observers: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The observers' processes are stopped in it, and go on afterwards. Time passes only in sleeps."""
    slow, fast = Histogram.from_values([20_000] * 50), Histogram.from_values([10_000] * 50)
    observing, now = threading.Event(), [0.0]
    observing.set()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:

        def is_stopped() -> bool:
            return Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

        def sleep(seconds: float) -> None:
            wait_until(lambda: is_stopped() != observing.is_set(), "it is not stopped, or does not go on")
            now[0] += seconds

        class Loop:
            torn = changes = 0
            state = "running"
            latency = Histogram.empty()

            @property
            def stats(self) -> Any:
                self.latency += slow if observing.is_set() else fast
                return SimpleNamespace(latency=self.latency)

        monkeypatch.setattr(observers, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
        blocks = observers.alternate(Loop(), observing, [child.pid], 42.0, 10.0)
        child.communicate(b"\n", timeout=60)
    assert child.returncode == 0 and observing.is_set()
    assert {name: len(rows) for name, rows in blocks.rows.items()} == {"observed": 2, "alone": 2}
    assert blocks.ratios() == pytest.approx({"p50": 2, "p99": 2}, rel=0.1)


def test_the_verdict_names_each_failure(observers: ModuleType) -> None:
    row = {"samples": 10, "torn": 0, "lost": 1, "untold": 0}
    found = {
        "duration_s": 1.0, "cycles": 10, "missed": 0, "faults": 0, "sets": 5, "sets_per_s": 5.0, "sets_used": 4,
        "torn_sets": 0, "refused": 0, "readers": {"thread": row}, "blocks_ns": {"alone": []}, "ratios": {},
        "control_ratios": {"p50": 1.0},
    }  # fmt: skip
    assert observers.judge(found) == []
    printed = io.StringIO()
    observers.print_found(found, file=printed)
    assert "0 pairs of blocks: -" in printed.getvalue() and "thread" in printed.getvalue()
    wrong = {
        **found,
        "torn_sets": 1,
        "readers": {"thread": {**row, "torn": 2, "untold": 3}, "other": {**row, "samples": 0}},
    }
    assert [sentence.split()[0] for sentence in observers.judge(wrong)] == ["1", "thread:", "thread:", "other:"]
