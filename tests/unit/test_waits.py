"""Consumers that sleep until there is something: woken by loops, threads and processes, never by a call in a step."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from rtloop_test_waiting import wait_until

import rtloop
from rtloop import Latest, Ring, SetupError, StateError
from rtloop.sharing import helper_threads, waiting

LONG = "60s"


def later(function: Callable[[], Any], delay_s: float = 0.02) -> threading.Thread:
    """Call a function on another thread, a little later, so that this one sleeps by then."""

    def run() -> None:
        time.sleep(delay_s)
        function()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_wait_ends_with_an_item_or_with_its_time() -> None:
    ring, latest = Ring("i8", 8), Latest("f8")
    assert not ring.wait("1ms") and not latest.wait("1ms") and not ring.wait("0ns")
    for wait, write in ((ring.wait, lambda: ring.push(1)), (latest.wait, lambda: latest.write(1.0))):
        thread = later(write)
        assert wait(LONG) and wait(), "there still is something"
        thread.join()
    assert (ring.pop(), latest.read()) == (1, 1.0)
    assert not ring.wait("1ms") and not latest.wait("1ms")
    with pytest.raises(rtloop.ConfigError, match="did you mean"):
        ring.wait(5)


def test_what_a_step_writes_wakes_a_thread(exchanges: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = exchanges.Doubler("1ms", guard="count", **ordinary)
    answers: list[int] = []
    assert not loop.answers.wait("1ms"), "somebody has waited before the start"
    with loop:
        for number in range(30):
            loop.commands.push(number)
            assert loop.answers.wait(LONG)
            answers += loop.answers.drain().tolist()
    assert answers == [2 * number for number in range(30)]
    violations = (loop.stats.guard or {}).get("violations", [])
    assert [one for one in violations if "futex" in str(one)] == [], "the system call that wakes is not in the step"


def test_a_python_step_wakes_after_it(ordinary: dict[str, Any]) -> None:
    ring = Ring("i8", 10_000)
    loop = rtloop.PyLoop(lambda cycle: ring.push(cycle.index) - 1, "1ms", **ordinary)
    with loop:
        for _ in range(20):
            assert ring.wait(LONG)
            ring.drain()


def test_a_step_wakes_another_process(name: str, exchanges: ModuleType, ordinary: dict[str, Any]) -> None:
    commands, answers = Ring("i8", 100, share=name + " c", role="consumer"), Ring("i8", 100, share=name + " a")
    code = f"""
import rtloop
commands, answers = rtloop.Ring.open({name + " c"!r}, "producer"), rtloop.Ring.open({name + " a"!r})
for number in range(30):
    commands.push(number)
    assert answers.wait("60s") and answers.drain().tolist() == [2 * number]
