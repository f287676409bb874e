"""Print this machine as one of these files: run the examination, and write down every file that it reads.

Look through it before you hand it on: it has the machine's name for itself, its users, and its kernel's command line.
"""

from __future__ import annotations

import os

from rtloop.machine.doctor.machine_files import Machine
from rtloop.machine.doctor.run_all import examine
from rtloop.machine.doctor.samples import take_sample


class Recorder(Machine):
    """A machine that remembers what was read of it."""

    def __init__(self) -> None:
        super().__init__()
        self.sections: dict[str, str] = {"uname": f"\n{self.machine}"}

    def read(self, path: str) -> tuple[str | None, str]:
        text, reason = super().read(path)
        if text is not None:
            name = path.replace("/proc/config.gz", f"/boot/config-{os.uname().release}")
            self.sections[name] = "\n" + text.replace("\0", "").rstrip("\n")
        elif os.path.lexists(path):
            self.sections[path] = " !"
        return text, reason

    def link(self, path: str) -> str:
        target = super().link(path)
        if target:
            self.sections[path] = f" -> {target}"
        return target

    def exists(self, path: str) -> bool:
        found = super().exists(path)
        if found and os.path.isfile(path):
            self.read(path)
        return found


def is_of_interest(path: str) -> bool:
    """Leave out the threads that are not real-time ones, and this program itself."""
    parts = path.split("/")
    if parts[1:2] != ["proc"] or not parts[2].isdigit():
        return True
    if parts[-1] in ("stat", "schedstat") and len(parts) == 6:
        return os.path.exists(path) and os.sched_getscheduler(int(parts[4])) & 0xFF in (1, 2, 6)
    return False


def main() -> None:
    machine = Recorder()
    take_sample(machine)
    examine(machine)
    for folder in machine.names("/sys/kernel/mm/hugepages"):
        for name in ("nr", "free", "resv", "surplus", "nr_overcommit"):
            machine.read(f"/sys/kernel/mm/hugepages/{folder}/{name}_hugepages")
    machine.read("/proc/meminfo")
    options = (
        "PREEMPT", "NO_HZ", "HZ_PERIODIC", "RCU_NOCB", "CPU_FREQ", "TRACING", "IRQSOFF", "PROVE_LOCKING", "LOCK_STAT",
        "DEBUG_", "KASAN", "KCSAN", "LATENCYTOP", "IRQ_FORCED", "LOCKUP", "EFI_DISABLE", "HIGH_RES",
        "RT_GROUP", "NUMA_BAL", "KSM", "TRANSPARENT", "HUGETLBFS", "COMPACTION",
    )  # fmt: skip
    keep = tuple(f"{mark}CONFIG_{option}" for option in options for mark in ("", "# "))
    keep += ("cpu", "Hugepagesize", "MemTotal")
    for path, text in machine.sections.items():
        if not is_of_interest(path):
            continue
        if path.startswith("/boot/config") or path in ("/proc/stat", "/proc/meminfo"):
            text = "\n" + "\n".join(line for line in text.splitlines() if line.startswith(keep))
        print(f"==> {path}{text}")


if __name__ == "__main__":
    main()
