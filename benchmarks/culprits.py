"""Plant spikes of known causes, and compare the culprits that rtloop names with them.

    python benchmarks/culprits.py [--spikes 100] [--kinds thread,signal] [--cpu 1] [--json FILE] [--markdown]
    python benchmarks/culprits.py --render FILE     # the table of the documentation, of an earlier run

A loop at 1 kHz runs with explain="150us" in a process of its own. This script finds its grid in its telemetry, and
plants each spike just before a release. It keeps its own log of when each spike began and ended. A cycle counts as one
of the spike's if the spike covers at least 80 % of its delay. The kinds:

    interrupt    3,000 timers that expire at one instant on the loop's CPU
    softirq      a packet that 400 sockets of a network interface receive, one after the other
    thread       a thread of a higher real-time priority that is busy
    worker       a line of 3,900 characters to a terminal, which a kernel worker of a higher priority processes
    compaction   the memory is compacted while the step touches 64 MiB of it below a block with many holes
    migration    the blocks of memory in which these lie are taken offline in turn, so that the kernel moves their pages
    signal       SIGSTOP and SIGCONT
    collector    gc.collect() beside a PyLoop

A step that touches memory logs each touch in which its thread slept, and a trace of the kernel tells how long it slept:
it waited for a page that was being moved.

It needs root. It restores what it changes: the policy of the kernel's unbound workers, which is FIFO 90 while lines are
processed, because an ordinary worker does not delay the loop; and the blocks of memory. The network interfaces are in a
namespace of their own. A block that holds pages of the kernel itself cannot be taken offline. So the script looks for
two or three that can, and during these spikes they are online only for pages that can be moved. Taking a block offline
also moves pages that other processes have locked, and these processes may wait for them.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import gc
import json
import os
import re
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
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import rtloop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PERIOD_NS = 1_000_000
#: Delays from which on a cycle is explained, and counts.
LEAST_NS = 150_000
COVERED = 0.8
#: Planted by the process of the loop.
IN_PROCESS = ("collector",)
#: Logged by the loop itself, which has its memory in blocks of their own: how many.
BLOCKS = {"compaction": 2, "migration": 3}
LOGGED = tuple(BLOCKS)
BATCH = 100
#: Most loops for a kind: not every spike delays a cycle.
ROUNDS = 80
#: Kinds with their rows in the documentation.
KINDS = {
    "interrupt": "interrupt: 3,000 timers that expire at one instant",
    "softirq": "softirq: a packet for 400 sockets",
    "thread": "thread: busy, FIFO 90",
    "worker": "kernel worker: long lines to a terminal, FIFO 90",
    "compaction": "compaction of the memory",
    "migration": "migration of pages: a part of the memory is taken offline",
    "signal": "SIGSTOP, and SIGCONT 3 ms later",
    "collector": "garbage collector beside a `PyLoop`",
}
TIMERS, SOCKETS, BUSY_NS, STOP_NS = 3000, 400, 600_000, 3_000_000
#: Takes a number of pages, and gives every other one back, because a compaction fills only blocks that are in use.
PERFORATE = """
import mmap, sys
page, size = mmap.PAGESIZE, int(sys.argv[1]) * mmap.PAGESIZE
memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
for place in range(0, size, page):
    memory[place] = 1
for place in range(0, size, 2 * page):
    memory.madvise(mmap.MADV_DONTNEED, place, page)
