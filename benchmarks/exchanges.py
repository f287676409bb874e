"""Compare shared exchanges between two processes with other ways between them, from Python.

    python benchmarks/exchanges.py [--pairs 5] [--messages 400] [--sizes 64 4096 1048576] [--only asyncio] [--json FILE]

The peers are iceoryx2 (pip install iceoryx2), multiprocessing.shared_memory with a lock, a Unix socket, and Zenoh with
its shared memory (pip install eclipse-zenoh). For each size of message, one reader process for each way sleeps until
there is a message. All of them run in turn:

    latency     from before a write, one in 3 ms, until the sleeping reader has the message; the median
    writer      how long each of these writes takes the writer, the wake-up included; the median
    throughput  time of a message if the writer writes as fast as the reader takes, and none may be lost

Every message is checked: it came whole and in order. A Latest has no throughput, because it passes only the newest.

The last two parts are about a loop whose step writes a Latest. In `asyncio`, a program in the same process awaits each
of a thousand values a second. Its wake-up is compared with a millisecond, and the loop's wake-up latency with the same
loop that nobody waits for. In `instructions`, callgrind counts what a step pays for a reader that may sleep but does
not: a Latest that was waited for once, and a shared one, compared with one that nobody has ever waited for. They need
Cython and a C compiler (for rtloop.build), and valgrind (apt install valgrind).
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    Claim,
    alternate,
    claim,
    exit_code,
    need,
    parser,
    positive,
    print_claims,
    print_table,
    run_script,
    say,
    write_json,
)
from exchange_peers.ways import HEAD, SPAWN, TAIL, WAYS, serve

import rtloop

OURS, OURS_QUEUED = "Latest", "Ring"
#: At these sizes and below the target is to be ahead of every peer.
AHEAD_UP_TO = 4096
#: Pause between two messages whose latency is measured: the reader sleeps, and is not about to wake up by itself.
PAUSE_S = 0.003
#: Instructions more for a reader that does not sleep now: one load, a comparison and a jump, with their addresses.
AWAITED = 8
WRITER = """
from libc.stdint cimport int64_t
from rtloop cimport RT_CONTINUE, Cycle, Latest, RTLoop
from time import monotonic_ns

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *time)

cdef class Writer(RTLoop):
    cdef public Latest latest
    def __init__(self, *args, share=None, **settings):
        super().__init__(*args, **settings)
        self.latest = Latest("i8", share=share)
    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef timespec now
        clock_gettime(1, &now)
        cdef int64_t ns = now.tv_sec * 1000000000 + now.tv_nsec
        self.latest.write_at(&ns, cycle.start)
        return RT_CONTINUE
"""


#: A simulation of the loop for callgrind, whose Latest is "plain", was waited for once, or is shared.
COUNTED = """
import os, sys
import rtloop
module = rtloop.build({source!r})
loop = module.Writer("1ms", share=f"counted-{{os.getpid()}}" if {kind!r} == "shared" else None, record=64)
if {kind!r} == "awaited":
    loop.latest.wait("0ns")
loop.simulate(cycles={cycles})
"""


class Pair:
    """A writer in this process and its reader in another one."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size, self.number = name, size, 0
        self.message = np.zeros(size, "u1")
        self.writer = WAYS[name][0](size)
        self.pipe, there = SPAWN.Pipe()
        self.reader = SPAWN.Process(target=serve, args=(name, self.writer.channel, size, there), daemon=True)
        self.reader.start()
        there.close()
        self.receive()
        self.latency(3)  # connected, and warm

    def receive(self) -> Any:
        """Wait for an answer of the reader, and fail if it has ended."""
        try:
            if self.pipe.poll(60):
                return self.pipe.recv()
        except EOFError:
            pass
        raise SystemExit(f"{self.name}: the reader has not answered in 60 s, or has ended")

    def write(self) -> tuple[int, int]:
        """Write the next message. Returns the times before and after it."""
        begin = time.monotonic_ns()
        HEAD.pack_into(self.message, 0, self.number, begin)
        TAIL.pack_into(self.message, self.size - 8, self.number)
        self.writer.write(self.message)
        self.number += 1
        return begin, time.monotonic_ns()

    def latency(self, messages: int) -> tuple[float, float]:
        """Return the medians of the latency and of the writer's time, us."""
        self.pipe.send((self.number, messages))
        took = []
        for _ in range(messages):
            time.sleep(PAUSE_S)
            begin, end = self.write()
            took.append(end - begin)
        delays, _ = self.receive()
        return statistics.median(delays) / 1000, statistics.median(took) / 1000

    def throughput(self, messages: int) -> float:
        """Return the time of a message, us."""
        self.pipe.send((self.number, messages))
        first, _ = self.write()
        for _ in range(messages - 1):
            self.write()
        _, end = self.receive()
        return float(end - first) / messages / 1000

    def close(self) -> None:
        self.pipe.send(None)
        self.reader.join(10)
        self.reader.kill()
        self.writer.close()


def missing() -> dict[str, str]:
    """Return the peers that are not installed, with the command that installs them."""
    packages = {"zenoh": "eclipse-zenoh"}
    return {
        name: f"pip install {packages.get(side.needs, side.needs)}"
        for name, (side, _) in WAYS.items()
        if importlib.util.find_spec(side.needs) is None
    }


