"""Tests of what loops need from a kernel, on a machine that may be a hundred times slower than a real one.

.ci/platforms.py runs it in QEMU, without a compiler. So loops have 20 cycles a second, and only counts are judged.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import rtloop
from rtloop.system.cpu import parse_cpu_list

pytestmark = pytest.mark.rt

#: Longest time of a command, in seconds.
LIMIT_S = 900
Script = Callable[..., "subprocess.CompletedProcess[str]"]


def has_rt_kernel() -> bool:
    return "PREEMPT_RT" in os.uname().version


def isolated() -> tuple[int, ...]:
    return parse_cpu_list(Path("/sys/devices/system/cpu/isolated").read_text().strip())


def rtloop_command(*words: str) -> str:
    command = [sys.executable, "-P", "-m", "rtloop", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert not done.stderr and done.returncode in (0, 1), done
    return done.stdout


def test_the_doctor_knows_the_kernel_and_its_loop_runs() -> None:
    report = json.loads(rtloop_command("doctor", "--json"))
    checks = {f"{check['topic']}: {check['name']}": check for check in report["checks"]}
    for name, check in checks.items():
        print(f"{check['verdict']:<8} {name}: {check['found']}")
    assert report["host"]["preempt_rt"] is has_rt_kernel()
    assert ("PREEMPT_RT" in checks["kernel: preemption"]["found"]) is has_rt_kernel()
    text = Path("/sys/devices/system/cpu/isolated").read_text().strip()
    assert isolated() and checks["cpus: isolated CPUs"]["found"].startswith(f"{text} of 0-{max(isolated())}")
    probe = checks["probe: a real loop"]
    if "did not end within" in probe["found"]:
        pytest.skip(f"too slow for the doctor's own loop; the checks before it passed: {probe['found']}")
    assert probe["verdict"] == "ok", probe
    assert checks["probe: real-time thread"]["verdict"] == "ok", checks["probe: real-time thread"]


def test_a_guarded_loop_gets_all_that_it_asks_for(probes: ModuleType) -> None:
    loop = probes.Probe("50ms", guard="count", name="guarded")
    with loop:
        while loop.stats.cycles < 20:
            time.sleep(0.1)
        assert os.sched_getscheduler(loop.tid) == os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
        assert os.sched_getparam(loop.tid).sched_priority == 80
        assert os.sched_getaffinity(loop.tid) <= {*isolated()}, "isolated CPUs"
        refused = {grant.name: str(grant) for grant in loop.grants if not grant.ok}
        assert set(refused) <= {"guard_system_calls", "guard_allocations"}, refused
        for grant in loop.grants:
            print(grant)
    stats = loop.stats
    assert stats.guard["page_faults"] == {"minor": 0, "major": 0} and stats.page_faults == (0, 0)
    assert loop.index_errors == 0 and stats.cycles == loop.steps


def test_guards_say_whether_this_kernel_lets_them_see_system_calls(probes: ModuleType) -> None:
    """Syscall User Dispatch came with Linux 5.11 for x86-64; other kernels have it or lack it by their own plan."""
    loop = probes.Probe("50ms", guard="count")
    stats = loop.run(cycles=5)
    grant = next(grant for grant in stats.grants if grant.name == "guard_system_calls")
    is_counted = grant.granted == "counted"
    assert is_counted or "no Syscall User Dispatch (Linux 5.11 on x86-64)" in grant.detail, grant
    if os.uname().machine == "x86_64":
        release = tuple(int(number) for number in re.findall(r"\d+", os.uname().release)[:2])
        assert is_counted is (release >= (5, 11)), (release, grant)


def test_a_deadline_loop_runs_under_SCHED_DEADLINE(probes: ModuleType) -> None:
    loop = probes.Probe("100ms", policy="deadline", runtime="30ms", deadline="90ms", cpu=None)
    with loop:
        while loop.stats.cycles < 5:
            time.sleep(0.1)
        assert os.sched_getscheduler(loop.tid) & ~os.SCHED_RESET_ON_FORK == 6
    grant = next(grant for grant in loop.grants if grant.name == "policy")
    assert grant.ok and grant.granted == "deadline 30 ms/90 ms/100 ms", grant


def test_the_loops_of_a_group_share_one_grid_at_their_priorities(probes: ModuleType) -> None:
    loops = [probes.Probe("50ms", name="fast"), probes.Probe("100ms", name="slow", phase="10ms")]
    group = rtloop.LoopGroup(loops)
    with group:
        while any(loop.stats.cycles < 5 for loop in loops):
            time.sleep(0.1)
        priorities = [os.sched_getparam(loop.tid).sched_priority for loop in loops]
        assert priorities[0] > priorities[1] > 0
    for loop, period, phase in zip(loops, (50_000_000, 100_000_000), (0, 10_000_000), strict=True):
        assert set((loop.stats.records["release"] - group.origin_ns) % period) == {phase}


@pytest.mark.skipif(len(isolated()) < 2, reason="needs two isolated CPUs")
def test_two_loops_have_an_isolated_cpu_each(probes: ModuleType) -> None:
    loops = [probes.Probe("50ms", name="one"), probes.Probe("50ms", name="two")]
    with rtloop.LoopGroup(loops, cpus=list(isolated()[:2])):
        while any(loop.stats.cycles < 20 for loop in loops):
            time.sleep(0.1)
        cpus = [os.sched_getaffinity(loop.tid) for loop in loops]
    assert cpus == [{cpu} for cpu in isolated()[:2]]
    for loop in loops:
        stats = loop.stats
        assert loop.index_errors == 0 and stats.cycles == loop.steps and stats.context_switches[1] == 0, stats


def test_another_process_sees_the_loop(probes: ModuleType) -> None:
    with probes.Probe("50ms", name="seen from outside") as loop:
        document = json.loads(rtloop_command("top", "--json", "--name", loop.name))
        (row,) = document["loops"]
        assert (row["pid"], row["policy"]) == (os.getpid(), "fifo 80") and row["stats"]["cycles"] > 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_after_leave_has_run(script: Script, number: signal.Signals) -> None:
    done = script(
        f"""
        import os, time
        from probes import Probe
        loop = Probe("50ms")
        loop.says_leave = True
        with loop:
            while loop.stats.cycles < 5:
                time.sleep(0.1)
            os.kill(os.getpid(), {int(number)})
            time.sleep({LIMIT_S})
        """,
        timeout=LIMIT_S,
    )
    said = done.stderr.splitlines()
    assert said.count("leaving") == said.count("off") == 1, done
    assert done.returncode == -number or (number == signal.SIGINT and done.returncode in (1, 130)), done


def test_the_vdso_has_the_function_that_loops_read_their_clock_with() -> None:
    """Under the name that vdso.h looks up. Without it, each read of the clock is slower, or even a system call."""
    name, version = {
        "x86_64": (b"__vdso_clock_gettime", b"LINUX_2.6"),
        "aarch64": (b"__kernel_clock_gettime", b"LINUX_2.6.39"),
    }[os.uname().machine]
    dlvsym = ctypes.CDLL(None).dlvsym
    dlvsym.restype, dlvsym.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p)
    assert dlvsym(ctypes.CDLL("linux-vdso.so.1")._handle, name, version)
