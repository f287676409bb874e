"""A storm of ends: whatever ends a loop, in whatever order, leave() runs exactly once for each enter() that succeeded.

RTLOOP_STORM_ENDS says how many ends there are, and RTLOOP_STORM_SEED in which order they come.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

ENDS = int(os.environ.get("RTLOOP_STORM_ENDS", "1000"))
SEED = int(os.environ.get("RTLOOP_STORM_SEED", "7"))

Script = Callable[..., "subprocess.CompletedProcess[str]"]

#: Functions of the loops in processes of their own; leave() writes to a file that outlives them.
APART = """
def step(cycle, path):
    return None

def fail(cycle, path):
    if cycle.index == 3:
        raise KeyError

def leave(path):
    with open(path, "ab", buffering=0) as file:
        file.write(b"left")
"""

STORM = """
import collections, contextlib, ctypes, os, random, signal, sys, threading, time, warnings
import numpy as np
import rtloop, probes
warnings.simplefilter("ignore")
PLAIN = {"policy": "other", "lock_memory": "off", "dma_latency": None, "record": 16}
random.seed(%(seed)d)
done = collections.Counter()
due = ran = 0
quiet = os.open(os.devnull, os.O_WRONLY)
real = os.dup(2)

def make(**settings):
    loop = probes.Probe("200us", **{**PLAIN, **settings})
    loop.leave_ns = random.choice([0, 0, 100_000, 3_000_000])
    return loop

def later(act, most=0.004):
    thread = threading.Thread(target=lambda: (time.sleep(random.uniform(0, most)), act()))
    thread.start()
    return thread

def account(*loops):
    global due, ran
    for loop in loops:
        assert loop.state in ("stopped", "failed"), loop.state
        expected = loop.enters if loop.enter_code in (0, 1) else 0
        assert loop.leaves == expected, (loop.enters, loop.leaves, loop.enter_code)
        due, ran = due + expected, ran + loop.leaves

def stop():
    loop = make(); loop.start(); loop.stop(); account(loop)
def stop_later():
    loop = make(); loop.start(); time.sleep(random.uniform(0, 0.003)); loop.stop(); account(loop)
def many_stops():
    loop = make(); loop.start()
    [t.join() for t in [later(loop.stop) for _ in range(4)]]; loop.stop(); account(loop)
def stop_and_start_again():
    loop = make(); loop.start(); loop.stop(); loop.start(); loop.close(); account(loop)
def step_stops():
    loop = make(); loop.stop_at = random.randrange(4); loop.run(); account(loop)
def limit():
    loop = make(); loop.run(cycles=random.randrange(1, 5)); account(loop)
def step_fails():
    loop = make(); loop.fail_at = random.randrange(4)
    try: loop.run()
    except rtloop.CallbackError: account(loop)
def enter_ends():
    loop = make(); loop.enter_code = random.choice([1, -5])
    try: loop.run()
    except rtloop.CallbackError: pass
    account(loop)
def overrun_policy():
    loop = make(overrun="stop"); loop.busy_ns = 400_000
    try: loop.run(duration="100ms")
    except rtloop.OverrunError: pass
    account(loop)
def failed_and_stopped():
    loop = make(); loop.fail_at = 0; loop.start(); time.sleep(random.uniform(0, 0.002)); loop.stop(); account(loop)
def exception_in_the_block():
    loop = make()
    try:
        with loop: raise KeyError
    except KeyError: account(loop)
def interrupted():
    loop = make()
    count = random.randrange(1, 4)
    sent = threading.Event()  # a join() that is interrupted may take a thread that runs for one that has ended
    def send():
        for _ in range(count):
            os.kill(os.getpid(), signal.SIGINT); time.sleep(0.001)
        sent.set()
    def run():
        try:
            loop.start()
            later(send)
            loop.join()
        finally:
            loop.stop()
    def interrupt(number, frame):
        # Only in run(): a signal that is late, or comes while an exception is handled, does not end what follows.
        while frame is not None:
            if frame.f_code is run.__code__: signal.default_int_handler(number, frame)
            frame = frame.f_back
    signal.signal(signal.SIGINT, interrupt)
    os.dup2(quiet, 2)
    try: run()
    except KeyboardInterrupt: pass
    sent.wait()
    os.dup2(real, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    loop.stop()
    account(loop)
def interrupted_start():
    loop = make()
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 2e-3))
        loop.start()
        while True: time.sleep(0.003)
    except Alarm: pass
    loop.stop()
    if loop.enters: account(loop)
