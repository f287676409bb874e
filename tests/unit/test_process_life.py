"""Ends of a process while a loop runs: bounded time, the right exit code, nothing hangs."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable

import pytest

Script = Callable[..., "subprocess.CompletedProcess[str]"]

PROLOGUE = """
import os, signal, sys, threading, time, warnings
import rtloop, probes
def make(period="1ms", **settings):
    return probes.Probe(period, **{"policy": "other", "lock_memory": "off", "dma_latency": None, **settings})
"""


def dedent(code: str) -> str:
    lines = code.splitlines()
    return PROLOGUE + "\n".join(line[4:] if line.startswith("    ") else line for line in lines)


def test_exit_while_running_stops_the_loop(script: Script) -> None:
    done = script(dedent("""
    class Said(probes.Probe):
        pass
    loop = make()
    loop.start()
    time.sleep(0.05)
    import atexit
    atexit._run_exitfuncs()
    print(loop.state, loop.leaves)
    """))  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, "stopped 1"), done.stderr


@pytest.mark.parametrize("ending", ["pass", "del loop", "sys.exit(3)", "raise KeyError('x')", "os._exit(4)"])
def test_every_way_out_ends_in_bounded_time_with_its_own_code(script: Script, ending: str) -> None:
    done = script(dedent(f"""
    loop = make(); loop.start(); time.sleep(0.05)
    {ending}
    """), timeout=20)  # fmt: skip
    expected = {"pass": 0, "del loop": 0, "sys.exit(3)": 3, "raise KeyError('x')": 1, "os._exit(4)": 4}[ending]
    assert done.returncode == expected, done.stderr


@pytest.mark.parametrize(
    "made", ["rtloop.Ring('f8', 8)", "rtloop.Latest('f8')", "rtloop.Pool(64, 8)", "rtloop.HugeBuffer(64)", "make()"]
)
def test_what_outlives_the_modules_goes_without_a_word(script: Script, made: str) -> None:
    """As a parameter of pytest, or what sys holds: the names of rtloop's modules are gone before it."""
    done = script(dedent(f"""
    warnings.simplefilter("ignore")  # of locks that were refused
    sys.kept = {made}
    """))  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("word", ["sys.exit(3)", "raise SystemExit(3)", "raise KeyError('x')"])
def test_the_end_of_another_thread_ends_neither_the_loop_nor_the_process(script: Script, word: str) -> None:
    done = script(dedent(f"""
    loop = make(); loop.start()
    def work():
        {word}
    thread = threading.Thread(target=work); thread.start(); thread.join()
    before = loop.stats.cycles
    while loop.stats.cycles < before + 20:
        time.sleep(0.01)
    print(loop.state); loop.stop(); print(loop.state, loop.leaves)
    """), timeout=20)  # fmt: skip
    assert (done.returncode, done.stdout.split()) == (0, ["running", "stopped", "1"]), done.stderr
    assert ("KeyError" in done.stderr) == ("KeyError" in word), "said as for any thread"


@pytest.mark.parametrize("word", ["raise ValueError('no motor')", "sys.exit(3)", "raise KeyboardInterrupt"])
def test_an_exception_in_setup_reaches_the_caller_and_harms_no_other_loop(script: Script, word: str) -> None:
    done = script(dedent(f"""
    class Broken(probes.Probe):
        def setup(self):
            {word}
    running = make(name="runs"); running.start()
    before = (sorted(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")))
    broken = Broken("1ms", policy="other", lock_memory="off", dma_latency=None)
    for _ in range(3):
        try:
            broken.start()
        except BaseException as error:
            print(type(error).__name__, broken.state, broken.enters)
    print((sorted(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))) == before, running.state)
    broken.start()  # uncaught: the process ends, with the loop that runs
    """), timeout=20)  # fmt: skip
    name = {"raise V": "ValueError", "sys.exi": "SystemExit", "raise K": "KeyboardInterrupt"}[word[:7]]
    assert done.stdout.splitlines() == [f"{name} new 0"] * 3 + ["True running"], done.stderr
    assert done.returncode == {"ValueError": 1, "SystemExit": 3, "KeyboardInterrupt": -signal.SIGINT}[name]


def test_a_step_that_hangs_does_not_keep_the_process(script: Script) -> None:
    done = script(dedent("""
    loop = make(); loop.hang = True; loop.start(); time.sleep(0.05)
    """), timeout=20)  # fmt: skip
    assert done.returncode == 0
    assert "did not stop" in done.stderr


