"""Plant spikes of known causes, and compare the culprits that rtloop names with them.

    python benchmarks/culprits.py [--spikes 100] [--kinds thread,signal] [--cpu 1] [--json FILE]

A loop at 1 kHz runs with explain="150us" in a process of its own. This script finds its grid in its telemetry, and
plants each spike just before a release. It keeps its own log of when each spike began and ended. A cycle counts as one
of the spike's if the spike covers at least 80 % of its delay. The kinds:

    interrupt    3,000 timers that expire at one instant on the loop's CPU
    softirq      a packet that 400 sockets of a network interface receive, one after the other
    thread       a thread of a higher real-time priority that is busy
    worker       a line of 3,900 characters to a terminal, which a kernel worker of a higher priority processes
    compaction   the memory of the whole machine is compacted while the step touches 64 MiB; the kernel may leave these
                 alone, and then no cycle counts
    signal       SIGSTOP and SIGCONT
    collector    gc.collect() beside a PyLoop

It needs root. It restores what it changes: the policy of the kernel's unbound workers, which is FIFO 90 while lines are
processed, because an ordinary worker does not delay the loop. The network interfaces are in a namespace of their own.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import mmap
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import rtloop

if TYPE_CHECKING:
    from collections.abc import Callable

PERIOD_NS = 1_000_000
#: Delays from which on a cycle is explained, and counts.
LEAST_NS = 150_000
#: A page is moved quickly.
LEAST_MOVED_NS = 60_000
COVERED = 0.8
#: Planted by the process of the loop.
IN_PROCESS = ("collector", "compaction")
BATCH = 25
KINDS = ("interrupt", "softirq", "thread", "worker", "compaction", "signal", "collector")
TIMERS, SOCKETS, BUSY_NS, STOP_NS = 3000, 400, 600_000, 3_000_000
_LIBC = ctypes.CDLL(None, use_errno=True)


class Spike(NamedTuple):
    """Time of a planted spike, on CLOCK_MONOTONIC."""

    begin: int
    end: int


class Grid:
    """Grid of releases of the loop in another process."""

    def __init__(self, pid: int) -> None:
        deadline = time.monotonic() + 300
        self.pid = pid
        while time.monotonic() < deadline:
            for loop in rtloop.running(pid):
                with loop:
                    records = loop.stats.records
                    if len(records) > 50:
                        self.release = int(records["release"][-1])
                        return
            time.sleep(0.01)
        raise SystemExit("the loop has not started")

    def next(self, ahead_ns: int = 12_000_000) -> int:
        """Return a release at least so far in the future."""
        periods = (time.monotonic_ns() + ahead_ns - self.release) // PERIOD_NS + 1
        return self.release + periods * PERIOD_NS


def sleep_until(t: int) -> None:
    time.sleep(max(0, (t - time.monotonic_ns() - 300_000) / 1e9))
    while time.monotonic_ns() < t:
        pass


def be_busy_until(t: int) -> None:
    while time.monotonic_ns() < t:
        pass


def on_cpu(cpu: int, priority: int) -> None:
    os.sched_setaffinity(0, {cpu})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))


def plant_thread(grid: Grid, cpu: int, count: int, stack: ExitStack) -> list[Spike]:
    on_cpu(cpu, 90)
    spikes = []
    for _ in range(count):
        release = grid.next()
        sleep_until(release - 50_000)
        begin = time.monotonic_ns()
        be_busy_until(begin + BUSY_NS)
        spikes.append(Spike(begin, time.monotonic_ns()))
    return spikes


def plant_signal(grid: Grid, cpu: int, count: int, stack: ExitStack) -> list[Spike]:
    spikes = []
    for _ in range(count):
        release = grid.next(20_000_000)
        sleep_until(release - 100_000)
        begin = time.monotonic_ns()
        os.kill(grid.pid, signal.SIGSTOP)  # which a thread of the process has to take before all stop
        time.sleep(STOP_NS / 1e9)
        os.kill(grid.pid, signal.SIGCONT)
        spikes.append(Spike(begin, time.monotonic_ns()))
    return spikes


def plant_interrupt(grid: Grid, cpu: int, count: int, stack: ExitStack) -> list[Spike]:
    """Let many timers expire at once: the interrupt of the local timer serves them all."""
    on_cpu(cpu, 50)
    resource.setrlimit(resource.RLIMIT_NOFILE, (TIMERS + 100, max(TIMERS + 100, resource.getrlimit(7)[1])))
    clock_monotonic, absolute = 1, 1
    timers = [_LIBC.timerfd_create(clock_monotonic, 0) for _ in range(TIMERS)]
    spikes = []
    for _ in range(count):
        release = grid.next(30_000_000)
        expiry = release - 30_000
        value = struct.pack("qqqq", 0, 0, expiry // 10**9, expiry % 10**9)
        for fd in timers:
            _LIBC.timerfd_settime(fd, absolute, value, None)
        sleep_until(expiry - 200_000)
        last, gap = time.monotonic_ns(), Spike(0, 0)
        while last < expiry + 3_000_000:  # this thread is interrupted, and sees how long
            now = time.monotonic_ns()
            if now - last > gap.end - gap.begin:
                gap = Spike(last, now)
            last = now
        spikes.append(gap)
    for fd in timers:
        os.close(fd)
    return spikes


def plant_softirq(grid: Grid, cpu: int, count: int, stack: ExitStack) -> list[Spike]:
    """Send packets to an interface on which many sockets listen: they are served in the softirq of the receiver."""
    if _LIBC.unshare(0x40000000):  # CLONE_NEWNET
        raise OSError(ctypes.get_errno(), "a network namespace")
    for words in ("add name va type veth peer name vb", "set va up", "set vb up"):
        subprocess.run(["ip", "link", *words.split()], check=True)
    time.sleep(1)
    every = 0x0003
    for _ in range(SOCKETS):
        one = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(every)))
        one.bind(("vb", every))
    sender = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
    sender.bind(("va", 0))
    on_cpu(cpu, 50)
    spikes = []
    for _ in range(count):
        release = grid.next()
        sleep_until(release - 50_000)
        begin = time.monotonic_ns()
        sender.send(b"\xff" * 6 + b"\x02" * 6 + b"\x88\xb5" + b"x" * 100)
        spikes.append(Spike(begin, time.monotonic_ns()))
    return spikes


def plant_worker(grid: Grid, cpu: int, count: int, stack: ExitStack) -> list[Spike]:
    """Write long lines to terminals; a trace of its own tells when a worker served them on the loop's CPU."""
    os.sched_setaffinity(0, {cpu})
    stack.callback(set_workers, os.SCHED_OTHER, 0)
    set_workers(os.SCHED_FIFO, 90)
    folder = Path("/sys/kernel/tracing/instances") / f"culprits-{os.getpid()}"
    folder.mkdir()
    try:
        (folder / "trace_clock").write_text("mono")
        for phase in ("start", "end"):
            (folder / f"events/workqueue/workqueue_execute_{phase}/enable").write_text("1")
        for _ in range(4 * count):  # a worker of either CPU may serve it
            master, slave = os.openpty()
            release = grid.next()
            sleep_until(release - 150_000)
            os.write(master, b"abc" * 1300)
            time.sleep(0.004)
            termios.tcflush(slave, termios.TCIOFLUSH)
            os.close(slave)
            os.close(master)
        return _served(folder, cpu)
    finally:
        folder.rmdir()