print("perforated", flush=True)
sys.stdin.read()
"""
LOOPS = Path(__file__).with_suffix(".pyx")
_LIBC = ctypes.CDLL(None, use_errno=True)


class Spike(NamedTuple):
    """Time of a planted spike, on CLOCK_MONOTONIC."""

    begin: int
    end: int


class Grid:
    """Grid of releases of the loop in another process, which uses a folder."""

    def __init__(self, pid: int, folder: Path) -> None:
        deadline = time.monotonic() + 300
        self.pid, self.folder = pid, folder
        while time.monotonic() < deadline:
            for loop in rtloop.running(pid):
                with loop:
                    records = loop.stats.records
                    if len(records) > 50:
                        self.release, self.tid = int(records["release"][-1]), loop.tid
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
    events = {
        "workqueue/workqueue_execute_start": "",
        "workqueue/workqueue_execute_end": "",
        "sched/sched_stat_runtime": 'comm ~ "kworker/u*"',
    }
    with traced(events) as folder:
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


@contextmanager
def traced(events: dict[str, str]) -> Iterator[Path]:
    """Trace some events of the kernel, with their filters; yields the folder of the trace."""
    folder = Path("/sys/kernel/tracing/instances") / f"culprits-{os.getpid()}"
    folder.mkdir()
    try:
        (folder / "trace_clock").write_text("mono")
        (folder / "buffer_size_kb").write_text("8192")
        for event, condition in events.items():
            if condition:
                (folder / f"events/{event}/filter").write_text(condition)
            (folder / f"events/{event}/enable").write_text("1")
        yield folder
    finally:
        folder.rmdir()


def set_workers(policy: int, priority: int) -> None:
    """Set the policy of the kernel's workers that are bound to no CPU: an ordinary one does not delay the loop."""
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):
            if comm.read_text().startswith("kworker/u"):
                os.sched_setscheduler(int(comm.parent.name), policy, os.sched_param(priority))


def _served(folder: Path, cpu: int) -> list[Spike]:
    """Return the times in which a worker served a line, but only if it ran all the time by the kernel's CPU time."""
    line = re.compile(r"-(\d+) +\[\d+\] \S+ +(\d+)\.(\d{6}): (\w+): (?:.* runtime=(\d+) )?(.*)")
    spikes: list[Spike] = []
    begins: dict[int, int] = {}
    ends: dict[int, int] = {}
    times: dict[int, int] = {}
    for one in filter(None, map(line.search, (folder / f"per_cpu/cpu{cpu}/trace").read_text().split("\n"))):
        pid, t, name = int(one[1]), int(one[2]) * 10**9 + int(one[3]) * 1000, one[4]
        if name == "sched_stat_runtime" and f"pid={pid} " in one[0]:
            times[pid] = times.get(pid, 0) + int(one[5])
            if pid in ends:  # it comes after the end of the work
                begin, end, cpu_time = begins.pop(pid), ends.pop(pid), times.pop(pid)
                if end - begin > 100_000 and cpu_time > 0.9 * (end - begin):
                    spikes.append(Spike(begin, end))
        elif "flush_to_ldisc" in one[6] and name == "workqueue_execute_start":
            begins[pid], times[pid] = t, 0
            ends.pop(pid, None)
        elif "flush_to_ldisc" in one[6] and pid in begins:
            ends[pid] = t
    return spikes


def plant_compaction(grid: Grid, cpu: int, count: int, stack: ExitStack) -> list[Spike]:
    """Compact the memory when there are holes in the block above the loop's, so that its pages move there."""
    _beside(cpu)
    _pages(grid)
    *_, empty = _blocks(grid.folder)
    empty.put("online_movable")
    program = [sys.executable, "-c", PERFORATE, str(2 * Block.pages())]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline()
        with traced(_waits_of(grid.tid)) as trace:
            _write(Path("/proc/sys/vm/compact_memory"), "1")
            return _waits(trace)