def test_an_unhandled_SIGTERM_ends_the_process_as_ever(script: Script) -> None:
    done = script(dedent("""
    loop = make(); loop.start(); time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGTERM); time.sleep(10)
    """), timeout=20)  # fmt: skip
    assert done.returncode == -signal.SIGTERM


@pytest.mark.parametrize("waiting", ["loop.run()", "loop.start(); loop.join()", "loop.run('1min')"])
def test_ctrl_c_stops_the_loop_within_200_ms(script: Script, waiting: str) -> None:
    done = script(dedent(f"""
    loop = make("1s")
    threading.Timer(0.5, lambda: (times.append(time.monotonic()), os.kill(os.getpid(), signal.SIGINT))).start()
    times = []
    try:
        {waiting}
    except KeyboardInterrupt:
        times.append(time.monotonic())
    print(loop.state, loop.leaves, times[1] - times[0] < 0.2, times)
    """))  # fmt: skip
    assert done.stdout.startswith("stopped 1 True"), done.stdout + done.stderr


def test_signals_are_handled_by_python_and_never_on_the_loops_thread(script: Script) -> None:
    done = script(dedent("""
    seen = 0
    def handler(number, frame):
        global seen
        seen += 1
    signal.signal(signal.SIGUSR1, handler)
    with make() as loop:
        status = open(f"/proc/self/task/{loop.tid}/status").read()
        blocked = int([line for line in status.splitlines() if line.startswith("SigBlk")][0].split()[1], 16)
        for _ in range(200):
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.005)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGALRM, signal.SIGCHLD):
        assert blocked >> (number - 1) & 1, number
    for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL):
        assert not blocked >> (number - 1) & 1, number
    s = loop.stats
    print(loop.state, seen, s.cycles + s.missed > 900)
    """))  # fmt: skip
    assert done.stdout.split() == ["stopped", "200", "True"], done.stderr


def test_a_stopped_process_resumes_on_the_grid(script: Script) -> None:
    done = script(dedent("""
    import subprocess
    loop = make(warmup=0)
    with loop:
        time.sleep(0.1)
        subprocess.Popen(["sh", "-c", f"kill -STOP {os.getpid()}; sleep 0.5; kill -CONT {os.getpid()}"])
        time.sleep(1.0)
    s = loop.stats
    r = s.records["release"]
    span = (r[-1] - r[0]) // 1_000_000 + 1
    print(loop.state, s.missed >= 400, s.cycles + s.missed - (s.missed - loop.missed_in_step) == span, s.overruns >= 1)
    """))  # fmt: skip
    assert done.stdout.split() == ["stopped", "True", "True", "True"], done.stdout + done.stderr


def test_a_forked_child_sees_a_dead_loop_and_cannot_harm_it(script: Script) -> None:
    done = script(dedent("""
    loop = make(); other = make()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop.start()
        pids = []
        for _ in range(3):
            pid = os.fork()
            if pid == 0:
                try:
                    assert loop.state == "failed", loop.state
                    for call in (loop.join, loop.start, loop.reset_stats):
                        try:
                            call()
                        except rtloop.StateError as error:
                            assert "fork" in str(error)
                        else:
                            raise AssertionError(call)
                    loop.stats, loop.grants, repr(loop)
                    loop.stop(); loop.close()
                    assert other.run(cycles=5).cycles == 5
                    del loop
                except BaseException as error:
                    print("child:", repr(error), file=sys.stderr, flush=True)
                    os._exit(9)
                sys.exit(0)
            pids.append(pid)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        before = loop.steps
        time.sleep(0.1)
    print(codes, loop.steps > before, loop.state, loop.stats.forks)
    loop.stop()
    forks = [w for w in caught if issubclass(w.category, rtloop.RTSetupWarning)]
    print(loop.state, len(forks), "spawn" in str(forks[0].message))
    """))  # fmt: skip
    assert done.stdout.splitlines() == ["[0, 0, 0] True running 3", "stopped 1 True"], done.stdout + done.stderr


