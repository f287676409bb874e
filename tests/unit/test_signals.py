"""Named signals: one record per cycle or per n cycles with all of them, and none before logging begins."""

from __future__ import annotations

import threading
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import rtloop


def test_a_record_has_the_cycle_and_the_signals_as_they_were(exchanges: ModuleType) -> None:
    mixed = exchanges.Mixed()
    assert mixed.log.names == ("d", "f", "i", "b", "h")
    assert not mixed.sample(1), "nobody has asked for the ring"
    ring = mixed.log.ring
    assert mixed.sample(6)
    assert mixed.sample(7)
    first, second = ring.drain()
    assert first.tolist() == (6, 1006, 2006, 3.0, 1.5, -6, False, 6)
    assert second.tolist() == (7, 1007, 2007, 3.5, 1.75, -7, True, 7)
    assert mixed.log.ring is ring and ring.dtype == mixed.log.dtype
    assert ring.dtype.names == ("cycle", "release", "start", "d", "f", "i", "b", "h")


def test_only_every_nth_cycle(exchanges: ModuleType) -> None:
    mixed = exchanges.Mixed(every=3, capacity=10)
    ring = mixed.log.ring
    assert [mixed.sample(i) for i in range(7)] == [True, False, False, True, False, False, True]
    assert ring.drain()["cycle"].tolist() == [0, 3, 6]


def test_a_full_ring_drops_and_counts(exchanges: ModuleType) -> None:
    mixed = exchanges.Mixed(capacity=2)
    ring = mixed.log.ring
    assert [mixed.sample(i) for i in range(4)] == [True, True, False, False]
    assert (ring.dropped, ring.drain()["i"].tolist()) == (2, [0, -1])


@pytest.mark.parametrize(
    ("name", "dtype", "is_null", "words"),
    [
        ("d", "f8", False, "another field"), ("cycle", "f8", False, "another field"), ("", "f8", False, "empty"),
        (5, "f8", False, "empty"), ("x", "S4", False, "not a number"), ("x", "c16", False, "not a number"),
        ("x", "f8", True, "is NULL"),
    ],
)  # fmt: skip
def test_what_is_no_signal_is_refused(exchanges: ModuleType, name: Any, dtype: str, is_null: bool, words: str) -> None:
    with pytest.raises(rtloop.ConfigError, match=words):
        exchanges.Mixed().add_again(name, dtype, is_null)


def test_a_signal_that_comes_too_late_and_one_too_many(exchanges: ModuleType) -> None:
    mixed = exchanges.Mixed()
    for i in range(250):
        mixed.add_again(f"x{i}")
    with pytest.raises(rtloop.ConfigError, match="255 signals"):
        mixed.add_again("x250")
    assert mixed.log.ring.dtype.itemsize == 24 + 23 + 250 * 8
    with pytest.raises(rtloop.StateError, match="cannot be added now"):
        mixed.add_again("late")


@pytest.mark.parametrize("values", [{"capacity": 0}, {"capacity": "x"}, {"every": 0}, {"every": 1.5}, {"every": True}])
def test_numbers_that_can_never_work(values: dict[str, Any]) -> None:
    with pytest.raises(rtloop.ConfigError, match=next(iter(values))):
        rtloop.SignalLog(**values)


def test_a_log_without_signals_has_no_ring() -> None:
    with pytest.raises(rtloop.StateError, match="add"):
        _ = rtloop.SignalLog().ring


def test_every_cycle_of_a_loop_is_there_or_counted(exchanges: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = exchanges.Servo("2kHz", capacity=100, **ordinary)
    ring = loop.log.ring
    stats = loop.run(cycles=500)
    records = ring.drain()
    assert len(records) == 100 and len(records) + ring.dropped == stats.cycles == 500
    assert np.all(records["s7"] == records["cycle"] + 7)
    assert np.all(records["start"] >= records["release"])


def test_threads_that_ask_for_the_ring_at_once_get_the_same(exchanges: ModuleType) -> None:
    for _ in range(30):
        log, found = exchanges.Mixed(capacity=1000).log, []
        threads = [threading.Thread(target=lambda log=log, found=found: found.append(log.ring)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({id(ring) for ring in found}) == 1