def group():
    loops = [make(name=n) for n in "abc"]
    with rtloop.LoopGroup(loops): time.sleep(random.uniform(0, 0.003))
    account(*loops)
def group_fails():
    loops = [make(name=n) for n in "abc"]
    loops[random.randrange(3)].fail_at = 3
    try: rtloop.LoopGroup(loops, on_failure=random.choice(["stop-all", "hook"])).run()
    except rtloop.CallbackError: pass
    account(*loops)
def group_enter_fails():
    loops = [make(name=n) for n in "abc"]
    loops[random.randrange(3)].enter_code = -5
    try: rtloop.LoopGroup(loops).run()
    except rtloop.CallbackError: pass
    for loop in loops:
        assert loop.leaves == (loop.enters if loop.enter_code == 0 else 0), (loop.enters, loop.leaves)
def swapped():
    global due, ran
    laws = [make()]
    laws[0].start()
    stopper = later(laws[0].stop)
    try:
        while True:
            laws.append(make())
            laws[0].swap(laws[-1])
    except rtloop.StateError: pass
    stopper.join()
    assert sum(law.leaves for law in laws) == laws[0].enters == 1 and not any(law.enters for law in laws[1:])
    due, ran = due + 1, ran + 1

def tried():
    # A new law on trial, which overruns or not: the end comes before, during or after the trial.
    global due, ran
    laws = [make() for _ in range(3)]
    for law in laws[1:]:
        law.busy_ns = random.choice([0, 400_000])
    laws[0].start()
    ender = later(laws[0].stop) if random.random() < 0.5 else None
    for law in laws[1:]:
        with contextlib.suppress(rtloop.StateError, rtloop.SwapError):
            laws[0].swap(law, trial=random.choice(["600us", "2ms", "1s"]))
        time.sleep(random.uniform(0, 0.003))
    if ender is not None: ender.join()
    laws[0].stop()
    assert sum(law.leaves for law in laws) == laws[0].enters == 1 and not any(law.enters for law in laws[1:])
    due, ran = due + 1, ran + 1
def forked():
    # The child has no loop, and the end of the block does nothing there.
    loop = make()
    with loop:
        time.sleep(random.uniform(0, 0.002))
        pid = os.fork()
    if pid == 0: os._exit(loop.leaves)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    account(loop)

libc = ctypes.CDLL(None)
RETURNS_0 = ctypes.cast(libc.sched_yield, ctypes.c_void_p).value
def in_c():
    # Its leave= is sem_post(), which counts.
    global due, ran
    semaphore = np.zeros(64, "u1")
    libc.sem_init(ctypes.c_void_p(semaphore.ctypes.data), 0, 0)
    loop = rtloop.FunctionLoop(RETURNS_0, "200us", leave=libc.sem_post, data=semaphore, **PLAIN)
    ended = random.choice(["run", "stop", "block", "group", "swap"])
    if ended == "run": loop.run(cycles=random.randrange(1, 5))
    elif ended == "group":
        with rtloop.LoopGroup([loop, make()]): pass
    elif ended == "block":
        with contextlib.suppress(KeyError), loop: raise KeyError
    elif ended == "swap":
        former = make()
        with former: former.swap(loop)
        assert former.enters == 1 and former.leaves == 0
    else:
        loop.start(); [t.join() for t in [later(loop.stop) for _ in range(2)]]
    count = ctypes.c_int()
    libc.sem_getvalue(ctypes.c_void_p(semaphore.ctypes.data), ctypes.byref(count))
    assert count.value == 1, (ended, count.value)
    due, ran = due + 1, ran + 1
def in_python():
    global due, ran
    left = []
    step = random.choice([lambda cycle: None, lambda cycle: True, lambda cycle: 1 / 0])
    loop = rtloop.PyLoop(step, "200us", leave=lambda: left.append(1), **PLAIN)
    with contextlib.suppress(ZeroDivisionError), loop: time.sleep(random.uniform(0, 0.003))
    assert left == [1], left
    due, ran = due + 1, ran + 1

