"""``rtloop latency`` with all of its options: real time, cyclictest beside it, the kernel's trace."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.rt
TRACING = Path("/sys/kernel/tracing")


def rtloop(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rtloop", "latency", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)


def test_a_loop_on_each_cpu_at_real_time(tmp_path: Path) -> None:
    done = rtloop(tmp_path, "--rate", "2kHz", "--duration", "1s", "--cpus", "all", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    for loop in document["loops"]:
        assert loop["refused"] == [] and loop["page_faults"] == {"minor": 0, "major": 0}
        assert loop["cycles"] + loop["missed"] >= 1900


@pytest.mark.skipif(shutil.which("cyclictest") is None, reason="needs cyclictest: apt install rt-tests")
def test_a_comparison_has_both_in_every_pair(tmp_path: Path) -> None:
    done = rtloop(tmp_path, "--duration", "300ms", "--compare", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert len(document["pairs"]) == 3 and document["ratios"]["p50"] > 0
    assert all(sum(side["counts"].values() if isinstance(side["counts"], dict) else side["counts"]) > 100
               for pair in document["pairs"] for side in pair.values())  # fmt: skip


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root, and unshare(1)")
@pytest.mark.skipif("tracefs" not in Path("/proc/filesystems").read_text(), reason="this kernel cannot trace")
def test_the_trace_stops_at_the_breakpoint_and_is_removed(tmp_path: Path) -> None:
    """In a mount namespace of its own: tracefs need not be mounted, and nobody else sees it."""
    stale = f"rtloop-{2**22 + 5}"  # of a process that was killed: no process has such a number
    command = [sys.executable, "-P", "-m", "rtloop", "latency", "--breakpoint", "1", "--trace", "late.txt"]
    endless = [*command[:5], "--duration", "60s", "--breakpoint", "50000000", "--trace", "never.txt"]
    script = f"""
        mountpoint -q {TRACING} || mount -t tracefs none {TRACING} || exit 9
        mkdir {TRACING}/instances/{stale} || exit 8
        cat {TRACING}/tracing_on
        {shlex.join(command)} >&2
        code=$?
        cat {TRACING}/tracing_on
        echo instances: `ls {TRACING}/instances`
        {shlex.join(endless)} >/dev/null 2>&1 &
        for i in `seq 200`; do ls {TRACING}/instances | grep -q rtloop && break; sleep 0.1; done
        echo traced: `ls {TRACING}/instances`
        sleep 0.5; kill -TERM $!; wait $!
        echo $? instances: `ls {TRACING}/instances`
        exit $code
    """
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    if done.returncode == 9:
        pytest.skip(f"tracefs cannot be mounted here: {done.stderr.strip()}")
    if done.stderr.startswith("unshare: cannot"):  # in a chroot
        pytest.skip(f"no mount namespace here: {done.stderr.strip()}")
    assert done.returncode == 3, done.stderr
    trace = (tmp_path / "late.txt").read_text()
    assert "sched_switch" in trace and "latency" in trace
    before, after, instances, traced, ended = done.stdout.splitlines()
    assert before == after and "rtloop-" not in instances
    assert "rtloop-" in traced and ended.startswith("143 ") and "rtloop-" not in ended, "as `timeout` ends it"
