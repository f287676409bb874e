"""Many Python threads on one object: they take turns if they must, and a free-threaded Python keeps its GIL off."""

from __future__ import annotations

import sys
import sysconfig
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import rtloop_test_processes as processes

import rtloop
from rtloop import HugeBuffer, Latest, Pool, PyLoop, Ring, RTLoop
from rtloop.data.ownership import claim_reader, release_reader
from rtloop.process.exit_hooks import WeakObjects

THREADS = 6
IS_FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


@pytest.fixture(autouse=True)
def _impatient() -> Any:
    """Switch threads as often as Python can, so that one with a GIL meets as many of the races as possible."""
    former = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(former)


def at_once(*calls: Callable[[], Any], timeout: float = 120) -> list[Any]:
    """Make the calls on a thread each, all beginning together. Return their results; raise the first exception."""
    barrier = threading.Barrier(len(calls))
    results: list[Any] = [None] * len(calls)
    errors: list[BaseException] = []

    def work(index: int, call: Callable[[], Any]) -> None:
        try:
            barrier.wait(timeout)
            results[index] = call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=pair, daemon=True) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]
    return results


# The GIL


def test_importing_rtloop_leaves_the_gil_of_a_free_threaded_python_off(script: Any) -> None:
    """Every extension module declares that it needs none; one that does not is a warning, and an error here."""
    done = script(
        """
        import importlib.util, pkgutil, sys, rtloop
        for found in pkgutil.walk_packages(rtloop.__path__, "rtloop."):
            module = importlib.util.find_spec(found.name)
            if module.origin.endswith(".so") and found.name != "rtloop.guard.librtloop_guard":
                importlib.import_module(found.name)
                print(found.name)
        print(getattr(sys, "_is_gil_enabled", lambda: True)())
        """,
        env={"PYTHONWARNINGS": "error", "PYTHON_GIL": ""},
    )
    assert done.returncode == 0, done.stderr
    *modules, is_gil_enabled = done.stdout.split()
    assert len(modules) >= 25
    assert is_gil_enabled == str(not IS_FREE_THREADED)


# Exchanges


def test_threads_that_push_and_take_out_lose_and_double_no_item() -> None:
    ring, each = Ring("i8", 64), 1000
    taken: list[list[int]] = [[] for _ in range(3)]
    is_over = threading.Event()

    def push(first: int) -> int:
        return sum(ring.push(first + i) for i in range(each))

    def push_many(first: int) -> int:
        return sum(ring.push(np.arange(first + i, first + i + 10)) for i in range(0, each, 10))

    def pop() -> None:
        while not is_over.is_set() or len(ring):
            try:
                item = ring.pop()
            except BufferError:
                continue
            if item is not None:
                taken[0].append(int(item))

    def drain() -> None:
        while not is_over.is_set() or len(ring):
            try:
                taken[1] += ring.drain(7).tolist()
            except BufferError:
                continue

    def view() -> None:
        while not is_over.is_set() or len(ring):
            try:
                with ring.view() as items:
                    taken[2] += items.tolist()
            except (BufferError, rtloop.StateError):
                continue

    def produce() -> list[int]:
        try:
            return at_once(
                lambda: push(0), lambda: push(each), lambda: push_many(2 * each), lambda: push_many(3 * each)
            )
        finally:
            is_over.set()

    pushed, *_ = at_once(produce, pop, drain, view)
    every = [item for part in taken for item in part]
    assert len(every) == len(set(every)) == sum(pushed)
    assert sum(pushed) + ring.dropped == 4 * each
    assert ring.pop() is None
    assert set(every) <= set(range(4 * each))


def test_one_of_several_views_at_once_is_given() -> None:
    ring, inside, worst = Ring("i8", 16), [0], [0]

    def view() -> int:
        given = 0
        for _ in range(500):
            ring.push(1)
            try:
                with ring.view():
                    inside[0] += 1
                    worst[0] = max(worst[0], inside[0])
                    given += 1
                    inside[0] -= 1
            except (BufferError, rtloop.StateError):
                pass
        return given

    assert sum(at_once(*[view] * THREADS)) > 0
    assert worst == [1]
    ring.drain()
    assert len(ring) == 0


def test_threads_that_write_and_read_a_latest_get_whole_values() -> None:
    dtype = np.dtype([("values", "i8", 4096)])
    latest, each = Latest(dtype), 400

    def write(number: int) -> None:
        value = np.zeros(1, dtype)
        for i in range(each):
            value["values"] = number * each + i
            latest.write(value)

    def read() -> int:
        torn = 0
        for _ in range(each):
            values = latest.read()["values"]
            torn += (values != values[0]).any()
        return torn

    writers = [lambda number=number: write(number) for number in range(3)]
    assert sum(filter(None, at_once(*writers, read, read, read))) == 0
    assert latest.written == 3 * each
    assert latest.age_ns is not None
    latest.read()
    assert not latest.is_new


