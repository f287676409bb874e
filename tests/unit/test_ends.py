"""Ends of a program with a running loop: leave() runs exactly once and completely, whichever signal comes."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import rtloop

Script = Callable[..., "subprocess.CompletedProcess[str]"]

PROLOGUE = """
import asyncio, os, signal, sys, threading, time, warnings
import rtloop, probes
warnings.simplefilter("ignore")
PLAIN = {"policy": "other", "lock_memory": "off", "dma_latency": None}
made = []
def make(period="1ms", leave_ns=50_000_000, **settings):
    loop = probes.Probe(period, **{**PLAIN, **settings})
    loop.says_leave, loop.leave_ns = True, leave_ns
    made.append(loop)
    return loop
def send(*signals, after=0.3, every=0.2):
    def work():
        # On a busy machine the loops may take long to start; those that never do are waited for in vain.
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline and not (made and all(loop.stats.cycles for loop in list(made))):
            time.sleep(0.001)
        time.sleep(after)
        for number in signals:
            os.kill(os.getpid(), number)
            time.sleep(every)
    threading.Thread(target=work, daemon=True).start()
def alive(loop):
    while loop.stats.cycles < 5:
        time.sleep(0.001)
"""


def run(script: Script, code: str, **options: object) -> subprocess.CompletedProcess[str]:
    lines = [line[4:] if line.startswith("    ") else line for line in code.splitlines()]
    return script(PROLOGUE + "\n".join(lines), timeout=30, **options)


def left_once(done: subprocess.CompletedProcess[str], loops: int = 1) -> bool:
    """Whether leave() of each loop was called once, and returned."""
    said = done.stderr.split("\n")
    return said.count("leaving") == said.count("off") == loops


WAITS = {
    "with and join": "with make() as loop: loop.join()",
    "with and sleep": "with make() as loop: time.sleep(20)",
    "with and select": "import select\nwith make() as loop: select.select([], [], [], 20)",
    "with in a C library that is not interrupted": "import ctypes\nlocked = ctypes.create_string_buffer(64)\n"
    "with make() as loop:\n    for _ in range(2): ctypes.CDLL(None).pthread_mutex_lock(locked)",
    "join": "loop = make(); loop.start(); loop.join()",
    "run": "make().run()",
    "start and sleep": "make().start(); time.sleep(20)",
    "start in a thread": "threading.Thread(target=make().start).start(); time.sleep(20)",
    "start and asyncio": "make().start()\nasyncio.run(asyncio.sleep(20))",
    "run in a thread": "threading.Thread(target=make().run).start(); time.sleep(20)",
    "a with block in a with block": "with make(name='a') as loop:\n    with make(name='b'): loop.join()",
    "group, with": "with rtloop.LoopGroup([make(name='a'), make(name='b')]): time.sleep(20)",
    "group, run": "rtloop.LoopGroup([make(name='a'), make(name='b')], watchdog=500).run()",
    "stop_on_signals and asyncio": "with rtloop.stop_on_signals():\n    make().start()\n"
    "    asyncio.run(asyncio.sleep(20))",
    "stop_on_signals and sleep": "with rtloop.stop_on_signals():\n    make().start()\n    time.sleep(20)",
    "stop_on_signals, a busy main thread": "with rtloop.stop_on_signals():\n    make().start()\n    while True: pass",
}
TWO = {"a with block in a with block", "group, with", "group, run"}


#: SIGTERM in all of them, the others in some.
SENT = [(wait, signal.SIGTERM) for wait in WAITS]
SENT += [
    (wait, n)
    for wait in ("with and join", "run", "group, run", "start and sleep")
    for n in (signal.SIGHUP, signal.SIGQUIT)
]
SENT += [("start and sleep", signal.SIGUSR1), ("run", signal.SIGXCPU), ("with and join", signal.SIGALRM)]


@pytest.mark.parametrize(("wait", "number"), SENT, ids=[f"{wait}, {number.name}" for wait, number in SENT])
def test_a_signal_ends_the_process_after_leave_has_run(script: Script, wait: str, number: signal.Signals) -> None:
    done = run(script, f"""
    import resource
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    send({int(number)})
    {WAITS[wait].replace(chr(10), chr(10) + "    ")}
    print("went on")
    """)  # fmt: skip
    assert done.returncode == -number, done.stdout + done.stderr
    assert left_once(done, 2 if wait in TWO else 1), done.stderr
    assert f"rtloop: {number.name}: stopped {2 if wait in TWO else 1} loop" in done.stderr, done.stderr
    assert done.stdout == ""


DEFAULTS = {
    "a handler and back": "loop.start(); former = signal.signal(15, print); signal.signal(15, former)",
    "a handler from before the start": "signal.signal(15, print); loop.start(); signal.signal(15, signal.SIG_DFL)",
    "ignored before the start": "signal.signal(15, signal.SIG_IGN); loop.start(); signal.signal(15, signal.SIG_DFL)",
    "a handler of asyncio": "loop.start(); events = asyncio.new_event_loop(); "
    "events.add_signal_handler(15, print); events.remove_signal_handler(15)",
    "twice": "loop.start()\n    for _ in range(2): signal.signal(15, print); signal.signal(15, signal.SIG_DFL); "
    "time.sleep(0.1)",
}


@pytest.mark.parametrize("change", DEFAULTS)
def test_a_signal_with_its_default_action_again_ends_loops_first(script: Script, change: str) -> None:
    done = run(script, f"""
    loop = make()
    {DEFAULTS[change]}
    alive(loop); time.sleep(0.2)
    os.kill(os.getpid(), 15)
    time.sleep(20)
    """)  # fmt: skip
    assert done.returncode == -signal.SIGTERM, done.stdout + done.stderr
    assert left_once(done), done.stderr


def test_a_handler_of_the_program_stays_its_own_and_after_the_loop_nothing_is_handled(script: Script) -> None:
    done = run(script, """
    loop = make(); loop.start()
    signal.signal(15, lambda *_: print("handled", flush=True))
    alive(loop); time.sleep(0.1)
    os.kill(os.getpid(), 15)
    time.sleep(0.1)
    print(loop.state, flush=True)
    loop.stop()
    signal.signal(15, signal.SIG_DFL)
    time.sleep(0.1)
    os.kill(os.getpid(), 15)
    time.sleep(20)
    """)  # fmt: skip
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "handled\nrunning\n"), done.stderr
    assert left_once(done) and "rtloop: SIGTERM" not in done.stderr


@pytest.mark.parametrize("waits", [
    "print(signal.sigwait({15}).name)", "threading.Thread(target=lambda: print(signal.sigwait({15}).name)).start()",
])  # fmt: skip
def test_a_signal_that_the_program_has_blocked_is_its_own(script: Script, waits: str) -> None:
    """A daemon blocks its signals, and one thread takes them with sigwait(3). rtloop's threads do not get them."""
    done = run(script, f"""
    make().run(cycles=5)
    signal.pthread_sigmask(signal.SIG_BLOCK, [15])
    loop = make(); loop.start()
    alive(loop)
    os.kill(os.getpid(), 15)
    {waits}
    time.sleep(0.2)
    print(loop.state)
    loop.stop()
    """, env={"OPENBLAS_NUM_THREADS": "1"})  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "SIGTERM\nrunning\n"), done.stderr
    assert left_once(done, 2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGPIPE])