print("well", answers.peers, commands.peers)
"""
    with exchanges.Doubler("1ms", commands=commands, answers=answers, **ordinary):
        done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["well", f"({os.getpid()},)", f"({os.getpid()},)"], done.stderr


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return f"{request.node.originalname[:80]}/{os.getpid()}"


def test_every_reader_of_a_value_is_woken(name: str) -> None:
    writer = Latest("i8", share=name, readers=4)
    readers = [Latest.open(name) for _ in range(4)]
    seen: list[int] = []

    def follow(reader: Latest) -> None:
        while reader.wait(LONG):
            value = int(reader.read())
            if value == 50:
                seen.append(value)
                return

    threads = [threading.Thread(target=follow, args=(reader,)) for reader in readers]
    for thread in threads:
        thread.start()
    for value in range(1, 51):
        writer.write(value)
        time.sleep(0.0005)
    for thread in threads:
        thread.join(60)
    assert seen == [50] * 4


def test_the_death_of_the_other_side_is_told(name: str) -> None:
    code = f"import rtloop, sys; ring = rtloop.Ring('i8', 8, share={name!r}); print(ring.role, flush=True)"
    code += "; sys.stdin.read()"
    command = [sys.executable, "-P", "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline().strip() == "producer"
        ring = Ring.open(name)
        assert ring.peers == (process.pid,) and not ring.wait("1ms")
        process.kill()
        process.wait()
        assert not ring.wait("1ms") and ring.peers == ()
        with Ring("i8", 8, share=name) as successor:
            thread = later(lambda: successor.push(1))
            assert ring.wait(LONG) and ring.peers == (os.getpid(),) and successor.peers == (os.getpid(),)
            thread.join()
    assert Ring("i8", 8).peers == ()


def test_a_signal_handler_ends_a_wait() -> None:
    class EnoughError(Exception):
        pass

    def handle(number: int, frame: object) -> None:
        raise EnoughError

    former = signal.signal(signal.SIGUSR2, handle)
    try:
        thread = later(lambda: os.kill(os.getpid(), signal.SIGUSR2))
        with pytest.raises(EnoughError):
            Ring("i8", 8).wait()
        thread.join()
    finally:
        signal.signal(signal.SIGUSR2, former)


def test_a_close_ends_a_wait(name: str) -> None:
    for exchange in (Ring("i8", 8, share=name, role="consumer"), Latest("i8", share=name + " l", role="reader")):
        thread = later(exchange.close)
        with pytest.raises(StateError, match="is closed"):
            exchange.wait()
        thread.join()


def test_the_writing_side_and_a_forked_child_have_nothing_to_wait_for(name: str) -> None:
    producer, writer = Ring("i8", 8, share=name), Latest("i8", share=name + " l")
    for call in (producer.wait, writer.wait, producer.fileno, writer.fileno):
        with pytest.raises(StateError, match="another object"):
            call()
    ring, latest = Ring("i8", 8), Latest("i8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        refused = 0
        for call in (ring.wait, latest.wait):
            try:
                call()
            except StateError:
                refused += 1
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2


def test_a_derived_class_in_cython_is_found_without_being_woken(exchanges: ModuleType) -> None:
    latest = exchanges.Derived("f8")
    thread = later(lambda: exchanges.write(latest, 2.0))
    assert latest.wait(LONG) and latest.read() == 2.0
    thread.join()


def test_it_can_be_awaited(name: str) -> None:
    ring, reader = Ring("i8", 8), Latest("f8", share=name, role="reader")
    writer = Latest.open(name, "writer")

    async def main() -> list[Any]:
        assert not await ring.ready("1ms")
        ring.push(5)
        assert await ring.ready()
        ring.pop()
        asyncio.get_running_loop().call_later(0.02, ring.push, 6)
        asyncio.get_running_loop().call_later(0.02, writer.write, 7.0)
        both = await asyncio.gather(ring.ready(), reader.ready("60s"))
        given_up = asyncio.create_task(Ring("i8", 8).ready())
        await asyncio.sleep(0)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        return both

    assert asyncio.run(main()) == [True, True]
    assert (ring.pop(), reader.read()) == (6, 7.0)


def test_any_number_can_be_awaited_at_once_beside_other_work_on_threads() -> None:
    """The executor of an event loop has few threads: waits that kept them would hold up each other and all else."""

    async def work() -> None:
        exchanges = [Ring("i8", 8) for _ in range(40)]
        waits = [asyncio.create_task(one.ready()) for one in exchanges]
        await asyncio.sleep(0.01)
        assert await asyncio.wait_for(asyncio.to_thread(lambda: 5), 60) == 5
        for one, wait in zip(reversed(exchanges), reversed(waits), strict=True):
            one.push([1])
            assert await asyncio.wait_for(wait, 60)
        threads = len(os.listdir("/proc/self/task"))
        for one in exchanges:
            one.drain()
            wait = asyncio.create_task(one.ready("60s"))
            await asyncio.sleep(0)
            one.push([2])
            assert await wait
        assert len(os.listdir("/proc/self/task")) <= threads, "the threads are used again"

    asyncio.run(work())


def test_a_thread_that_waits_ends_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_IDLE_S", 0.02)
    monkeypatch.setattr(waiting, "_threads", waiting._Threads())
    before = len(os.listdir("/proc/self/task"))
    asyncio.run(Ring("i8", 8).ready("1ms"))
    idle = waiting._threads._idle
    wait_until(lambda: not idle and len(os.listdir("/proc/self/task")) <= before, "it has ended")
    asyncio.run(Ring("i8", 8).ready("1ms"))


def test_a_thread_that_cannot_be_created_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(helper_threads, "start_thread", fail)
    monkeypatch.setattr(waiting, "_threads", waiting._Threads())
    with pytest.raises(SetupError, match=r"ready\(\) of an exchange: can't start new thread"):
        asyncio.run(Ring("i8", 8).ready("1ms"))


def test_a_thread_that_waits_leaves_the_policy_of_its_creator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which may have a real-time priority, and its threads would have it as well."""
    left = threading.Semaphore(0)
    monkeypatch.setattr(helper_threads, "become_ordinary", left.release)
    monkeypatch.setattr(waiting, "_threads", waiting._Threads())
    ring = Ring("i8", 8)
    ring.fileno()
    assert left.acquire(timeout=60)
    asyncio.run(ring.ready("1ms"))
    assert left.acquire(timeout=60)


