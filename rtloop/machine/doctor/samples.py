"""Two samples of the machine, some time apart: the threads that ran in between, and the stolen time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

from rtloop.machine.doctor import parse
from rtloop.machine.doctor.machine_files import Machine, unread
from rtloop.machine.doctor.parse import Task
from rtloop.system.checks import Check

__all__ = ["Sample", "busy_tasks", "examine", "take_sample"]

_POLICIES = {1: "fifo", 2: "rr", 6: "deadline"}
_MSR_SMI_COUNT = 0x34  # Intel SDM, volume 4
_TICKS_PER_S = 100  # USER_HZ, on every architecture that rtloop runs on
#: A thread that uses a greater share of a CPU is reported as a hog.
_HOG = 0.2


class Sample(NamedTuple):
    """The machine at one moment.

    Attributes
    ----------
    seconds : float
        Time at which it was taken.
    times : tuple of int or None
        Stolen and all CPU time, in ticks.
    tasks : dict
        Every real-time thread, with its process, and the nanoseconds it has run, by its number.
    smi : int or None
        System management interrupts of CPU 0 since boot, as Intel's processors count them; None if not known.
    """

    seconds: float
    times: tuple[int, int] | None
    tasks: dict[int, tuple[Task, int, int]]
    smi: int | None = None


def take_sample(machine: Machine) -> Sample:
    """Read all visible threads, which takes a few milliseconds for a thousand of them."""
    tasks = {}
    for pid in machine.numbered("/proc"):
        folder = f"/proc/{pid}/task"
        for tid in machine.numbered(folder):
            task = parse.task(machine.text(f"{folder}/{tid}/stat"))
            if task is not None and task.policy in _POLICIES:
                run_ns = parse.task_run_ns(machine.text(f"{folder}/{tid}/schedstat"))
                tasks[tid] = task, pid, task.ticks * (10**9 // _TICKS_PER_S) if run_ns is None else run_ns
    return Sample(time.monotonic(), parse.cpu_times(machine.text("/proc/stat")), tasks, _count_smi(machine))


def _count_smi(machine: Machine) -> int | None:
    if machine.cpu_vendor != "GenuineIntel" or "hypervisor" in machine.cpu_flags:
        return None
    data, _ = machine.read_bytes("/dev/cpu/0/msr", 8, _MSR_SMI_COUNT)
    return int.from_bytes(data[:4], "little") if data is not None and len(data) == 8 else None


def busy_tasks(before: Sample, after: Sample) -> list[tuple[float, Task, int]]:
    """Return the real-time threads of both samples, with their share of a CPU in between, busiest first."""
    seconds = max(after.seconds - before.seconds, 1e-9)
    shares = [
        ((run_ns - before.tasks[tid][2]) / 1e9 / seconds, task, pid)
        for tid, (task, pid, run_ns) in after.tasks.items()
        if tid in before.tasks
    ]
    return sorted(shares, key=lambda entry: entry[0], reverse=True)


def examine(machine: Machine, before: Sample | None, after: Sample | None) -> Iterator[Check]:
    """Yield the checks of real-time threads that already run."""
    name, source = "other real-time threads", "/proc/*/task/*/stat, schedstat"
    why = "a real-time thread that does not sleep blocks everything of lower priority on its CPU"
    if before is None or after is None or not machine.numbered("/proc"):
        yield Check("scheduling", name, unread(), source, "note", why)
        return
    shares = busy_tasks(before, after)
    hogs = [(share, task, pid) for share, task, pid in shares if share >= _HOG]
    seconds = after.seconds - before.seconds
    if not hogs:
        user = [task for _, task, _ in shares if not task.is_kernel]
        most = f"; the busiest used {100 * shares[0][0]:.1f} % of a CPU in {seconds:.1f} s" if shares else ""
        found = f"{len(shares)} visible, {len(user)} of them in user programs{most}"
        is_hidden = not machine.text("/proc/1/stat")  # hidepid: only own processes are visible
        found += "; those of other users are hidden" if is_hidden else ""
        yield Check("scheduling", name, found, source, "note" if is_hidden else "ok", why)
        return
    for share, task, pid in hogs:
        rank = f" {task.priority}" if task.policy != 6 else ""
        found = (
            f"{task.name} (pid {pid}, tid {task.tid}, {_POLICIES[task.policy]}{rank}) took {100 * share:.0f} % of a "
            f"CPU in {seconds:.1f} s, last on CPU {task.cpu}"
        )
        fix = (
            f"now:        sudo chrt --other --pid 0 {task.tid}   # makes it an ordinary thread"
            if not task.is_kernel
            else f"a kernel thread: see what keeps it busy, sudo cat /proc/{pid}/stack"
        )
        yield Check("scheduling", f"real-time hog {task.name}", found, source, "warn", why, fix)