def compare(size: int, pairs: int, messages: int, absent: dict[str, str]) -> tuple[list[Claim], list[list[str]]]:
    """Run all ways with messages of a size; return the claims, and the rows of the table."""
    say(f"{size} bytes: starting the readers")
    ways = {name: Pair(name, size) for name in WAYS if name not in absent}
    many = max(20, min(20 * messages, (64 << 20) // size))
    try:
        paced = alternate({name: lambda p=pair: p.latency(messages) for name, pair in ways.items()}, pairs)
        queued = {name: pair for name, pair in ways.items() if name != OURS}
        streamed = alternate({name: lambda p=pair: p.throughput(many) for name, pair in queued.items()}, pairs)
    finally:
        for pair in ways.values():
            pair.close()
    target = 1.0 if size <= AHEAD_UP_TO else None
    text = f"{size} B" if size < 1024 else f"{size >> 10} KiB" if size < 1 << 20 else f"{size >> 20} MiB"
    claims = []
    for peer in list(ways)[2:]:
        for what, ours, theirs in (
            ("latency", [run[0] for run in paced[OURS]], [run[0] for run in paced[peer]]),
            ("writer", [run[1] for run in paced[OURS]], [run[1] for run in paced[peer]]),
            ("throughput", streamed[OURS_QUEUED], streamed[peer]),
        ):
            claims.append(claim(f"{text}, {what}", "us", ours, peer, theirs, target))
    rows = []
    for name in ways:
        latency, writer = (statistics.median(run[i] for run in paced[name]) for i in (0, 1))
        each = f"{statistics.median(streamed[name]):.3g}" if name in streamed else "-"
        rows.append([text, name, f"{latency:.3g}", f"{writer:.3g}", each])
    return claims, rows


def beside_a_loop(pairs: int, seconds: float) -> list[Claim]:
    """Await each value of a loop of 1 kHz in asyncio, and compare the loop with the same one that nobody waits for."""
    delays: list[int] = []

    async def follow(loop: Any, until: float) -> None:
        loop.latest.read()
        while time.monotonic() < until:
            if await loop.latest.ready("1s"):
                delays.append(time.monotonic_ns() - int(loop.latest.read()))

    def run(is_awaited: bool) -> tuple[float, float]:
        loop = writer("1kHz")
        with loop:
            if is_awaited:
                asyncio.run(follow(loop, time.monotonic() + seconds))
            else:
                time.sleep(seconds)
        latency = loop.stats.latency
        return latency.percentile(50) / 1000, latency.percentile(99) / 1000

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "awaited_writer.pyx"
        source.write_text(WRITER)
        module: Any = rtloop.build(source)
        writer = module.Writer
        runs = alternate({"awaited": lambda: run(True), "alone": lambda: run(False)}, pairs)
    return [
        claim("await latest.ready(), 50 %", "us", [statistics.median(delays) / 1000]),
        claim("await latest.ready(), 99 %", "us", [float(np.percentile(delays, 99)) / 1000], target=1000),
        claim("latency of the loop that is awaited, 50 %", "us", [r[0] for r in runs["awaited"]], "not awaited",
              [r[0] for r in runs["alone"]], 1.05),
        claim("latency of the loop that is awaited, 99 %", "us", [r[1] for r in runs["awaited"]], "not awaited",
              [r[1] for r in runs["alone"]]),
    ]  # fmt: skip


def count_instructions(cycles: int) -> list[Claim]:
    """Count the instructions of a simulated cycle that writes a Latest of each kind."""
    need("valgrind", "valgrind")

    def count(kind: str, source: Path, cycles: int) -> int:
        say(f"{kind}: {cycles} cycles under callgrind")
        code = COUNTED.format(source=str(source), kind=kind, cycles=cycles)
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={source.parent}/out", sys.executable]
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        subprocess.run([*command, "-P", "-W", "ignore", "-c", code], env=environment, check=True, capture_output=True)
        totals = re.findall(r"^(?:summary|totals): (\d+)", (source.parent / "out").read_text(), re.MULTILINE)
        return int(totals[-1])

    counts = {}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "awaited_writer.pyx"
        source.write_text(WRITER)
        rtloop.build(source)  # once, into the cache
        for kind in ("plain", "awaited", "shared"):
            few, many = (count(kind, source, number) for number in (cycles // 10, cycles // 10 + cycles))
            counts[kind] = (many - few) / cycles
    return [
        claim("a simulated cycle that writes a Latest", "instr.", [counts["plain"]]),
        claim("more, if it was waited for once", "instr.", [counts["awaited"] - counts["plain"]], target=AWAITED),
        claim("more, if it is shared", "instr.", [counts["shared"] - counts["plain"]]),
    ]


def main() -> int:
    """Run the benchmark."""
    options = parser(__doc__ or "", pairs=5, seconds=2)
    options.add_argument("--messages", type=positive, default=400, metavar="N", help="messages of a run (400)")
    options.add_argument(
        "--sizes", type=positive, nargs="+", default=[64, 4096, 1 << 20], metavar="BYTES", help="64 4096 1048576"
    )
    options.add_argument("--only", choices=("processes", "asyncio", "instructions"), help="one of the parts")
    options.add_argument("--cycles", type=positive, default=200_000, metavar="N", help="cycles to count (200000)")
    arguments = options.parse_args()
    absent = missing()
    claims: list[Claim] = []
    rows: list[list[str]] = []
    for size in arguments.sizes if arguments.only in (None, "processes") else ():
        more = compare(size, arguments.pairs, arguments.messages, absent)
        claims += more[0]
        rows += more[1]
    if arguments.only in (None, "instructions"):
        claims += count_instructions(arguments.cycles)
    if arguments.only in (None, "asyncio"):
        claims += beside_a_loop(arguments.pairs, arguments.seconds)
    if rows:
        print_table("Between two processes, us", ["size", "way", "latency", "writer", "throughput"], rows)
    print_claims("\nShared exchanges", claims)
    for name, fix in absent.items():
        print(f"not measured: {name} is not installed; fix: {fix}")
    write_json(arguments.json, benchmark="exchanges", claims=claims, missing=absent)
    return exit_code(claims)


if __name__ == "__main__":
    run_script(main)