def apart(end):
    # A step in Python in a process of its own.
    def run():
        global due, ran
        path = os.path.abspath("left")
        def left():
            return open(path, "rb").read() if os.path.exists(path) else b""
        def alive():
            while loop.state == "running" and not loop.stats.cycles: time.sleep(0.001)
        def new():
            step = "apart:fail" if end == "fails" else "apart:step"
            return rtloop.ProcessLoop(step, "1ms", leave="apart:leave", data=path, **PLAIN)
        loop = new()
        if end == "fails":
            with contextlib.suppress(KeyError): loop.run()
        elif end == "stopped":
            loop.start(); [t.join() for t in [later(loop.stop, 0.05) for _ in range(2)]]; loop.stop()
        elif end == "terminated":
            with contextlib.suppress(rtloop.RtloopError):
                loop.start(); alive(); os.kill(loop.pid, signal.SIGTERM); loop.join()
        elif (pid := os.fork()) == 0:
            loop = new(); loop.start(); alive(); os.kill(os.getpid(), signal.SIGKILL)
        else:
            os.waitpid(pid, 0)
        has_run = end != "stopped" or loop.stats.cycles > 0
        deadline = time.monotonic() + 60  # an orphan's process may end later than its parent
        while has_run and not left() and time.monotonic() < deadline: time.sleep(0.01)
        assert left() == b"left" or not (has_run or left()), (has_run, left())
        if left():
            os.unlink(path)
            due, ran = due + 1, ran + 1
    run.__name__ = "apart, " + end
    return run
APART = [apart(end) for end in ("stopped", "fails", "terminated", "orphaned")]

def process(ending):
    # A forked child ends, with its loop: leave() writes to a pipe that outlives it.
    def end():
        global due, ran
        out, into = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.dup2(into, 2)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            loop = make(); loop.says_leave = True
            status = 0
            try:
                exec(ending, {**globals(), "loop": loop})
            except BaseException as error:
                status = 1
            finally:
                import atexit
                atexit._run_exitfuncs()
                os._exit(status)
        os.close(into)
        said = b""
        while part := os.read(out, 4096): said += part
        os.close(out)
        os.waitpid(pid, 0)
        assert said.count(b"leaving\\n") == said.count(b"off\\n") == 1, (ending, said)
        due, ran = due + 1, ran + 1
    end.__name__ = ending
    return end

def alive(loop):
    while not loop.enters: time.sleep(0.0005)
KILL = "later(lambda: (alive(loop), os.kill(os.getpid(), signal.SIG%%s)))"
PROCESSES = [process(ending) for ending in (
    KILL %% "TERM" + "\\nwith loop: time.sleep(5)",
    KILL %% "HUP" + "\\nloop.run()",
    KILL %% "INT" + "\\nwith loop: loop.join()",
    KILL %% "TERM" + "\\n" + KILL %% "INT" + "\\n" + KILL %% "TERM" + "\\nloop.start(); loop.join()",
    KILL %% "TERM" + "\\nwith rtloop.stop_on_signals():\\n    loop.start(); time.sleep(5)",
    "loop.start(); alive(loop); sys.exit(3)",
    KILL %% "TERM" + "\\nwith loop:\\n    while True: new = make(); new.says_leave = True; loop.swap(new)",
    KILL %% "HUP" + "\\nwith loop:\\n    new = make(); new.says_leave = True; new.busy_ns = 400_000"
    "\\n    loop.swap(new, trial='2ms'); loop.join()",
    "with loop: alive(loop); os.fork() == 0 and os._exit(0)",
    "loop.start(); alive(loop); raise KeyError",
    "loop.start(); alive(loop)",
)]
HERE = [stop, stop_later, many_stops, stop_and_start_again, step_stops, limit, step_fails, enter_ends, overrun_policy,
        failed_and_stopped, exception_in_the_block, interrupted, interrupted_start, group, group_fails,
        group_enter_fails, swapped, tried, forked, in_c, in_python]

class Alarm(Exception): pass
def on_alarm(*_): raise Alarm
signal.signal(signal.SIGALRM, on_alarm)
ends = HERE * 6 + PROCESSES + APART
rest = HERE * 24 + PROCESSES * 4 + APART  # a process of its own takes as long as ten other ends
for number in range(%(ends)d):
    end = ends[number %% len(ends)] if number < len(ends) else random.choice(rest)
    try:
        end()
    except BaseException:
        print("in", end.__name__, "number", number, file=sys.stderr)
        raise
    done[end.__name__] += 1
print(due == ran, due > %(ends)d // 2, len(done) == len(HERE) + len(PROCESSES) + len(APART))
"""


def test_leave_runs_once_for_each_of_many_ends_of_all_kinds(script: Script, tmp_path: Path) -> None:
    (tmp_path / "apart.py").write_text(APART)
    done = script(STORM % {"seed": SEED, "ends": ENDS}, timeout=60 + ENDS)
    assert done.returncode == 0 and done.stdout == "True True True\n", done.stdout + done.stderr[-4000:]
