"""CPUs that this process may use: its cpuset, isolated partitions of it, and the choice of ``cpu="auto"``.

See cpuset(7) and Documentation/admin-guide/cgroup-v2.rst, section "Cpuset Interface Files".
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

from rtloop.system.cgroup import controller_groups
from rtloop.system.cpu import format_cpu_list, isolated_cpus, parse_cpu_list
from rtloop.system.fileio import read_text

__all__ = [
    "CpuChoice",
    "Cpuset",
    "auto_cpus",
    "choose_auto",
    "explain_outside",
    "own_cpuset",
    "read_mask",
    "usable_isolated_cpus",
]

_ROOT = "/sys/fs/cgroup"
#: At most this many groups are searched for the owner of a CPU.
_MAX_GROUPS = 2000


class Cpuset(NamedTuple):
    """The cpuset of this process.

    Attributes
    ----------
    path : str
        Of its group, as ``/proc/self/cgroup`` names it.
    cpus : tuple of int
        The CPUs that it allows.
    partition : str
        The path of the isolated partition that it lies in; empty outside of one.
    """

    path: str
    cpus: tuple[int, ...]
    partition: str = ""


class CpuChoice(NamedTuple):
    """CPUs for ``cpu="auto"``: None for those that are inherited; and the reason, empty if no CPU is isolated."""

    cpus: tuple[int, ...] | None
    why: str


def _cpus(path: str) -> tuple[int, ...] | None:
    try:
        return parse_cpu_list(read_text(path))
    except (OSError, ValueError):
        return None


def _partition(folder: str) -> str:
    """Return ``"member"``, ``"root"`` or ``"isolated"``; empty for a partition that is invalid, or no such file."""
    try:
        words = read_text(f"{folder}/cpuset.cpus.partition").split()
    except OSError:
        return ""
    return words[0] if len(words) == 1 else ""


def _upward(top: str, path: str) -> Iterator[str]:
    """Yield the folders of a group and of all groups above it; in a container the path may be the host's."""
    folder = f"{top}{path}".rstrip("/")
    if not os.path.isdir(folder):
        folder = top
    while folder.startswith(top):
        yield folder
        folder = folder.rpartition("/")[0]


def own_cpuset(proc: str = "/proc/self/cgroup", root: str = _ROOT) -> Cpuset | None:
    """Return the cpuset of this process, None if the kernel tells of none."""
    try:
        groups = controller_groups(read_text(proc), "cpuset", root)
    except OSError:
        return None
    for version, top, path in groups:
        names = ("cpuset.effective_cpus", "cpuset.cpus") if version == 1 else ("cpuset.cpus.effective",)
        cpus: tuple[int, ...] | None = None
        partition = ""
        for folder in _upward(top, path):
            for name in names:
                cpus = cpus or _cpus(f"{folder}/{name}")
            kind = _partition(folder) if version == 2 and not partition else ""
            if kind == "isolated":
                partition = folder.removeprefix(top) or "/"
            if kind in ("root", "isolated"):
                break
        if cpus:
            return Cpuset(path, cpus, partition)
    return None


