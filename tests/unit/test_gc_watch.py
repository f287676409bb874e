"""Collections of garbage are counted, because a step in Python waits for them."""

from __future__ import annotations

import gc
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

import rtloop
from rtloop.stats.findings import find
from rtloop.telemetry import gc_watch

PLAIN: dict[str, Any] = {"strict": False, "policy": "other", "lock_memory": "off", "dma_latency": None}
pytestmark = pytest.mark.filterwarnings("ignore::rtloop.RTSetupWarning")


def test_a_collection_in_a_step_is_counted_and_named() -> None:
    graph: list[Any] = []
    for _ in range(50_000):
        graph.append([graph])

    def step(cycle: rtloop.Cycle) -> None:
        if cycle.index == 10:
            gc.collect()

    stats = rtloop.PyLoop(step, "5ms", **PLAIN).run(cycles=20)
    assert stats.host["gc_collections"] >= 1
    assert 0 < stats.host["gc_longest_ns"] < 10**11
    assert stats.host["gc_last_at_ns"] >= stats.host["gc_longest_at_ns"] > 0
    assert "garbage collector" in str(stats)
    if stats.host["gc_longest_ns"] > 500_000:
        assert any("garbage collector ran" in finding.text for finding in find(stats))


def test_the_watch_begins_once_and_counts_each_collection() -> None:
    gc_watch.watch_collector()
    gc_watch.watch_collector()
    before = gc_watch.collector_facts()["gc_collections"]
    gc.collect()
    gc.collect()
    assert gc_watch.collector_facts()["gc_collections"] == before + 2
    assert gc.callbacks.count(gc_watch._note) == 1


def test_collections_that_the_program_hides_are_reported_as_not_measured() -> None:
    def step(cycle: rtloop.Cycle) -> None:
        if cycle.index == 10:
            gc.callbacks.clear()
            gc.collect()
            gc.collect()

    callbacks = gc.callbacks.copy()
    before = gc_watch.collector_facts()["gc_missed"]
    try:
        stats = rtloop.PyLoop(step, "5ms", **PLAIN).run(cycles=20)
    finally:
        gc.callbacks[:] = callbacks
    missed = stats.host["gc_missed"] - before
    assert missed >= 2
    assert "more not measured" in str(stats)
    assert any("of garbage went unmeasured" in finding.text for finding in find(stats))


def test_a_collection_during_which_the_watch_begins_is_not_missed() -> None:
    def begin(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            gc_watch.watch_collector()

    gc.callbacks[:] = [begin]
    missed = gc_watch.collector_facts()["gc_missed"]
    gc.collect()
    gc.callbacks.remove(begin)
    assert gc_watch.collector_facts()["gc_missed"] == missed


def test_a_signal_handlers_exception_is_not_lost_in_a_collection(
    script: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = script("""
        import gc, signal
        from rtloop.telemetry import gc_watch
        def handler(number, frame):
            raise InterruptedError
        signal.signal(signal.SIGALRM, handler)
        gc_watch.watch_collector()
        gc.disable()
        graph = [[] for _ in range(1_000_000)]
        raised = 0
        for _ in range(10):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.001)
                gc.collect()
                while signal.getitimer(signal.ITIMER_REAL)[0]:
                    pass
            except InterruptedError:
                raised += 1
        print(raised, gc_watch.collector_facts()["gc_collections"])
    """)  # fmt: skip
    assert done.stdout == "10 10\n", done.stdout + done.stderr


def test_a_simulated_run_tells_nothing_of_the_collector() -> None:
    stats = rtloop.RTLoop("1kHz").simulate(cycles=10)
    assert not [key for key in stats.host if key.startswith("gc_")]
