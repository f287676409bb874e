"""Ends of the process around a loop: of its main thread, its parent, its container, its streams, its children."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rtloop_test_ends import PROLOGUE, Script, left_once, run

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


def test_interrupts_while_the_program_ends_leave_no_traceback_of_rtloop(script: Script) -> None:
    done = run(script, """
    loop = make(leave_ns=800_000_000); loop.start()
    send(signal.SIGINT, signal.SIGINT, signal.SIGINT)
    time.sleep(20)
    """)  # fmt: skip
    assert done.returncode == -signal.SIGINT and left_once(done), done.stderr
    assert done.stderr.count("Traceback") == 1 and "ignored" not in done.stderr, done.stderr


@pytest.mark.parametrize("waits", ["run", "with"])
def test_a_loop_in_a_pool_of_threads_ends_with_the_main_thread(script: Script, waits: str) -> None:
    # Python waits for the workers of concurrent.futures before the main thread counts as ended.
    done = run(script, f"""
    from concurrent.futures import ThreadPoolExecutor
    loop = make()
    def wait():
        with loop: loop.join()
    ThreadPoolExecutor().submit(loop.run if "{waits}" == "run" else wait)
    alive(loop)
    """)  # fmt: skip
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert left_once(done), done.stderr


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
@pytest.mark.parametrize("end", ["returns", "raises", "exits"])
def test_a_loop_ends_with_its_process_of_multiprocessing(script: Script, tmp_path: Path, method: str, end: str) -> None:
    # A forked one, also of a server, ends with os._exit, without atexit.
    (tmp_path / "worker.py").write_text(
        PROLOGUE
        + f"""
def work():
    loop = make(); loop.start(); alive(loop)
    log = rtloop.Ring("f8", 64); log.push(1.5)
    made.append(rtloop.Recorder(log, "log.npy"))
    made.append(rtloop.Latest("f8", share=os.path.abspath("latest.socket")))
    if "{end}" == "raises": raise KeyError("x")
    if "{end}" == "exits": sys.exit(3)
"""
    )
    done = run(script, f"""
    import multiprocessing
    import numpy as np
    sys.path.insert(0, os.getcwd())
    import worker
    process = multiprocessing.get_context("{method}").Process(target=worker.work)
    process.start(); process.join()
    print(process.exitcode, np.load("log.npy"), os.path.exists("latest.socket"))
    """)  # fmt: skip
    status = {"returns": 0, "raises": 1, "exits": 3}[end]
    assert (done.returncode, done.stdout) == (0, f"{status} [1.5] False\n"), done.stderr
    assert left_once(done), done.stderr


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


#: A thread of rtloop's that begins to compute, without the GIL, just before the end of the program.
COMPUTING = """
import atexit, hashlib, threading
seen = []
atexit.register(lambda: print(*seen))  # the first that is registered, and so the last that is called
import rtloop
from rtloop.process.signal_shield import start_thread

def work():
    begun.set()
    hashlib.pbkdf2_hmac("sha256", b"", b"", {rounds})
    seen.append("computed")
    threading.Event().wait()

begun = threading.Event()
start_thread(work, (), 1 << 19, "rtloop-test")
begun.wait()
"""


def test_the_interpreter_does_not_end_before_a_thread_of_rtloop_sleeps() -> None:
    code = COMPUTING.format(rounds=50_000)  # 20 ms
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("computed\n", "")


def test_a_thread_of_rtloop_that_computes_on_and_on_keeps_no_process_from_its_end() -> None:
    code = COMPUTING.format(rounds=2_000_000_000)
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("\n", "")
