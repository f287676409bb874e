"""Measure the time from a save to the new step of `rtloop run --watch`, and what a swap adds to its cycle.

    python benchmarks/swaps.py [--pairs 10] [--busy 0] [--swaps 400] [--json FILE]

The saved file is the controller of `rtloop demo`. Every save but those of the cache has a new gain, so that it is
compiled. `--busy N` runs N processes meanwhile that only compute. A swap is measured in a loop whose steps take longer
than the period, so that nothing lies between the end of a cycle and the start of the next one but the swap; the time of
the first execution of a new step, whose code and data are not in the CPU's caches, in a loop of 1 kHz. Needs
SCHED_FIFO.
"""

from __future__ import annotations

import json
import os
import queue
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from common import claim, exit_code, parser, positive, print_claims, run_script, say, write_json

import rtloop
from rtloop import demo
from rtloop.telemetry.attach import running

COMPILED_TARGET_S, CACHED_TARGET_S, SWAP_TARGET_US = 3.0, 1.0, 1.0
STEPS = Path(__file__).with_suffix(".pyx")
PATIENCE_S = 120
#: Period of the loop whose cycles follow at once, and of the other one.
BACK_TO_BACK, SPARSE = "100us", "1ms"


class Watched:
    """`rtloop run --watch` of the demo's controller, with a plant that never answers."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._file, self._events = folder / "law.pyx", queue.Queue[str]()
        # Its declarations stay in the package, which is where it cimports them from.
        self._text = Path(demo.__file__).with_name("cartpole.pyx").read_text(encoding="utf-8")
        self.save(0)
        plant = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        plant.bind(("127.0.0.1", 0))
        command = [
            sys.executable, "-P", "-m", "rtloop", "run", str(self._file), "--watch", "--json", "-p",
            f"plant={plant.getsockname()}",
        ]  # fmt: skip
        self._process = stack.enter_context(
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                env={**os.environ, "RTLOOP_CACHE_DIR": str(folder / "cache")},
            )
        )  # fmt: skip
        stack.callback(self._process.terminate)
        threading.Thread(target=self._read, daemon=True).start()
        deadline = time.monotonic() + PATIENCE_S
        while not running(self._process.pid):
            if self._process.poll() is not None or time.monotonic() > deadline:
                sys.exit("\nthe loop of rtloop run --watch has not started")
            time.sleep(0.1)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._events.put(line)
        self._events.put("")

    def save(self, number: int) -> None:
        """Save the law with another gain."""
        text, count = re.subn(r"K = \[31\.62", f"K = [31.62{number:04}", self._text)
        assert count == 1
        new = self._file.with_suffix(".new")
        new.write_text(text, encoding="utf-8")
        new.replace(self._file)

    def swap(self, number: int) -> dict[str, Any]:
        """Save, and return the line of JSON of the swap."""
        self.save(number)
        try:
            event: dict[str, Any] = json.loads(self._events.get(timeout=PATIENCE_S) or "null")
        except queue.Empty:
            sys.exit(f"\nrtloop run --watch has not answered a save within {PATIENCE_S} s")
        if event is None or event.get("event") != "swapped":
            sys.exit(f"\nrtloop run --watch: {event}")
        return event


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Run processes that compute."""
    with ExitStack() as stack:
        for _ in range(count):
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(process.kill)
        yield


def measure_saves(pairs: int) -> tuple[list[float], list[float], list[float]]:
    """Return the seconds from a save to the swap, compiled and from the cache, and those of the compilers."""
    compiled, cached, compilers = [], [], []
    with tempfile.TemporaryDirectory(prefix="rtloop-bench-") as name, ExitStack() as stack:
        watched = Watched(Path(name), stack)
        watched.swap(9999)  # the process that has loaded Cython is ready after it
        for number in range(1, pairs + 1):
            say(f"save {number} of {pairs}")
            event = watched.swap(number)
            compiled.append(event["seconds"])
            compilers.append(event["compiled_s"])
            event = watched.swap(number - 1)
            assert event["compiled_s"] == 0
            cached.append(event["seconds"])
            watched.swap(number)
    return compiled, cached, compilers


def measure_swaps(count: int) -> tuple[list[float], list[float]]:
    """Return the microseconds that swaps, and the first steps after them, take beyond those of the other cycles.

    Each is the difference to the median of the ten cycles before it.
    """
    steps = rtloop.build(STEPS)
    between, first = [], []
    for kind, period in ((steps.Long, BACK_TO_BACK), (steps.Short, SPARSE)):
        loop = kind(period, overrun="catch-up", max_burst=1 << 20, priority=80, record=1 << 20, name="swapped")
        with loop:
            time.sleep(0.05)
            for _ in range(count):
                loop.swap(kind(period))
                time.sleep(0.002)
        stats = loop.stats
        records = {int(cycle): number for number, cycle in enumerate(range(stats.cycles))}
        if len(stats.records) != stats.cycles:
            sys.exit("\nmore cycles than records: give fewer --swaps")
        start, end = stats.records["start"], stats.records["end"]
        for swap in stats.swaps:
            k = records[swap.cycle]
            if kind is steps.Long:
                gaps = start[k - 10 : k + 1] - end[k - 11 : k]
                between.append(float(gaps[10] - statistics.median(gaps[:10])) / 1000)
            else:
                took = end[k - 10 : k + 1] - start[k - 10 : k + 1]
                first.append(float(took[10] - statistics.median(took[:10])) / 1000)
    return between, first


def main() -> int:
    options = parser(__doc__ or "", pairs=10)
    options.add_argument("--busy", type=int, default=0, metavar="N", help="processes that compute meanwhile (0)")
    options.add_argument("--swaps", type=positive, default=400, metavar="N", help="swaps of each loop (400)")
    arguments = options.parse_args()
    load = os.getloadavg()[0]
    try:
        between, first = measure_swaps(arguments.swaps)
        with busy(arguments.busy):
            compiled, cached, compilers = measure_saves(arguments.pairs)
    except rtloop.RtloopError as error:
        sys.exit(f"\n{error}")
    say("")
    claims = [
        claim("from a save to the new step, compiled", "s", compiled, target=COMPILED_TARGET_S),
        claim("the compilers of it", "s", compilers),
        claim("from a save to the new step, from the cache", "s", cached, target=CACHED_TARGET_S),
        claim("a swap, with take_over, between two cycles", "us", between, target=SWAP_TARGET_US),
        claim("the first step after a swap, more than another", "us", first),
    ]
    print_claims(f"Swaps, load average {load:.1f}, {arguments.busy} busy processes", claims)
    write_json(
        arguments.json, benchmark="swaps", options=vars(arguments), load_average=load, compiled_s=compiled,
        compilers_s=compilers, cached_s=cached, swap_us=between, first_step_us=first, claims=claims,
    )  # fmt: skip
    return exit_code(claims)


if __name__ == "__main__":
    run_script(main)