def test_a_signal_of_pythons_that_the_program_gives_its_default_action_ends_loops_too(
    script: Script, number: signal.Signals
) -> None:
    """GUI programs do this so that Ctrl-C ends them, and text filters so that they end when their reader has gone."""
    done = run(script, f"""
    signal.signal({int(number)}, signal.SIG_DFL)
    send({int(number)})
    loop = make(); loop.start()
    time.sleep(20)
    print("went on")
    """)  # fmt: skip
    assert done.returncode == -number, done.stdout + done.stderr
    assert left_once(done), done.stderr
    assert done.stdout == ""


def test_a_signal_after_an_interrupted_wait_waits_for_leave(script: Script) -> None:
    done = run(script, """
    loop = make(leave_ns=300_000_000); loop.start(); alive(loop)
    send(signal.SIGINT, signal.SIGTERM, signal.SIGTERM, after=0.1, every=0.1)
    loop.join()
    """)  # fmt: skip
    assert done.returncode == -signal.SIGTERM and left_once(done), done.stderr


def test_leave_runs_though_the_main_thread_never_gives_the_gil_back(script: Script) -> None:
    """A call that hangs with the GIL: the handler tells the loops, and ends the process ten seconds later."""
    done = run(script, """
    import ctypes
    locked = ctypes.create_string_buffer(64)
    subprocess = __import__("subprocess").Popen(["sh", "-c", f"sleep 1; kill -TERM {os.getpid()}"])
    with make() as loop:
        for _ in range(2): ctypes.PyDLL(None).pthread_mutex_lock(locked)
    """)  # fmt: skip
    assert done.returncode == -signal.SIGTERM and left_once(done), done.stderr