def test_a_forked_child_changes_no_parameter_of_its_parents_loop(script: Script) -> None:
    """Not through the memory that it has inherited, which is writable there even if the loop is not tunable."""
    done = script(dedent("""
    import numpy as np
    def make_one(**settings):
        data = np.zeros((), [("kp", "f8"), ("angle", "f8")])
        return rtloop.PyLoop(lambda cycle: None, "1ms", data=data, parameters=["kp"], signals=["angle"], **settings)
    warnings.simplefilter("ignore")
    with make_one(name="servo") as loop, make_one(name="fixed", tunable=False) as fixed:
        pid = os.fork()
        if pid == 0:
            try:
                for one in (loop, fixed):
                    try:
                        one.parameters["kp"] = 5.0
                    except rtloop.StateError as error:
                        assert f"connect('{one.name}', pid={os.getppid()})" in str(error), error
                    else:
                        raise AssertionError("it was set")
                    one.signals.read(), one.stop(), one.close()
                with rtloop.connect("servo", pid=os.getppid()) as outside:
                    outside.parameters["kp"] = 2.0
            except BaseException as error:
                print("child:", repr(error), file=sys.stderr, flush=True)
                os._exit(9)
            sys.exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        loop.parameters["kp"] += 1
        fixed.parameters["kp"] = 7.0
        time.sleep(0.05)
        with rtloop.connect("servo") as outside:
            print(code, outside.parameters["kp"], fixed.parameters["kp"], loop.state, fixed.state)
    """))  # fmt: skip
    assert done.stdout.split() == ["0", "3.0", "7.0", "running", "running"], done.stdout + done.stderr


#: Frames that a fork leaves in the child as well, while the loop runs. Those of the second kind are interrupted by a
#: signal handler, which forks.
BLOCKS = {
    "a loop": "with loop: fork()",
    "a group with a watchdog": "with rtloop.LoopGroup([loop, other], watchdog=10000): fork()",
    "everything": "with rtloop.stop_on_signals(), rtloop.Recorder(ring, 'o.npy'), rtloop.HugeBuffer(64), loop: fork()",
    "a loop that has failed": "loop.fail_at = 3\n    with suppress(rtloop.CallbackError), loop: ended(); fork()",
}
CALLS = {
    "run": "loop.run('60s')",
    "join": "loop.start(); loop.join()",
    "stop": "loop.hang_at = 0; loop.start(); reach(1); loop.stop('30s')",
    "run of a group": "rtloop.LoopGroup([loop, other]).run('60s')",
    "wait of a group": "group = rtloop.LoopGroup([loop, other]); group.start(); group.wait()",
    "simulate": "loop.simulate(cycles=10, plant=lambda cycle: cycle.index == 5 and fork() or 0)",
}


@pytest.mark.parametrize("way", ["pass", "sys.exit(7)"])
@pytest.mark.parametrize("frame", [*BLOCKS, *CALLS])
def test_a_frame_that_a_fork_leaves_in_the_child_does_nothing_there(script: Script, frame: str, way: str) -> None:
    done = script(dedent(f"""
    from contextlib import suppress
    warnings.simplefilter("ignore")
    loop, other, ring = make(name="loop"), make(name="other"), rtloop.Ring("f8", 64)
    loop.fail_code = -5
    parent = os.getpid()
    def ended():
        while loop.state == "running": time.sleep(0.001)
    def fork(*_):
        pid = os.fork()
        if pid == 0:
            {way}
            return
        print("child", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        before, loop.let_go = loop.steps, True
        while {frame != "simulate"} and loop.state == "running" and not loop.leaves and loop.steps <= before:
            time.sleep(0.001)
        loop.stop(); other.stop()
    def reach(steps):
        while loop.steps < steps: time.sleep(0.001)
    def send():
        reach(1)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)
    if {frame in CALLS and frame != "simulate"}:
        signal.signal(signal.SIGALRM, fork)
        threading.Thread(target=send, daemon=True).start()
    {BLOCKS.get(frame) or CALLS[frame]}
    if os.getpid() == parent: print("parent", loop.leaves, flush=True)
    """))  # fmt: skip
    code = 7 if way == "sys.exit(7)" else 1 if frame in CALLS and frame != "stop" else 0
    assert done.stdout.splitlines() == [f"child {code}", "parent 1"], done.stderr
    said = done.stderr.strip().splitlines()
    if code == 1:
        what = "has forked" if frame == "simulate" else "is a fork of it"
        assert what in done.stderr and said[0].startswith("Traceback"), "and nothing else"
    else:
        assert said == []


def test_multiprocessing_by_fork_while_a_loop_runs(script: Script) -> None:
    done = script(dedent("""
    import multiprocessing
    def work(x): return x * x
    warnings.simplefilter("ignore")
    with make() as loop:
        with multiprocessing.get_context("fork").Pool(2) as pool:
            print(pool.map(work, range(4)))
    print(loop.state)
    """))  # fmt: skip
    assert done.stdout.split("\n")[:2] == ["[0, 1, 4, 9]", "stopped"], done.stderr


