"""PyLoop: a Python function on the real schedule, its exceptions, and the interpreter's end."""

from __future__ import annotations

import dataclasses
import gc
import signal
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import rtloop
from rtloop import RT_CONTINUE, RT_STOP, Cycle, FunctionLoop, PyLoop

ORDINARY = 'dict(policy="other", lock_memory="off", dma_latency=None)'


def test_a_function_gets_every_cycle_and_stops_the_loop(ordinary: dict[str, Any]) -> None:
    seen: list[Cycle] = []

    def step(cycle: Cycle) -> int:
        seen.append(cycle)
        return RT_STOP if cycle.index == 20 else RT_CONTINUE

    loop = PyLoop(step, "2ms", **ordinary)
    stats = loop.run()
    assert stats.cycles == 21 == len(seen) and stats.state == "stopped"
    assert [c.index for c in seen] == list(range(21))
    assert all(c.start >= c.release and c.period == 2_000_000 for c in seen)
    assert (seen[0].dt, seen[0].t, seen[0].missed) == (0.002, 0.0, 0)
    assert sum(c.missed for c in seen) <= stats.missed, "the last cycle may have missed some, too"
    assert [int(r) for r in stats.records["release"]] == [c.release for c in seen]
    assert loop.callable is step


@pytest.mark.parametrize(("value", "cycles"), [(None, 9), (False, 9), (RT_CONTINUE, 9), (True, 1), (RT_STOP, 1)])
def test_what_a_function_may_return(value: Any, cycles: int) -> None:
    assert PyLoop(lambda cycle: value, "1ms").simulate(cycles=9).cycles == cycles


def test_a_negative_code_is_a_callback_error_and_anything_else_a_type_error(ordinary: dict[str, Any]) -> None:
    with pytest.raises(rtloop.CallbackError, match=r"step\(\) returned -5 in cycle 0.*EIO"):
        PyLoop(lambda cycle: -5, "1ms", **ordinary).run()

    def read_sensor(cycle: Cycle) -> Any:
        return 0.5

    loop = PyLoop(read_sensor, "1ms", **ordinary)
    with pytest.raises(TypeError, match=r"read_sensor returned 0.5: return None or RT_CONTINUE.*RT_STOP"):
        loop.run()
    assert loop.state == "failed"


def test_an_exception_fails_the_loop_and_join_raises_it_with_its_traceback(ordinary: dict[str, Any]) -> None:
    def read_sensor(cycle: Cycle) -> None:
        if cycle.index == 7:
            raise KeyError("torque")

    loop = PyLoop(read_sensor, "1ms", name="arm", **ordinary)
    loop.start()
    lengths = []
    for _ in range(3):  # every join says so, and the traceback does not grow
        with pytest.raises(KeyError, match="torque") as caught:
            loop.join()
        lines = traceback.format_exception(caught.value)
        assert "in read_sensor" in "".join(lines) and "Raised in cycle 7 of arm" in "".join(lines)
        lengths.append(len(traceback.extract_tb(caught.value.__traceback__)))
    assert len(set(lengths)) == 1
    assert loop.state == loop.stats.state == "failed" and loop.stats.cycles == 8
    with pytest.raises(KeyError):
        loop.run()


def test_an_exception_that_takes_no_note_fails_the_loop_all_the_same(ordinary: dict[str, Any]) -> None:
    @dataclasses.dataclass(frozen=True)
    class NoBusError(Exception):
        address: int

    def step(cycle: Cycle) -> None:
        raise NoBusError(7)

    loop = PyLoop(step, "1ms", **ordinary)
    for run in (loop.run, loop.simulate):
        with pytest.raises(NoBusError):
            run(cycles=5)
        assert loop.state == "failed" and loop.stats.cycles == 1


def test_an_exception_that_is_raised_again_and_again_has_one_note(ordinary: dict[str, Any]) -> None:
    error = OSError("no bus")

    def step(cycle: Cycle) -> None:
        raise error

    loop = PyLoop(step, "1ms", name="arm", **ordinary)
    for _ in range(3):
        with pytest.raises(OSError, match="no bus"):
            loop.run(cycles=5)
    assert error.__notes__ == ["Raised in cycle 0 of arm, which has stopped."]


@pytest.mark.parametrize("end", [SystemExit, GeneratorExit])
def test_what_is_no_exception_fails_a_simulated_loop_as_a_real_one(
    end: type[BaseException], ordinary: dict[str, Any]
) -> None:
    def step(cycle: Cycle) -> None:
        raise end

    loop = PyLoop(step, "1ms", **ordinary)
    for run in (loop.run, loop.simulate):
        with pytest.raises(end):
            run(cycles=5)
        assert loop.state == loop.stats.state == "failed"


