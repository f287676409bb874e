"""ProcessLoop: a Python step in a process of its own, and every way in which the two processes end."""

from __future__ import annotations

import gc
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rtloop
from rtloop import ProcessLoop
from rtloop.child.carried_error import carry, restore
from rtloop.child.slack_collector import SlackCollector

#: Limit for whatever takes milliseconds; a busy machine takes its time.
PATIENCE_S = 60.0

STEPS = '''
import gc, json, os, signal, sys, threading, time
from pathlib import Path

def do_nothing(cycle):
    pass

def fail(cycle):
    if cycle.index == 7:
        raise KeyError("torque")

def leave(cycles=None):
    write("left", os.getpid())

def write(name, value):
    file = Path(__file__).with_name(name)
    file.with_suffix(".new").write_text(json.dumps(value))
    file.with_suffix(".new").rename(file)

def exit(cycle):
    sys.exit(3)

def warn():
    import rtloop, warnings
    warnings.warn("the bus is slow", rtloop.RTSetupWarning)

def refuse():
    raise PermissionError("no bus")

def crash(data=None):
    os._exit(4)

def wait_for_stop():
    write("waiting", os.getpid())
    while not Path(__file__).with_name("go").exists():
        time.sleep(0.001)

def hang(cycle):
    write("hanging", os.getpid())
    while True:
        time.sleep(1)

def fail_in_leave():
    raise ValueError("the brake is stuck")

def count(cycle, data):
    data["position"] = data["speed"] * cycle.index

def make_garbage(cycle):
    """End the loop when the second collection of garbage has taken place."""
    made.append(gc.get_stats()[0]["collections"])
    for _ in range(300):
        ring = []
        ring.append(ring)
    return made[-1] >= made[0] + 2

made = []

def look():
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    write("facts", {
        "pid": os.getpid(), "is_frozen": gc.get_freeze_count() > 1000, "is_collecting": gc.isenabled(),
        "pool": os.environ["OPENBLAS_NUM_THREADS"], "locked_kb": int(status["VmLck"].split()[0]),
    })
'''


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the module rtloop_steps, which the processes of loops import."""
    (tmp_path / "rtloop_steps.py").write_text(STEPS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No process and no open file of a loop outlives its test."""
    ProcessLoop("a:b", "1ms", policy="other")  # imports, and whatever is made once
    rtloop.RTLoop("1ms", policy="other", lock_memory="off", dma_latency=None).run(cycles=1)
    before = open_files()
    yield
    gc.collect()
    wait_until(lambda: not children())
    wait_until(lambda: not open_files() - before)


