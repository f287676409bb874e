"""Grants, compared with the kernel's state as read without rtloop."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import rtloop
from rtloop import RTLoop

pytestmark = pytest.mark.rt

Script = Callable[..., "subprocess.CompletedProcess[str]"]


def status(tid: int | str = "self") -> dict[str, str]:
    lines = Path(f"/proc/self/task/{tid}/status" if tid != "self" else "/proc/self/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def locked_bytes() -> int:
    return int(status()["VmLck"].split()[0]) * 1024


def test_the_default_loop_is_granted_everything(probes: ModuleType) -> None:
    with probes.Probe("1ms") as loop:
        time.sleep(0.05)
        assert all(grant.ok for grant in loop.grants), [str(g) for g in loop.grants if not g.ok]
        assert {"memlock_limit", "memory_lock", "telemetry", "state", "stack", "dma_latency", "policy"} <= {
            grant.name for grant in loop.grants
        }
        assert os.sched_getscheduler(loop.tid) == os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
        assert os.sched_getparam(loop.tid).sched_priority == 80
        assert locked_bytes() > 0.9 * int(status()["VmSize"].split()[0]) * 1024
    assert locked_bytes() == 0


@pytest.mark.parametrize("policy", ["fifo", "rr"])
def test_the_policy_is_the_one_asked_for(probes: ModuleType, policy: str) -> None:
    number = {"fifo": os.SCHED_FIFO, "rr": os.SCHED_RR}[policy]
    with probes.Probe("1ms", policy=policy, priority=42) as loop:
        time.sleep(0.05)
        assert os.sched_getscheduler(loop.tid) == number | os.SCHED_RESET_ON_FORK
        assert os.sched_getparam(loop.tid).sched_priority == 42


def test_a_deadline_loop_runs_under_SCHED_DEADLINE(probes: ModuleType) -> None:
    loop = probes.Probe("2ms", policy="deadline", runtime="300us", deadline="1ms")
    with loop:
        time.sleep(0.1)
        assert os.sched_getscheduler(loop.tid) & ~os.SCHED_RESET_ON_FORK == 6
    grant = next(g for g in loop.grants if g.name == "policy")
    assert grant.ok and grant.granted == "deadline 300 us/1 ms/2 ms"
    assert loop.stats.cycles > 30


def test_nothing_is_inherited_from_a_real_time_creator(script: Script) -> None:
    done = script("""
    import os, time, probes
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
    with probes.Probe("1ms", policy="other", lock_memory="off") as loop:
        while loop.stats.cycles == 0:
            time.sleep(0.01)
        print(os.sched_getscheduler(loop.tid) & ~os.SCHED_RESET_ON_FORK)
    """)
    assert done.stdout.strip() == "0", done.stderr


def test_a_cpu_is_granted_and_read_back(probes: ModuleType) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    with probes.Probe("1ms", cpu=allowed[-1]) as loop:
        time.sleep(0.05)
        assert os.sched_getaffinity(loop.tid) == {allowed[-1]}
    assert next(g for g in loop.grants if g.name == "cpu").ok


def test_a_cpu_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(rtloop.SetupError, match=r"cpu: asked for 4095.*allowed here: \d") as caught:
        RTLoop("1ms", cpu=4095).start()
    assert "cpuset" in str(caught.value)
    with pytest.raises(rtloop.SetupError, match="cpu"):
        RTLoop("1ms", cpu=[0, 4095]).start()
    assert locked_bytes() == 0


def test_the_idle_latency_is_held_while_the_loop_runs() -> None:
    """Others may ask for less meanwhile: the device tells an upper bound, and the open files tell who holds it."""

    def is_open() -> bool:
        links = [Path(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
        return any(os.path.lexists(link) and os.readlink(link) == "/dev/cpu_dma_latency" for link in links)

    assert not is_open()
    with RTLoop("1ms", dma_latency="20us"):
        with open("/dev/cpu_dma_latency", "rb") as device:
            assert int.from_bytes(device.read(4), "little", signed=True) <= 20
        assert is_open()
    assert not is_open()
    with RTLoop("1ms", dma_latency=None):
        assert not is_open()


def test_a_forked_child_does_not_hold_the_idle_latency(script: Script) -> None:
    """Seen by the open files, because the device itself tells what all programs of the machine ask for."""
    done = script("""
    import os, time, warnings, rtloop
    warnings.simplefilter("ignore")
    def held(pid):
        files = [f"/proc/{pid}/fd/{number}" for number in os.listdir(f"/proc/{pid}/fd")]
        return sum(os.path.lexists(file) and os.readlink(file) == "/dev/cpu_dma_latency" for file in files)
    loop = rtloop.RTLoop("1ms", dma_latency=0)
    loop.start()
    forked, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(tell, b"!")
        time.sleep(60)
        os._exit(0)
    os.read(forked, 1)
    print(held(os.getpid()), held(pid))
    loop.stop()
    print(held(os.getpid()), held(pid))
    os.kill(pid, 9)
    """)
    assert done.stdout == "1 0\n0 0\n", done.stderr


def test_an_ordinary_loop_has_no_timer_slack(probes: ModuleType) -> None:
    with probes.Probe("1ms", policy="other") as loop:
        time.sleep(0.05)
        assert Path(f"/proc/{loop.tid}/timerslack_ns").read_text().strip() == "1"


def test_denormals_are_flushed_on_the_loops_thread_only(probes: ModuleType) -> None:
    loop = probes.Denormal("1ms", flush_denormals=True)
    loop.run()
    assert loop.result == 0.0
    assert float(np.float64(2.2250738585072014e-308) / 4) > 0, "the calling thread keeps its denormals"
    loop = probes.Denormal("1ms")
    loop.run()
    assert loop.result > 0.0


def test_core_dumps_are_off_while_the_loop_runs(script: Script) -> None:
    done = script("""
    import resource, rtloop
    resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
    get = lambda: resource.getrlimit(resource.RLIMIT_CORE)[0]
    before = get()
    a, b = rtloop.RTLoop("1ms", core_dumps=False), rtloop.RTLoop("1ms", core_dumps=False)
    a.start(); b.start(); a.stop()
    during = get()
    b.stop()
    print(during, get() == before)
    """)
    assert done.stdout.split() == ["0", "True"], done.stderr


def test_own_locks_little_and_onfault_locks_what_is_touched(script: Script) -> None:
    code = """
    import rtloop, threading, time
    def vm(name):
        return int([l for l in open("/proc/self/status") if l.startswith(name)][0].split()[1]) * 1024
    rss = vm("VmRSS")
    with rtloop.RTLoop("1ms", lock_memory=MODE) as loop:
        time.sleep(0.05)
        stats = loop.stats
        print(vm("VmLck"), vm("VmRSS") - rss)
    print(vm("VmLck"), stats.page_faults[0] + stats.page_faults[1])
    """
    own = script(code.replace("MODE", "'own'")).stdout.split()
    onfault = script(code.replace("MODE", "'onfault'")).stdout.split()
    every = script(code.replace("MODE", "'all'")).stdout.split()
    assert 0 < int(own[0]) < 8 << 20, "own: under 8 MB"
    assert int(onfault[0]) > 20 << 20, "onfault: all addresses"
    assert int(onfault[1]) < int(every[1]), "but less memory than all"
    assert own[2:] == onfault[2:] == every[2:] == ["0", "0"], "all unlocked at the end, and no fault"


def test_locks_are_counted_over_all_loops(probes: ModuleType) -> None:
    a, b, c = RTLoop("1ms"), RTLoop("1ms", lock_memory="own"), RTLoop("1ms", lock_memory="onfault")
    with a:
        everything = locked_bytes()
        with b, c:
            pass
        assert locked_bytes() > everything // 2, "the end of another loop unlocks nothing"
        b.start()
    own = locked_bytes()
    assert 0 < own < everything // 4, "the last lock of everything went, and the lock of b's own memory stayed"
    b.stop()
    assert locked_bytes() == 0


def test_the_former_lock_state_comes_back(script: Script) -> None:
    done = script("""
    import ctypes, mmap, rtloop
    libc = ctypes.CDLL(None, use_errno=True)
    def locked():
        return int([l for l in open("/proc/self/status") if l.startswith("VmLck")][0].split()[1]) * 1024
    held = mmap.mmap(-1, 1 << 20)
    address = ctypes.addressof(ctypes.c_char.from_buffer(held))
    assert libc.mlock(ctypes.c_void_p(address), 1 << 20) == 0
    before = locked()
    with rtloop.RTLoop("1ms"):
        during = locked()
    print(during > before, locked() == before == 1 << 20)
    libc.mlockall(2)  # MCL_FUTURE, by somebody else
    with rtloop.RTLoop("1ms"):
        pass
    more = mmap.mmap(-1, 1 << 20)
    print(locked() >= 2 << 20)
    """)
    assert done.stdout.split() == ["True", "True", "True"], done.stderr


def test_the_telemetry_cannot_be_shrunk_nor_written_by_a_peer(probes: ModuleType) -> None:
    import fcntl
    import mmap

    with probes.Probe("1ms") as loop:
        links = [Path(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
        path = next(p for p in links if p.exists() and f"memfd:rtloop:{loop.name}" in os.readlink(p))
        with open(path, "r+b") as file:
            assert fcntl.fcntl(file, 1034) & 0x7 == 0x7  # F_GET_SEALS: seal, shrink, grow
            with pytest.raises(PermissionError):
                os.ftruncate(file.fileno(), 0)
            with pytest.raises(PermissionError):
                mmap.mmap(file.fileno(), 0)
            reader = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
            assert reader[:8] == b"RTLTEL01"
            reader.close()
        time.sleep(0.02)
    assert loop.state == "stopped"


def test_nothing_is_left_behind_after_a_stop(probes: ModuleType, account: Callable[[], dict[str, Any]]) -> None:
    probes.Probe("1ms").run(cycles=5)
    before = account()
    for _ in range(20):
        probes.Probe("1ms", core_dumps=False).run(cycles=3)
    assert account() == before


def test_a_malloc_that_is_tuned_says_so(script: Script) -> None:
    done = script("""
    import rtloop
    loop = rtloop.RTLoop("1ms", tune_malloc=True)
    loop.run(cycles=3)
    print([g.granted for g in loop.grants if g.name == "malloc"])
    """)
    assert done.stdout.strip() == "['tuned']", done.stderr


def test_a_loop_that_never_sleeps_is_refused_while_the_kernel_throttles() -> None:
    runtime, period = (int(Path(f"/proc/sys/kernel/sched_rt_{name}_us").read_text()) for name in ("runtime", "period"))
    if runtime < 0 or runtime > 0.97 * period:  # the default of newer kernels is the whole period
        pytest.skip(f"this machine does not throttle real-time threads (sched_rt_runtime_us is {runtime} of {period})")
    with pytest.raises(rtloop.SetupError, match="sched_rt_runtime_us"):
        RTLoop("1ms", spin="970us").start()


def test_a_finite_RLIMIT_RTTIME_is_seen(script: Script) -> None:
    done = script("""
    import resource, rtloop
    hard = resource.getrlimit(15)[1]
    resource.setrlimit(15, (500, hard))
    try:
        rtloop.RTLoop("1ms").start()
    except rtloop.SetupError as error:
        print("RLIMIT_RTTIME" in str(error), "LimitRTTIME" in str(error))
    resource.setrlimit(15, (200_000, hard))
    print(rtloop.RTLoop("1ms").run(cycles=5).cycles)
    """)
    assert done.stdout.split() == ["True", "True", "5"], done.stderr


def test_a_process_that_is_stopped_many_times_starts_no_cycle_early(script: Script) -> None:
    """That no signal ends a sleep for good is seen in tests/native/test_wait.c: here the kernel restarts it."""
    done = script("""
    import os, subprocess, time, probes
    with probes.Probe("20ms", warmup=0) as loop:
        time.sleep(0.05)
        again = f"kill -STOP {os.getpid()}; kill -CONT {os.getpid()};"
        subprocess.run(["sh", "-c", again * 10])
        time.sleep(0.1)
    print(loop.late_starts, loop.state, loop.stats.latency.min >= 0)
    """)
    assert done.stdout.split() == ["0", "stopped", "True"], done.stderr


def test_a_process_started_from_a_real_time_loop_is_ordinary(probes: ModuleType) -> None:
    with probes.Probe("1ms"):
        code = "import os; print(os.sched_getscheduler(0), len(os.sched_getaffinity(0)))"
        text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(rf"0 {len(os.sched_getaffinity(0))}\n", text)
