"""A storm of ends: whatever ends a loop, in whatever order, leave() runs exactly once for each enter() that succeeded.

RTLOOP_STORM_ENDS says how many ends there are.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable

ENDS = int(os.environ.get("RTLOOP_STORM_ENDS", "1000"))

Script = Callable[..., "subprocess.CompletedProcess[str]"]

STORM = """
import collections, os, random, signal, sys, threading, time, warnings
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
    sender = None
    os.dup2(quiet, 2)
    try:
        try:
            loop.start()
            sender = later(send)
            loop.join()
        finally:
            while sender is not None and not sent.is_set():
                try: sent.wait()
                except KeyboardInterrupt: pass
            loop.stop()
    except KeyboardInterrupt: pass
    finally: os.dup2(real, 2)
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
    "loop.start(); alive(loop); raise KeyError",
    "loop.start(); alive(loop)",
)]
HERE = [stop, stop_later, many_stops, stop_and_start_again, step_stops, limit, step_fails, enter_ends, overrun_policy,
        failed_and_stopped, exception_in_the_block, interrupted, interrupted_start, group, group_fails,
        group_enter_fails, swapped]

class Alarm(Exception): pass
def on_alarm(*_): raise Alarm
signal.signal(signal.SIGALRM, on_alarm)
ends = HERE * 6 + PROCESSES
for number in range(%(ends)d):
    end = ends[number %% len(ends)] if number < len(ends) else random.choice(ends)
    try:
        end()
    except BaseException:
        print("in", end.__name__, "number", number, file=sys.stderr)
        raise
    done[end.__name__] += 1
print(due == ran, due > %(ends)d // 2, len(done) == len(HERE) + len(PROCESSES))
"""


def test_leave_runs_once_for_each_of_many_ends_of_all_kinds(script: Script) -> None:
    done = script(STORM % {"seed": 7, "ends": ENDS}, timeout=60 + ENDS)
    assert done.returncode == 0 and done.stdout == "True True True\n", done.stdout + done.stderr[-4000:]