@pytest.mark.parametrize("child", ["a thread", "preexec_fn", "Process", "own loop", "while it starts", "four deep"])
def test_every_kind_of_fork_beside_loops_leaves_a_child_that_ends_well(script: Script, child: str) -> None:
    done = script(dedent(f"""
    import multiprocessing, subprocess
    warnings.simplefilter("ignore")

    def code(pid):
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def fork(body):
        pid = os.fork()
        if pid:
            return code(pid)
        try:
            os._exit(body())
        finally:
            os._exit(99)

    def calls_library():
        # Threads and random bytes: the C library keeps lists of both.
        thread = threading.Thread(target=os.urandom, args=(8,))
        thread.start(); thread.join()
        return 3

    def in_thread(body):
        found = []
        thread = threading.Thread(target=lambda: found.append(fork(body)))
        thread.start(); thread.join()
        return found[0]

    def own_loop():
        with make():
            return fork(lambda: calls_library() if make().run(cycles=3).cycles == 3 else 4)

    def deep(left):
        return 3 if left == 0 else fork(lambda: deep(left - 1))

    def starting():
        codes, more = [], [make() for _ in range(20)]
        def start():
            for loop in more:
                loop.start()
        thread = threading.Thread(target=start)
        thread.start()
        while thread.is_alive():
            codes.append(fork(calls_library))
        for loop in more:
            loop.stop()
        codes.append(fork(calls_library))
        return 3 if set(codes) == {{3}} else codes

    def process():
        child = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(calls_library()))
        child.start(); child.join(60)
        return child.exitcode

    kinds = {{
        "a thread": lambda: in_thread(calls_library),
        "preexec_fn": lambda: subprocess.run(["sh", "-c", "exit 3"], preexec_fn=os.getpid).returncode,
        "Process": process,
        "own loop": lambda: fork(own_loop),
        "while it starts": starting,
        "four deep": lambda: fork(lambda: deep(4)),
    }}
    loops = [make(), make("2ms", guard="count"), rtloop.PyLoop(lambda cycle: None, "5ms", policy="other",
                                                               lock_memory="off", dma_latency=None)]
    for loop in loops:
        loop.start()
    time.sleep(0.05)
    print(kinds[{child!r}](), [loop.state for loop in loops])
    for loop in loops:
        loop.stop()
    """))  # fmt: skip
    assert done.stdout == "3 ['running', 'running', 'running']\n", done.stdout + done.stderr


def test_a_method_of_a_loop_may_start_a_program_by_fork_and_exec(script: Script) -> None:
    """On the loop's own thread, or the watchdog's for safe(): the child continues on that thread's stack."""
    done = script(dedent("""
    def fork_in(method):
        loop = probes.Forking("2ms", policy="other", lock_memory="off", dma_latency=None)
        loop.fork_in = method
        if method == 4:
            loop.hang_at = 3
            loop.safe_lets_go = True
            try:
                rtloop.LoopGroup([loop], watchdog=10).run("1s")
            except rtloop.WatchdogError:
                pass
        else:
            if method == 2:
                loop.busy_ns = 3_000_000
            loop.run(cycles=20)
        return os.waitstatus_to_exitcode(loop.status), loop.leaves
    print([fork_in(method) for method in range(5)])
    """))  # fmt: skip
    assert done.stdout == f"{[(9, 1)] * 5}\n", done.stdout + done.stderr


@pytest.mark.parametrize(("method", "code"), [("enter", 1), ("step", -signal.SIGSEGV), ("leave", 1)])
def test_a_child_that_returns_from_a_method_of_a_loop_ends(script: Script, method: str, code: int) -> None:
    """It has no loop, so that it must not call another method: two processes would drive one actuator."""
    done = script(dedent(f"""
    loop = probes.Forking("1ms", policy="other", lock_memory="off", dma_latency=None)
    loop.fork_in, loop.child_returns, loop.says_leave = {["enter", "step", "", "leave"].index(method)}, True, True
    loop.run(cycles=5)
    print(os.waitstatus_to_exitcode(loop.status), loop.steps)
    """))  # fmt: skip
    assert done.stdout == f"{code:d} 5\n", done.stdout + done.stderr
    assert done.stderr.count("leaving") == (2 if method == "leave" else 1)
    assert ("has forked, and the child process ends here" in done.stderr) == (method != "step")


