"""The loop's thread: its CPUs, its signals, and its isolation from Python, on any machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from ctypes import PyDLL
from types import ModuleType
from typing import Any

import pytest
import rtloop_test_processes as processes

from rtloop.system.cpu import isolated_cpus

Script = Callable[..., "subprocess.CompletedProcess[str]"]

FAULTS = {"SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGTRAP", "SIGSYS", "SIGABRT"}
CANNOT_BE_BLOCKED = {"SIGKILL", "SIGSTOP"}

PROLOGUE = (
    f"import runpy; thread_names = runpy.run_path({processes.__file__!r})['thread_names']"
    + """
import os, sys, threading, time, warnings
import rtloop, probes
warnings.simplefilter("ignore")
def running(**settings):
    loop = probes.Probe("1ms", **{"policy": "other", "lock_memory": "off", "dma_latency": None, **settings})
    loop.start()
    while not loop.steps:
        time.sleep(0.001)
    return loop
def helpers():
    return [tid for tid, name in thread_names().items() if name.startswith("rtloop-")]
"""
)


def run(script: Script, code: str, **options: Any) -> list[str]:
    lines = [line[4:] if line.startswith("    ") else line for line in code.splitlines()]
    done = script(PROLOGUE + "\n".join(lines), **options)
    assert done.returncode == 0, done.stderr
    return str(done.stdout).split()


needs_two_cpus = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")


@needs_two_cpus
@pytest.mark.parametrize("cpu", ['"auto"', "None"])
def test_looking_for_all_cpus_leaves_the_affinity_as_it_was(script: Script, cpu: str) -> None:
    """The loop asks the kernel which CPUs there are by trying them all, and takes back what it tried."""
    if cpu == '"auto"' and isolated_cpus():
        pytest.skip("this machine has isolated CPUs, which a loop takes by itself")
    said = run(script, f"""
    one = {{min(os.sched_getaffinity(0))}}
    os.sched_setaffinity(0, one)
    loop = running(cpu={cpu})
    print(os.sched_getaffinity(0) == one, os.sched_getaffinity(loop.tid) == one)
    """)  # fmt: skip
    assert said == ["True", "True"]


@needs_two_cpus
def test_a_refused_cpu_leaves_the_affinity_as_it_was(script: Script) -> None:
    said = run(script, """
    one = {min(os.sched_getaffinity(0))}
    os.sched_setaffinity(0, one)
    loop = running(cpu=4095, strict=False)
    print(os.sched_getaffinity(0) == one, os.sched_getaffinity(loop.tid) == one)
    """)  # fmt: skip
    assert said == ["True", "True"]


@needs_two_cpus
def test_a_loop_inherits_from_who_starts_it_not_from_who_started_the_first(script: Script) -> None:
    said = run(script, """
    before = os.sched_getaffinity(0)
    running(cpu=None).stop()
    one = {max(before)}
    os.sched_setaffinity(0, one)
    loop = running(cpu=None)
    print(os.sched_getaffinity(loop.tid) == one)
    os.sched_setaffinity(0, before)
    loop = running(cpu=None)
    print(os.sched_getaffinity(loop.tid) == before)
    """)  # fmt: skip
    assert said == ["True", "True"]


@needs_two_cpus
def test_the_helper_thread_is_not_pinned_with_its_loop(script: Script) -> None:
    said = run(script, """
    before = os.sched_getaffinity(0)
    loop = running(cpu=max(before))
    print(len(helpers()), all(os.sched_getaffinity(tid) == before for tid in helpers()))
    """)  # fmt: skip
    assert said == ["2", "True"], "the keeper and the thread of the signals"


@pytest.mark.rt
def test_the_helper_thread_of_a_real_time_caller_is_ordinary(script: Script) -> None:
    said = run(script, """
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
    loop = running(policy="fifo", priority=60)
    deadline = time.monotonic() + 10
    while any(map(os.sched_getscheduler, helpers())) and time.monotonic() < deadline: time.sleep(0.001)
    print(*map(os.sched_getscheduler, helpers()), os.sched_getscheduler(0))
    """)  # fmt: skip
    assert said == ["0", "0", str(os.SCHED_FIFO)]


def test_every_signal_but_the_synchronous_faults_is_blocked_on_the_thread(
    probes: ModuleType, ordinary: dict[str, Any]
) -> None:
    """And on the keeper, which makes it; the mask of the thread that asks for it stays what it was."""

    def blocked_on(tid: int | str) -> int:
        with open(f"/proc/self/task/{tid}/status") as file:
            return next(int(line.split()[1], 16) for line in file if line.startswith("SigBlk:"))

    def name_of(tid: str) -> str:
        try:
            with open(f"/proc/self/task/{tid}/comm") as file:
                return file.read().strip()
        except OSError:  # it has ended
            return ""

    before = blocked_on(os.getpid())
    with probes.Probe("1ms", **ordinary) as loop:
        deadline = time.monotonic() + 10
        while not loop.steps and time.monotonic() < deadline:
            time.sleep(0.001)
        blocked = blocked_on(loop.tid)
        keepers = [tid for tid in os.listdir("/proc/self/task") if name_of(tid) == "rtloop-keeper"]
        assert blocked_on(os.getpid()) == before
        assert len(keepers) == 1 and blocked_on(keepers[0]) >> (signal.SIGTERM - 1) & 1
    names = {s.name: bool(blocked >> (s.value - 1) & 1) for s in signal.Signals if not s.name.startswith("SIGRT")}
    assert {"SIGHUP", "SIGINT", "SIGPIPE", "SIGTERM", "SIGALRM", "SIGUSR1", "SIGXCPU"} <= names.keys()
    assert {name for name, is_blocked in names.items() if not is_blocked} == FAULTS | CANNOT_BE_BLOCKED


def test_the_thread_is_unknown_to_python(script: Script) -> None:
    """An interpreter that ends waits for its own threads, and hangs those that ask for the GIL: this one is neither."""
    said = run(script, """
    from ctypes import c_void_p, pythonapi as api
    for name in ("PyInterpreterState_Get", "PyInterpreterState_ThreadHead", "PyThreadState_Next"):
        getattr(api, name).restype = c_void_p
    def known():
        state, count = api.PyInterpreterState_ThreadHead(c_void_p(api.PyInterpreterState_Get())), 0
        while state:
            state, count = api.PyThreadState_Next(c_void_p(state)), count + 1
        return count
    loop = running()
    end, most, before = time.monotonic() + 0.1, 0, loop.steps
    while time.monotonic() < end:
        most = max(most, known())
    print(most == len(["main"] + helpers()), loop.steps > before)
    print(loop.tid in {thread.native_id for thread in threading.enumerate()})
    """)  # fmt: skip
    assert said == ["True", "True", "False"]


@pytest.mark.parametrize("kind", ["Probe", "Gilded"])
def test_the_loop_runs_while_python_holds_the_gil(probes: ModuleType, ordinary: dict[str, Any], kind: str) -> None:
    """Half a second in a C function that keeps the GIL; the same test sees a step that takes it, if there is one."""
    has_gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    hold = PyDLL(None).usleep
    with getattr(probes, kind)("1ms", warmup=0, **ordinary) as loop:
        deadline = time.monotonic() + 10
        while not loop.steps and time.monotonic() < deadline:
            time.sleep(0.001)
        before = loop.steps
        hold(500_000)
        ran = loop.steps - before
    assert ran <= 20 if kind == "Gilded" and has_gil else ran > 100