def test_a_reset_in_the_last_cycle_is_done_in_virtual_time_too(ordinary: dict[str, Any]) -> None:
    def step(cycle: Cycle) -> None:
        if cycle.index == 4:
            loop.reset_stats()

    loop = PyLoop(step, "1ms", **ordinary)
    assert loop.run(cycles=5).cycles == 0
    assert loop.simulate(cycles=5).cycles == 0


def test_a_failed_loop_that_is_only_stopped_warns_with_the_type_of_the_error(ordinary: dict[str, Any]) -> None:
    loop = PyLoop(lambda cycle: 1 // 0, "1ms", **ordinary)
    loop.start()
    while loop.state == "running":
        time.sleep(0.001)
    with pytest.warns(rtloop.RTSetupWarning, match=r"ZeroDivisionError: \w"):
        loop.stop()


def test_after_a_failure_it_can_run_again(ordinary: dict[str, Any]) -> None:
    is_broken = True

    def step(cycle: Cycle) -> None:
        if is_broken:
            raise OSError("no bus")

    loop = PyLoop(step, "1ms", **ordinary)
    for run in (loop.run, loop.simulate):
        is_broken = True
        with pytest.raises(OSError, match="no bus"):
            run(cycles=5)
        is_broken = False
        assert run(cycles=5).state == "stopped"


def test_its_grants_say_that_it_takes_the_gil(ordinary: dict[str, Any]) -> None:
    loop = PyLoop(lambda cycle: None, "1ms", **ordinary)
    is_taken = getattr(sys, "_is_gil_enabled", lambda: True)()
    assert f"gil {'taken in every cycle' if is_taken else 'none'}" in " ".join(str(loop.run(cycles=3)).split())
    (grant,) = [grant for grant in loop.grants if grant.name == "gil"]
    assert grant.ok and "garbage collector" in grant.detail
    loop.simulate(cycles=3)
    assert [grant.name for grant in loop.grants] == ["simulation", "gil"]


def test_it_may_stop_itself_but_not_wait_for_itself(ordinary: dict[str, Any]) -> None:
    said: list[Any] = []

    def step(cycle: Cycle) -> None:
        if cycle.index == 5:
            said.extend([loop.state, loop.stats.cycles])
            for call in (loop.join, loop.start):
                with pytest.raises(rtloop.StateError):
                    call()
            loop.stop()

    loop = PyLoop(step, "2ms", **ordinary)
    begin = time.monotonic()
    assert loop.run().cycles == 6
    assert time.monotonic() - begin < 1.5, "it waited for itself"
    assert said == ["running", 5]
    assert loop.simulate().cycles == 6


def test_the_thread_is_one_to_python_for_the_whole_run(ordinary: dict[str, Any]) -> None:
    local, idents = threading.local(), []

    def step(cycle: Cycle) -> None:
        local.count = getattr(local, "count", 0) + 1
        idents.append((threading.get_ident(), local.count))

    before = threading.get_ident()
    loop = PyLoop(step, "1ms", **ordinary)
    for _ in range(2):
        idents.clear()
        loop.run(cycles=10)
        assert [count for _, count in idents] == list(range(1, 11)), "a new run is a new thread"
        assert len({ident for ident, _ in idents} | {before}) == 2
    idents.clear()
    loop.simulate(cycles=3)
    assert idents == [(before, 1), (before, 2), (before, 3)]


def test_other_threads_run_meanwhile_and_it_runs_beside_them(ordinary: dict[str, Any]) -> None:
    loop = PyLoop(lambda cycle: None, "2ms", **ordinary)
    loop.start()
    deadline = time.monotonic() + 60
    while loop.stats.cycles < 20 and time.monotonic() < deadline:
        sum(range(10_000))  # a thread that never rests: the loop gets the GIL all the same
    assert loop.stats.cycles >= 20
    loop.stop()
    assert loop.stats.cycles + loop.stats.missed >= 20


def test_a_deep_recursion_is_an_exception_and_not_a_crash(script: Callable[..., Any]) -> None:
    done = script(
        f"""
        import json, rtloop
        deep = []
        for _ in range(100_000):
            deep = [deep]
        def step(cycle):
            json.dumps(deep)
        try:
            rtloop.PyLoop(step, "1ms", **{ORDINARY}).run(cycles=1)
        except RecursionError:
            print("RecursionError", flush=True)  # os._exit flushes nothing
        import os
        os._exit(0)
        """
    )
    assert done.stdout == "RecursionError\n", done.stderr


def test_it_is_freed_with_its_function_when_nobody_needs_it(ordinary: dict[str, Any]) -> None:
    def make() -> tuple[weakref.ref[Any], weakref.ref[Any]]:
        def step(cycle: Cycle) -> None: ...

        loop = PyLoop(step, "1ms", **ordinary)
        loop.run(cycles=3)
        return weakref.ref(loop), weakref.ref(step)

    references = make()
    gc.collect()
    assert [reference() for reference in references] == [None, None]


@pytest.mark.parametrize("value", [None, "step", 3])
def test_what_cannot_be_called_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="not a function or another callable"):
        PyLoop(value, "1ms")