def open_files() -> Counter[str]:
    """Return what this process has open: memfds and sockets are what a loop's process needs."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            link = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        if link.startswith(("socket:", "/memfd:rtloop", "anon_inode:[pidfd]")):
            found.append(link)
    return Counter(found)


def children() -> list[int]:
    """Return the processes of this one that run the main function of a ProcessLoop."""
    found = []
    for task in os.listdir("/proc/self/task"):
        try:
            pids = Path(f"/proc/self/task/{task}/children").read_text().split()
        except OSError:
            continue
        found += [int(pid) for pid in pids if is_loops_process(int(pid))]
    return found


def is_loops_process(pid: int) -> bool:
    try:
        return b"rtloop.child.main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_true():
        assert time.monotonic() < deadline, "it has not happened"
        time.sleep(0.005)


def read(file: Path) -> Any:
    wait_until(file.exists)
    return json.loads(file.read_text())


def test_the_step_runs_in_another_process_and_its_figures_come_back(steps: Path, ordinary: dict[str, Any]) -> None:
    data = np.array((2.0, 0.0), [("speed", "f8"), ("position", "f8")])
    speed = {"speed": (0.0, 10.0, "m/s")}
    loop = ProcessLoop("rtloop_steps:count", "2ms", data=data, parameters=speed, signals=["position"], **ordinary)
    assert (loop.state, loop.pid, loop.grants, dict(loop.parameters)) == ("new", None, (), {"speed": 2.0})
    parameters = loop.parameters
    parameters["speed"] = 3.0
    starter = threading.Thread(target=loop.start)  # which ends long before the loop
    starter.start()
    starter.join()
    assert loop.state == "running" and loop.pid not in (None, os.getpid())
    with pytest.raises(rtloop.StateError, match="is already running"):
        loop.start()
    with pytest.raises(rtloop.ConfigError, match="speed"):
        parameters["speed"] = 11.0
    parameters["speed"] = 4.0
    assert parameters.wait(PATIENCE_S)
    with rtloop.connect(loop.name, loop.pid) as other:
        assert other.pid == loop.pid and dict(other.parameters) == {"speed": 4.0}
    changed = parameters.applied.cycle
    wait_until(lambda: loop.stats.cycles > changed + 10)
    assert loop.stats.settings["period_ns"] == 2_000_000 and loop.stats.state == "running"
    reader = loop.signals.reader("oldest")
    loop.stop("60s")
    stats = loop.stats
    assert (loop.state, stats.state) == ("stopped", "stopped") and stats.cycles > changed + 10
    assert dict(parameters) == {"speed": 4.0} and stats.parameter_changes[-1].values == {"speed": 4.0}
    samples = reader.read()
    assert len(samples) == stats.cycles
    factor = np.where(samples["cycle"] < changed, 3.0, 4.0)
    assert (samples["position"] == factor * samples["cycle"]).all()
    assert {grant.name for grant in loop.grants} >= {"gil", "collector", "policy"}
    assert data["speed"] == 2.0, "the process has a copy"


def test_signals_that_were_not_read_during_the_run_can_be_read_after_it(steps: Path, ordinary: dict[str, Any]) -> None:
    data = np.array((2.0, 0.0), [("speed", "f8"), ("position", "f8")])
    loop = ProcessLoop("rtloop_steps:count", "1ms", data=data, signals=["position"], **ordinary)
    for cycles in (5, 40):
        assert loop.run(cycles=cycles).cycles == cycles
        samples = loop.signals.read()
        assert samples["cycle"].tolist() == list(range(cycles)), "the first read begins with the oldest"
        assert (samples["position"] == 2.0 * samples["cycle"]).all()


def test_a_recorder_that_is_created_before_the_start_records_each_run(
    steps: Path, tmp_path: Path, ordinary: dict[str, Any]
) -> None:
    data = np.array((2.0, 0.0), [("speed", "f8"), ("position", "f8")])
    loop = ProcessLoop("rtloop_steps:count", "1ms", data=data, signals=["position"], **ordinary)
    quiet = ProcessLoop("rtloop_steps:count", "1ms", data=data, **ordinary)
    group = rtloop.LoopGroup([loop, quiet])
    signals = group.signals
    assert (list(signals), signals.latest(), len(loop.signals.read())) == ([loop.name], {}, 0)
    begun, late = loop.signals.reader(), loop.signals.reader()
    for cycles in (5, 40):
        with rtloop.Recorder(signals[loop.name], tmp_path / "run.npy") as recorder:
            loop.run(cycles=cycles)
        samples = np.load(recorder.path)
        assert samples["cycle"].tolist() == list(range(cycles)) and recorder.lost == 0
        assert (samples["position"] == 2.0 * samples["cycle"]).all()
        assert begun.read(3)["cycle"].tolist() == ([0, 1, 2] if cycles == 5 else [3, 4, 0])
    assert (begun.position, begun.written, loop.signals.latest()["cycle"]) == (6, 45, 39)
    loop.run(cycles=3)
    rest = begun.read()
    assert rest["cycle"].tolist() == [*range(1, 40), *range(3)] and (begun.lost, begun.position) == (0, 48)
    rest = late.read()
    assert rest["cycle"].tolist() == [*range(40), *range(3)] and late.lost == 5, "the last two runs are kept"
    assert loop.signals.reader("begin").lost == 45, "as it begins in the present run"
    assert loop.signals.reader("oldest").read()["cycle"].tolist() == [0, 1, 2]
    quiet.start()
    names = list(group.signals)
    quiet.stop("60s")
    assert names == [loop.name], "one without signals is left out, also while it runs"


def test_an_exception_of_the_step_is_raised_here_with_its_traceback(steps: Path, ordinary: dict[str, Any]) -> None:
    loop = ProcessLoop("rtloop_steps:fail", "1ms", leave="rtloop_steps:leave", name="arm", **ordinary)
    with pytest.raises(KeyError, match="torque") as caught:
        loop.run()
    text = "".join(traceback.format_exception(caught.value))
    assert "in fail" in text and "Raised in cycle 7 of arm" in text and "lifecycle.pyx" not in text
    assert read(steps / "left") == loop.pid, "leave has run in the other process"
    assert loop.state == loop.stats.state == "failed" and loop.stats.cycles == 8
    with pytest.raises(KeyError):
        loop.join()


@pytest.mark.parametrize(
    ("functions", "expected", "message"),
    [
        ({"step": "rtloop_steps:exit"}, SystemExit, "3"),
        ({"setup": "rtloop_steps:refuse"}, PermissionError, "no bus"),
        ({"leave": "rtloop_steps:fail_in_leave"}, ValueError, "the brake is stuck"),
        ({"setup": "rtloop_steps:crash"}, rtloop.ProcessDiedError, r"exit code 4, before it could report"),
        ({"step": "rtloop_steps:crash"}, rtloop.ProcessDiedError, r"exit code 4; its leave\(\) has not run"),
        ({"step": "rtloop_steps:nothing"}, rtloop.ConfigError, "'rtloop_steps' has no attribute 'nothing'"),
    ],
)
def test_every_other_end_is_an_exception_as_well(
    functions: dict[str, Any], expected: type[BaseException], message: str, steps: Path, ordinary: dict[str, Any]
) -> None:
    loop = ProcessLoop(**{"step": "rtloop_steps:do_nothing", **functions}, period="1ms", **ordinary)
    with pytest.raises(expected, match=message):
        loop.run(cycles=5)
    assert loop.state == ("failed" if loop.pid else "new")


@pytest.mark.parametrize(("number", "has_left"), [(signal.SIGKILL, False), (signal.SIGTERM, True)])
def test_a_process_that_is_killed_is_reported_with_what_became_of_leave(
    number: int, has_left: bool, steps: Path, ordinary: dict[str, Any]
) -> None:
    settings = {**ordinary, "leave_timeout": "60s"}
    loop = ProcessLoop("rtloop_steps:do_nothing", "1ms", leave="rtloop_steps:leave", **settings)
    with pytest.raises(rtloop.ProcessDiedError, match=signal.Signals(number).name) as caught, loop:
        wait_until(lambda: loop.stats.cycles > 3)
        assert loop.pid is not None
        os.kill(loop.pid, number)
        loop.join()
    assert (caught.value.exit_code, caught.value.has_left) == (-number, has_left)
    assert (steps / "left").exists() == has_left
    assert loop.state == "failed" and loop.stats.cycles > 3
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_the_process_has_nothing_else_to_do(steps: Path, ordinary: dict[str, Any]) -> None:
    """Its collector rests but for the slack, libraries use one thread, and its memory is locked if it may be."""
    lock = "all" if os.geteuid() == 0 else "off"
    settings = {**ordinary, "lock_memory": lock}
    loop = ProcessLoop("rtloop_steps:make_garbage", "5ms", leave="rtloop_steps:look", **settings)
    loop.run()
    collected = next(grant.detail for grant in loop.grants if grant.name == "collector")
    assert int(collected.partition(" collections")[0].rpartition(" ")[2]) >= 2
    facts = read(steps / "facts")
    assert facts["is_frozen"] and not facts["is_collecting"] and facts["pool"] == "1"
    assert (facts["locked_kb"] > 10_000) == (lock == "all")


def test_a_stop_during_the_start_ends_it(steps: Path, ordinary: dict[str, Any]) -> None:
    loop = ProcessLoop("rtloop_steps:do_nothing", "1ms", setup="rtloop_steps:wait_for_stop", **ordinary)
    raised: list[BaseException] = []

    def start() -> None:
        try:
            loop.start()
        except BaseException as error:
            raised.append(error)

    starter = threading.Thread(target=start)
    starter.start()
    wait_until((steps / "waiting").exists)
    with pytest.raises(rtloop.StateError, match="is already being started"):
        loop.start()
    with pytest.raises(rtloop.StopTimeoutError):
        loop.stop("1ms")
    (steps / "go").touch()
    starter.join(PATIENCE_S)
    assert [type(error) for error in raised] == [rtloop.StateError] and "was stopped before" in str(raised[0])
    assert loop.state == "new"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("frozen", True, "is frozen"), ("executable", None, "embedded"), ("executable", "/nowhere/python", "not exist")],
)
def test_a_program_that_is_not_an_interpreter_is_not_started_again(
    steps: Path, ordinary: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: str, value: Any, words: str
) -> None:
    """A frozen program would start a copy of itself, which would start another, and so on."""
    loop = ProcessLoop("rtloop_steps:do_nothing", "10ms", **ordinary)
    with monkeypatch.context() as patch:
        patch.setattr(sys, name, value, raising=False)
        with pytest.raises(rtloop.SetupError, match=words):
            loop.start()
        assert (loop.state, loop.pid) == ("new", None)
    assert loop.run(cycles=2).cycles == 2


def test_a_step_that_does_not_return_can_be_killed(steps: Path, ordinary: dict[str, Any]) -> None:
    loop = ProcessLoop("rtloop_steps:hang", "1ms", leave="rtloop_steps:leave", **ordinary)
    loop.start()
    assert read(steps / "hanging") == loop.pid
    with pytest.raises(rtloop.StopTimeoutError):
        loop.stop("1ms")
    assert loop.state == "running"
    loop.kill()
    assert loop.state == "failed"
    with pytest.raises(rtloop.ProcessDiedError, match=r"SIGKILL; its leave\(\) has not run"):
        loop.join()


SCRIPT = """
import os, signal, sys, time
import rtloop, rtloop_steps

