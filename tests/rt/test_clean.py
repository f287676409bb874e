"""The real-time contract of a cycle: no page fault and exact accounting, whatever Python does meanwhile."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

from rtloop import LoopGroup

pytestmark = pytest.mark.rt

Script = Callable[..., "subprocess.CompletedProcess[str]"]


def test_no_page_fault_in_10000_cycles_while_python_allocates(probes: ModuleType) -> None:
    stop = threading.Event()

    def hog() -> None:
        while not stop.is_set():
            blocks = [bytearray(1 << 20) for _ in range(8)]
            np.ones(1 << 18)
            del blocks

    thread = threading.Thread(target=hog)
    thread.start()
    try:
        loop = probes.Probe("300us")
        stats = loop.run(cycles=10_000)
    finally:
        stop.set()
        thread.join()
    assert all(grant.ok for grant in loop.grants)
    assert (stats.page_faults[0], stats.page_faults[1]) == (0, 0)
    assert stats.cycles == 10_000
    assert stats.latency.count == 10_000 - stats.warmup


@pytest.mark.usefixtures("tracefs")
def test_no_thread_of_lower_priority_wakes_a_loop_or_a_watchdog(
    probes: ModuleType, support: Callable[[str], ModuleType]
) -> None:
    """Not even the one that starts them, by the rules of the kernel's monitor `rtapp`."""
    judges = support("judges")
    if not judges.Trace.available():
        pytest.skip("this kernel lacks trace events, or /sys/kernel/tracing is not writable")
    trace = judges.Trace()
    try:
        loops = [probes.Probe("5ms", name="one"), probes.Probe("10ms", name="two")]
        with LoopGroup(loops, watchdog="1s"):
            while any(loop.stats.cycles < 5 for loop in loops):
                time.sleep(0.01)
            tids = {int(name) for name in os.listdir("/proc/self/task")}
        assert {loop.tid for loop in loops} < tids and not trace.of(tids)
    finally:
        trace.close()


def test_the_counter_of_faults_counts(script: Script) -> None:
    """The same test sees a planted fault: a step that touches fresh stack pages which nothing has locked."""
    done = script("""
    import ctypes, probes
    loop = probes.Deep("1ms", lock_memory="off", stack_size="512K")
    # Give the stack's pages back behind the loop's back, once it has been painted.
    libc = ctypes.CDLL(None)
    loop.pages, loop.at = 100, 200
    loop.start()
    import time; time.sleep(0.05)
    for line in open("/proc/self/smaps"):
        if "-" in line.split()[0]:
            start, end = (int(x, 16) for x in line.split()[0].split("-"))
        elif line.startswith("VmFlags:") and "wf" in line.split() and 400 << 10 <= end - start <= 512 << 10:
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(400 << 10), 4)  # the stack, which a child finds wiped
    time.sleep(0.4)
    loop.stop()
    print(loop.stats.page_faults[0] >= 50)
    """)
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.parametrize("overrun", ["skip", "catch-up", "shift"])
def test_conservation_under_every_policy_with_a_randomly_slow_step(probes: ModuleType, overrun: str) -> None:
    loop = probes.Probe("500us", overrun=overrun, max_burst=4, warmup=0)
    loop.jitter_ns = 1_500_000
    with loop:
        end = time.monotonic() + 1.0
        while time.monotonic() < end:  # also in every snapshot on the way
            stats = loop.stats
            if stats.cycles > 1 and overrun != "shift":
                span = int(stats.records["release"][-1] - stats.records["release"][0])
                assert span % 500_000 == 0
                assert stats.cycles <= span // 500_000 + 1 <= stats.cycles + stats.missed
    stats = loop.stats
    releases = stats.records["release"]
    last_missed = stats.missed - loop.missed_in_step
    if overrun == "shift":
        assert stats.missed == 0
        assert np.all(np.diff(releases) >= 500_000)
    else:
        assert stats.cycles + stats.missed == (releases[-1] - releases[0]) // 500_000 + 1 + last_missed
    assert stats.cycles == loop.steps == len(releases)


def test_conservation_through_SIGSTOP_and_SIGCONT(script: Script) -> None:
    done = script("""
    import os, subprocess, time, probes
    loop = probes.Probe("1ms", warmup=0)
    with loop:
        time.sleep(0.1)
        for pause in ("0.05", "0.3", "1.2"):
            subprocess.Popen(["sh", "-c", f"kill -STOP {os.getpid()}; sleep {pause}; kill -CONT {os.getpid()}"])
            time.sleep(float(pause) + 0.2)
    s = loop.stats
    r = s.records["release"]
    print(s.cycles + loop.missed_in_step == (r[-1] - r[0]) // 1_000_000 + 1, s.missed > 1400, s.stalls)
    """)
    assert done.stdout.split() == ["True", "True", "1"], done.stdout + done.stderr


@pytest.mark.parametrize("locked", ["all", "own", "off"])
def test_a_fork_costs_the_loop_next_to_no_fault_of_its_own_memory(script: Script, locked: str) -> None:
    done = script(f"""
    import os, time, warnings, probes
    warnings.simplefilter("ignore")
    ballast = bytearray(64 << 20)
    with probes.Probe("500us", lock_memory={locked!r}) as loop:
        time.sleep(0.1)
        for _ in range(5):
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
            time.sleep(0.05)
        stats = loop.stats
    # The probe's own fields live on Python's heap: a page or two per fork; and the thread's own block on its stack.
    print(stats.forks, stats.page_faults[0] <= 3 * 5, loop.state, stats.cycles + stats.missed > 500)
    """)
    assert done.stdout.split() == ["5", "True", "stopped", "True"], done.stdout + done.stderr


def test_spin_auto_starts_within_a_microsecond_of_the_release(probes: ModuleType) -> None:
    """No absolute latency is judged: the median beside that of the same loop without spinning, in the same minute."""
    sleeping = probes.Probe("1ms").run(cycles=1000).latency
    spinning = probes.Probe("1ms", spin="auto").run(cycles=1000).latency
    assert spinning.percentile(50) <= sleeping.percentile(50)
    assert spinning.min >= 0
