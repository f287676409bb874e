"""Ends of a run that are interrupted: Ctrl-C again, a signal after another one, a wait on another thread."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable

import pytest
from rtloop_test_ends import Script, left_once, run


def test_a_signal_after_an_interrupted_wait_waits_for_leave(script: Script) -> None:
    done = run(script, """
    loop = make(leave_ns=300_000_000); loop.start(); alive(loop)
    send(signal.SIGINT, signal.SIGTERM, signal.SIGTERM, after=0.1, every=0.1)
    loop.join()
    """)  # fmt: skip
    assert done.returncode == -signal.SIGTERM and left_once(done), done.stderr


def test_ctrl_c_in_stop_on_signals_becomes_a_keyboard_interrupt_after_leave(script: Script) -> None:
    done = run(script, """
    send(signal.SIGINT)
    with rtloop.stop_on_signals():
        loop = make(); loop.start()
        try:
            time.sleep(20)
        except KeyboardInterrupt:
            print("interrupted", loop.state, loop.leaves)
        loop.start(); loop.stop(); print(loop.leaves)
    """)  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "interrupted stopped 1\n2\n"), done.stderr


INTERRUPTED = {
    "with and join": "with loop: loop.join()",
    "with and sleep": "with loop: time.sleep(20)",
    "start and sleep": "loop.start(); time.sleep(20)",
    "start, finally stop": "loop.start()\ntry: time.sleep(20)\nfinally: loop.stop()",
    "run": "loop.run()",
    "caught": "try: loop.run()\nexcept KeyboardInterrupt: pass\nsys.exit(9)",
    "group": "rtloop.LoopGroup([loop, make(name='b')]).run()",
    "group, with": "with rtloop.LoopGroup([loop, make(name='b')]): time.sleep(20)",
}


@pytest.mark.parametrize("wait", INTERRUPTED)
def test_further_interrupts_do_not_cut_leave_off(script: Script, wait: str) -> None:
    done = run(script, f"""
    loop = make(name="a", leave_ns=700_000_000)
    send(*[signal.SIGINT] * 5, every=0.1)
    {INTERRUPTED[wait].replace(chr(10), chr(10) + "    ")}
    """)  # fmt: skip
    assert done.returncode == (9 if wait == "caught" else -signal.SIGINT), done.stdout + done.stderr
    assert left_once(done, 2 if "group" in wait else 1), done.stderr
    if wait in ("with and join", "with and sleep", "run", "caught", "group"):
        assert "rtloop: " in done.stderr and "KeyboardInterrupt: asked to stop, ended after" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("first", "second"), [("SIGINT", "SIGTERM"), ("SIGTERM", "SIGINT"), ("SIGTERM", "SIGTERM"), ("SIGHUP", "SIGTERM")]
)
def test_two_signals_of_different_kinds_do_not_cut_leave_off(script: Script, first: str, second: str) -> None:
    done = run(script, f"""
    loop = make(leave_ns=700_000_000)
    send(signal.{first}, signal.{second}, every=0.2)
    with loop: loop.join()
    """)  # fmt: skip
    expected = {"SIGINT": {-signal.SIGTERM}}.get(first, {-getattr(signal, first)})
    assert done.returncode in expected, done.stderr
    assert left_once(done), done.stderr


def test_leave_has_its_time_and_no_more(script: Script) -> None:
    done = run(script, """
    loop = make(leave_ns=8_000_000_000, leave_timeout="300ms")
    send(*[signal.SIGINT] * 2)
    begin = time.monotonic()
    try:
        with loop: loop.join()
    except KeyboardInterrupt as error:
        print(0.3 <= time.monotonic() - begin < 5, "did not stop within 300" in str(error.__notes__), flush=True)
    os._exit(0)
    """)  # fmt: skip
    assert done.stdout == "True True\n", done.stderr
    assert "has not ended after" in done.stderr


def test_a_stop_that_is_interrupted_raises_when_leave_has_returned(script: Script) -> None:
    done = run(script, """
    loop = make(leave_ns=400_000_000)
    loop.start(); alive(loop)
    send(signal.SIGINT, after=0.1)
    try:
        loop.stop(timeout="20s")
    except KeyboardInterrupt:
        print(loop.state, loop.leaves)
    """)  # fmt: skip
    assert done.stdout == "stopped 1\n", done.stderr


def test_a_program_that_catches_a_stop_that_took_too_long_still_leaves(script: Script) -> None:
    done = run(script, """
    loop = make(leave_ns=1_000_000_000)
    loop.start(); alive(loop)
    try:
        loop.stop(timeout="50ms")
    except rtloop.StopTimeoutError as error:
        print("within 50" in str(error))
    """)  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "True\n") and left_once(done), done.stderr


def test_a_handler_that_closes_a_loop_during_its_start_closes_it(script: Script) -> None:
    done = run(script, """
    class Slow(probes.Probe):
        def setup(self):
            os.kill(os.getpid(), signal.SIGUSR1)
            for _ in range(1000): pass
    loop = Slow("1ms", **PLAIN)
    signal.signal(signal.SIGUSR1, lambda *_: loop.close())
    loop.start(); loop.join()
    try:
        loop.start()
    except rtloop.StateError as error:
        print("closed" in str(error), loop.steps)
    """)  # fmt: skip
    assert done.stdout == "True 0\n", done.stderr


def test_a_waiter_sees_the_end_of_its_run_though_another_has_begun(script: Script) -> None:
    done = run(script, """
    loop = make(leave_ns=0)
    for _ in range(20):
        loop.start()
        waiter = threading.Thread(target=loop.join); waiter.start()
        time.sleep(0.01)
        loop.stop(); loop.start()
        waiter.join(10)
        print(waiter.is_alive(), loop.state)
        loop.stop()
    """)  # fmt: skip
    assert set(done.stdout.splitlines()) == {"False running"}, done.stdout + done.stderr


def test_the_loops_of_a_group_are_asked_before_anything_is_written_down_about_them(
    script: Script, guilty_path: object
) -> None:
    """A guarded step with thousands of violations does not keep the clean loop running while symbols are looked up."""
    done = run(script, f"""
    sys.path.insert(0, {str(guilty_path)!r})
    import guilty
    sys.setswitchinterval(0.005)
    guarded = guilty.Caller("1ms", guard="count", warmup=0, name="guarded", **PLAIN)
    guarded.every = True
    clean = make(name="clean", leave_ns=0)
    group = rtloop.LoopGroup([clean, guarded])
    group.start(); time.sleep(1)
    is_busy = True
    def busy():
        while is_busy: pass
    threading.Thread(target=busy, daemon=True).start()
    before, begin = clean.steps, time.monotonic()
    group.stop(timeout="2s")
    print(clean.steps - before < 200, time.monotonic() - begin < 2, group.state, flush=True)
    is_busy = False
    violations = group.stats["guarded"].guard["violations"]
    print(len(violations) > 0 and all(v["symbol"] for v in violations))
    """)  # fmt: skip
    assert done.stdout == "True True stopped\nTrue\n", done.stdout + done.stderr


def test_a_group_that_is_late_says_how_long_it_was_waited_for(script: Script) -> None:
    done = run(script, """
    one, two = make(name="one"), make(name="two", leave_ns=3_000_000_000)
    group = rtloop.LoopGroup([one, two])
    group.start(); alive(one); alive(two)
    try:
        group.stop(timeout="300ms")
    except rtloop.StopTimeoutError as error:
        print("two did not stop within 300 ms" in str(error), one.state, one.leaves, two.state)
    """)  # fmt: skip
    assert done.stdout == "True stopped 1 running\n", done.stdout + done.stderr


def test_an_exception_of_a_handler_at_any_time_leaves_no_loop_of_a_run_behind(script: Script) -> None:
    done = run(script, """
    from rtloop.process import ending_signals
    group = rtloop.LoopGroup([make(name="a"), make(name="b")])
    arm, calls = ending_signals.arm, []
    def interrupted(*numbers):
        calls.append(group.state)
        if calls[-1] == "running" and calls.count("running") == 1:
            raise KeyboardInterrupt  # as if it came at the begin of join()
        return arm(*numbers)
    ending_signals.arm = interrupted
    try:
        group.run()
    except KeyboardInterrupt:
        print("interrupted", group.state)
    """)  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "interrupted stopped\n"), done.stderr
    assert left_once(done, 2)


def test_each_further_ctrl_c_waits_for_leave_again(script: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """An exception that was freed may leave its id to the next one: a mark by id took that one for handled."""
    done = script("""
    import os, signal, threading, time, rtloop
    loop = rtloop.PyLoop(
        lambda cycle: time.sleep(3) if cycle.index == 2 else None, "10ms", strict=False, policy="other",
        lock_memory="off", dma_latency=None, leave_timeout="500ms",
    )
    loop.start()
    for _ in range(3):
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        begin = time.monotonic()
        try:
            loop.join()
        except KeyboardInterrupt:
            print(time.monotonic() - begin >= 0.5)
    """)
    assert done.stdout.split() == ["True"] * 3, done.stderr


#: Waits for a loop on another thread than the main one, which alone sees Ctrl-C.
THREADED = {
    "asyncio": "asyncio.run(in_thread(loop.join))",
    "asyncio, run": "asyncio.run(in_thread(loop.run, '60s'))",
    "asyncio, a group": "group = rtloop.LoopGroup([loop]); group.start(); asyncio.run(in_thread(group.join))",
    "asyncio, a simulation": "asyncio.run(in_thread(loop.simulate, '3000h'))",
    "asyncio, a block": "asyncio.run(in_block())",
    "asyncio in stop_on_signals": "with rtloop.stop_on_signals(): asyncio.run(in_thread(loop.join))",
    "stop_on_signals in asyncio": "asyncio.run(in_signals())",
    "a pool": "with ThreadPoolExecutor() as pool: pool.submit(loop.join).result()",
}


@pytest.mark.parametrize("wait", THREADED)
def test_ctrl_c_ends_a_loop_that_another_thread_waits_for(script: Script, wait: str) -> None:
    done = run(script, f"""
    from concurrent.futures import ThreadPoolExecutor
    loop = make()
    async def in_thread(call, *arguments):
        await asyncio.to_thread(call, *arguments)
    async def in_block():
        with loop: await asyncio.to_thread(loop.join)
    async def in_signals():
        with rtloop.stop_on_signals(): await asyncio.to_thread(loop.join)
    if not {wait.endswith(("run", "group", "simulation", "block"))}: loop.start()
    def watch():
        while loop.steps < 5: time.sleep(0.001)
        time.sleep(0.1)  # the wait has begun by then, or the signal comes a little earlier
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=watch, daemon=True).start()
    {THREADED[wait]}
    """)  # fmt: skip
    assert done.returncode == -2 and left_once(done), done.stderr
    assert "SIGINT: stopped 1 loop within" in done.stderr and done.stderr.strip().endswith("KeyboardInterrupt")


def test_ctrl_c_that_asyncio_has_given_back_ends_loops_below_a_main_loop_in_c(script: Script) -> None:
    """In stop_on_signals(): asyncio.run sets a handler of its own, and then that of Python, which C never lets run."""
    done = run(script, """
    import ctypes
    libc, mutex, loop = ctypes.CDLL(None), ctypes.create_string_buffer(64), make()
    async def nothing():
        pass
    def is_in_c():  # the main thread waits for the mutex
        call = open(f"/proc/self/task/{os.getpid()}/syscall").read().split()
        return len(call) > 1 and int(call[1], 16) == ctypes.addressof(mutex)
    def watch():
        alive(loop)
        deadline = time.monotonic() + 10
        while not is_in_c() and time.monotonic() < deadline: time.sleep(0.001)
        while loop.leaves == 0 and time.monotonic() < deadline:
            os.kill(os.getpid(), signal.SIGINT)
            again = time.monotonic() + 2
            while loop.leaves == 0 and time.monotonic() < again: time.sleep(0.01)
        print(loop.leaves, flush=True)
        libc.pthread_mutex_unlock(mutex)
    try:
        with rtloop.stop_on_signals():
            asyncio.run(nothing())
            loop.start()
            threading.Thread(target=watch).start()
            libc.pthread_mutex_lock(mutex)
            libc.pthread_mutex_lock(mutex)  # until the other thread unlocks it
            time.sleep(1)
    except KeyboardInterrupt:
        print("interrupted")
    """)  # fmt: skip
    assert done.stdout.split() == ["1", "interrupted"] and left_once(done), done.stderr


def test_ctrl_c_at_a_prompt_is_not_for_the_loops_of_other_threads(script: Script) -> None:
    done = run(script, """
    sys.ps1 = ">>> "
    loop = make()
    loop.start()
    thread = threading.Thread(target=loop.join)
    thread.start()
    alive(loop)
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
    except KeyboardInterrupt:
        before = loop.steps
        while loop.steps == before: time.sleep(0.001)
        print(loop.state)
    loop.stop()
    """)  # fmt: skip
    assert done.stdout == "running\n" and left_once(done), done.stderr


def test_a_handler_of_the_program_is_respected_by_a_wait_on_another_thread(script: Script) -> None:
    done = run(script, """
    loop, came = make(), threading.Event()
    signal.signal(signal.SIGINT, lambda *_: came.set())
    loop.start()
    thread = threading.Thread(target=loop.join)
    thread.start()
    alive(loop)
    os.kill(os.getpid(), signal.SIGINT)
    came.wait()
    before = loop.steps
    while loop.steps == before: time.sleep(0.001)
    print(loop.state)
    loop.stop()
    """)  # fmt: skip
    assert done.stdout == "running\n" and left_once(done), done.stderr
