"""Ends of a program with a running loop: leave() runs exactly once and completely, whichever signal comes."""

from __future__ import annotations

import signal

import pytest
from rtloop_test_ends import Script, left_once, run

import rtloop

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


def test_a_loop_that_ends_before_the_thread_of_the_signals_gets_the_gil_is_reported(script: Script) -> None:
    done = run(script, """
    loop = rtloop.RTLoop("1ms", **PLAIN)
    loop.start()
    alive(loop)
    sys.setswitchinterval(100)  # from here on, this thread has the GIL until it waits
    os.kill(os.getpid(), 15)
    while loop.state == "running": pass
    loop.join()
    print("went on")
    """)  # fmt: skip
    assert done.returncode == -signal.SIGTERM, done.stdout + done.stderr
    assert "rtloop: SIGTERM: stopped 1 loop within" in done.stderr and done.stdout == ""


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
    with make() as loop:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1); print(loop.state, came)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with make() as loop:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
        os.kill(os.getpid(), signal.SIGTERM)
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


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGCHLD, 0, 99, "SIGTERM", None])
def test_stop_on_signals_refuses_what_it_cannot_wait_for(number: object) -> None:
    with pytest.raises(rtloop.ConfigError, match="cannot be handled"):
        rtloop.stop_on_signals(number)  # type: ignore[arg-type]


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
