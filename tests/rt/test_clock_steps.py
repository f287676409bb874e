"""Loops on a clock that somebody sets: CLOCK_TAI, whose offset moves nothing else on the machine."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

import rtloop
from rtloop import FunctionLoop, Latest, LoopGroup, PyLoop, RTLoop
from rtloop.stats.findings import elapsed_releases, find

pytestmark = pytest.mark.rt

DAY_S = 86_400
SETTINGS: dict[str, Any] = {"clock": "tai", "strict": False}
#: A stop takes no longer, whatever the clock does. The steps are of hours, and a busy machine takes less than this.
STOP_S = 2.0
#: A long fuzz is asked for by its seconds.
FUZZ_S = float(os.environ.get("RTLOOP_CLOCK_FUZZ_S", "3"))


@pytest.fixture
def tai(support: Any) -> Iterator[Any]:
    """What sets CLOCK_TAI, and sets it back at the end."""
    module = support("tai")
    with module.kept_offset():
        try:
            module.set_offset(module.get_offset())
        except OSError as error:
            pytest.skip(f"CLOCK_TAI cannot be set here: {error}")
        yield module


def _kinds(waits: ModuleType) -> dict[str, Any]:
    return {
        "plain": lambda **settings: RTLoop("10ms", **SETTINGS, **settings),
        "spin": lambda **settings: RTLoop("10ms", spin="1ms", **SETTINGS, **settings),
        "catch-up": lambda **settings: RTLoop("10ms", overrun="catch-up", **SETTINGS, **settings),
        "fraction": lambda **settings: RTLoop("300/3.1Hz", **SETTINGS, **settings),
        "guarded": lambda **settings: RTLoop("10ms", guard="count", **SETTINGS, **settings),
        "python": lambda **settings: PyLoop(lambda cycle: None, "10ms", **SETTINGS, **settings),
        "own wait": lambda **settings: waits.Waiter("10ms", **SETTINGS, **settings),
        "sleeper": lambda **settings: waits.Sleeper("10ms", **SETTINGS, **settings),
    }


@pytest.mark.parametrize("way", [-1, 1], ids=["back", "forward"])
@pytest.mark.parametrize("kind", ["plain", "spin", "catch-up", "fraction", "guarded", "python", "own wait", "sleeper"])
def test_a_step_is_one_event_after_which_the_loop_goes_on(tai: Any, waits: ModuleType, kind: str, way: int) -> None:
    tai.set_offset(DAY_S if way < 0 else 0)
    loop = _kinds(waits)[kind]()
    loop.start()
    time.sleep(0.2)
    tai.set_offset(0 if way < 0 else DAY_S)
    time.sleep(0.1)
    before = loop.stats.cycles
    time.sleep(0.3)
    after = loop.stats.cycles
    begin = time.monotonic()
    loop.stop()
    assert time.monotonic() - begin < STOP_S  # a wait of a day, were it not for slices
    stats = loop.stats
    assert after - before >= 10
    assert stats.clock_steps == 1
    assert abs(stats.clock_step_sizes[0] - way * DAY_S * 10**9) < 1_000_000
    assert stats.stalls == 0
    assert stats.duration < 30  # and not a day
    for name in ("latency", "execution", "response", "interval"):
        histogram = getattr(stats, name)
        assert not histogram.count or (histogram.max < 10 * 10**9 and histogram.min > -(10**9))
    if not stats.has_own_wait:
        least, most = elapsed_releases(stats) or (0, 0)
        assert least <= stats.cycles + stats.missed <= most
    assert "clock was set" in str(stats)
    assert any("was set 1 time" in finding.text for finding in find(stats))


def test_a_step_after_the_last_cycle_is_counted_when_the_run_ends(tai: Any) -> None:
    tai.set_offset(DAY_S)
    loop = RTLoop("30s", warmup=0, **SETTINGS)
    loop.start()
    while not loop.stats.cycles:
        time.sleep(0.01)
    tai.set_offset(0)
    loop.stop()
    stats = loop.stats
    assert (stats.cycles, stats.missed, stats.clock_steps) == (1, 0, 1)
    assert abs(stats.clock_step_sizes[0] + DAY_S * 10**9) < 1_000_000
    assert stats.duration < 30 and elapsed_releases(stats) == (1, 1)


def test_a_loop_may_stop_on_a_step(tai: Any) -> None:
    tai.set_offset(37)
    loop = RTLoop("5ms", clock_step="stop", **SETTINGS)
    loop.start()
    time.sleep(0.1)
    tai.set_offset(0)
    with pytest.raises(rtloop.ClockStepError, match="set back by 37 s") as raised:
        loop.join(timeout="10s")
    assert raised.value.step_ns is not None and abs(raised.value.step_ns + 37 * 10**9) < 1_000_000
    assert loop.state == "failed"


def test_a_stop_ends_a_wait_for_a_first_release_a_day_away(tai: Any) -> None:
    tai.set_offset(DAY_S)
    with RTLoop("1s", phase="1h", **SETTINGS) as loop:
        time.sleep(0.1)
        tai.set_offset(0)
        time.sleep(0.1)
        begin = time.monotonic()
    assert time.monotonic() - begin < STOP_S and loop.stats.cycles == 0


def test_a_step_before_the_origin_does_not_keep_a_group_waiting(tai: Any) -> None:
    tai.set_offset(DAY_S)
    group = LoopGroup([RTLoop("10ms", name="a", **SETTINGS), RTLoop("20ms", name="b", **SETTINGS)], align="200ms")
    group.start()
    tai.set_offset(0)  # before the first release, or just after it
    time.sleep(0.6)
    group.stop()
    assert all(stats.cycles >= 10 and stats.clock_steps == 1 for stats in group.stats.values())
    first, second = (stats.records["release"][-1] for stats in group.stats.values())
    assert (first - second) % 10_000_000 == 0


def test_a_watchdog_is_not_blind_after_a_step_and_shows_no_negative_time(tai: Any, probes: ModuleType) -> None:
    tai.set_offset(DAY_S)
    stuck = probes.Probe("10ms", name="stuck", **SETTINGS)
    stuck.hang_at, stuck.safe_lets_go = 5, True
    group = LoopGroup([stuck], watchdog=10, align="100ms")
    group.start()
    tai.set_offset(0)
    with pytest.raises(rtloop.WatchdogError) as raised:
        group.join(timeout="20s")
    assert raised.value.stuck_ns is not None and 100_000_000 <= raised.value.stuck_ns < 60 * 10**9


@pytest.mark.parametrize("seed", [1])
def test_steps_in_a_storm_lose_no_release_and_make_no_data_young(tai: Any, waits: ModuleType, seed: int) -> None:
    """Ten steps a second, of up to a day, both ways, beside a loop, a group with a watchdog and a Latest."""
    draw = random.Random(seed)
    alone = RTLoop("2ms", **SETTINGS)
    pair = [RTLoop("5ms", name="a", **SETTINGS), waits.Sleeper("10ms", name="b", offset_ns=1_000_000, **SETTINGS)]
    group = LoopGroup(pair, watchdog=100)
    link = Latest("f8", clock="tai")
    link.write(1.0)
    written = time.monotonic_ns()
    too_young: list[tuple[int, int]] = []
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(0.003):
            least = time.monotonic_ns() - written
            age = link.age_ns
            if age is not None and age < least:
                too_young.append((age, least))

    watcher = threading.Thread(target=look)
    watcher.start()
    steps = 0
    try:
        alone.start()
        group.start()
        end = time.monotonic() + FUZZ_S
        while time.monotonic() < end:
            tai.set_offset(draw.randrange(0, DAY_S))
            steps += 1
            time.sleep(0.1)
            if draw.random() < 0.05:
                begin = time.monotonic()
                alone.stop()
                assert time.monotonic() - begin < STOP_S
                _check_account(alone.stats)
                alone.start()
        for running in (alone, group):
            begin = time.monotonic()
            running.stop()
            assert time.monotonic() - begin < STOP_S
    finally:
        is_over.set()
        watcher.join()
        alone.close()
        group.stop()
    assert steps >= 5 and not too_young
    for stats in (alone.stats, *group.stats.values()):
        _check_account(stats)
        assert stats.stalls == 0 or stats.missed
    assert group.state == "stopped"


def _check_account(stats: rtloop.Stats) -> None:
    least, most = elapsed_releases(stats) or (0, 0)
    assert least <= stats.cycles + stats.missed <= most
    assert stats.interval.max < 60 * 10**9 and stats.latency.min > -1_000_000
    assert len(stats.clock_step_sizes) == min(stats.clock_steps, 16)


def test_a_start_on_tai_without_an_offset_warns(tai: Any) -> None:
    tai.set_offset(0)
    with pytest.warns(rtloop.RTSetupWarning, match="TAI offset of 0"):
        stats = RTLoop("1ms", **SETTINGS).run(cycles=20)
    assert stats.host["tai_offset_s"] == stats.host["tai_offset_start_s"] == 0
    tai.set_offset(37)
    loop = RTLoop("1ms", **SETTINGS)
    loop.start()
    tai.set_offset(38)
    loop.stop()
    assert (loop.stats.host["tai_offset_start_s"], loop.stats.host["tai_offset_s"]) == (37, 38)


def test_a_stamp_in_the_future_is_never_brand_new(tai: Any) -> None:
    link = Latest("f8", clock="tai")
    tai.set_offset(37)
    link.write(1.0)
    tai.set_offset(0)
    time.sleep(0.05)
    age = link.age_ns
    assert age is None or age >= 50_000_000
    tai.set_offset(74)
    age = link.age_ns
    assert age is None or age >= 50_000_000


def test_a_function_loop_goes_on(tai: Any) -> None:
    numba = pytest.importorskip("numba")
    from rtloop.numba import Cycle

    @numba.cfunc(numba.types.int32(numba.types.CPointer(Cycle), numba.types.voidptr))
    def step(cycle: Any, data: Any) -> int:
        return 0

    tai.set_offset(DAY_S)
    loop = FunctionLoop(step, "5ms", **SETTINGS)
    loop.start()
    time.sleep(0.1)
    tai.set_offset(0)
    time.sleep(0.2)
    loop.stop()
    assert loop.stats.clock_steps == 1 and loop.stats.cycles >= 15
