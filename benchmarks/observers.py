"""Observe and tune a loop from all sides at once, with the same loop alone beside it as the control.

    python benchmarks/observers.py [--duration 1min] [--block 10s] [--json FILE]

A loop of 1 kHz has sixteen signals and eight parameters. Three readers look at every sample: the one of rtloop scope,
rtloop record, which writes a file, and a Python thread of the loop's process. Another process changes all parameters
1000 times a second, or as often as the machine lets it, and a second thread of the loop's process holds the GIL for
tens of milliseconds at a time. The control is the same step in a process of its own, which has neither signals nor
parameters; its releases are half a period apart from the loop's, so that each of the two wakes up alone.

Blocks alternate: in every other one all of these are stopped, whatever they are doing, and the loop runs alone. The
ratios of the latencies are medians over pairs of blocks, so that other work on the machine affects both sides. They are
also given for the control, which runs all the time.

The step counts torn sets: the values of a set belong together, and a step must never see a part of one. Each reader
counts torn samples in the same way, and gaps between samples that were not reported to it. The exit code is 1 if there
was a torn set, a torn sample, an unreported gap, a page fault of the loop's thread or a refused set. The ratios of the
latencies do not affect it, because they depend on what else the machine does.

Needs SCHED_FIFO, locked memory, Cython and a C compiler (for rtloop.build).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from common import facts, print_table, restless_thread, run_script, say, writable

import rtloop
from rtloop.tools.scope.samples.watch import Watch
from rtloop.tools.scope.sources import Machine
from rtloop.units import format_duration, parse_duration

CONTROLLER = Path(__file__).with_suffix(".pyx")
SETTINGS: dict[str, Any] = {"align": "1s", "signals_capacity": 1 << 16}
GAINS, VALUES = 8, 16
CHANGES_PER_S = 1000
PERCENTILES = (50, 99)
HOLD_S = 0.16
#: A writer that is further behind gives up what it has missed, as after a block in which it was stopped, s.
LAG_S = 1.0
#: The loop keeps its samples for 65 s, so that a stopped reader loses none.
LONGEST_BLOCK_S = 30


#: Counts that must be 0.
FAILURES = {
    "torn_sets": "torn sets of parameters",
    "faults": "page faults of the loop's thread",
    "refused": "sets of parameters refused",
}
UNTRUE = {"torn": "torn samples", "untold": "samples missing that were not counted as lost"}


#: Tells the program that a role is ready, and returns when it ends, s.
Ready = Callable[[], float]


def tell_ready() -> float:
    """Do so through a pipe."""
    print("ready", file=sys.__stdout__, flush=True)
    return float(sys.stdin.readline())


class Check:
    """Count samples, torn ones, and gaps."""

    def __init__(self) -> None:
        self.samples = self.torn = self.gaps = 0
        self._last: int | None = None

    def take(self, records: np.ndarray) -> None:
        """Check the next samples."""
        if not len(records):
            return
        first = records["value0"]
        wrong = first != records["cycle"]
        for number in range(1, VALUES):
            wrong |= records[f"value{number}"] != first + number
        self.torn += int(wrong.sum())
        cycles = records["cycle"].astype(np.int64)
        before = cycles[0] - 1 if self._last is None else self._last
        self.gaps += int(np.sum(np.diff(cycles, prepend=before) - 1))
        self._last = int(cycles[-1])
        self.samples += len(records)

    def row(self, lost: int) -> dict[str, int]:
        """Return the counts; a gap that was reported as lost is not counted."""
        return {"samples": self.samples, "torn": self.torn, "lost": lost, "untold": self.gaps - lost}


def play_control(pid: int, ready: Ready) -> dict[str, Any]:
    """Run the loop alone."""
    loop: Any = rtloop.build(CONTROLLER).Alone("1kHz", phase="500us", name="alone", align="1s")
    with loop:
        end = ready()
        time.sleep(max(0.0, end - time.monotonic()))
    stats = loop.stats
    latency = {f"p{p}": stats.latency.percentile(p) for p in PERCENTILES}
    return {"cycles": stats.cycles, "missed": stats.missed, "faults": sum(stats.page_faults), "latency_ns": latency}


def play_scope(pid: int, ready: Ready) -> dict[str, int]:
    """Read as the server of rtloop scope does, 20 times a second."""
    watch = Watch.open(Machine(), "observed", pid, 10.0)
    check = Check()
    assert watch.signals is not None
    watch.signals.listeners.append(lambda number, records: check.take(records))
    end = ready()
    while time.monotonic() < end:
        watch.poll()
        time.sleep(0.05)
    watch.poll()
    return check.row(watch.lost)


def play_writer(pid: int, ready: Ready) -> dict[str, float]:
    """Change all parameters together, and count the sets and the seconds in which they were due."""
    sets, skipped = 0, 0.0
    with rtloop.connect("observed", pid) as loop:
        end = ready()
        begun = due = time.monotonic()
        while (now := time.monotonic()) < end:
            if now - due > LAG_S:
                skipped += now - due
                due = now
            if now < due:
                time.sleep(min(due - now, 0.001))
                continue
            due += 1 / CHANGES_PER_S
            sets += 1
            loop.parameters.update({f"gain{i}": float(sets + i) for i in range(GAINS)})
        return {"sets": sets, "writing_s": time.monotonic() - begun - skipped}


ROLES = {"control": play_control, "scope": play_scope, "writer": play_writer}


def play_python(loop: Any, observing: threading.Event, stop: threading.Event, into: dict[str, Any]) -> None:
    """Read in the loop's own process."""
    reader, check = loop.signals.reader(), Check()
    while not stop.wait(0.02):
        observing.wait()
        check.take(reader.read())
    check.take(reader.read())
    into.update(check.row(reader.lost))


