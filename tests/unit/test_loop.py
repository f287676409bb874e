"""The life of a loop, on any machine: ordinary policy, nothing locked."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import rtloop
from rtloop import RTLoop


@pytest.mark.parametrize("where", ["enter", "step", "overrun"])
def test_a_negative_code_fails_the_loop_and_join_raises_it(
    probes: ModuleType, ordinary: dict[str, Any], where: str
) -> None:
    loop = probes.Probe("2ms", **ordinary)
    if where == "enter":
        loop.enter_code = -19
    elif where == "step":
        loop.fail_at, loop.fail_code = 5, -19
    else:
        loop.overrun_code, loop.busy_ns = -19, 5_000_000
    loop.start()
    for _ in range(2):  # every join says so
        with pytest.raises(rtloop.CallbackError, match=f"{where}.*-19.*No such device") as caught:
            loop.join()
    assert (caught.value.code, caught.value.callback) == (-19, where)
    assert loop.state == loop.stats.state == "failed"
    assert loop.leaves == (0 if where == "enter" else 1), "leave runs if and only if enter succeeded"
    loop.stop()
    loop.enter_code = loop.overrun_code = loop.busy_ns = 0
    loop.fail_at = -1
    assert loop.run(cycles=3).cycles == 3, "a failed loop can be started again"


def test_RT_STOP_is_a_normal_end(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = probes.Probe("1ms", **ordinary)
    loop.stop_at = 6
    assert loop.run().cycles == 7
    assert loop.state == "stopped"
    loop.enter_code = 1
    assert loop.run().cycles == 0 and loop.leaves == 2


def test_a_loop_starts_and_stops_any_number_of_times(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = probes.Probe("1ms", record=16, stack_size="64K", **ordinary)
    for _ in range(50):
        loop.start()
        loop.stop()
    assert loop.setups == loop.enters == loop.leaves == 50
    loop.start()
    with pytest.raises(rtloop.StateError, match="running"):
        loop.start()
    loop.stop()
    loop.stop()


def test_stop_ends_a_slow_loop_at_once(ordinary: dict[str, Any]) -> None:
    loop = RTLoop("1min", **ordinary)
    loop.start()
    time.sleep(0.05)
    loop.stop(timeout="1s")
    assert loop.state == "stopped"


def test_a_step_that_hangs_makes_stop_raise_and_not_hang(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = probes.Probe("1ms", **ordinary)
    loop.hang = True
    loop.start()
    time.sleep(0.05)
    with pytest.raises(TimeoutError, match="has not returned") as caught:
        loop.stop(timeout="50ms")
    assert isinstance(caught.value, rtloop.StateError)
    assert loop.state == "running"
    assert loop.join(timeout="10ms") is False
    loop.let_go = True
    loop.stop()
    assert loop.state == "stopped"


def test_of_many_threads_that_start_one_loop_one_wins(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = probes.Probe("1ms", **ordinary)
    barrier, outcomes = threading.Barrier(8), []

    def start() -> None:
        barrier.wait()
        try:
            loop.start()
            outcomes.append("started")
        except rtloop.StateError:
            outcomes.append("refused")

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    loop.stop()
    assert sorted(outcomes) == ["refused"] * 7 + ["started"]
    assert loop.enters == 1


def test_many_threads_may_stop_and_join_one_loop(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = probes.Probe("1ms", **ordinary)
    loop.start()
    threads = [threading.Thread(target=loop.stop if i % 2 else loop.join) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert loop.state == "stopped" and loop.leaves == 1


def test_a_running_loop_outlives_its_last_name(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    probe = probes.Probe("1ms", **ordinary)
    probe.stop_at = 60
    probe.start()
    del probe
    for _ in range(10):
        gc.collect()
        time.sleep(0.02)
    RTLoop("1ms", **ordinary).run(cycles=1)  # and is collected after its end


def test_a_loop_that_ended_by_itself_is_seen_as_stopped(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = probes.Probe("1ms", **ordinary)
    loop.stop_at = 3
    loop.start()
    deadline = time.monotonic() + 5
    while loop.state == "running" and time.monotonic() < deadline:
        time.sleep(0.005)
    assert loop.state == "stopped" and loop.stats.cycles == 4
    assert loop.join() is True


def test_the_context_manager_starts_stops_and_raises_what_failed(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    with probes.Probe("1ms", **ordinary) as loop:
        assert loop.state == "running"
    assert loop.state == "stopped"
    loop = probes.Probe("1ms", **ordinary)
    loop.fail_at = 2
    with pytest.raises(rtloop.CallbackError), loop:
        time.sleep(0.1)
    loop = probes.Probe("1ms", **ordinary)
    loop.fail_at = 2
    with pytest.raises(KeyError), loop:
        time.sleep(0.1)
        raise KeyError("the body's own exception comes first")


def test_a_failed_loop_stays_failed_when_closed(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = probes.Probe("1ms", **ordinary)
    loop.fail_at = 3
    with pytest.raises(rtloop.CallbackError):
        loop.run(cycles=10)
    loop.close()
    assert loop.state == "failed"


def test_a_closed_loop_stays_closed_and_keeps_its_statistics(ordinary: dict[str, Any]) -> None:
    loop = RTLoop("1ms", **ordinary)
    loop.run(cycles=10)
    loop.close()
    loop.close()
    assert loop.stats.cycles == 10 and loop.state == "stopped"
    with pytest.raises(rtloop.StateError, match="closed"):
        loop.start()


def test_a_subclass_that_forgets_its_base_init_is_told_so() -> None:
    class Forgetful(RTLoop):
        def __init__(self) -> None:
            pass

    loop = Forgetful()
    assert "not initialised" in repr(loop)
    with pytest.raises(rtloop.StateError, match=r"super\(\)\.__init__"):
        loop.start()
    loop.close()


def test_an_exception_in_setup_leaves_a_new_loop(ordinary: dict[str, Any]) -> None:
    class Unready(RTLoop):
        fail = True

        def setup(self) -> None:
            if self.fail:
                raise ConnectionError("no robot")

    loop = Unready("1ms", **ordinary)
    with pytest.raises(ConnectionError):
        loop.start()
    assert loop.state == "new"
    loop.fail = False
    assert loop.run(cycles=2).cycles == 2


def test_the_name_is_the_threads_name(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    with probes.Probe("1ms", name="left arm motor", **ordinary) as loop:
        assert Path(f"/proc/self/task/{loop.tid}/comm").read_text().strip() == "left arm motor"
        assert loop.name == "left arm motor"
    with probes.Probe("1ms", name="ein sehr langer Name für den Antrieb", **ordinary) as loop:
        assert Path(f"/proc/self/task/{loop.tid}/comm").read_text().strip() == "ein sehr langer"


def test_a_module_of_another_interface_is_told_to_recompile() -> None:
    import rtloop.loop.loop as module

    with pytest.raises(ImportError, match=r"interface 7.*has interface 2.*recompile"):
        _ = module._RTLoop_7
    with contextlib.suppress(AttributeError):
        _ = module.no_such_name
        pytest.fail("an unknown name is an AttributeError")


def test_a_step_written_in_python_is_refused_with_the_way_to_write_it() -> None:
    class Slow(RTLoop):
        def step(self, cycle: object) -> int:
            return 0

    with pytest.raises(TypeError, match=r"Slow\.step is a Python method.*noexcept nogil"):
        Slow("1ms")


def test_callbacks_before_init_are_refused_and_do_not_crash(probes: ModuleType) -> None:
    assert probes.Early().result == -22