def test_what_outlives_the_modules_of_the_interpreter_says_nothing(script: Script) -> None:
    done = script("""
    import sys
    import numpy as np
    import rtloop
    settings = dict(policy="other", lock_memory="off", dma_latency=None)
    data = np.zeros((), [("kp", "f8"), ("angle", "f8")])
    loop = rtloop.PyLoop(lambda cycle: None, "1ms", data=data, parameters=("kp",), signals=("angle",), **settings)
    loop.run(cycles=3)
    sys.kept = loop, loop.parameters, loop.signals.reader(), rtloop.Ring("f8", 10), rtloop.Pool(64, 2)
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_subinterpreters_are_refused_with_an_error(script: Script) -> None:
    done = script("""
    try:
        import _xxsubinterpreters as interpreters
    except ImportError:
        import _interpreters as interpreters
    import rtloop
    identifier = interpreters.create()
    try:
        failure = interpreters.run_string(identifier, "import rtloop")
        print("refused" if failure is not None else "accepted")
    except Exception as error:
        print("refused")
    """)
    assert done.stdout.strip() == "refused", done.stderr


def test_a_stack_overflow_is_reported_and_ends_the_process(script: Script) -> None:
    done = script(dedent("""
    import faulthandler; faulthandler.enable()
    loop = probes.Deep("1ms", policy="other", lock_memory="off", dma_latency=None, stack_size="64K")
    loop.pages, loop.at = 64, 5
    loop.run("1s")
    """))  # fmt: skip
    assert done.returncode == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in done.stderr


def test_the_stack_has_its_size_its_guard_and_a_high_water_mark(script: Script) -> None:
    done = script(dedent("""
    loop = probes.Deep("1ms", policy="other", lock_memory="off", dma_latency=None, stack_size="256K")
    shallow = loop.run(cycles=20).stack
    loop.pages, loop.at = 30, 5
    deep = loop.run(cycles=20).stack
    print(shallow.size, deep.size, shallow.high_water < 32768, deep.high_water - shallow.high_water >= 30 * 4096)
    """))  # fmt: skip
    assert done.stdout.split() == ["262144", "262144", "True", "True"], done.stderr


def test_a_signal_handler_may_stop_loops_at_any_moment(script: Script) -> None:
    """A handler that stops a loop, and Ctrl-C, at every moment of starting and stopping another: no hang, no leak."""
    done = script(dedent("""
    import random
    other = make(record=16); other.start()
    loop = make(record=16, lock_memory="own")
    loop.run(cycles=2)
    def files(): return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    def handler(number, frame):
        loop.stop()
        raise InterruptedError
    signal.signal(signal.SIGALRM, handler)
    other.stop(); before = files()
    hits = 0
    for i in range(150):
        try:
            signal.setitimer(signal.ITIMER_REAL, random.Random(i).uniform(0.0002, 0.006))
            loop.start(); time.sleep(0.001); loop.stop()
            signal.setitimer(signal.ITIMER_REAL, 0)
        except InterruptedError:
            hits += 1
        except rtloop.StateError as error:
            print("state", error)
        signal.setitimer(signal.ITIMER_REAL, 0)
        loop.stop()
        assert loop.state == "stopped", loop.state
    locked = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmLck")][0]
    print(hits > 20, files() == before, locked)
    """), timeout=60)  # fmt: skip
    assert done.stdout.split() == ["True", "True", "0"], done.stdout + done.stderr


#: Loops that a signal handler may have to stop, and what starts them.
STARTED = {
    "a loop": "loop = make()",
    "a guarded loop": "loop = make(guard='count')",
    "a group": "loop = rtloop.LoopGroup([make(name='a'), make(name='b')])",
    "a loop with parameters": "loop = rtloop.PyLoop(lambda cycle: 0, '1ms', policy='other', parameters=['kp'], "
    "data=np.zeros((), [('kp', 'f8')]))",
    "a PyLoop": "loop = rtloop.PyLoop(lambda cycle: 0, '1ms', policy='other')",
}


@pytest.mark.parametrize("create", STARTED.values(), ids=STARTED)
def test_a_loop_stops_while_its_caller_holds_the_lock_of_pythons_threads(script: Script, create: str) -> None:
    """As in a signal handler that has interrupted threading.enumerate(), or the start of a thread."""
    done = script(dedent(f"""
    import numpy as np
    warnings.simplefilter("ignore")
    {create}
    loop.start()
    time.sleep(0.05)
    with threading._active_limbo_lock:
        loop.stats
        loop.stop()
        loop.start()
        time.sleep(0.02)
        loop.stop()
    print(loop.state)
    """), timeout=20)  # fmt: skip
    assert done.stdout == "stopped\n", done.stdout + done.stderr


NO_FILE = """
import resource
def use_all_files():
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    try:
        while True: os.open("/dev/null", os.O_RDONLY)
    except OSError: pass
def attempt(call):
    try:
        return str(call())
    except rtloop.SetupError as error:
        assert "all 64 file descriptors that RLIMIT_NOFILE allows" in str(error), error
        assert "ulimit -n" in str(error)
        return "explained"
    except rtloop.RtloopError as error:
        return type(error).__name__
warnings.simplefilter("ignore")
DEGRADED = {"strict": False, "cpu": None, "lock_memory": "off", "policy": "other"}
"""


def below_limit(code: str) -> str:
    return dedent(code).replace(PROLOGUE, PROLOGUE + NO_FILE)


def test_a_loop_runs_and_reports_though_no_file_descriptor_is_free(script: Script) -> None:
    """Everything that a run needs is imported when the loop is created: an import needs a descriptor."""
    done = script(below_limit("""
    failing = lambda cycle: 1 / 0
    loop, python = rtloop.RTLoop("1ms", **DEGRADED), rtloop.PyLoop(failing, "1ms", **DEGRADED)
    group = rtloop.LoopGroup([make(strict=False), make("2ms", strict=False)], watchdog=10000)
    stopped = make(strict=False, guard="stop"); stopped.fail_at, stopped.fail_code = 3, -5
    use_all_files()
    stats = loop.run(cycles=5)
    print(stats.cycles, [grant.name for grant in stats.grants if not grant.ok])
    print(len(str(stats)) > 100, len(stats._repr_html_()) > 100, len(stats.to_json()) > 100)
    try:
        python.run(cycles=5)
    except ZeroDivisionError:
        print("raised", python.state, python.stats.cycles)
    group.start(); group.stop(); group.join()
    print(group.state, [one.state for one in group.stats.values()])
    loop.start(); print(attempt(lambda: loop.join("20ms")), attempt(loop.stop), loop.stats.state)
    print(attempt(lambda: stopped.run(cycles=50)), stopped.state)
    """))  # fmt: skip
    assert done.stdout.splitlines() == [
        "5 ['telemetry', 'dma_latency']", "True True True", "raised failed 1", "stopped ['stopped', 'stopped']",
        "False None stopped", "CallbackError failed",
    ], done.stdout + done.stderr  # fmt: skip


def test_what_needs_a_file_descriptor_is_refused_with_the_limit(script: Script) -> None:
    done = script(below_limit("""
    loop, strict, guarded = rtloop.RTLoop("1ms", **DEGRADED), make(), {**DEGRADED, "guard": "count"}
    rtloop.LoopGroup
    use_all_files()
    print(attempt(strict.start), strict.state, attempt(lambda: rtloop.RTLoop("1ms", **guarded)))
    print(attempt(lambda: loop.simulate(cycles=3)), attempt(lambda: rtloop.LoopGroup([loop], watchdog=50)))
    loop.start(); loop.stop()
    print(loop.state)
    """))  # fmt: skip
    assert done.stdout.splitlines() == ["explained new explained", "explained explained", "stopped"], done.stderr


def test_a_name_that_is_imported_late_is_refused_with_the_limit(script: Script) -> None:
    """It was a bare OSError or ImportError, which names a file of rtloop."""
    done = script(below_limit("""
    names = sorted({*rtloop._LATE} - {*vars(rtloop)})
    use_all_files()
    refused = {name: attempt(lambda: getattr(rtloop, name)) for name in names}
    print({"LoopGroup", "Latest", "connect", "simulate", "build"} <= {*names})
    print(sum(found == "explained" for found in refused.values()) > 10)
    for fd in range(32, 64): os.close(fd)
    print([name for name in names if attempt(lambda: getattr(rtloop, name)) == "explained"])
    """))  # fmt: skip
    assert done.stdout.splitlines() == ["True", "True", "[]"], done.stdout + done.stderr


def test_a_first_loop_without_a_file_descriptor_is_refused_with_the_limit(script: Script) -> None:
    done = script(below_limit("""
    rtloop.RTLoop
    use_all_files()
    print(attempt(lambda: rtloop.RTLoop("1ms")), attempt(lambda: rtloop.RTLoop("1ms")))
    """))  # fmt: skip
    assert done.stdout == "explained explained\n", done.stderr