def plant_migration(grid: Grid, cpu: int, count: int, stack: ExitStack) -> list[Spike]:
    """Take the block of memory offline that has most of the loop's pages, when the empty one has just come online."""
    _beside(cpu)
    *used, empty = _blocks(grid.folder)
    module, touched = rtloop.build(LOOPS), _pages(grid)
    with traced(_waits_of(grid.tid)) as trace:
        for _ in range(max(1, count // 4)):
            blocks, pages = np.unique(module.page_frames(grid.pid, touched) // Block.pages(), return_counts=True)
            counts = dict(zip(blocks.tolist(), pages.tolist(), strict=True))
            fullest = max(used, key=lambda block: counts.get(block.number, 0))
            if counts.get(fullest.number, 0) < len(touched) // 4:
                break  # others were quicker to use the empty ones
            empty.put("online_movable")
            if not fullest.take_offline():
                break
            used[used.index(fullest)], empty = empty, fullest
            time.sleep(0.05)
        return _waits(trace)


def _waits_of(tid: int) -> dict[str, str]:
    """Return the events at which a thread begins to wait in the kernel, and at which it is woken."""
    uninterruptible = 2
    return {
        "sched/sched_switch": f"prev_pid == {tid} && prev_state == {uninterruptible}",
        "sched/sched_waking": f"pid == {tid}",
    }


def _waits(trace: Path) -> list[Spike]:
    """Return the times in which the thread waited, by its trace."""
    event = re.compile(r" (\d+)\.(\d{6}): sched_(switch|waking): ")
    spikes, begin = [], None
    for one in filter(None, map(event.search, (trace / "trace").read_text().split("\n"))):
        t = int(one[1]) * 10**9 + int(one[2]) * 1000
        if one[3] == "switch":
            begin = t
        elif begin is not None:
            spikes.append(Spike(begin, t))
            begin = None
    return spikes


def overlaps(waits: list[Spike], touches: list[Spike]) -> list[Spike]:
    """Return the parts of waits that lie in touches; those of each list are in order and apart."""
    found, first = [], 0
    for wait in waits:
        while first < len(touches) and touches[first].end < wait.begin:
            first += 1
        for touch in touches[first:]:
            if touch.begin > wait.end:
                break
            found.append(Spike(max(wait.begin, touch.begin), min(wait.end, touch.end)))
    return found


class Block:
    """Block of the machine's memory, by its number (Documentation/admin-guide/mm/memory-hotplug.rst)."""

    _ROOT = Path("/sys/devices/system/memory")

    def __init__(self, number: int) -> None:
        self.number = number
        self._folder = self._ROOT / f"memory{number}"

    @classmethod
    def all(cls) -> list[Block]:
        return [cls(int(path.name.removeprefix("memory"))) for path in cls._ROOT.glob("memory[0-9]*")]

    @classmethod
    def pages(cls) -> int:
        """Return the number of pages of a block."""
        return int((cls._ROOT / "block_size_bytes").read_text(), 16) // os.sysconf("SC_PAGE_SIZE")

    @property
    def is_online(self) -> bool:
        return (self._folder / "state").read_text().strip() == "online"

    @property
    def zone(self) -> str:
        """The zone that it belongs to."""
        return (self._folder / "valid_zones").read_text().split()[0]

    def put(self, state: str) -> None:
        (self._folder / "state").write_text(state)

    def take_offline(self) -> bool:
        """Move all pages out of it. Returns True if the kernel did it in time."""
        return _write(self._folder / "state", "offline")


@contextmanager
def taken_blocks(count: int) -> Iterator[list[int]]:
    """Take `count` blocks of memory offline; yields their numbers in order. Afterwards they are back in their zones."""
    taken: dict[Block, str] = {}
    try:
        for block in sorted(Block.all(), key=lambda block: -block.number):
            if len(taken) < count and block.is_online and (zone := block.zone) == "Normal" and block.take_offline():
                taken[block] = zone
        if len(taken) < count:
            raise SystemExit(f"only {len(taken)} of {count} blocks of memory could be taken offline")
        yield sorted(block.number for block in taken)
    finally:
        for block, zone in taken.items():
            if block.is_online and block.zone != zone:
                block.take_offline()
            if not block.is_online:
                block.put("online_kernel")
            if block.zone != zone:
                print(f"block {block.number} of the memory is in the zone {block.zone}, not {zone}", file=sys.stderr)


def _pages(grid: Grid) -> list[int]:
    """Return the addresses of the pages that the loop touches, as soon as it has written them down."""
    file = grid.folder / "pages"
    while not file.exists():
        time.sleep(0.05)
    found: list[int] = json.loads(file.read_text())
    return found


def _blocks(folder: Path) -> list[Block]:
    """Return the blocks of memory for the pages of the loop, and last the one that is not online yet."""
    return [Block(number) for number in json.loads((folder / "blocks").read_text())]


def _beside(cpu: int) -> None:
    """Run on other CPUs than the loop if there are any, before the ordinary threads there."""
    others = os.sched_getaffinity(0) - {cpu}
    os.sched_setaffinity(0, others or {cpu})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))


def _write(path: Path, text: str) -> bool:
    """Write into a file of the kernel, which may take long. Returns True if the kernel did it in time."""
    with suppress(subprocess.TimeoutExpired):
        done = subprocess.run(["sh", "-c", 'echo "$1" >"$0"', path, text], timeout=20, stderr=subprocess.DEVNULL)
        return done.returncode == 0
    return False


PLANTERS: dict[str, Callable[[Grid, int, int, ExitStack], list[Spike]]] = {
    "interrupt": plant_interrupt, "softirq": plant_softirq, "thread": plant_thread, "worker": plant_worker,
    "signal": plant_signal, "compaction": plant_compaction, "migration": plant_migration,
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


def run_loop(kind: str, cpu: int, count: int, folder: Path) -> None:
    """Run the loop until the file "stop" is there, and save its statistics."""
    keywords: dict[str, Any] = {"cpu": cpu, "explain": f"{LEAST_NS}ns", "name": f"planted-{kind}"}
    if kind in LOGGED:
        # Memory that is locked is not compacted while vm.compact_unevictable_allowed is 0.
        loop = rtloop.build(LOOPS).Toucher(PERIOD_NS, lock_memory="off", **keywords)
    elif kind == "collector":
        loop = rtloop.PyLoop(lambda cycle: None, PERIOD_NS, **keywords)
    else:
        loop = rtloop.RTLoop(PERIOD_NS, **keywords)
    if kind in LOGGED:  # just before the loop takes its memory, because every process may use them
        for block in _blocks(folder)[:-1]:
            block.put("online_movable")
    with loop:
        if kind in LOGGED:
            (folder / "pages.new").write_text(json.dumps(loop.pages))
            (folder / "pages.new").rename(folder / "pages")
        if kind in IN_PROCESS:
            time.sleep(0.3)
            (folder / "spikes").write_text(json.dumps(collect_garbage(Grid(os.getpid(), folder), count)))
            time.sleep(0.3)
        while kind not in IN_PROCESS and not (folder / "stop").exists():
            time.sleep(0.05)
    if kind in LOGGED:
        (folder / "logged").write_text(json.dumps(loop.spikes))
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
        covered = sum(max(0, min(spike.end, end) - max(spike.begin, begin)) for spike in spikes)
        least = STOP_NS // 2 if kind == "signal" else LEAST_NS  # a shorter one came before the process was stopped
        if one.delay_ns < least or covered < COVERED * one.delay_ns:
            continue
        if kind in IN_PROCESS and one.what == "start":  # which needs no interpreter
            continue
        culprit = "compaction" if kind == "migration" else kind
        if one.culprit == culprit and (kind != "thread" or " 90)" in one.name):
            right += 1
        elif one.culprit == "unknown":
            unknown.append(str(one))
        else:
            wrong.append(str(one))
    return Judged(right, unknown, wrong)


def measure(kind: str, cpu: int, wanted: int) -> Judged:
    """Plant until so many spikes have delayed a cycle."""
    if kind in LOGGED:
        rtloop.build(LOOPS)  # here, because it takes long the first time
    total = Judged(0, [], [])
    for _ in range(ROUNDS):
        missing = wanted - total.right - len(total.unknown) - len(total.wrong)
        if missing <= 0:
            break
        with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
            if kind in LOGGED:
                blocks = stack.enter_context(taken_blocks(BLOCKS[kind]))
                (Path(name) / "blocks").write_text(json.dumps(blocks))
            got = _measure(kind, cpu, min(BATCH, missing), Path(name))
        total = Judged(total.right + got.right, total.unknown + got.unknown, total.wrong + got.wrong)
        counts = f"{total.right} right, {len(total.unknown)} unknown, {len(total.wrong)} wrong"
        print(f"{kind}: {counts} of {wanted}", file=sys.stderr, flush=True)
    return total


def _measure(kind: str, cpu: int, count: int, folder: Path) -> Judged:
    command = [
        sys.executable,
        __file__,
        "--loop",
        kind,
        "--cpu",
        str(cpu),
        "--spikes",
        str(count),
        "--folder",
        str(folder),
    ]
    child = subprocess.Popen(command)
    try:
        if kind in IN_PROCESS:
            child.wait(300)
        else:
            spikes = _plant(kind, cpu, count, folder, child)
            child.wait(60)
            if kind in LOGGED:
                spikes = overlaps(spikes, [Spike(*one) for one in json.loads((folder / "logged").read_text())])
            (folder / "spikes").write_text(json.dumps(spikes))
    finally:
        with suppress(ProcessLookupError):
            child.kill()
        child.wait()
    spikes = [Spike(*one) for one in json.loads((folder / "spikes").read_text())]
    return judge(kind, rtloop.Stats.load(folder / "stats.npz"), spikes)


def _plant(kind: str, cpu: int, count: int, folder: Path, child: subprocess.Popen[bytes]) -> list[Spike]:
    grid = Grid(child.pid, folder)
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
    parser.add_argument("--markdown", action="store_true", help="print the table of the documentation, too")
    parser.add_argument("--render", type=Path, metavar="FILE", help="print the table of a file of --json")
    parser.add_argument("--loop", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.loop:
        run_loop(given.loop, given.cpu, given.spikes, given.folder)
        return 0
    if given.render:
        print(table(json.loads(given.render.read_text())), end="")
        return 0
    kinds: dict[str, dict[str, Any]] = {}
    loads = [os.getloadavg()[0]]
    print(f"{'planted':12} {'cycles':>6} {'right':>6} {'unknown':>8} {'wrong':>6}")
    for kind in given.kinds.split(","):
        got = measure(kind, given.cpu, given.spikes)
        total = got.right + len(got.unknown) + len(got.wrong)
        print(f"{kind:12} {total:6} {got.right:6} {len(got.unknown):8} {len(got.wrong):6}", flush=True)
        for text in [*got.wrong[:3], *got.unknown[:2]]:
            print(f"    {text}", flush=True)
        kinds[kind] = {"cycles": total, **got._asdict()}
        loads.append(os.getloadavg()[0])
    document = {
        "time": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}", "kernel": os.uname().release,
        "cpus": os.cpu_count(), "load": [round(min(loads)), round(max(loads))], "spikes": given.spikes, "kinds": kinds,
    }  # fmt: skip
    if given.markdown:
        print(f"\n{table(document)}", end="")
    if given.json:
        given.json.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if any(row["wrong"] for row in kinds.values()) else 0


def table(document: dict[str, Any]) -> str:
    """Return the table of the documentation, from the file of a run."""
    lines = ["| cause | cycles | correct | unknown | wrong |", "|---|---:|---:|---:|---:|"]
    for kind in sorted(document["kinds"], key=list(KINDS).index):
        row = document["kinds"][kind]
        counts = (row["cycles"], row["right"], len(row["unknown"]), len(row["wrong"]))
        lines.append(f"| {KINDS[kind]} | {' | '.join(map(str, counts))} |")
    low, high = document["load"]
    lines += ["", f"Measured on {document['time']} with {document['cpus']} CPUs, Linux {document['kernel']}, "
              f"load average {low} to {high}."]  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
