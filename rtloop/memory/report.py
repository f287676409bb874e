"""Report on the memory of this process, as the kernel accounts it."""

from __future__ import annotations

import resource
from dataclasses import asdict, dataclass
from typing import Any

from rtloop.memory.kernel import future_lock
from rtloop.memory.process_lock import memory_status
from rtloop.system.fileio import parse_sizes, read_text
from rtloop.system.privilege import CAP_IPC_LOCK, CAP_SYS_NICE, is_capable, read_limit
from rtloop.units import format_size

__all__ = ["MemoryStatus", "status"]


@dataclass(frozen=True, slots=True)
class MemoryStatus:
    """Memory of this process at one moment. Sizes are bytes; a limit of None is unlimited.

    Attributes
    ----------
    memlock_soft, memlock_hard : int or None
        RLIMIT_MEMLOCK (getrlimit(2)); it does not apply with CAP_IPC_LOCK.
    locked_bytes, size_bytes, resident_bytes, page_table_bytes, swapped_bytes : int
        VmLck, VmSize, VmRSS, VmPTE and VmSwap of ``/proc/self/status``. VmLck counts address space.
    hugetlb_bytes : int or None
        Explicit huge pages in use (HugetlbPages); None if the kernel has none.
    transparent_bytes : int or None
        Transparent huge pages in use (AnonHugePages of ``/proc/self/smaps_rollup``); None if it cannot be read.
    minor_faults, major_faults : int
        Page faults of all threads since the process started (getrusage(2)).
    future_lock : {None, "all", "onfault"}
        Lock of new mappings: none, with all pages present at once, or of each page when it is first touched.
    has_ipc_lock, has_sys_nice : bool
        True if CAP_IPC_LOCK or CAP_SYS_NICE is held in the initial user namespace, the only one that counts here.
    """

    memlock_soft: int | None
    memlock_hard: int | None
    locked_bytes: int
    size_bytes: int
    resident_bytes: int
    page_table_bytes: int
    swapped_bytes: int
    hugetlb_bytes: int | None
    transparent_bytes: int | None
    minor_faults: int
    major_faults: int
    future_lock: str | None
    has_ipc_lock: bool
    has_sys_nice: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the values as a dict that JSON can hold."""
        return asdict(self)

    def __str__(self) -> str:
        future = {None: "not locked", "all": "locked at once", "onfault": "locked as it is first touched"}
        rows = {
            "RLIMIT_MEMLOCK": f"{_limit(self.memlock_soft)} (hard {_limit(self.memlock_hard)})"
            + (", not enforced because of CAP_IPC_LOCK" if self.has_ipc_lock else ""),
            "locked (VmLck)": f"{format_size(self.locked_bytes)} of {format_size(self.size_bytes)} address space",
            "future memory": future[self.future_lock],
            "resident (VmRSS)": format_size(self.resident_bytes),
            "page tables (VmPTE)": format_size(self.page_table_bytes),
            "swapped (VmSwap)": format_size(self.swapped_bytes),
            "huge pages": f"explicit {_known(self.hugetlb_bytes)}, transparent {_known(self.transparent_bytes)}",
            "page faults": f"{self.minor_faults} minor, {self.major_faults} major",
            "capabilities": f"CAP_IPC_LOCK {_held(self.has_ipc_lock)}, CAP_SYS_NICE {_held(self.has_sys_nice)}",
        }
        width = max(len(name) for name in rows)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows.items())


def _limit(value: int | None) -> str:
    return "unlimited" if value is None else format_size(value)


def _known(value: int | None) -> str:
    return "unknown" if value is None else format_size(value)


def _held(is_held: bool) -> str:
    return "held" if is_held else "missing"


def _transparent() -> int | None:
    try:
        return parse_sizes(read_text("/proc/self/smaps_rollup")).get("AnonHugePages")
    except OSError:
        return None


def status() -> MemoryStatus:
    """Return the memory of this process as the kernel accounts it now.

    It reads ``/proc/self``: call it for set-up and supervision, on any thread but a loop's.
    """
    soft, hard = (None if value == resource.RLIM_INFINITY else value for value in read_limit(resource.RLIMIT_MEMLOCK))
    vm = memory_status()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return MemoryStatus(
        memlock_soft=soft,
        memlock_hard=hard,
        locked_bytes=vm["VmLck"],
        size_bytes=vm["VmSize"],
        resident_bytes=vm["VmRSS"],
        page_table_bytes=vm["VmPTE"],
        swapped_bytes=vm.get("VmSwap", 0),
        hugetlb_bytes=vm.get("HugetlbPages"),
        transparent_bytes=_transparent(),
        minor_faults=usage.ru_minflt,
        major_faults=usage.ru_majflt,
        future_lock=future_lock(),
        has_ipc_lock=is_capable(CAP_IPC_LOCK),
        has_sys_nice=is_capable(CAP_SYS_NICE),
    )