def test_a_function_loop_and_a_python_loop_leave_too(script: Script) -> None:
    done = run(script, """
    send(signal.SIGTERM)
    other = rtloop.PyLoop(lambda cycle: None, "1ms", **PLAIN)
    with other, make() as loop: loop.join()
    """)  # fmt: skip
    assert done.returncode == -signal.SIGTERM and left_once(done), done.stderr
    assert "stopped 2 loops" in done.stderr


def test_a_simulation_leaves_when_a_signal_comes(script: Script) -> None:
    done = run(script, """
    send(signal.SIGTERM)
    make().simulate()
    """)  # fmt: skip
    assert done.returncode == -signal.SIGTERM and left_once(done), done.stderr


def test_a_recording_is_complete_when_a_signal_has_ended_the_program(script: Script) -> None:
    done = run(script, """
    ring = rtloop.Ring("f8", 64)
    recorder = rtloop.Recorder(ring, "log.npy")
    ring.push(1.5)
    send(signal.SIGTERM)
    with make() as loop: loop.join()
    """)  # fmt: skip
    assert done.returncode == -signal.SIGTERM, done.stderr
    check = run(script, 'import numpy\nprint(numpy.load("log.npy"))')
    assert check.stdout.strip() == "[1.5]", check.stderr


def test_a_handler_of_the_program_is_respected(script: Script) -> None:
    done = run(script, """
    came = []
    signal.signal(signal.SIGTERM, lambda *_: came.append(1))
    send(signal.SIGTERM, after=0.1)
    with make() as loop: time.sleep(0.5); print(loop.state, came)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    send(signal.SIGTERM, after=0.1)
    with make() as loop:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
        time.sleep(20)
    """)  # fmt: skip
    assert (done.returncode, done.stdout) == (7, "running [1]\n"), done.stderr
    assert left_once(done, 2)


@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT", "SIGTERM", "SIGQUIT"])
def test_an_ignored_signal_stays_ignored(script: Script, name: str) -> None:
    done = run(script, f"""
    signal.signal(signal.{name}, signal.SIG_IGN)
    send(signal.{name}, after=0.1)
    with make() as loop, rtloop.stop_on_signals():
        time.sleep(0.4); print(loop.state)
    with make() as loop: pass
    print(signal.getsignal(signal.{name}) is signal.SIG_IGN)
    """)  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "running\nTrue\n"), done.stderr
    assert done.stderr.count("SIGINT is ignored") == (name == "SIGINT"), done.stderr


def test_signals_have_their_default_action_again_afterwards(script: Script) -> None:
    done = run(script, """
    with make() as loop: pass
    with rtloop.stop_on_signals(): pass
    print(*(signal.getsignal(n) is signal.SIG_DFL for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)))
    print(signal.getsignal(signal.SIGINT) is signal.default_int_handler, flush=True)
    begin = time.monotonic()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(20)
    """)  # fmt: skip
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "True True True\nTrue\n"), done.stderr
    assert "SIGTERM" not in done.stderr