def _partitions(root: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the valid partitions below the root of version 2, and their CPUs."""
    top = f"{root}/unified" if os.path.isdir(f"{root}/unified") else root
    for count, (folder, _, files) in enumerate(os.walk(top)):
        if count > _MAX_GROUPS:
            return
        if folder != top and "cpuset.cpus.partition" in files and _partition(folder) in ("root", "isolated"):
            yield folder.removeprefix(top), _cpus(f"{folder}/cpuset.cpus.effective") or ()


def explain_outside(
    cpus: Iterable[int], allowed: Iterable[int], proc: str = "/proc/self/cgroup", root: str = _ROOT
) -> str:
    """Return why CPUs cannot be had: a partition has them, this process's cpuset lacks them, or they are offline."""
    missing = sorted(set(cpus) - set(allowed))
    if not missing:
        return ""
    online = _cpus("/sys/devices/system/cpu/online") or ()
    owners = {cpu: path for path, its in _partitions(root) for cpu in its}
    own = own_cpuset(proc, root)
    parts = []
    for cpu in missing:
        if cpu in owners and (own is None or owners[cpu] != own.path):
            parts.append(f"CPU {cpu} belongs to the partition {owners[cpu]}")
    rest = [cpu for cpu in missing if cpu not in owners]
    if absent := [cpu for cpu in rest if online and cpu not in online]:
        parts.append(f"CPU {format_cpu_list(absent)} is not online")
    if outside := [cpu for cpu in rest if cpu not in absent]:
        where = f"the cpuset {own.path}, which has {format_cpu_list(own.cpus)}" if own else "the cpuset"
        parts.append(f"CPU {format_cpu_list(outside)} is outside of {where}")
    return "; ".join(parts)


def read_mask(task: str = "thread-self") -> tuple[int, ...]:
    """Return the CPUs that a task may run on, from ``/proc/<task>/status``; none if it does not tell."""
    with suppress(OSError, ValueError):
        for line in read_text(f"/proc/{task}/status").splitlines():
            if line.startswith("Cpus_allowed_list:"):
                return parse_cpu_list(line.partition(":")[2])
    return ()


def _inherited() -> set[int]:
    """Return the mask of the calling thread, from ``/proc`` if a filter forbids sched_getaffinity(2)."""
    try:
        return os.sched_getaffinity(0)
    except OSError:
        return set(read_mask())


def _reachable_cpus() -> tuple[int, ...]:
    """Return where a thread of this process may go if it asks, found by a thread that asks for every CPU.

    The mask of a process is no answer: the kernel starts all of them off the CPUs that are isolated at boot.
    """
    possible = _cpus("/sys/devices/system/cpu/possible") or range(os.cpu_count() or 1)
    found: list[set[int]] = [_inherited()]

    def ask() -> None:
        with suppress(OSError):  # a filter, for one
            os.sched_setaffinity(0, possible)
        found.append(_inherited())

    thread = threading.Thread(target=ask, name="rtloop-cpus")
    try:
        thread.start()
    except RuntimeError:  # the interpreter is about to end
        return tuple(sorted(found[0]))
    thread.join()
    return tuple(sorted(found[-1]))


def choose_auto(
    boot: Iterable[int], partition: Iterable[int], reachable: Iterable[int], inherited: Iterable[int]
) -> CpuChoice:
    """Choose the CPUs of ``cpu="auto"``: isolated and allowed.

    Parameters
    ----------
    boot, partition : iterable of int
        CPUs isolated on the kernel's command line, and by a partition.
    reachable : iterable of int
        Where a thread of this process may go if it asks.
    inherited : iterable of int
        The mask of the thread that starts the loop. If somebody has narrowed it, such as taskset(1), it counts.
    """
    isolated, may, mask = {*boot, *partition}, set(reachable), set(inherited)
    if not isolated:
        return CpuChoice(None, "")
    is_narrowed = mask not in (may, may - set(boot), may - isolated)
    found = tuple(sorted(isolated & (mask if is_narrowed else may)))
    if found:
        how = " and ".join(
            text for text, cpus in (("at boot", boot), ("by a partition", partition)) if set(cpus) & set(found)
        )
        return CpuChoice(found, f"isolated {how}")
    limit = f"the inherited mask {format_cpu_list(mask)}" if is_narrowed else f"the cpuset, {format_cpu_list(may)}"
    return CpuChoice(None, f"none of the isolated CPUs {format_cpu_list(isolated)} is in {limit}")


def auto_cpus() -> CpuChoice:
    """Choose the CPUs of ``cpu="auto"`` for the calling thread, on this machine, now."""
    own = own_cpuset()
    partition = own.cpus if own is not None and own.partition else ()
    top = f"{_ROOT}/unified" if os.path.isdir(f"{_ROOT}/unified") else _ROOT
    boot = isolated_cpus()
    elsewhere = _cpus(f"{top}/cpuset.cpus.isolated") or ()
    isolated = {*partition, *elsewhere} - set(boot)
    if not boot and not isolated:
        return CpuChoice(None, "")
    return choose_auto(boot, isolated, _reachable_cpus(), _inherited())


def usable_isolated_cpus() -> tuple[int, ...]:
    """Return the CPUs that are isolated and that this process may use; none if there are none."""
    return auto_cpus().cpus or ()
