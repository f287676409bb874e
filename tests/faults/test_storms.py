"""Storms about a running loop: signals, forks, imports, stops, full disks, dying readers. It keeps its account.

No latency is judged: what holds is conservation (every release of the grid is run or missed), and that nothing stays.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Script = Callable[..., "subprocess.CompletedProcess[str]"]

PROLOGUE = """
import gc, os, signal, subprocess, sys, threading, time, warnings
import rtloop, probes
warnings.simplefilter("ignore")
ORDINARY = {"policy": "other", "lock_memory": "off", "dma_latency": None}
def make(period="1ms", **settings):
    return probes.Probe(period, **{**ORDINARY, "warmup": 0, "record": 1 << 16, **settings})
def held():
    # A thread that has been joined may still be listed for a moment.
    deadline = time.monotonic() + 5
    while len(os.listdir("/proc/self/task")) > 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    maps = open("/proc/self/maps").read()
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), maps.count("memfd:rtloop")
def conserves(loop):
    stats = loop.stats
    release = stats.records["release"]
    assert len(release) == stats.cycles == loop.steps, (len(release), stats.cycles, loop.steps)
    elapsed = (release[-1] - release[0]) // stats.settings["period_ns"] + 1
    # What the last cycle made late is missed too, though no later cycle tells of it.
    return stats.cycles + loop.missed_in_step == elapsed and stats.missed >= loop.missed_in_step
def wait_for(loop, cycles):
    deadline = time.monotonic() + 40
    while loop.stats.cycles < cycles:
        assert loop.state == "running" and time.monotonic() < deadline, (loop.state, loop.stats.cycles)
        time.sleep(0.01)
make().run(cycles=2)
"""


def run(script: Script, code: str, **options: object) -> str:
    lines = [line[4:] if line.startswith("    ") else line for line in code.splitlines()]
    # NumPy's own threads would be counted, too, and they end at a fork.
    done = script(PROLOGUE + "\n".join(lines), env={"OPENBLAS_NUM_THREADS": "1"}, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout).strip()


def test_signals_at_the_loops_own_thread_end_no_sleep_early(script: Script) -> None:
    """SIGSTOP and SIGCONT, and a synchronous fault's signal sent by hand, interrupt clock_nanosleep (EINTR)."""
    assert run(script, """
    import ctypes
    signal.signal(signal.SIGTRAP, lambda *_: None)
    libc = ctypes.CDLL(None)
    loop = make("20ms")
    with loop:
        wait_for(loop, 1)
        sent = 0
        while loop.stats.cycles < 40 and loop.state == "running":
            sent += libc.syscall(234, os.getpid(), loop.tid, signal.SIGTRAP) == 0 if os.uname().machine == "x86_64" \\
                else libc.tgkill(os.getpid(), loop.tid, signal.SIGTRAP) == 0
            time.sleep(0.0005)
    print(conserves(loop), sent > 100, loop.late_starts, loop.state)
    """) == "True True 0 stopped"  # fmt: skip


def test_a_thousand_signals_a_second_for_the_process(script: Script) -> None:
    assert run(script, """
    seen = []
    signal.signal(signal.SIGALRM, lambda number, frame: seen.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    loop = make()
    with loop:
        wait_for(loop, 1000)
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(conserves(loop), len(seen) > 50, loop.late_starts, loop.state)
    """) == "True True 0 stopped"  # fmt: skip


def test_stops_and_continues_in_quick_succession(script: Script) -> None:
    assert run(script, """
    loop = make()
    with loop:
        wait_for(loop, 10)
        storm = subprocess.Popen(["sh", "-c",
            f"for i in 1 2 3 4 5 6 7 8 9 10; do kill -STOP {os.getpid()}; sleep 0.02; kill -CONT {os.getpid()}; "
            "sleep 0.01; done"])
        storm.wait()
        wait_for(loop, loop.stats.cycles + 10)
    print(conserves(loop), loop.stats.missed > 50, loop.late_starts, loop.state)
    """) == "True True 0 stopped"  # fmt: skip


def test_a_storm_of_forks(script: Script) -> None:
    assert run(script, """
    loop = make()
    before = held()
    with loop:
        for _ in range(100):
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
        wait_for(loop, 20)
        forks = loop.stats.forks
    print(conserves(loop), forks, held() == before, loop.state)
    """) == "True 100 True stopped"  # fmt: skip


def test_ten_threads_stop_at_once(script: Script) -> None:
    assert run(script, """
    before = held()
    loop = make()
    for _ in range(20):
        loop.start()
        wait_for(loop, 2)
        gate, failed = threading.Barrier(10), []
        def stop():
            gate.wait()
            try:
                loop.stop()
            except BaseException as error:
                failed.append(error)
        threads = [threading.Thread(target=stop) for _ in range(10)]
        [t.start() for t in threads]; [t.join(20) for t in threads]
        assert not failed and loop.state == "stopped" and loop.leaves, (failed, loop.state)
        assert conserves(loop)
    print(loop.leaves, held() == before)
    """) == "20 True"  # fmt: skip