def set_workers(policy: int, priority: int) -> None:
    """Set the policy of the kernel's workers that are bound to no CPU: an ordinary one does not delay the loop."""
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):
            if comm.read_text().startswith("kworker/u"):
                os.sched_setscheduler(int(comm.parent.name), policy, os.sched_param(priority))


def _served(folder: Path, cpu: int) -> list[Spike]:
    spikes, begin = [], 0
    for line in (folder / f"per_cpu/cpu{cpu}/trace").read_text().split("\n"):
        if "flush_to_ldisc" in line:
            t = int(float(line.split("] ")[1].split()[1].rstrip(":")) * 1e6) * 1000
            if "execute_start" in line:
                begin = t
            elif t - begin > 100_000:
                spikes.append(Spike(begin, t))
    return spikes


PLANTERS: dict[str, Callable[[Grid, int, int, ExitStack], list[Spike]]] = {
    "interrupt": plant_interrupt, "softirq": plant_softirq, "thread": plant_thread, "worker": plant_worker,
    "signal": plant_signal,
}  # fmt: skip


def collect_garbage(grid: Grid, count: int) -> list[Spike]:
    """Collect the garbage of this process, beside its loop."""
    kept = [[i] for i in range(100_000)]
    spikes = []
    for _ in range(count):
        sleep_until(grid.next(20_000_000) - 50_000)
        begin = time.monotonic_ns()
        gc.collect()
        spikes.append(Spike(begin, time.monotonic_ns()))
    return spikes if kept else []


def compact(filler: mmap.mmap) -> list[Spike]:
    """Free what lies above the loop's memory, and let the kernel move that memory there."""
    filler.close()
    begin = time.monotonic_ns()
    Path("/proc/sys/vm/compact_memory").write_text("1")
    return [Spike(begin, time.monotonic_ns())]


