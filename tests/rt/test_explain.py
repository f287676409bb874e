"""Late cycles are explained by a trace of this machine's kernel: planted spikes are named, and never by another name.

This machine may delay the loop as well: a cycle counts only if the planted spike covers most of its delay.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rtloop import PyLoop, RTLoop, SetupError, Stats

TRACING = Path("/sys/kernel/tracing")
pytestmark = [
    pytest.mark.rt,
    pytest.mark.skipif(os.geteuid() != 0, reason="tracing the kernel needs root"),
    pytest.mark.skipif(not os.access(TRACING / "instances", os.W_OK), reason=f"tracefs is not mounted on {TRACING}"),
]
CPU = max(os.sched_getaffinity(0))
SPIKE_NS = 4_000_000
HOG = f"""
import os, time
os.sched_setaffinity(0, {{{CPU}}})
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(90))
for _ in range(5):
    time.sleep(0.05)
    begin = time.monotonic_ns()
    while time.monotonic_ns() < begin + {SPIKE_NS}:
        pass
    print(begin, time.monotonic_ns(), flush=True)
time.sleep(0.2)
"""


def judged(stats: Stats, spikes: list[tuple[int, int]]) -> list[str]:
    """Return the culprits of the cycles that a spike has delayed."""
    records, first, found = stats.records, stats.cycles - len(stats.records), []
    for one in stats.explanations or ():
        names = ("release", "start") if one.what == "start" else ("start", "end")
        begin, end = (int(records[name][one.cycle - first]) for name in names)
        covered = max((min(end, e) - max(begin, b) for b, e in spikes), default=0)
        if covered > 0.8 * one.delay_ns and one.delay_ns > SPIKE_NS / 4:
            found.append(one.culprit)
    return found


def named(culprits: list[str], planted: str, others: set[str], stats: Stats) -> None:
    """Check that the planted culprit is named; `others` may have delayed the spike itself."""
    assert {*culprits} <= {planted, "unknown"} | others, stats.explain()
    if planted not in culprits:
        pytest.skip(f"this machine is so busy that events were lost: {[str(one) for one in stats.explain(3)]}")


def instances() -> set[str]:
    return {name for name in os.listdir(TRACING / "instances") if name.startswith(f"rtloop-{os.getpid()}-")}


def test_a_busy_thread_of_a_higher_priority_is_named_and_the_trace_is_removed() -> None:
    with RTLoop("1kHz", cpu=CPU, explain="500us") as loop:
        assert len(instances()) == 2
        grant = next(grant for grant in loop.grants if grant.name == "explain")
        assert grant.ok and grant.granted == "delays beyond 500 us"
        done = subprocess.run([sys.executable, "-c", HOG], capture_output=True, text=True, timeout=60, check=True)
    assert instances() == set()
    spikes = [(int(begin), int(end)) for begin, end in map(str.split, done.stdout.splitlines())]
    culprits = judged(loop.stats, spikes)
    named(culprits, "thread", {"steal"}, loop.stats)
    assert any("90) ran" in str(one) for one in loop.stats.explain())


def test_a_stop_of_the_process_is_named_with_its_sender(tmp_path: Path) -> None:
    code = f"""
import time, rtloop
from pathlib import Path
with rtloop.RTLoop("1kHz", cpu={CPU}, explain="1ms") as loop:
    print("ready", flush=True)
    input()
loop.stats.save("run")
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.1)
        spikes = []
        for _ in range(3):
            begin = time.monotonic_ns()
            child.send_signal(19)
            time.sleep(SPIKE_NS / 1e9)
            child.send_signal(18)
            spikes.append((begin, time.monotonic_ns()))
            time.sleep(0.1)
        time.sleep(0.2)
        child.communicate("\n", timeout=60)
    stats = Stats.load(tmp_path / "run")
    culprits = judged(stats, spikes)
    named(culprits, "signal", set(), stats)
    assert any(f"SIGSTOP from {Path('/proc/self/comm').read_text().strip()}" in str(one) for one in stats.explain())


def test_a_collection_of_garbage_is_named_beside_a_step_in_python() -> None:
    kept = [[i] for i in range(200_000)]
    spikes = []
    with PyLoop(lambda cycle: None, "1kHz", cpu=CPU, explain="500us") as loop:
        for _ in range(3):
            time.sleep(0.05)
            begin = time.monotonic_ns()
            gc.collect()
            spikes.append((begin, time.monotonic_ns()))
        time.sleep(0.2)
    culprits = judged(loop.stats, spikes)
    assert kept
    named(culprits, "collector", {"steal", "thread"}, loop.stats)


def test_a_run_without_the_setting_has_no_explanations() -> None:
    assert RTLoop("1kHz").run("20ms").explanations is None
    assert RTLoop("1kHz", explain=True).run("20ms").explanations is not None


def test_without_records_late_cycles_cannot_be_found() -> None:
    with pytest.raises(SetupError, match="record=0 keeps no timestamps"):
        RTLoop("1kHz", record=0, explain=True).run("10ms")
