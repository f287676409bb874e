"""Swaps of a real-time loop beside a Python thread that never gives the GIL away: nothing is lost, nothing faults."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from types import ModuleType

import pytest

import rtloop

pytestmark = pytest.mark.rt

SWAPS = 200


@pytest.fixture
def hog() -> Iterator[None]:
    """A Python thread that computes all the time, and takes the GIL back as soon as it may."""
    is_over = threading.Event()

    def compute() -> None:
        while not is_over.is_set():
            sum(range(10_000))

    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)
    thread = threading.Thread(target=compute)
    thread.start()
    yield
    is_over.set()
    thread.join()
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hog")
def test_many_swaps_beside_a_busy_interpreter(laws: ModuleType) -> None:
    loop = laws.Law("1kHz", record=1 << 17, dma_latency=None)
    loop.declare()
    last, steps, leaves = loop, 0, 0
    gc.disable()  # a collection would not disturb the loop, but the swaps wait for it
    try:
        with loop:
            for k in range(SWAPS):
                new = laws.Other("1kHz") if k % 2 else laws.Law("1kHz")
                if k % 3 == 0:
                    new.declare()
                loop.swap(new)
                steps, leaves, last = steps + last.steps, leaves + last.leaves, new
                assert last.gaps == 0
    finally:
        gc.enable()
    stats = loop.stats
    assert (leaves, last.leaves) == (0, 1) and len(stats.swaps) == SWAPS
    assert stats.cycles == steps + last.steps == last.total, "each cycle was a step of exactly one law"
    assert stats.page_faults == (0, 0)
    period, first, end = stats.settings["period_ns"], stats.records[0], stats.records[-1]
    over = (end["end"] - end["release"]) // period
    assert (end["release"] - first["release"]) // period + 1 + over == stats.cycles + stats.missed


def test_a_swap_that_meets_the_end_of_its_loop_ends(laws: ModuleType) -> None:
    """The thread that releases a swap that is not made also reaps the loop; neither waits for the other."""
    for _ in range(40):
        loop, swapped = laws.Law("1kHz", dma_latency=None), threading.Event()
        loop.declare()
        loop.start()
        stopper = threading.Thread(target=lambda loop=loop, swapped=swapped: swapped.wait(100) and loop.stop())
        stopper.start()
        with pytest.raises((rtloop.StateError, rtloop.SwapError)):
            while True:
                new = laws.Other("1kHz")
                new.declare()
                loop.swap(new)
                swapped.set()
        stopper.join()
        assert loop.stats.state == "stopped" and loop.stats.swaps


def test_what_a_swap_locks_is_unlocked_after_it(laws: ModuleType) -> None:
    loop = laws.Law("1kHz", lock_memory="own", dma_latency=None)
    loop.declare()
    with loop:
        before = rtloop.memory.status().locked_bytes
        for _ in range(10):
            new = laws.Law("1kHz")
            new.declare()
            loop.swap(new)
        assert rtloop.memory.status().locked_bytes == before
        names = [grant.name for grant in loop.grants]
        assert names.count("parameters") == names.count("parameter state") == 1
        assert all(grant.ok for grant in loop.grants)