def test_a_thousand_starts_and_stops(script: Script) -> None:
    """Of one loop and of loops that come and go: no file, thread or mapping more, nor more locked memory."""
    assert run(script, """
    def locked():
        return [line for line in open("/proc/self/status") if line.startswith("VmLck")]
    loop = make(record=16, stack_size="64K")
    loop.start(); loop.stop()
    before = held(), locked(), len(open("/proc/self/maps").readlines())
    for number in range(1000):
        loop.start(); loop.stop()
        if number % 10 == 0:
            other = make(record=16, stack_size="64K"); other.start(); other.stop(); del other
    after = held(), locked(), len(open("/proc/self/maps").readlines())
    print(before[:2] == after[:2], after[2] <= before[2] + 8, loop.leaves)
    """) == "True True 1001"  # fmt: skip


def test_a_storm_of_garbage_and_imports(script: Script) -> None:
    assert run(script, """
    import importlib
    loop = make()
    with loop:
        wait_for(loop, 5)
        end = loop.stats.cycles + 300
        while loop.stats.cycles < end:
            ring = []
            for _ in range(2000):
                ring.append([ring])
            del ring
            gc.collect()
            for name in ("decimal", "fractions", "email.message", "http.client", "xml.dom.minidom"):
                sys.modules.pop(name, None)
                importlib.import_module(name)
    print(conserves(loop), loop.late_starts, loop.state)
    """) == "True 0 stopped"  # fmt: skip


def test_a_full_disk_under_the_recorder_does_not_reach_the_loop(script: Script, tmp_path: Path) -> None:
    """A tmpfs of 64 KiB: the recording ends and says so; the loop runs on, and what was written is whole."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        assert run(script, f"""
        import errno, numpy as np
        ring = rtloop.Ring("f8", 1 << 16)
        loop = make()
        said = ""
        with loop:
            wait_for(loop, 5)
            try:
                with rtloop.Recorder(ring, {str(disk / "run.npy")!r}, interval="1ms") as recorder:
                    for _ in range(8):
                        ring.push(np.arange(4096.0))
                        time.sleep(0.02)
                    while recorder.error is None:
                        time.sleep(0.005)
            except rtloop.RecorderError as error:
                said = errno.errorcode[error.errno]
            after = loop.stats.cycles
            wait_for(loop, after + 20)
        left = np.load({str(disk / "run.npy")!r})
        print(said, conserves(loop), loop.state, len(left) == recorder.written > 0,
              recorder.written + recorder.lost + ring.dropped >= 8 * 4096)
        """.replace("\n        ", "\n    ")) == "ENOSPC True stopped True True"  # fmt: skip
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def test_readers_that_die_or_truncate_do_not_reach_the_loop(script: Script) -> None:
    """Killed in the middle of reading, and with the block's file open for writing: sealed, it keeps its size."""
    assert run(script, """
    loop = make(name="watched")
    reader = '''
    import fcntl, os, sys, rtloop
    (found,) = rtloop.running(int(sys.argv[1]), "watched")
    refused = 0
    for how in (os.O_RDWR, os.O_RDWR | os.O_TRUNC):
        try:
            fd = os.open(found.file.path, how)
            os.ftruncate(fd, 4096)
        except OSError:
            refused += 1
    print(refused, flush=True)
    while True:
        found.read()
    '''
    with loop:
        wait_for(loop, 5)
        said = []
        for _ in range(3):
            peer = subprocess.Popen([sys.executable, "-c", reader, str(os.getpid())], stdout=subprocess.PIPE, text=True)
            said.append(peer.stdout.readline().strip())
            time.sleep(0.02)
            peer.kill(); peer.wait(); peer.stdout.close()
        wait_for(loop, loop.stats.cycles + 20)
    print(said, conserves(loop), loop.state)
    """) == "['2', '2', '2'] True stopped"  # fmt: skip


@pytest.mark.rt
def test_no_storm_costs_a_locked_loop_a_page_fault(script: Script) -> None:
    """Signals, garbage and other loops that come and go beside a loop that is all locked."""
    assert run(script, """
    signal.signal(signal.SIGALRM, lambda *_: None)
    loop = probes.Probe("1ms", warmup=20)
    with loop:
        wait_for(loop, 50)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        for _ in range(20):
            other = make(record=16); other.start(); other.stop()
            gc.collect()
        wait_for(loop, 300)
        signal.setitimer(signal.ITIMER_REAL, 0)
        faults = loop.stats.page_faults
    print(tuple(faults), loop.state)
    """) == "(0, 0) stopped"  # fmt: skip
