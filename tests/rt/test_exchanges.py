"""A step that exchanges data with Python keeps the promises of a cycle, and what is exchanged arrives whole."""

from __future__ import annotations

import time
from types import ModuleType

import numpy as np
import pytest

import rtloop

pytestmark = pytest.mark.rt


def test_no_page_fault_in_20000_cycles_at_10_khz_that_each_log_into_a_ring(exchanges: ModuleType) -> None:
    """The ring holds half a second: every place of it is written to several times."""
    loop = exchanges.Servo("100us", capacity=5000)
    ring = loop.log.ring
    assert ring.is_locked
    parts = []
    loop.start()
    while loop.stats.cycles < 20_000:
        assert loop.state == "running"
        parts.append(ring.drain())
        time.sleep(0.01)
    loop.stop()
    parts.append(ring.drain())
    log, stats = np.concatenate(parts), loop.stats
    assert stats.page_faults == (0, 0)
    assert len(log) + ring.dropped == stats.cycles
    assert np.all(log["s7"] == log["cycle"] + 7), "every record is whole"
    assert np.all(np.diff(log["cycle"].astype("i8")) > 0)


def test_parameters_that_change_1000_times_a_second_are_read_whole(exchanges: ModuleType) -> None:
    loop = exchanges.Checker("100us")
    assert loop.parameters.is_locked
    value = np.zeros((), loop.parameters.dtype)
    count, begin = 3000, time.monotonic()
    with loop:
        for i in range(1, count + 1):
            value["values"] = i * np.array([1.0, 1.25, 1.5, 1.75, 3, 5])
            value["check"] = np.bitwise_xor.reduce(value["values"].view("u8"))
            loop.parameters.write(value)
            time.sleep(max(0, begin + i / 1000 - time.monotonic()))
        while loop.last != count:
            assert loop.state == "running"
        stats = loop.stats
    assert loop.torn == 0
    assert count // 10 < loop.fresh <= loop.parameters.written == count
    assert stats.page_faults == (0, 0)


def test_M6_exchanges_stay_locked_when_a_lock_of_everything_ends(exchanges: ModuleType) -> None:
    ring, latest = rtloop.Ring("f8", 10_000), rtloop.Latest([("x", "f8", 5000)])
    exchanges.Checker("1ms", lock_memory="all").run(cycles=20)
    assert ring.is_locked and latest.is_locked