@pytest.mark.parametrize("kind", ["shared", "single", "mutex"])
def test_threads_that_use_a_pool_never_share_a_block(kind: str) -> None:
    pool = Pool(64, 4, kind=kind)

    def use(number: int) -> tuple[int, int]:
        got = refused = 0
        for _ in range(400):
            try:
                with pool.block("i8") as block:
                    block[:] = number
                    got += 1
                    assert (block == number).all()
            except rtloop.PoolExhaustedError:
                refused += 1
        return got, refused

    results = at_once(*[lambda number=number: use(number) for number in range(THREADS)])
    pool.check()
    assert pool.in_use == 0
    assert pool.failures == sum(refused for _, refused in results)
    assert sum(got + refused for got, refused in results) == THREADS * 400


def test_a_buffer_is_closed_by_one_thread_when_no_other_has_a_view() -> None:
    for _ in range(30):
        buffer = HugeBuffer("8K", backing="pages")

        def look(buffer: HugeBuffer = buffer) -> int:
            made = 0
            while True:
                try:
                    view = memoryview(buffer)
                except BufferError:
                    return made
                view[0] = view[-1] = 1  # not given back while there is a view
                made += 1
                del view

        def close(buffer: HugeBuffer = buffer) -> None:
            while not buffer.closed:
                try:
                    buffer.close()
                except BufferError:
                    time.sleep(0)

        at_once(look, look, look, close, close)
        assert buffer.closed


def test_one_of_several_threads_becomes_the_consumer_of_a_ring() -> None:
    def claim(ring: Ring) -> bool:
        try:
            claim_reader(ring)
        except rtloop.StateError:
            return False
        return True

    for _ in range(50):
        ring = Ring("i8", 4)
        assert sum(at_once(*[lambda ring=ring: claim(ring)] * 4)) == 1
        release_reader(ring)
        assert claim(ring)


def test_one_of_several_recorders_at_once_gets_the_ring(tmp_path: Path) -> None:
    ring = Ring("i8", 100)

    def record(name: str) -> int:
        try:
            with rtloop.Recorder(ring, tmp_path / name, interval="1ms") as recorder:
                ring.push([1, 2, 3])
                recorder.flush()
            return recorder.written
        except rtloop.StateError:
            return 0

    written = at_once(*[lambda name=name: record(f"{name}.npy") for name in range(4)])
    assert sum(written) + len(ring.drain()) == 3 * sum(count > 0 for count in written) > 0
    assert threading.stack_size() == 0, "the stack size of new threads is restored"


def test_a_log_of_signals_has_one_ring(exchanges: ModuleType, ordinary: dict[str, Any]) -> None:
    for _ in range(20):
        loop = exchanges.Servo("1ms", **ordinary)
        rings = at_once(*[lambda loop=loop: loop.log.ring] * THREADS)
        assert len({id(ring) for ring in rings}) == 1


def test_objects_to_close_can_be_listed_while_others_come_and_go() -> None:
    class Thing:
        pass

    things: WeakObjects[Thing] = WeakObjects()

    def come_and_go() -> None:
        for _ in range(500):
            one = Thing()
            things.add(one)
            assert one in things
            things.discard(one)
            things.add(one)

    def look() -> None:
        for _ in range(500):
            assert all(isinstance(one, Thing) for one in things)

    at_once(come_and_go, come_and_go, look, look)
    assert not things and list(things) == []


# Loops