def test_a_forked_child_is_ended_by_the_signal_as_ever(script: Script) -> None:
    done = run(script, """
    with rtloop.stop_on_signals(), make() as loop:
        pids = [os.fork() for _ in range(1)]
        if pids[0] == 0:
            time.sleep(20)
            os._exit(3)
        time.sleep(0.1)
        os.kill(pids[0], signal.SIGTERM)
        print(os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]), loop.state)
    """)  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "-15 running\n"), done.stderr
    assert left_once(done)


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


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGCHLD, 0, 99, "SIGTERM", None])
def test_stop_on_signals_refuses_what_it_cannot_wait_for(number: object) -> None:
    with pytest.raises(rtloop.ConfigError, match="cannot be handled"):
        rtloop.stop_on_signals(number)  # type: ignore[arg-type]


# Threads that keep the interpreter alive after the main thread's end.

ENDS = {
    "ctrl-c": ("send(signal.SIGINT); time.sleep(20)", -signal.SIGINT),
    "sys.exit in a handler": (
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(4)); send(signal.SIGTERM); time.sleep(20)",
        4,
    ),
    "the end of main": ("pass", 0),
    "an exception": ("raise KeyError('x')", 1),
}


@pytest.mark.parametrize("end", ENDS)
def test_loops_end_with_the_main_thread_though_other_threads_go_on(script: Script, end: str) -> None:
    code, status = ENDS[end]
    done = run(script, f"""
    loop = make(); loop.start(); alive(loop)
    recorder = rtloop.Recorder(rtloop.Ring("f8", 64), "log.npy")
    main = threading.current_thread()
    def work():
        main.join()
        begin = time.monotonic()
        while (loop.state == "running" or not recorder.closed) and time.monotonic() < begin + 10:
            time.sleep(0.005)
        print(loop.state, loop.leaves, recorder.closed, time.monotonic() - begin < 3, flush=True)
        try:
            loop.start()
        except rtloop.StateError as error:
            print("main thread has ended" in str(error), flush=True)
    threading.Thread(target=work).start()
    {code}
    """)  # fmt: skip
    assert (done.returncode, done.stdout) == (status, "stopped 1 True True\nTrue\n"), done.stderr
    assert left_once(done)


def test_a_recorder_alone_ends_with_the_main_thread(script: Script) -> None:
    done = run(script, """
    recorder = rtloop.Recorder(rtloop.Ring("f8", 64), "log.npy")
    main = threading.current_thread()
    def work():
        main.join()
        begin = time.monotonic()
        while not recorder.closed and time.monotonic() < begin + 10:
            time.sleep(0.005)
        print(recorder.closed, flush=True)
    threading.Thread(target=work).start()
    """)  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


# More than one interrupt.

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


# Groups.


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


def test_a_loop_whose_finalizer_closes_it_may_be_dropped_while_it_runs(script: Script) -> None:
    done = run(script, """
    class Own(rtloop.PyLoop):
        def __del__(self):
            self.close()
            print("closed", self.state, self.stats.cycles)
    class Robot:
        def __init__(self):
            self.loop = rtloop.PyLoop(self.step, "1ms", **PLAIN)
        def step(self, cycle):
            return cycle.index == 20
        def __del__(self):
            self.loop.close()
            print("closed")
    own = Own(lambda cycle: cycle.index == 20, "1ms", **PLAIN)
    own.start()
    robot = Robot()
    robot.loop.start()
    del own, robot
    time.sleep(0.5)
    import gc; gc.collect()
    with make() as loop: alive(loop)
    """)  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "closed stopped 21\nclosed\n"), done.stderr


def test_a_loop_that_waits_for_another_one_in_its_step_leaves_when_a_signal_comes(script: Script) -> None:
    done = run(script, """
    inner = make(name="inner")
    outer = rtloop.PyLoop(lambda cycle: inner.join() and None, "1ms", name="outer", leave_timeout="10s", **PLAIN)
    inner.start()
    send(signal.SIGTERM)
    with outer: outer.join()
    """)  # fmt: skip
    assert done.returncode == -signal.SIGTERM and left_once(done), done.stderr
    assert "stopped 2 loops" in done.stderr and "did not stop" not in done.stderr