def step(cycle):
    if cycle.index == 20:
        rtloop_steps.write("running", os.getpid())

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have ignored it
    loop = rtloop.ProcessLoop(step, "1ms", leave=rtloop_steps.leave, policy="other", lock_memory="off",
                              dma_latency=None, leave_timeout="60s")
    loop.start()
    if os.fork() == 0:  # beside it is a process that has inherited whatever is open
        loop.stop()
        assert loop.state == "failed"
        try:
            loop.join()
        except rtloop.StateError:
            rtloop_steps.write("forked", os.getpid())
        time.sleep(600)
    loop.join()
"""


def test_a_signal_ends_the_program_though_a_handler_has_interrupted_a_look_at_the_process(steps: Path) -> None:
    (steps / "interrupted.py").write_text("""
import os, signal, threading, time, warnings
import rtloop
from rtloop.child.child_process import ChildProcess
def step(cycle):
    return 0
if __name__ == "__main__":
    warnings.simplefilter("ignore")
    settings = dict(policy="other", lock_memory="off", dma_latency=None)
    loop, other = rtloop.ProcessLoop(step, "2ms", **settings), rtloop.RTLoop("1ms", **settings)
    loop.start()
    other.start()
    def handler(number, frame):
        os.kill(os.getpid(), signal.SIGTERM)
        other.stop()
    signal.signal(signal.SIGUSR1, handler)
    read, times = ChildProcess._read, []
    def interrupted(process):  # it has the lock of the process
        if threading.get_ident() == threading.main_thread().ident and not times:
            times.append(1)
            signal.raise_signal(signal.SIGUSR1)
        return read(process)
    ChildProcess._read = interrupted
    loop.join()
