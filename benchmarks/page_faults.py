"""Measure the cost of page faults: the time of one write, by the work that the kernel does for it.

    python benchmarks/page_faults.py [--pages 4096] [--pairs 5] [--json FILE]

Each page is written once, and each write is timed separately. "resident" is the same write to pages that are present,
so the difference is the fault. The rows:

    resident        the page is present and writable, as in a locked, prefaulted loop
    minor fault     the page is in memory, but not yet in this process's page table
    first touch     the page does not exist: the kernel finds one and clears it
    copy on write   the process has forked: the kernel copies the page
    huge page       first touch of a 2 MiB page: one fault clears as much as 512 pages (figures per 2 MiB)
    major fault     the page is in a file, not in memory: the kernel reads it from the disk
"""

from __future__ import annotations

import mmap
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from common import parser, print_table, run_script, say, write_json

from rtloop import memory

PAGE = mmap.PAGESIZE
HUGE = 2 << 20
ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


def time_writes(buffer: Any, offsets: range) -> list[int]:
    """Write one byte at each offset, and return the time of each write, in ns."""
    clock = time.perf_counter_ns
    times = [0] * len(offsets)
    for i, offset in enumerate(offsets):
        begin = clock()
        buffer[offset] = 1
        times[i] = clock() - begin
    return times


def time_reads(buffer: Any, offsets: range) -> list[int]:
    """Read one byte at each offset, and return the time of each read, in ns."""
    clock = time.perf_counter_ns
    times = [0] * len(offsets)
    for i, offset in enumerate(offsets):
        begin = clock()
        buffer[offset]
        times[i] = clock() - begin
    return times


def small(size: int) -> mmap.mmap:
    held = mmap.mmap(-1, size, flags=ANONYMOUS)
    memory.advise(held, "nohugepage")
    return held


def resident(pages: int) -> list[int]:
    with small(pages * PAGE) as held:
        memory.prefault(held)
        return time_writes(held, range(0, pages * PAGE, PAGE))


def minor(pages: int) -> list[int]:
    fd = os.memfd_create("pages")
    try:
        os.ftruncate(fd, pages * PAGE)
        with mmap.mmap(fd, pages * PAGE) as first, mmap.mmap(fd, pages * PAGE) as second:
            memory.prefault(first)
            memory.advise(second, "random")  # so that a fault does not map neighbouring pages
            return time_writes(second, range(0, pages * PAGE, PAGE))
    finally:
        os.close(fd)


def first_touch(pages: int) -> list[int]:
    with small(pages * PAGE) as held:
        return time_writes(held, range(0, pages * PAGE, PAGE))


def copy_on_write(pages: int) -> list[int]:
    with small(pages * PAGE) as held:
        memory.prefault(held)
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
        try:
            return time_writes(held, range(0, pages * PAGE, PAGE))
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def huge(pages: int) -> list[int]:
    """Time first touches of huge pages; return nothing if the kernel gave no transparent huge page."""
    size = max(8, pages * PAGE // HUGE) * HUGE
    with mmap.mmap(-1, size + HUGE, flags=ANONYMOUS) as held:
        begin = -np.frombuffer(held, np.uint8).ctypes.data % HUGE
        memory.advise(held, "hugepage")
        before = memory.status().transparent_bytes
        times = time_writes(held, range(begin, begin + size, HUGE))
        after = memory.status().transparent_bytes
    return times if before is not None and after is not None and after - before >= size else []


def major(pages: int) -> list[int]:
    """Time reads from the disk; return nothing if the file's pages cannot be evicted, as on tmpfs."""
    pages = min(pages, 256)
    with tempfile.NamedTemporaryFile(dir=os.environ.get("TMPDIR", "/var/tmp")) as file:
        file.write(os.urandom(pages * PAGE))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        import resource

        with mmap.mmap(file.fileno(), pages * PAGE, prot=mmap.PROT_READ) as held:
            held.madvise(mmap.MADV_RANDOM)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
            times = time_reads(held, range(0, pages * PAGE, PAGE))
            return times if resource.getrusage(resource.RUSAGE_SELF).ru_majflt - before > pages // 2 else []


KINDS: dict[str, Callable[[int], list[int]]] = {
    "resident": resident,
    "minor fault": minor,
    "first touch": first_touch,
    "copy on write": copy_on_write,
    "huge page, per 2 MiB": huge,
    "major fault": major,
}


def summary(times: list[int]) -> dict[str, float]:
    """Return the median, 99th percentile and maximum, in ns."""
    p99 = sorted(times)[min(len(times) - 1, len(times) * 99 // 100)]
    return {"count": len(times), "p50": statistics.median(times), "p99": p99, "max": max(times)}


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--pages", type=int, default=4096, help="pages of each kind (4096)")
    asked = options.parse_args()
    times: dict[str, list[int]] = {name: [] for name in KINDS}
    for number in range(asked.pairs):
        for name, measure in KINDS.items():
            say(f"round {number + 1} of {asked.pairs}: {name}")
            times[name] += measure(asked.pages)
    say("")
    figures = {name: summary(found) for name, found in times.items() if found}
    base = figures["resident"]["p50"]
    rows = [
        [name, *(f"{figure[key]:,.0f}" for key in ("p50", "p99", "max")), f"{figure['p50'] / base:.1f}"]
        for name, figure in figures.items()
    ]
    print_table("One write, in ns", ["", "p50", "p99", "max", "x resident"], rows)
    for name in times.keys() - figures.keys():
        print(f"{name}: not measured, because none occurred on this machine", file=sys.stderr)
    write_json(asked.json, benchmark="page_faults", unit="ns", figures=figures)


if __name__ == "__main__":
    run_script(main)