def test_the_wrong_order_of_arguments_is_named() -> None:
    with pytest.raises(TypeError, match=r"the callable comes first: PyLoop\(function, '10ms'\)"):
        PyLoop("10ms", print)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="the function comes before the period"):
        FunctionLoop("10ms", print)  # type: ignore[arg-type]


def test_keywords_are_those_of_a_loop() -> None:
    with pytest.raises(TypeError, match=r"PyLoop\(\).*'period'"):
        PyLoop(print)  # type: ignore[call-arg]
    assert repr(PyLoop(print, "1ms", name="arm")) == "<PyLoop 'arm', 1 kHz, new>"
    assert PyLoop(print, "1ms").settings.stack_bytes == 4 << 20
    assert PyLoop(print, "1ms", stack_size="1M").settings.stack_bytes == 1 << 20


@pytest.mark.parametrize(
    ("run", "child"),
    [("run", "arm: its step has forked, and the child process ends"), ("simulate", "StateError arm: a callback")],
)
def test_a_fork_in_the_function_ends_in_the_child(script: Callable[..., Any], run: str, child: str) -> None:
    done = script(
        f"""
        import os, sys, rtloop
        pid = -1
        def step(cycle):
            global pid
            if cycle.index == 5:
                pid = os.fork()
        loop = rtloop.PyLoop(step, "1ms", name="arm", **{ORDINARY})
        try:
            stats = loop.{run}(cycles=50)
        except rtloop.StateError as error:
            print("StateError", error, file=sys.stderr, flush=True)
            os._exit(1)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), stats.cycles, loop.state)
        """,
        timeout=20,
    )
    assert done.stdout == "1 50 stopped\n", done.stderr
    assert child in done.stderr


def test_the_function_may_start_processes(script: Callable[..., Any]) -> None:
    done = script(
        f"""
        import multiprocessing, subprocess, rtloop
        codes = []
        def step(cycle):
            if cycle.index == 3:
                process = multiprocessing.get_context("fork").Process(target=print, args=("child",))
                process.start()
                process.join()
                codes.append(process.exitcode)
            if cycle.index == 5:
                codes.append(subprocess.run(["true"], preexec_fn=lambda: None).returncode)
        rtloop.PyLoop(step, "1ms", **{ORDINARY}).run(cycles=10)
        print(codes)
        """,
        timeout=20,
    )
    assert done.stdout == "child\n[0, 0]\n", done.stderr


# The interpreter ends while it runs. Each of these has hung or crashed where a thread takes the GIL unguarded.

