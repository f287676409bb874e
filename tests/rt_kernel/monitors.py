"""Loops by the rules of the kernel's monitors (tests/support/judges.py): each violation is reported, and nothing else.

Where the kernel has runtime verification monitors, they are asked; and on each kernel its trace, by the same rules.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import rtloop

pytestmark = pytest.mark.rt

Judge = Callable[..., Any]


@pytest.fixture(params=["monitors", "trace"])
def judge(request: pytest.FixtureRequest, support: Callable[[str], ModuleType]) -> Iterator[Judge]:
    """Return what switches monitors on, by name, and returns their judge."""
    judges = support("judges")
    opened: list[Any] = []

    def judge(*names: str) -> Any:
        if request.param == "trace":
            if not judges.Trace.available():
                pytest.skip("this kernel lacks trace events, or /sys/kernel/tracing is not writable")
            opened.append(judges.Trace())
        else:
            if lacking := sorted({*names} - judges.Monitors.available()):
                pytest.skip(f"this kernel has no monitors {', '.join(lacking)} (CONFIG_RV)")
            opened.append(judges.Monitors(*names))
        return opened[-1]

    yield judge
    for one in opened:
        one.close()


def run_for(loop: rtloop.RTLoop, cycles: int) -> None:
    while loop.stats.cycles < cycles:
        time.sleep(0.05)


def own_tids() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/task")}


@pytest.fixture(scope="session")
def planted(support: Callable[[str], ModuleType], tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """Return the module of planted.pyx, which run.py has compiled for a machine without a compiler."""
    build, folder = support("build"), Path(os.environ.get("RTLOOP_TEST_SHARED", "none")) / "planted"
    if not folder.exists():
        folder = tmp_path_factory.mktemp("planted")
        build.compile_pyx(Path(__file__).with_name("planted.pyx"), folder)
    (path,) = folder.glob("*.so")
    module: ModuleType = build.import_module(path)
    return module


def test_a_loop_is_not_reported_from_its_start_to_its_end(judge: Judge, probes: ModuleType) -> None:
    """Nor is it woken for its start, by the ordinary thread that starts it."""
    asked = judge("rtapp", "sched")
    with probes.Probe("20ms") as loop:
        run_for(loop, 50)
        tids = own_tids()
    assert not asked.of({0, *tids})


def test_a_group_and_its_watchdog_are_not_reported(judge: Judge, probes: ModuleType) -> None:
    asked = judge("rtapp")
    loops = [probes.Probe("20ms", name="fast"), probes.Probe("40ms", name="slow", phase="5ms")]
    group = rtloop.LoopGroup(loops, watchdog="5s")
    with group:
        run_for(loops[0], 20)
        run_for(loops[1], 20)
        tids = own_tids()
    assert {loop.tid for loop in loops} < tids
    assert not asked.of(tids)


def test_a_step_that_sleeps_until_a_time_is_not_reported(judge: Judge, waits: ModuleType) -> None:
    asked = judge("rtapp")
    with waits.Sleeper("40ms", offset_ns=20_000_000) as loop:
        run_for(loop, 20)
        tids = own_tids()
    assert loop.sleeps >= 20
    assert not asked.of(tids)


def test_a_deadline_loop_is_not_reported(judge: Judge, probes: ModuleType) -> None:
    asked = judge("rtapp", "deadline")
    with probes.Probe("100ms", policy="deadline", runtime="30ms", deadline="90ms", cpu=None) as loop:
        run_for(loop, 10)
        tids = own_tids()
    assert not asked.of(tids)


def post_for_each(loop: rtloop.RTLoop, until: int) -> None:
    for number in range(1, until + 1):
        while loop.asked < number:
            time.sleep(0.005)
        time.sleep(0.02)  # it sleeps by now
        loop.post()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("nothing", {}),
        ("epoll_wait", {}),
        ("page fault", {"pagefault": 5}),
        ("recv", {"sleep": 5, "wakeup": 5}),  # a timer wakes it, in a softirq or its thread
        ("ppoll", {"sleep": 5}),
        ("relative sleep", {"sleep": 5}),
        ("sleep on CLOCK_REALTIME", {"sleep": 5}),
        ("semaphore", {"sleep": 5, "wakeup": 5}),
    ],
)
def test_each_planted_violation_is_reported_once(
    judge: Judge, planted: ModuleType, kind: str, expected: dict[str, int]
) -> None:
    asked = judge("rtapp")
    one, other = socket.socketpair()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 20_000))
    with one, other, select.epoll() as epoll:
        epoll.register(one, select.EPOLLIN)
        loop = planted.Planted("100ms", kind=kind, name=kind[:15])
        loop.fd = epoll.fileno() if kind == "epoll_wait" else one.fileno()
        poster = threading.Thread(target=post_for_each, args=(loop, loop.until))
        with loop:
            if kind == "semaphore":
                poster.start()
            run_for(loop, 10)
    if kind == "semaphore":
        poster.join()
    assert loop.done == loop.until == 5
    found = asked.counts(loop.tid)
    print(f"{kind}: {found or 'no report'}")
    if kind == "page fault" and asked.name == "monitors":
        expected = {"pagefault": 1}  # after a report it stops, until the thread has a fault that it accepts
    if kind == "recv":  # Linux 7.3 has once woken it six times in five sleeps; `sleep` also reports what it does then
        found = {name: min(count, 5) for name, count in found.items()}
    assert found == expected
