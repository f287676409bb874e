"""Below a seccomp filter: a loop starts degraded, whatever is forbidden, and names the call that was refused."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.rt

Script = Callable[..., Any]
LAUNCHER = str(Path(__file__).parents[1] / "support" / "filtered.py")
PROGRAM = """
import json, warnings, rtloop
warnings.simplefilter("ignore")
keywords = {"cpu": 0, "core_dumps": False, "guard": "count"}
stats = rtloop.RTLoop("1ms", strict=False, **keywords).run(cycles=20)
found = {"cycles": stats.cycles, "refused": {g.name: [g.detail, g.fix] for g in stats.grants if not g.ok}}
try:
    rtloop.RTLoop("1ms", **keywords).run(cycles=2)
except rtloop.SetupError as error:
    found["strict"] = str(error)
print(json.dumps(found))
"""


def below(script: Script, call: str, error: int = errno.EPERM) -> dict[str, Any]:
    """Return what a program below the filter was granted."""
    done = script(PROGRAM, prefix=(sys.executable, LAUNCHER, call, str(error)))
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["cycles"] == 20
    return found


@pytest.mark.parametrize(
    ("call", "error", "grant"),
    [
        ("sched_setattr", errno.EPERM, "policy"), ("sched_setattr", errno.ENOSYS, "policy"),
        ("sched_setaffinity", errno.EPERM, "cpu"), ("mlockall", errno.EPERM, "memory_lock"),
        ("mlock", errno.EACCES, "state"), ("memfd_create", errno.EPERM, "telemetry"),
        ("memfd_create", errno.ENOSYS, "telemetry"), ("sigaltstack", errno.EPERM, "signal_stack"),
        ("rt_sigprocmask", errno.EPERM, "signals"),
    ],
)  # fmt: skip
def test_a_forbidden_call_is_named_with_the_settings_that_allow_it(
    script: Script, call: str, error: int, grant: str
) -> None:
    found = below(script, call, error)
    detail, fix = found["refused"][grant]
    assert f"a seccomp filter forbids {call}" in detail and errno.errorcode[error] in detail
    assert f"SystemCallFilter={call}" in fix and "seccomp=PROFILE.json" in fix
    assert ("RestrictRealtime=no" in fix) == call.startswith("sched_set")
    assert f"a seccomp filter forbids {call}" in found["strict"]


@pytest.mark.parametrize(
    "call",
    [
        "sched_setscheduler", "sched_getscheduler", "sched_get_priority_max", "sched_getattr", "sched_getaffinity",
        "prlimit64", "mlock2", "munlock", "munlockall", "madvise", "mincore", "prctl", "perf_event_open", "capget",
        "getrusage", "readlink", "rt_sigaction", "getrandom", "timer_create",
    ],
)  # fmt: skip
def test_whatever_is_forbidden_a_loop_starts(script: Script, call: str) -> None:
    """With sched_setscheduler, which pthread_create(3) makes, no loop started at all."""
    refused = below(script, call)["refused"]
    assert set(refused) <= {"policy", "core_dumps"}, "nothing else was refused"
    if call == "sched_getaffinity":
        assert "cpu" not in refused, "the mask is read from /proc then"


THREADS = """
import rtloop
group = rtloop.LoopGroup([rtloop.RTLoop("1ms", strict=False)], watchdog=50)
python = rtloop.PyLoop(lambda cycle: None, "10ms", strict=False)
latest = rtloop.Latest("f8")
def fails(call):
    try:
        call()
    except OSError as error:
        print(type(error).__name__, str(error).replace(chr(10), " | "))
for call in (group.start, python.start, lambda: rtloop.Recorder(rtloop.Ring("f8", 8), "x.npy"), latest.fileno):
    fails(call)