def test_a_signal_handler_may_take_something_out_while_something_is_taken_out() -> None:
    script = """
import random, signal, rtloop
ring = rtloop.Ring("f8", 64)
ring.fileno()
count = 0
def handler(number, frame):
    global count
    count += 1
    ring.drain()
signal.signal(signal.SIGALRM, handler)
for _ in range(1000):
    before = count
    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0001, 0.001))
    while count == before:
        ring.push(1.0)
        ring.pop()
print(count)
"""
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "1000\n", done.stderr


def test_the_thread_of_a_file_is_not_taken_for_one_that_a_step_has_started() -> None:
    loop = rtloop.PyLoop(lambda cycle: 0, "1ms", policy="other", lock_memory="off", dma_latency=None)
    ring = Ring("f8", 8)
    with loop:
        ring.fileno()
        for _ in range(20):
            assert "started_threads" not in [grant.name for grant in loop.stats.grants]
            time.sleep(0.005)


def test_a_file_can_be_read_while_there_is_something() -> None:
    ring, latest = Ring("i8", 100), Latest("f8")
    files = [ring.fileno(), latest.fileno()]
    assert files == [ring.fileno(), latest.fileno()] and select.select(files, [], [], 0)[0] == []
    ring.push(np.arange(3))
    assert select.select([ring], [], [], 60)[0] == [ring]
    assert ring.pop() == 0 and select.select([ring], [], [], 60)[0] == [ring], "there are more"
    with ring.view() as items:
        assert items.tolist() == [1, 2]
    for _ in range(3):
        assert select.select([ring], [], [], 0.02)[0] == [], "there is nothing any more"
        latest.write(1.0)
        assert select.select(files, [], [], 60)[0] == [files[1]]
        latest.read()
    before = len(os.listdir("/proc/self/fd"))
    del ring, latest, items  # a part of a view keeps the memory
    gc.collect()
    deadline = time.monotonic() + 60
    while len(os.listdir("/proc/self/fd")) > before - 2:
        assert time.monotonic() < deadline, "the files stay open"
        time.sleep(0.01)


def test_an_event_loop_reads_by_the_file() -> None:
    ring = Ring("i8", 1000)
    got: list[int] = []

    async def main() -> None:
        enough = asyncio.Event()

        def read() -> None:
            got.extend(ring.drain().tolist())
            if len(got) == 100:
                enough.set()

        asyncio.get_running_loop().add_reader(ring, read)
        thread = threading.Thread(target=lambda: [(ring.push(n), time.sleep(0.0002)) for n in range(100)])
        thread.start()
        await asyncio.wait_for(enough.wait(), 120)
        asyncio.get_running_loop().remove_reader(ring)
        thread.join()

    asyncio.run(main())
    assert got == list(range(100))