def test_of_several_starts_at_once_one_succeeds(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = probes.Probe("1ms", **ordinary)

    def start() -> bool:
        try:
            loop.start()
        except rtloop.StateError:
            return False
        return True

    for _ in range(5):
        assert sum(at_once(*[start] * THREADS)) == 1
        at_once(*[loop.stop] * THREADS)
        assert loop.state == "stopped"


def test_start_stop_and_every_question_at_once(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    """Figures that are read while their run begins or ends are those of some moment; nothing crashes or hangs."""
    loop = probes.Probe("500us", **{**ordinary, "record": 1000})
    end = time.monotonic() + 2
    refused = (rtloop.StateError, rtloop.StopTimeoutError)

    def again(call: Callable[[], Any]) -> Callable[[], int]:
        def work() -> int:
            made = 0
            while time.monotonic() < end:
                try:
                    call()
                    made += 1
                except refused:
                    time.sleep(0)
            return made

        return work

    def look() -> None:
        stats = loop.stats
        assert stats.state in ("new", "running", "stopped")
        assert len(stats.records) <= 1000
        assert stats.stack.size == 0 or 0 < stats.stack.high_water <= stats.stack.size
        assert stats.cycles >= 0 and stats.missed >= 0

    made = at_once(
        again(loop.start),
        again(lambda: (time.sleep(0.002), loop.stop())),
        again(lambda: loop.run(cycles=3)),
        again(look),
        again(look),
        again(lambda: (loop.state, repr(loop), loop.grants, loop.settings)),
        again(loop.reset_stats),
        again(lambda: loop.join("1ms")),
    )
    loop.stop()
    assert made[3] > 0 and made[5] > 0
    assert loop.state == "stopped"
    assert loop.run(cycles=5).cycles == 5, "it works as before"


def test_close_at_once_with_everything(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    for _ in range(10):
        loop = probes.Probe("500us", **ordinary)

        def start(loop: RTLoop = loop) -> None:
            try:
                loop.start()
            except rtloop.StateError:
                assert loop.state in ("new", "running", "stopped")

        at_once(start, loop.close, lambda loop=loop: loop.stats, lambda loop=loop: loop.grants, loop.close)
        assert loop.state in ("new", "stopped")
        with pytest.raises(rtloop.StateError, match="is closed"):
            loop.start()


def test_a_failure_is_reported_once(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    """By stop(): of several threads that stop a failed loop, one warns."""
    for _ in range(4):
        loop = PyLoop(lambda cycle: -5, "1ms", **ordinary)
        loop.start()
        while loop.state == "running":
            time.sleep(0.001)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            at_once(*[loop.stop] * 4)
        if sys.version_info < (3, 14):  # after that the list is of one thread alone
            assert len([one for one in caught if issubclass(one.category, rtloop.RTSetupWarning)]) == 1
        assert loop.state == "failed"


def test_loops_made_and_run_by_several_threads(script: Any) -> None:
    """In a new process, so that all of them need the first keeper and the first thread of the signals."""
    done = script(
        """
        import os, runpy, threading
        import probes, rtloop

        def work():
            barrier.wait()
            for _ in range(5):
                loop = probes.Probe("1ms", policy="other", lock_memory="off", dma_latency=None)
                names.append(loop.name)
                assert loop.run(cycles=5).cycles == 5

        barrier, names, errors = threading.Barrier(8), [], []
        threading.excepthook = lambda hook: errors.append(hook.exc_value)
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        assert not errors, errors
        assert len(set(names)) == 40, "two loops have the same name"
        tasks = [*runpy.run_path(os.environ["PROCESSES"])["thread_names"]().values()]
        assert tasks.count("rtloop-keeper") == tasks.count("rtloop-signals") == 1, tasks
        assert threading.stack_size() == 0
        print("done")
        """,
        env={"PROCESSES": processes.__file__},
    )
    assert done.returncode == 0 and done.stdout == "done\n", done.stdout + done.stderr


def test_settings_are_parsed_alike_by_all_threads() -> None:
    def parse() -> list[Any]:
        return [RTLoop(f"{n}us", phase="1us", deadline=None, name="x").settings for n in range(100, 200)]

    first, *others = at_once(*[parse] * THREADS)
    assert all(other == first for other in others)


def test_a_group_is_asked_and_stopped_by_several_threads(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    loops = [probes.Probe("1ms", name="fast", **ordinary), probes.Probe("2ms", name="slow", **ordinary)]
    group = rtloop.LoopGroup(loops, priorities="as-given")
    for _ in range(4):
        group.start()
        at_once(
            *[lambda: [group.stats["fast"].cycles for _ in range(20)]] * 2,
            lambda: [group.state for _ in range(50)],
            lambda: [group.grants for _ in range(20)],
            lambda: (time.sleep(0.01), group.stop()),
            lambda: (time.sleep(0.01), group.stop()),
        )
        assert group.state == "stopped"


def test_a_loop_in_python_runs_every_release_beside_busy_threads(ordinary: dict[str, Any]) -> None:
    seen: list[int] = []
    is_over = threading.Event()

    def busy() -> int:
        count = 0
        while not is_over.is_set():
            count += sum(range(100))
        return count

    def run() -> Any:
        try:
            return PyLoop(lambda cycle: seen.append(cycle.index), "2ms", **ordinary).run(cycles=50)
        finally:
            is_over.set()

    stats, *counts = at_once(run, busy, busy)
    assert seen == list(range(50)) and stats.cycles == 50
    assert all(counts)


@pytest.mark.skipif(not IS_FREE_THREADED, reason="this Python has a GIL, which a PyLoop takes")
def test_the_grant_of_a_loop_in_python_says_whether_there_is_a_gil(script: Any) -> None:
    code = """
        from rtloop import PyLoop
        loop = PyLoop(lambda cycle: None, "1ms", policy="other", lock_memory="off", dma_latency=None)
        loop.run(cycles=3)
        print(*[grant.granted for grant in loop.grants if grant.name == "gil"])
        """
    assert "none" in script(code, env={"PYTHON_GIL": "0"}).stdout
    assert "taken in every cycle" in script(code, env={"PYTHON_GIL": "1"}).stdout
