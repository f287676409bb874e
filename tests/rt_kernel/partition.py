"""A partition that `rtloop isolate` makes and undoes, on a machine of its own: who runs there, and what is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rtloop_test_waiting import wait_until

from rtloop.machine.isolation.isolation import missing_rights, stale_journals, undo
from rtloop.machine.isolation.journal import journals
from rtloop.machine.isolation.kernel import Kernel

KERNEL = Kernel()
CPU = KERNEL.cpus("/sys/devices/system/cpu/online")[-1]
TENANTS = Path(__file__).with_name("tenants.py")
CYCLES = int(os.environ.get("RTLOOP_TENANTS_CYCLES", "100"))
PERIOD = os.environ.get("RTLOOP_TENANTS_PERIOD", "20ms")
LIMIT_S = 900

pytestmark = [
    pytest.mark.rt,
    pytest.mark.skipif(bool(os.geteuid() or missing_rights(KERNEL)), reason="needs root, and writable control groups"),
    pytest.mark.skipif(CPU == 0, reason="needs two CPUs"),
    pytest.mark.skipif(CPU in KERNEL.cpus("/sys/devices/system/cpu/isolated"), reason="the CPU is isolated at boot"),
]

#: Files that an isolation may change, apart from the threads' CPUs.
FILES = (
    "proc/irq/default_smp_affinity", "proc/irq/*/smp_affinity_list", "proc/sys/kernel/watchdog_cpumask",
    "proc/sys/kernel/sched_rt_runtime_us", "sys/devices/virtual/workqueue/cpumask",
    "sys/devices/virtual/workqueue/*/cpumask", "sys/devices/system/cpu/isolated",
    "sys/devices/system/cpu/cpu*/cpufreq/scaling_governor", "sys/devices/system/cpu/cpu*/cpuidle/state*/disable",
    "sys/class/net/*/threaded", "sys/fs/cgroup/cgroup.subtree_control", "sys/fs/cgroup/cpuset*",
    "sys/fs/cgroup/*/cpuset*", "sys/fs/cgroup/*/*/cpuset.cpus*",
)  # fmt: skip


def machine_as_it_is() -> dict[str, object]:
    """Return the bytes of the files, and the CPUs and the policy of each thread that is there all the time."""
    found: dict[str, object] = {}
    for pattern in FILES:
        for path in Path("/").glob(pattern):
            try:
                found[str(path)] = path.read_bytes()
            except OSError as error:
                found[str(path)] = str(error)
    for thread in KERNEL.threads():
        if not thread.name.startswith("kworker/"):  # these come and go
            name = f"thread {thread.tid} {thread.start} {thread.name}"
            found[name] = thread.cpus, KERNEL.scheduler(thread.tid)
    return found


def changed(before: dict[str, object], after: dict[str, object]) -> dict[str, object]:
    """Return what differs, but for threads that began or ended."""
    names = {name for name in before.keys() | after.keys() if not name.startswith("thread")}
    names |= before.keys() & after.keys()
    return {name: (before.get(name), after.get(name)) for name in sorted(names) if before.get(name) != after.get(name)}


@pytest.fixture
def load() -> Iterator[None]:
    """Two programs that no one has pinned: one computes, one starts programs."""
    lines = ("while :; do :; done", "while :; do /bin/true; done")
    processes = [subprocess.Popen(["sh", "-c", line]) for line in lines]
    yield
    for process in processes:
        process.kill()
        process.wait()


def isolate(*command: str) -> list[str]:
    return [sys.executable, "-P", "-m", "rtloop", "isolate", "--cpus", str(CPU), "--", *command]


def tenants(*prefix: str) -> dict[str, Any]:
    command = [sys.executable, str(TENANTS), "--json", f"--cpu={CPU}", f"--cycles={CYCLES}", f"--period={PERIOD}"]
    done = subprocess.run([*prefix, *command], stdout=subprocess.PIPE, timeout=LIMIT_S, text=True, check=True)
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


def test_the_partition_is_the_kernels_and_none_but_the_loop_runs_there(load: None) -> None:
    before = tenants()
    during = tenants(*isolate())
    for when, figures in (("before", before), ("isolated", during)):
        print(f"tenants {when}: {json.dumps(figures)}")
    assert before["other"] > 0, "the load runs on this CPU if nothing keeps it away"
    assert during["cycles"] >= CYCLES and during["loop"] > 0
    assert during["other"] == 0, during["others"]


def test_it_is_one_partition_and_gone_afterwards() -> None:
    before = machine_as_it_is()
    own = "/sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)"
    show = f"cat /proc/self/cgroup /sys/fs/cgroup/cpuset.cpus.isolated {own}/cpuset.cpus.partition"
    done = subprocess.run(isolate("sh", "-c", show), capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done
    group, isolated, partition = done.stdout.split()[-3:]
    assert group.startswith("0::/") and (isolated, partition) == (str(CPU), "isolated"), done.stdout
    assert not changed(before, machine_as_it_is())


def test_after_kill_9_of_everything_and_an_undo_the_machine_is_as_it_was() -> None:
    before = machine_as_it_is()
    process = subprocess.Popen(isolate("sh", "-c", "echo $$; exec sleep 300"), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    program = int(process.stdout.readline())
    (journal,) = journals(KERNEL)
    assert changed(before, machine_as_it_is()), "something is changed meanwhile"
    owners = [pid for pid, _ in journal.header["owners"]]
    for pid in {*owners, process.pid, program}:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    wait_until(lambda: len(stale_journals(KERNEL)) == 1, "nothing of it lives")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "rtloop", "isolate", "--undo"], capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, done
    print(done.stdout)
    assert not changed(before, machine_as_it_is())
    assert not stale_journals(KERNEL) and not undo(KERNEL)