@pytest.mark.parametrize("how", ["sys.stderr.close()", "sys.stderr = None", "os.dup2(closed_pipe(), 2)"])
def test_a_signal_takes_effect_though_nothing_can_be_reported(script: Script, how: str) -> None:
    done = run(script, f"""
    def closed_pipe():
        read, write = os.pipe(); os.close(read); return write
    slow = rtloop.PyLoop(lambda cycle: time.sleep(1.5), "10ms", leave_timeout="300ms", **PLAIN)
    threading.Timer(10, os._exit, (3,)).start()
    send(signal.SIGHUP)
    {how}
    with slow: slow.join()
    """)  # fmt: skip
    assert done.returncode == -signal.SIGHUP, done.stderr


FORBID = """
import importlib.util
spec = importlib.util.spec_from_file_location("filtered", {path!r})
filtered = importlib.util.module_from_spec(spec)
spec.loader.exec_module(filtered)
"""


def test_signals_end_loops_below_a_filter_that_forbids_scheduling_calls(script: Script) -> None:
    path = str(Path(__file__).parents[1] / "support" / "filtered.py")
    done = run(script, FORBID.format(path=path) + """
    filtered.forbid("sched_getscheduler", 1)
    send(signal.SIGTERM)
    with make(strict=False) as loop: loop.join()
    """)  # fmt: skip
    assert done.returncode == -signal.SIGTERM and left_once(done), done.stderr
    assert "stopped 1 loop within" in done.stderr and "Traceback" not in done.stderr


def test_a_policy_that_cannot_be_read_back_is_not_shown_as_another_one(script: Script) -> None:
    path = str(Path(__file__).parents[1] / "support" / "filtered.py")
    done = run(script, FORBID.format(path=path) + """
    filtered.forbid("sched_getattr", 1)
    loop = make(strict=False, policy="fifo")
    policy = lambda: next(grant.granted for grant in loop.stats.grants if grant.name == "policy")
    with loop:
        alive(loop)
        during = policy()
    print(policy() == during, during)
    """)  # fmt: skip
    assert done.stdout.startswith("True "), (done.stdout, done.stderr)


def test_a_child_that_is_forked_while_a_signal_ends_loops_can_end(script: Script) -> None:
    done = run(script, """
    slow = rtloop.PyLoop(lambda cycle: time.sleep(1) if cycle.index == 9 else None, "1ms", **PLAIN)
    with rtloop.stop_on_signals():
        slow.start()
        while slow.stats.cycles < 9: time.sleep(0.001)
        send(signal.SIGINT, after=0.1)
        time.sleep(0.3)
        child = os.fork()
        if child == 0:
            with make() as loop: alive(loop)
            sys.exit(7)
        try:
            time.sleep(20)
        except KeyboardInterrupt:
            pass
    latest = time.monotonic() + 5
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < latest: time.sleep(0.01)
    if ended == (0, 0): os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(ended[1]) if ended[0] else "hangs")
    """)  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr


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


def test_the_first_process_of_a_container_ends_with_the_exit_code_of_the_signal(script: Script) -> None:
    if os.geteuid():
        pytest.skip("a PID namespace needs root")
    done = run(script, """
    import ctypes
    code = ctypes.CDLL(None).unshare(0x20000000)  # CLONE_NEWPID
    child = os.fork() if code == 0 else sys.exit("no PID namespace")
    if child:
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        sys.exit()
    with make() as loop:
        alive(loop)
        threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
        loop.join()
    os._exit(3)
    """)  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"{128 + signal.SIGTERM}\n"), done.stderr
    assert left_once(done)


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