"""


@pytest.mark.parametrize("error", [errno.EPERM, errno.EINVAL, errno.EUCLEAN])
def test_a_thread_that_cannot_be_created_names_the_filter(script: Script, error: int) -> None:
    """As below an old profile of a container, which answers EPERM to a call that it does not know."""
    prefix = (sys.executable, LAUNCHER, "clone3", str(error))
    done = script(THREADS, prefix=prefix, env={"OPENBLAS_NUM_THREADS": "1"})
    if not done.stdout and not done.stderr:
        pytest.skip("this C library does not call clone3")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["SetupError", "SetupError", "RecorderError", "SetupError"], done
    for line in lines:
        assert "a seccomp filter forbids clone3" in line and "SystemCallFilter=clone3" in line
        assert "answers ENOSYS" in line, "the C library goes on with clone then"
    assert all(errno.errorcode[error] in line for line in lines[:2])


def test_a_filter_that_answers_enosys_to_clone3_refuses_nothing(script: Script) -> None:
    assert set(below(script, "clone3", errno.ENOSYS)["refused"]) <= {"core_dumps"}


@pytest.mark.parametrize("call", ["memfd_create", "ftruncate"])
def test_of_the_calls_that_share_memory_the_refused_one_is_named(script: Script, call: str) -> None:
    """A refused ftruncate was reported as memfd_create."""
    found = below(script, call, errno.EUCLEAN)
    detail, fix = found["refused"]["telemetry"]
    assert f"a seccomp filter forbids {call}" in detail and f"SystemCallFilter={call}" in fix
    assert f"a seccomp filter forbids {call}" in found["strict"]


ENDINGS = """
import json, warnings, rtloop
warnings.simplefilter("ignore")
def fails(call):
    try:
        return repr(call())
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
keywords = {"strict": False, "cpu": None}
loop = rtloop.RTLoop("1ms", **keywords)
group = rtloop.LoopGroup([rtloop.RTLoop("1ms", **keywords), rtloop.RTLoop("2ms", **keywords)], watchdog=50)
python = rtloop.PyLoop(lambda cycle: None, "10ms", **keywords)
found = [fails(lambda: loop.run(cycles=5)), fails(lambda: group.run("20ms")), fails(lambda: python.run(cycles=5))]
loop.start()
found += [fails(loop.join), fails(loop.join), fails(loop.stop), fails(lambda: loop.stats.cycles)]
group.start()
found += [fails(group.wait), fails(group.join), fails(group.stop)]
with rtloop.stop_on_signals():
    found.append(fails(lambda: loop.run(cycles=5)))
print(json.dumps(found))
"""


def test_whoever_waits_for_a_loop_that_may_not_sleep_is_told_why(script: Script) -> None:
    """The waits themselves were refused as well: a bare PermissionError of time.sleep."""
    done = script(ENDINGS, prefix=(sys.executable, LAUNCHER, "clock_nanosleep", str(errno.EPERM)))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [one for one in found if "PermissionError" in one] == []
    for i in (0, 1, 2, 3, 4, 8, 10):
        assert found[i].startswith("SetupError") and "a seccomp filter forbids clock_nanosleep" in found[i], found
    assert found[6] == "0" and found[7] == "True"


def test_an_unpinned_thread_keeps_its_mask_if_nobody_can_read_it(script: Script) -> None:
    done = script(
        """
        import rtloop, warnings
        warnings.simplefilter("ignore")
        stats = rtloop.RTLoop("1ms", cpu=None, strict=False).run(cycles=5)
        print(next(g.granted for g in stats.grants if g.name == "cpu"))
        """,
        prefix=("taskset", "-c", "0", sys.executable, LAUNCHER, "sched_getaffinity", "1"),
    )
    assert done.stdout.split() == ["0"], done.stderr


@pytest.mark.parametrize("call", ["sched_setattr", "sched_setscheduler", "prlimit64"])
def test_the_doctor_names_the_filter_and_not_a_line_of_a_fix(script: Script, call: str) -> None:
    done = script(
        """
        from rtloop.machine.doctor import trial_loop
        for check in trial_loop.examine(trial_loop.run_probe()):
            print(check.verdict, check.found)
        """,
        prefix=(sys.executable, LAUNCHER, call, "1"),
    )
    lines = done.stdout.splitlines()
    assert lines and lines[0] == "ok ran 20 cycles", done.stderr
    assert any(f"forbids {call}" in line for line in lines) == (call == "sched_setattr")


def test_a_signal_ends_loops_below_a_filter_on_eventfd2(script: Script) -> None:
    done = script(
        """
        import os, signal, threading, time, warnings, rtloop
        warnings.simplefilter("ignore")
        class Loud(rtloop.PyLoop):
            pass
        loop = Loud(lambda cycle: None, "10ms", strict=False)
        def send():
            while loop.stats.cycles < 5:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)
        threading.Thread(target=send).start()
        try:
            with loop:
                loop.join()
        finally:
            print(loop.state, flush=True)
        """,
        prefix=(sys.executable, LAUNCHER, "eventfd2", "1"),
    )
    assert done.returncode == -15, "the signal takes its course"
    assert "SIGTERM" in done.stderr, "the loop was ended first, and that is reported"