BODIES = {
    "a step that returns at once": "None",
    "a step that allocates": "[[i] for i in range(100)] and None",
    "a step that sleeps": "time.sleep(0.003)",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("end", ["pass", "sys.exit(0)", "threading.Timer(0.05, sys.exit).start()", "gc.collect()"])
def test_the_interpreter_ends_while_it_runs(script: Callable[..., Any], body: str, end: str) -> None:
    done = script(
        f"""
        import gc, sys, threading, time, rtloop
        loops = [rtloop.PyLoop(lambda cycle: {body}, "100us", **{ORDINARY}) for _ in range(3)]
        for loop in loops:
            loop.start()
        time.sleep(0.05)
        {end}
        """,
        timeout=20,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_an_exception_in_the_main_thread_ends_it(script: Callable[..., Any]) -> None:
    done = script(
        f"""
        import rtloop, time
        rtloop.PyLoop(lambda cycle: None, "100us", **{ORDINARY}).start()
        time.sleep(0.05)
        raise RuntimeError("main")
        """,
        timeout=20,
    )
    assert done.returncode == 1 and done.stderr.endswith("RuntimeError: main\n")


@pytest.mark.parametrize("body", ["time.sleep(60)", "lock.acquire()", "[i for i in iter(int, 1)]"])
def test_a_function_that_never_returns_does_not_keep_the_process(script: Callable[..., Any], body: str) -> None:
    begin = time.monotonic()
    done = script(
        f"""
        import threading, time, rtloop
        lock = threading.Lock()
        lock.acquire()
        def step(cycle):
            {body}
        rtloop.PyLoop(step, "1ms", name="stuck", **{ORDINARY}).start()
        time.sleep(0.1)
        print("end", flush=True)
        """,
        timeout=40,
    )
    assert time.monotonic() - begin < 35
    assert (done.returncode, done.stdout) == (0, "end\n"), done.stderr
    assert "stuck did not stop" in done.stderr and "Fatal" not in done.stderr


def test_a_loop_that_is_started_after_all_others_were_stopped(script: Callable[..., Any]) -> None:
    done = script(
        f"""
        import atexit
        loops = []
        @atexit.register  # before rtloop's own, hence called after it
        def late():
            loops[0].start()
        import rtloop
        loops.append(rtloop.PyLoop(lambda cycle: None, "100us", **{ORDINARY}))
        """,
        timeout=20,
    )
    assert done.returncode == 0 and "Fatal" not in done.stderr, done.stderr


def test_a_system_exit_in_the_function_is_raised_by_join(script: Callable[..., Any]) -> None:
    done = script(
        f"""
        import sys, rtloop
        loop = rtloop.PyLoop(lambda cycle: sys.exit(3), "1ms", **{ORDINARY})
        loop.start()
        loop.join()
        """
    )
    assert done.returncode == 3, done.stderr


def test_ctrl_c_ends_run_and_simulate(script: Callable[..., Any]) -> None:
    done = script(
        f"""
        import os, signal, threading, time, rtloop
        loop = rtloop.PyLoop(lambda cycle: None, "1ms", **{ORDINARY})
        def interrupt():
            while loop.state != "running": time.sleep(0.001)
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGINT)
        for run in (loop.run, loop.simulate):
            threading.Thread(target=interrupt, daemon=True).start()
            try:
                run()
            except KeyboardInterrupt:
                print(loop.state)
        """,
        timeout=20,
    )
    assert done.stdout == "stopped\nstopped\n", done.stderr


def test_pythons_own_checks_find_nothing(script: Callable[..., Any]) -> None:
    done = script(
        f"""
        import threading, time, rtloop
        loop = rtloop.PyLoop(lambda cycle: threading.current_thread() and None, "200us", **{ORDINARY})
        for _ in range(5):
            loop.run(cycles=20)
            loop.simulate(cycles=20)
            loop.simulate(cycles=20, plant=lambda cycle: None)
        loop.start()
        time.sleep(0.05)
        """,
        env={"PYTHONDEVMODE": "1", "PYTHONMALLOC": "debug"},
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("kind", [rtloop.RTLoop, rtloop.FunctionLoop, PyLoop])
def test_help_shows_no_methods_of_the_compiler(kind: type) -> None:
    assert not [name for name in vars(kind) if name.endswith("_cython__")]


@pytest.mark.parametrize("end", ["stop", "code", "exception"])
def test_leave_runs_once_after_the_last_cycle(ordinary: dict[str, Any], end: str) -> None:
    calls: list[str] = []
    threads = set()

    def step(cycle: Cycle) -> int:
        calls.append("step")
        threads.add(threading.get_native_id())
        if cycle.index == 2 and end == "exception":
            raise ValueError("the sensor is gone")
        return RT_CONTINUE if cycle.index < 2 else {"stop": RT_STOP, "code": -5, "exception": 0}[end]

    def leave() -> None:
        calls.append("leave")
        threads.add(threading.get_native_id())

    loop = PyLoop(step, "1ms", leave=leave, **ordinary)
    errors: dict[str, type[BaseException]] = {"code": rtloop.CallbackError, "exception": ValueError}
    if end in errors:
        with pytest.raises(errors[end]):
            loop.run()
    else:
        loop.run()
    assert calls == ["step"] * 3 + ["leave"] and len(threads) == 1
    calls.clear()
    PyLoop(lambda cycle: calls.append("step"), "1ms", leave=leave).simulate(cycles=2)
    assert calls == ["step", "step", "leave"]


def test_an_exception_in_leave_fails_the_loop(ordinary: dict[str, Any]) -> None:
    def leave() -> None:
        raise OSError("the brake is stuck")

    loop = PyLoop(lambda cycle: RT_STOP, "1ms", leave=leave, **ordinary)
    with pytest.raises(OSError, match="the brake is stuck") as caught:
        loop.run()
    assert loop.state == "failed" and "Raised in leave()" in caught.value.__notes__[0]
    with pytest.raises(TypeError, match="leave=5 is not a function"):
        PyLoop(lambda cycle: None, "1ms", leave=5)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_leave_runs_before_a_signal_ends_the_program(script: Callable[..., Any], name: str) -> None:
    done = script(f"""
        import os, signal, time, rtloop
        def step(cycle):
            if cycle.index == 5:
                os.kill(os.getpid(), signal.{name})
        def leave():
            os.write(1, b"off")
        loop = rtloop.PyLoop(step, "1ms", leave=leave, **{ORDINARY})
        loop.start()
        time.sleep(100)
    """)
    assert done.returncode == -getattr(signal, name) and done.stdout == "off", done.stderr
