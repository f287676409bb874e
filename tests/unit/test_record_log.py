"""Records that are kept from one snapshot to the next: each snapshot has what a copy of its own would have had."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import rtloop
from rtloop.telemetry.record_log import LEAST, RecordLog

DTYPE = np.dtype([("release", "<i8"), ("start", "<i8"), ("end", "<i8")])


class Ring:
    """Stands for a loop's ring: record number n has n in each field, and the oldest are overwritten."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.written, self.copied = capacity, 0, 0

    def copy(self, array: NDArray[Any], last: int) -> int:
        first = max(last - len(array), self.written + 1 - self.capacity, 0)
        numbers = np.arange(first, last)
        for name in DTYPE.names or ():
            array[name][: len(numbers)] = numbers
        self.copied += len(numbers)
        return len(numbers)


def test_snapshots_are_what_a_copy_of_all_would_have_been_and_copy_only_what_is_new() -> None:
    ring, log, kept = Ring(1 << 12), RecordLog(DTYPE, 0), []
    steps = itertools.cycle([7, 0, 300, 1, 41])
    for _ in range(200):
        ring.written += next(steps)
        count = min(ring.written, 1000)
        kept.append((ring.written, count, log.read(ring.copy, ring.written, count)))
    for last, count, part in kept:
        assert part["release"].tolist() == list(range(last - count, last)), "a later snapshot has not changed it"
        assert not part.flags.writeable
    assert ring.copied < 4 * ring.written, "and not a thousand for each of 200 snapshots"


@pytest.mark.parametrize("pause", [999, 1000, 4095, 4096, 9000])
def test_what_was_overwritten_since_the_last_snapshot_leaves_no_gap(pause: int) -> None:
    ring, log = Ring(1 << 12), RecordLog(DTYPE, 0)
    for _ in range(3):
        ring.written += pause
        part = log.read(ring.copy, ring.written, min(ring.written, 1000))
        assert part["end"].tolist() == list(range(max(0, ring.written - 1000), ring.written))


def test_what_is_overwritten_during_the_copy_is_left_out_unless_it_was_kept_before() -> None:
    ring, log = Ring(1 << 10), RecordLog(DTYPE, 0)
    ring.written = 2000
    log.read(ring.copy, 1999, 1000)
    log.read(ring.copy, 2000, 1000)
    ring.written = 2900
    part = log.read(ring.copy, 2500, 1000)
    assert part["start"].tolist() == list(range(1500, 2500)), "the loop has overwritten some of these"
    ring.written = 4000
    part = log.read(ring.copy, 3500, 1000)
    assert part["start"].tolist() == list(range(4000 + 1 - 1024, 3500))


def test_a_snapshot_in_the_middle_of_another_is_a_copy_of_its_own() -> None:
    ring, log, inner = Ring(1 << 12), RecordLog(DTYPE, 0), []

    def interrupted(array: NDArray[Any], last: int) -> int:
        inner.append(log.read(ring.copy, 500, 500))  # as in the handler of a signal
        return ring.copy(array, last)

    ring.written = 500
    outer = log.read(interrupted, 500, 500)
    assert outer.tolist() == inner[0].tolist() and len(outer) == 500


def test_an_interrupted_snapshot_leaves_the_records_of_the_next_right() -> None:
    ring, log = Ring(1 << 12), RecordLog(DTYPE, 0)

    def interrupted(array: NDArray[Any], last: int) -> int:
        array["start"] = -1
        raise KeyboardInterrupt

    for last in (1000, 1001, 1200):  # the first array, the one with more room, and what is appended to that
        ring.written = last
        with pytest.raises(KeyboardInterrupt):
            log.read(interrupted, last, 1000)
        assert log.read(ring.copy, last, 1000)["start"].tolist() == list(range(last - 1000, last))


def test_the_only_snapshot_takes_no_more_memory_than_its_records() -> None:
    ring, log, rooms = Ring(1 << 12), RecordLog(DTYPE, 0), []

    def copy(array: NDArray[Any], last: int) -> int:
        rooms.append(array if array.base is None else array.base)
        return ring.copy(array, last)

    ring.written = 4000
    log.read(copy, 1000, 1000)
    log.read(copy, 1001, 1000)
    assert [len(room) for room in rooms] == [1000, 1500]


def test_no_snapshot_can_be_made_writable() -> None:
    ring, log = Ring(1 << 12), RecordLog(DTYPE, 0)
    ring.written = 1000
    part = log.read(ring.copy, 1000, 1000)
    with pytest.raises(ValueError, match="WRITEABLE"):
        part.flags.writeable = True


def test_parts_of_a_run_in_the_past_and_after_a_reset_are_right() -> None:
    ring, log = Ring(1 << 12), RecordLog(DTYPE, 0)
    ring.written = 3000
    log.read(ring.copy, 3000, 1000)
    assert log.read(ring.copy, 2900, 500)["end"].tolist() == list(range(2400, 2900)), "of a slower thread"
    ring.written = 3100
    assert log.read(ring.copy, 3100, 40)["end"].tolist() == list(range(3060, 3100)), "after a reset"


def test_many_records_of_a_loop_are_read_only_and_complete() -> None:
    loop = rtloop.RTLoop("100us", record=1 << 18)
    stats = loop.simulate(cycles=LEAST + 1000)
    assert len(stats.records) == LEAST + 1000 and not stats.records.flags.writeable
    assert np.all(np.diff(stats.records["release"]) == 100_000)


@pytest.mark.parametrize("record", [1000, 1 << 15, (1 << 15) + 1, 1 << 16])
def test_a_loop_at_rest_has_as_many_records_as_it_was_asked_to_keep(record: int) -> None:
    stats = rtloop.RTLoop("100us", record=record).simulate(cycles=70_000)
    assert stats.records["release"][-1] - stats.records["release"][0] == (record - 1) * 100_000
    assert len(stats.records) == record