def test_a_function_loop_ends_with_a_signal_as_any_loop(script: Script) -> None:
    """Its leave= is a C function as its step: here perror(), which writes its data to stderr."""
    done = run(script, """
    import ctypes, numpy
    libc = ctypes.CDLL(None)
    returns_0 = ctypes.cast(libc.sched_yield, ctypes.c_void_p).value
    text = numpy.frombuffer(bytearray(b"the drive is off\\0"), "u1")
    with rtloop.FunctionLoop(returns_0, "1ms", leave=libc.perror, data=text, **PLAIN) as loop:
        alive(loop); made.append(loop); send(signal.SIGTERM, signal.SIGINT); loop.join()
    print("went on")
    """)  # fmt: skip
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, ""), done.stderr
    assert done.stderr.count("the drive is off: ") == 1 and "rtloop: SIGTERM: stopped 1 loop" in done.stderr


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv(1) of util-linux")
def test_a_program_whose_parent_dies_leaves(probe_path: Path, tmp_path: Path) -> None:
    """PR_SET_PDEATHSIG, with which launchers tie a program to themselves, is a SIGTERM like any other."""
    log = tmp_path / "log"
    code = PROLOGUE + "with make() as loop:\n    alive(loop); print('runs', flush=True); loop.join()\n"
    command = shlex.join(["setpriv", "--pdeathsig", "TERM", sys.executable, "-c", code])
    subprocess.run(
        ["sh", "-c", f"{command} >{log} 2>&1 & while ! grep -q runs {log}; do sleep 0.05; done"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(probe_path)}, timeout=30, check=True,
    )  # fmt: skip
    deadline = time.monotonic() + 10
    while "SIGTERM: stopped" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    said = log.read_text().split("\n")
    assert said.count("leaving") == said.count("off") == 1, said
    assert any("rtloop: SIGTERM: stopped 1 loop" in line for line in said)


@pytest.mark.parametrize("streams", ["sys.stderr = None", "sys.stderr = sys.stdout = None", "sys.stderr.close()"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, None])
def test_ends_without_stderr_are_the_same(script: Script, streams: str, number: signal.Signals | None) -> None:
    """As in pythonw and daemons, where Python has no stream; nothing for stderr may land in stdout either."""
    sent = "threading.Timer(0.2, loop.stop).start()" if number is None else f"send({int(number)})"
    done = run(script, f"""
    out = os.fdopen(os.dup(1), "w")
    {streams}
    warnings.simplefilter("always")
    loop = make()
    try:
        with loop: alive(loop); {sent}; loop.join(); loop.stats
    except KeyboardInterrupt:
        pass
    print(loop.state, loop.stats.state, file=out, flush=True)
    group = rtloop.LoopGroup([make(name="a"), make(name="b", leave_ns=1_500_000_000)])
    try:
        with group: alive(group.loops[0]); raise KeyboardInterrupt
    except KeyboardInterrupt:
        print(group.state, str(loop.stats) != "", file=out, flush=True)
    """)  # fmt: skip
    said = done.stderr.split("\n")  # the probe's own, on the descriptor
    if number is signal.SIGTERM:
        assert done.returncode == -number and said.count("leaving") == said.count("off") == 1
    else:
        assert (done.returncode, done.stdout) == (0, "stopped stopped\nstopped True\n"), done.stderr
        assert said.count("leaving") == said.count("off") == 3


def test_commands_run_with_closed_streams(tmp_path: Path) -> None:
    """A daemon's descriptors 1 and 2 may be closed: Python's streams are then None."""
    out = tmp_path / "run.npz"
    (tmp_path / "control.py").write_text("def step(cycle):\n    pass\n")
    run = f"run control.py:step --rate 100Hz --duration 0.2s --record {out}"
    for command in (run, "top", "report run.npz -o page.html"):
        line = f"{shlex.quote(sys.executable)} -P -m rtloop {command} >&- 2>&- </dev/null"
        done = subprocess.run(["sh", "-c", line], cwd=tmp_path, timeout=60, check=False)
        assert done.returncode == 0, command
    assert out.exists() and (tmp_path / "page.html").exists()


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
    def watch():
        alive(loop)
        deadline = time.monotonic() + 10
        while loop.leaves == 0 and time.monotonic() < deadline:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
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