""")
    done = subprocess.run(
        [sys.executable, "interrupted.py"], cwd=steps, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == -signal.SIGTERM and "stopped 1 process loop" in done.stderr, done.stderr


def test_a_loop_starts_in_a_folder_that_was_removed(steps: Path) -> None:
    code = f"""
import os, sys
os.mkdir("gone")
os.chdir("gone")
os.rmdir("../gone")
sys.path[:] = ["", {str(steps)!r}, *sys.path[1:], None]
import rtloop
settings = dict(policy="other", lock_memory="off", dma_latency=None)
print(rtloop.ProcessLoop("rtloop_steps:do_nothing", "5ms", **settings).run(cycles=3).cycles)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=steps, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.stdout == "3\n", done.stderr


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_loop_of_a_script_ends_with_it(number: int, steps: Path) -> None:
    """SIGINT goes to both processes, as Ctrl-C in a terminal."""
    (steps / "script.py").write_text(SCRIPT)
    with (steps / "said").open("w") as file:
        script = subprocess.Popen([sys.executable, "script.py"], cwd=steps, start_new_session=True, stderr=file)
    try:
        child, forked = read(steps / "running"), read(steps / "forked")
        assert child != script.pid
        if number == signal.SIGINT:
            os.kill(forked, signal.SIGKILL)
            os.killpg(script.pid, number)
        else:
            script.send_signal(number)
        assert script.wait(PATIENCE_S) == -number
        assert read(steps / "left") == child
        wait_until(lambda: not is_loops_process(child))
        assert ("KeyboardInterrupt" in (steps / "said").read_text()) == (number == signal.SIGINT)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGKILL)
        script.wait()


@pytest.mark.parametrize("step", [lambda cycle: 0, "module", "module:", ":function", "a b:c", 5, None])
def test_what_another_process_cannot_import_is_refused_at_once(step: Any) -> None:
    with pytest.raises((rtloop.ConfigError, TypeError), match="step=") as caught:
        ProcessLoop(step, "1ms")
    assert "module:function" in str(caught.value)


def test_a_function_of_an_interactive_session_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    main = sys.modules["__main__"]

    def step(cycle: rtloop.Cycle) -> None: ...

    step.__module__, step.__qualname__ = "__main__", "step"
    monkeypatch.setattr(main, "step", step, raising=False)
    monkeypatch.setattr(main, "__spec__", None)
    monkeypatch.delattr(main, "__file__", raising=False)
    with pytest.raises(rtloop.ConfigError, match=r"interactive session .*define it with def at the top level"):
        ProcessLoop(step, "1ms")