def fill_and_compact() -> mmap.mmap:
    filler = mmap.mmap(-1, 2 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for page in range(0, len(filler), 4096):
        filler[page] = 1
    Path("/proc/sys/vm/compact_memory").write_text("1")
    return filler


def run_loop(kind: str, cpu: int, count: int, folder: Path) -> None:
    """Run the loop until the file "stop" is there, and save its statistics."""
    keywords: dict[str, Any] = {"cpu": cpu, "explain": f"{LEAST_NS}ns", "name": f"planted-{kind}"}
    filler = fill_and_compact() if kind == "compaction" else None
    if kind == "compaction":
        keywords["explain"] = f"{LEAST_MOVED_NS}ns"
        module = rtloop.build(Path(__file__).parent / "culprits.pyx")
        loop = module.Toucher(PERIOD_NS, **keywords)
    elif kind == "collector":
        loop = rtloop.PyLoop(lambda cycle: None, PERIOD_NS, **keywords)
    else:
        loop = rtloop.RTLoop(PERIOD_NS, **keywords)
    with loop:
        (folder / "started").touch()
        if kind in IN_PROCESS:
            time.sleep(0.3)
            spikes = compact(filler) if filler is not None else collect_garbage(Grid(os.getpid()), count)
            time.sleep(0.3)
            (folder / "spikes").write_text(json.dumps(spikes))
        while kind not in IN_PROCESS and not (folder / "stop").exists():
            time.sleep(0.05)
    loop.stats.save(folder / "stats.npz")


class Judged(NamedTuple):
    """Cycles of planted spikes: those named right, those that are unknown, and those named wrong, with their texts."""

    right: int
    unknown: list[str]
    wrong: list[str]


def judge(kind: str, stats: rtloop.Stats, spikes: list[Spike]) -> Judged:
    right, unknown, wrong = 0, [], []
    first = stats.cycles - len(stats.records)
    for one in stats.explanations or ():
        if one.cycle < first:
            continue
        record = stats.records[one.cycle - first]
        ends = ("release", "start") if one.what == "start" else ("start", "end")
        begin, end = (int(record[name]) for name in ends)
        covered = max((min(spike.end, end) - max(spike.begin, begin) for spike in spikes), default=0)
        least = LEAST_MOVED_NS if kind == "compaction" else LEAST_NS
        if kind == "signal":
            least = STOP_NS // 2  # a shorter delay came before the process was stopped
        if one.delay_ns < least or covered < COVERED * one.delay_ns:
            continue
        if kind in IN_PROCESS and one.what == "start":  # compaction outlasts it, and it needs no interpreter
            continue
        if one.culprit == kind and (kind != "thread" or " 90)" in one.name):
            right += 1
        elif one.culprit == "unknown":
            unknown.append(str(one))
        else:
            wrong.append(str(one))
    return Judged(right, unknown, wrong)


def measure(kind: str, cpu: int, wanted: int) -> Judged:
    """Plant until so many spikes have delayed a cycle."""
    total = Judged(0, [], [])
    for _ in range(20):
        missing = wanted - total.right - len(total.unknown) - len(total.wrong)
        if missing <= 0:
            break
        with tempfile.TemporaryDirectory() as name:
            got = _measure(kind, cpu, min(BATCH, missing), Path(name))
        if kind == "compaction" and got == Judged(0, [], []):
            break  # the kernel did not move the loop's memory, and will not the next time
        total = Judged(total.right + got.right, total.unknown + got.unknown, total.wrong + got.wrong)
    return total


def _measure(kind: str, cpu: int, count: int, folder: Path) -> Judged:
    command = [sys.executable, __file__, "--loop", kind, "--cpu", str(cpu), "--spikes", str(count), "--folder", folder]
    child = subprocess.Popen(command)
    try:
        if kind in IN_PROCESS:
            child.wait(300)
        else:
            spikes = _plant(kind, cpu, count, folder, child)
            (folder / "spikes").write_text(json.dumps(spikes))
            child.wait(60)
    finally:
        with suppress(ProcessLookupError):
            child.kill()
        child.wait()
    spikes = [Spike(*one) for one in json.loads((folder / "spikes").read_text())]
    return judge(kind, rtloop.Stats.load(folder / "stats.npz"), spikes)


def _plant(kind: str, cpu: int, count: int, folder: Path, child: subprocess.Popen[bytes]) -> list[Spike]:
    grid = Grid(child.pid)
    time.sleep(0.3)
    done: list[list[Spike] | BaseException] = []

    def plant() -> None:  # on a thread, whose policy, CPU and namespace end with it
        try:
            with ExitStack() as stack:
                done.append(PLANTERS[kind](grid, cpu, count, stack))
        except BaseException as error:
            done.append(error)

    thread = threading.Thread(target=plant)
    thread.start()
    thread.join()
    time.sleep(0.3)
    (folder / "stop").touch()
    if isinstance(done[0], BaseException):
        raise done[0]
    return done[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spikes", type=int, default=100)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--cpu", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--loop", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.loop:
        run_loop(given.loop, given.cpu, given.spikes, given.folder)
        return 0
    document = {}
    print(f"{'planted':12} {'cycles':>6} {'right':>6} {'unknown':>8} {'wrong':>6}")
    for kind in given.kinds.split(","):
        got = measure(kind, given.cpu, given.spikes)
        total = got.right + len(got.unknown) + len(got.wrong)
        print(f"{kind:12} {total:6} {got.right:6} {len(got.unknown):8} {len(got.wrong):6}", flush=True)
        for text in [*got.wrong[:3], *got.unknown[:2]]:
            print(f"    {text}", flush=True)
        document[kind] = {"cycles": total, **got._asdict()}
    if given.json:
        given.json.write_text(json.dumps({"spikes": given.spikes, "kinds": document}, indent=1))
    return 1 if any(row["wrong"] for row in document.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
