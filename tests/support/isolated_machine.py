"""A machine of four CPUs as a tree of files, for tests of its isolation, and what the kernel would answer there."""

from __future__ import annotations

import os
from pathlib import Path

from rtloop.machine.isolation.kernel import Kernel, Thread

CPU = "/sys/devices/system/cpu"
TOP = "/sys/fs/cgroup"

FILES = {
    f"{CPU}/online": "0-3", f"{CPU}/present": "0-3", f"{CPU}/isolated": "",
    f"{CPU}/cpu3/cpufreq/scaling_governor": "powersave", f"{CPU}/cpu3/cpufreq/affected_cpus": "3",
    f"{CPU}/cpu3/cpuidle/state0/disable": "0", f"{CPU}/cpu3/cpuidle/state0/latency": "0",
    f"{CPU}/cpu3/cpuidle/state1/disable": "0", f"{CPU}/cpu3/cpuidle/state1/latency": "133",
    f"{CPU}/cpu3/cpuidle/state1/name": "C6", f"{CPU}/cpu3/topology/thread_siblings_list": "3",
    "/sys/devices/virtual/workqueue/cpumask": "f",
    "/proc/sys/kernel/watchdog_cpumask": "0-3",
    "/proc/irq/default_smp_affinity": "f",
    "/proc/irq/24/smp_affinity_list": "0-3", "/sys/kernel/irq/24/actions": "eth0-rx-0",
    "/proc/irq/25/smp_affinity_list": "3", "/sys/kernel/irq/25/actions": "nvme0q4",
    "/proc/irq/26/smp_affinity_list": "0-1", "/sys/kernel/irq/26/actions": "i8042",
    "/proc/irq/27/smp_affinity_list": "0-3", "/sys/kernel/irq/27/actions": "",
    "/sys/class/net/eth0/threaded": "0",
    "/run/.keep": "",
}  # fmt: skip
VERSION_2 = {
    f"{TOP}/cgroup.controllers": "cpuset cpu memory", f"{TOP}/cgroup.subtree_control": "cpu memory",
    f"{TOP}/cgroup.procs": "", f"{TOP}/cpuset.cpus.isolated": "",
}  # fmt: skip
VERSION_1 = {
    f"{TOP}/cpuset/cpuset.cpus": "0-3", f"{TOP}/cpuset/cpuset.mems": "0", f"{TOP}/cpuset/cgroup.procs": "",
    f"{TOP}/cpuset/tasks": "", f"{TOP}/cpuset/cpuset.sched_load_balance": "1",
}  # fmt: skip


def make_machine(root: Path, *parts: dict[str, str]) -> str:
    """Write the files of a machine below a folder, with newlines as the kernel has them, and return the folder."""
    for files in parts:
        for name, text in files.items():
            path = root / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
    return str(root)


def contents(root: str | Path) -> dict[str, bytes]:
    """Return the bytes of every file, and the folders, but for the journals and the lists of processes."""
    found = {}
    for path in sorted(Path(root).rglob("*")):
        name = path.relative_to(root).as_posix()
        if not name.startswith("run") and path.name != "cgroup.procs":
            found[name] = path.read_bytes() if path.is_file() else b"a folder"
    return found


class FakeKernel(Kernel):
    """The files of such a machine, with threads, refusals and answers.

    `refused` gives the errno by the end of a path, `answers` what a path has after a text was written, `deeds` a
    function that is called after a write.
    """

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.refused: dict[str, int] = {}
        self.answers: dict[tuple[str, str], str] = {}
        self.others: dict[int, Thread] = {}
        self.policies: dict[int, str] = {}
        self.on_write = lambda path, text: None

    def write(self, path: str, text: str) -> None:
        for end, number in self.refused.items():
            if path.endswith(end):
                raise OSError(number, os.strerror(number))
        if path.endswith("subtree_control"):
            words = {*self.text(path).split()}
            words = words | {text[1:]} if text[0] == "+" else words - {text[1:]}
            order = ("cpuset", "cpu", "memory")
            text = " ".join(word for word in order if word in words)
        if path.endswith("/tasks"):
            for other in Path(self.root).rglob("tasks"):
                lines = [line for line in other.read_text().splitlines() if line != text]
                other.write_text("".join(f"{line}\n" for line in lines))
            text = f"{self.read(path)}{text}"
        answer = next((new for (end, old), new in self.answers.items() if path.endswith(end) and old == text), text)
        super().write(path, answer.rstrip("\n") + "\n")
        self.on_write(path, text)

    def start_of(self, tid: int) -> int:
        return self.others[tid].start if tid in self.others else 0

    def threads(self):  # type: ignore[no-untyped-def]
        yield from list(self.others.values())

    def affinity(self, tid: int) -> tuple[int, ...]:
        return self.others[tid].cpus if tid in self.others else ()

    def set_affinity(self, tid: int, cpus) -> None:  # type: ignore[no-untyped-def]
        self.others[tid] = self.others[tid]._replace(cpus=tuple(sorted(cpus)))

    def scheduler(self, tid: int) -> str:
        return self.policies.get(tid, "other 0") if tid in self.others else ""

    def set_scheduler(self, tid: int, value: str) -> None:
        self.policies[tid] = value