def test_data_that_cannot_be_sent_and_wrong_keywords_are_refused_at_once() -> None:
    with pytest.raises(rtloop.ConfigError, match=r"data=.* cannot be pickled.*open the rest in setup"):
        ProcessLoop("a:b", "1ms", data=threading.Lock())
    with pytest.raises(TypeError, match="did you mean 'priority'"):
        ProcessLoop("a:b", "1ms", prio=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="cannot be copied"):
        pickle.dumps(ProcessLoop("a:b", "1ms"))
    loop = ProcessLoop("a:b", "1ms")
    with pytest.raises(rtloop.StateError, match="has not been started"):
        loop.join()
    loop.close()
    with pytest.raises(rtloop.StateError, match="is closed"):
        loop.start()


def test_an_exception_that_cannot_travel_becomes_one_that_says_the_same() -> None:
    class NoBusError(Exception):
        pass

    try:
        raise NoBusError("can0")
    except NoBusError as error:
        carried = carry(error)
    restored = restore(carried, "arm")
    assert type(restored) is rtloop.RtloopError and "NoBusError: can0" in str(restored)
    assert "in test_an_exception" in str(restored.__cause__)


def test_a_collection_waits_for_a_cycle_with_enough_slack() -> None:
    collector = SlackCollector()
    collector.collect(10**9)
    assert (collector.collections, collector.postponed) == (1, 0) and collector.longest_ns > 0
    collector.collect(0)
    collector.collect(-5)
    assert (collector.collections, collector.postponed) == (1, 2)
    for _ in range(1000):  # the estimate shrinks, so it is tried at last
        collector.collect(100)
    assert collector.collections > 1


def test_a_process_that_another_thread_looks_at_delays_no_loop(steps: Path, ordinary: dict[str, Any]) -> None:
    """As if a signal handler had interrupted a look, and now starts and ends another loop."""
    loop = ProcessLoop("rtloop_steps:do_nothing", "1ms", **ordinary)
    loop.start()
    assert loop._child is not None
    with loop._child._lock:
        for _ in range(3):
            assert rtloop.RTLoop("1ms", **ordinary).run(cycles=1).cycles == 1
    loop.stop("60s")
    assert loop.state == "stopped"


def test_a_command_that_fails_does_not_keep_the_process_from_the_next_one(script: Any) -> None:
    done = script("""
        import os, socket, threading, types
        from rtloop.child.channel import Channel
        from rtloop.child.main import Overseer

        class Loop:
            def reset_stats(self):
                raise OSError("no memory")
            def request_stop(self):
                print("stopped", flush=True)
                os._exit(0)

        ours, theirs = map(Channel, socket.socketpair())
        overseer = Overseer(theirs, types.SimpleNamespace(parent=os.getppid(), leave_timeout_ns=10**9))
        overseer.watch(Loop())
        for command in "go", "reset", "stop":
            ours.send(command)
        threading.Event().wait(50)
    """)
    assert (done.returncode, done.stdout) == (0, "stopped\n") and "no memory" in done.stderr


@pytest.mark.parametrize("begin", ["with", "start", "run"])
def test_a_warning_names_the_line_of_the_user(begin: str, steps: Path, ordinary: dict[str, Any]) -> None:
    """However many functions of rtloop are in between; the warning comes from the loop's process."""
    loop = ProcessLoop("rtloop_steps:do_nothing", "1ms", setup="rtloop_steps:warn", **ordinary)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if begin == "run":
            loop.run(cycles=2)
        elif begin == "with":
            with loop:
                pass
        else:
            loop.start()
            loop.stop()
    told = [one for one in caught if one.category is rtloop.RTSetupWarning]  # and none about what other tests have left
    assert [(str(one.message), one.filename) for one in told] == [("the bus is slow", __file__)]
    assert loop.state == "stopped", "a stop just after the start is a normal end"


def test_the_warning_of_a_failure_names_the_line_of_the_user(steps: Path, ordinary: dict[str, Any]) -> None:
    loop = ProcessLoop("rtloop_steps:fail", "1ms", **ordinary)
    loop.start()
    wait_until(lambda: loop.state == "failed")
    with pytest.warns(rtloop.RTSetupWarning, match="had already failed") as caught:
        loop.stop()
    assert [one.filename for one in caught if one.category is rtloop.RTSetupWarning] == [__file__]