def check_file(path: Path, lost: int) -> dict[str, int]:
    """Check the file of rtloop record, a part at a time."""
    records, check = np.load(path, mmap_mode="r"), Check()
    for begin in range(0, len(records), 1 << 16):
        check.take(records[begin : begin + (1 << 16)])
    return check.row(lost)


class Blocks:
    """Latencies of the loop in alternating blocks: observed, and alone."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._before = loop.stats.latency.counts
        self.rows: dict[str, list[list[float]]] = {"observed": [], "alone": []}

    def end(self, kind: str) -> None:
        """Note the percentiles since the last call; kinds other than observed and alone are not counted."""
        latency = self._loop.stats.latency
        counts, self._before = latency.counts - self._before, latency.counts
        if kind in self.rows:
            bins = np.searchsorted(np.cumsum(counts), np.array(PERCENTILES) / 100 * counts.sum())
            self.rows[kind].append([float(latency.edges[number + 1]) for number in bins])

    def ratios(self) -> dict[str, float]:
        """Return the median ratio of a block with observers to the one after it, for each percentile."""
        pairs = list(zip(self.rows["observed"], self.rows["alone"], strict=False))
        return {
            f"p{percentile}": statistics.median(one[column] / max(1.0, other[column]) for one, other in pairs)
            for column, percentile in enumerate(PERCENTILES if pairs else ())
        }


def alternate(loop: Any, observing: threading.Event, pids: list[int], end: float, block_s: float) -> Blocks:
    """Stop the observers in every other block. At the end all of them go on."""
    blocks = Blocks(loop)
    try:
        while (left := end - time.monotonic()) > 0:
            is_observed = observing.is_set()
            say(f"{left:.0f} s to go: {loop.torn} torn sets of {loop.changes}, {loop.state}")
            time.sleep(min(block_s, left))
            blocks.end("incomplete" if left < block_s else "observed" if is_observed else "alone")
            (observing.clear if is_observed else observing.set)()
            for pid in pids:  # none has been waited for, so a process that has ended is still there
                os.kill(pid, signal.SIGSTOP if is_observed else signal.SIGCONT)
            time.sleep(min(0.1, block_s))
            blocks.end("change")
    finally:
        observing.set()
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    return blocks


def observe(duration_s: float, block_s: float) -> dict[str, Any]:
    """Run everything, and return what was counted."""
    rtloop.build(CONTROLLER)
    observing = threading.Event()
    observing.set()

    def play(*role: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, __file__, "--role", *role], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(restless_thread(lambda: (observing.wait(), sum(range(3_000_000)), time.sleep(HOLD_S))))
        loop: Any = rtloop.build(CONTROLLER).Observed("1kHz", name="observed", **SETTINGS)
        stack.enter_context(loop)
        path, pid = folder / "run.npy", str(os.getpid())
        others = {name: play(name, pid) for name in ("control", "scope", "writer")}
        recorder = subprocess.Popen(
            [sys.executable, "-P", "-m", "rtloop", "record", "observed", "--pid", pid, "-o", str(path), "--json"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        stop, python = threading.Event(), dict[str, Any]()
        thread = threading.Thread(target=play_python, args=(loop, observing, stop, python), name="reader")
        thread.start()
        for one in others.values():
            assert one.stdout is not None and one.stdout.readline() == "ready\n", "a role has failed"
        while not path.exists() and recorder.poll() is None:
            time.sleep(0.01)
        end = time.monotonic() + duration_s
        for one in others.values():
            assert one.stdin is not None
            one.stdin.write(f"{end}\n")
            one.stdin.flush()
        stopped = [recorder.pid, others["scope"].pid, others["writer"].pid]
        blocks = alternate(loop, observing, stopped, end, block_s)
        said = {name: json.loads(one.communicate(timeout=120)[0]) for name, one in others.items()}
        recorder.terminate()  # SIGINT is ignored in what a shell has started in the background
        recorded = json.loads(recorder.communicate(timeout=120)[0])
        stop.set()
        thread.join()
        loop.stop()
        say("")
        readers = {
            "rtloop scope": said["scope"],
            "rtloop record": check_file(path, recorded["lost"]),
            "Python thread": python,
        }
        stats, control = loop.stats, said["control"]
        refused = loop.parameters.refused
    latency = {f"p{p}": stats.latency.percentile(p) for p in PERCENTILES}
    return {
        "duration_s": duration_s,
        "cycles": stats.cycles,
        "missed": stats.missed,
        "overruns": stats.overruns,
        "faults": sum(stats.page_faults),
        "sets": said["writer"]["sets"],
        "sets_per_s": said["writer"]["sets"] / max(1e-3, said["writer"]["writing_s"]),
        "sets_used": loop.changes,
        "torn_sets": loop.torn,
        "refused": refused,
        "readers": readers,
        "latency_ns": latency,
        "control": control,
        "blocks_ns": blocks.rows,
        "ratios": blocks.ratios(),
        "control_ratios": {name: value / max(1, control["latency_ns"][name]) for name, value in latency.items()},
    }


def judge(found: dict[str, Any]) -> list[str]:
    """Return a sentence for each failure."""
    failed = [f"{found[key]} {words}" for key, words in FAILURES.items() if found[key]]
    for name, row in found["readers"].items():
        failed += [f"{name}: {row[key]} {words}" for key, words in UNTRUE.items() if row[key]]
        if not row["samples"]:
            failed.append(f"{name}: no samples")
    return failed


def print_found(found: dict[str, Any], *, file: Any = None) -> None:
    """Print the tables."""
    rate = f"{found['sets_per_s']:.0f} a second"
    sets = f"{found['sets']} sets of parameters ({rate}), {found['sets_used']} used, {found['torn_sets']} torn"
    ratios, control = (
        ", ".join(f"{name} {ratio:.2f}" for name, ratio in found[key].items()) for key in ("ratios", "control_ratios")
    )
    pairs = len(found["blocks_ns"]["alone"])
    cycles = f"{found['cycles']} cycles, {found['missed']} missed, {found['faults']} page faults"
    print_table(
        f"{found['duration_s']:.0f} s: {cycles}; {sets}\n"
        f"latency, by that of the loop alone in {pairs} pairs of blocks: {ratios or '-'}; of the control: {control}",
        ["reader", "samples", "torn", "lost", "untold gaps"],
        [[name, *(str(row[key]) for key in ("samples", "torn", "lost", "untold"))]
         for name, row in found["readers"].items()],
        file=file,
    )  # fmt: skip


def main() -> int:
    """Run the observers, or one of them."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--duration", default="1min", metavar="TIME", help='duration: "1min", "1h" (1min)')
    options.add_argument(
        "--block", default="10s", metavar="TIME", help=f"length of a block, at most {LONGEST_BLOCK_S}s (10s)"
    )
    options.add_argument(
        "--json", type=writable, metavar="FILE", help="write the figures and the machine's facts here; - for stdout"
    )
    options.add_argument("--role", nargs=2, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.role:
        role, pid = chosen.role
        print(json.dumps(ROLES[role](int(pid), tell_ready)))
        return 0
    begun = time.monotonic()
    block_s = parse_duration(chosen.block, "block", minimum=1) / 1e9
    if block_s > LONGEST_BLOCK_S:
        options.error(f"--block {chosen.block}: must be at most {LONGEST_BLOCK_S}s")
    found = observe(parse_duration(chosen.duration, "duration", minimum=1) / 1e9, block_s)
    found["took"] = format_duration(int((time.monotonic() - begun) * 1e9))
    to_stdout = chosen.json == "-"
    print_found(found, file=sys.stderr if to_stdout else None)
    failed = judge(found)
    for text in failed:
        print(text, file=sys.stderr)
    if chosen.json:
        text = json.dumps({**found, "failed": failed, "machine": facts()}, indent=1, default=str)
        print(text) if to_stdout else Path(chosen.json).write_text(text + "\n")
    return int(bool(failed))


if __name__ == "__main__":
    run_script(main)
