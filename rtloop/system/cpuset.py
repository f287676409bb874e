"""CPUs that this process may use: its cpuset, and the partitions that take CPUs out of it.

See cpuset(7) and Documentation/admin-guide/cgroup-v2.rst, section "Cpuset Interface Files".
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

from rtloop.system.cgroup import controller_groups
from rtloop.system.cpu import format_cpu_list, parse_cpu_list
from rtloop.system.fileio import parse_fields, read_text

__all__ = [
    "Cpuset",
    "Partition",
    "describe_absent",
    "explain_outside",
    "list_partitions",
    "own_cpuset",
    "partitioned_cpus",
    "read_cpus",
    "read_mask",
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


class Partition(NamedTuple):
    """A partition: its path, its CPUs, and the kernel's text for it, such as ``"isolated invalid (...)"``."""

    path: str
    cpus: tuple[int, ...]
    state: str


def read_cpus(path: str) -> tuple[int, ...] | None:
    """Return the CPUs that a file lists; None if it cannot be read."""
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
                cpus = cpus or read_cpus(f"{folder}/{name}")
            kind = _partition(folder) if version == 2 and not partition else ""
            if kind == "isolated":
                partition = folder.removeprefix(top) or "/"
            if kind in ("root", "isolated"):
                break
        if cpus:
            return Cpuset(path, cpus, partition)
    return None


def _top(root: str) -> str:
    """Return the mount of version 2 of control groups."""
    return f"{root}/unified" if os.path.isdir(f"{root}/unified") else root


def list_partitions(root: str = _ROOT) -> list[Partition] | None:
    """Return all partitions of cgroup version 2, valid or not; None if version 2 has no cpusets here."""
    top, found, is_there = _top(root), [], False
    for count, (folder, _, files) in enumerate(os.walk(top)):
        if count > _MAX_GROUPS:
            break
        is_there = is_there or "cpuset.cpus.effective" in files
        if folder == top or "cpuset.cpus.partition" not in files:
            continue
        with suppress(OSError):
            state = " ".join(read_text(f"{folder}/cpuset.cpus.partition").split())
            if state.startswith(("root", "isolated")):
                cpus = read_cpus(f"{folder}/cpuset.cpus.effective") or ()
                found.append(Partition(folder.removeprefix(top), cpus, state))
    return sorted(found) if is_there else None


def partitioned_cpus(root: str = _ROOT) -> tuple[int, ...]:
    """Return the CPUs of all isolated partitions of this machine, as far as this process can see them."""
    return read_cpus(f"{_top(root)}/cpuset.cpus.isolated") or ()


def describe_absent(
    cpus: Iterable[int], online: Iterable[int] | None = None, present: Iterable[int] | None = None
) -> str:
    """Return which CPUs do not exist, or are offline; empty if all are online, or it is not known which are.

    `online` and `present` are those of this machine by default.
    """
    if online is None:
        online = read_cpus("/sys/devices/system/cpu/online") or ()
    if present is None:
        present = read_cpus("/sys/devices/system/cpu/present") or ()
    online, absent = set(online), set(cpus) - set(online)
    if not online or not absent:
        return ""
    offline = absent & set(present)
    kinds = {"does not exist": absent - offline, "is offline": offline}
    parts = [f"CPU {format_cpu_list(some)} {kind}" for kind, some in kinds.items() if some]
    return f"{' and '.join(parts)}; online: {format_cpu_list(online)}"


def explain_outside(
    cpus: Iterable[int], allowed: Iterable[int], proc: str = "/proc/self/cgroup", root: str = _ROOT
) -> str:
    """Return why CPUs cannot be had: a partition has them, this process's cpuset lacks them, or they are offline."""
    missing = sorted(set(cpus) - set(allowed))
    if not missing:
        return ""
    online = read_cpus("/sys/devices/system/cpu/online") or ()
    valid = [one for one in list_partitions(root) or () if one.state in ("root", "isolated")]
    owners = {cpu: one.path for one in valid for cpu in one.cpus}
    own = own_cpuset(proc, root)
    parts = []
    for cpu in missing:
        if cpu in owners and (own is None or owners[cpu] != own.path):
            parts.append(f"CPU {cpu} belongs to the partition {owners[cpu]}")
    rest = [cpu for cpu in missing if cpu not in owners]
    if absent := [cpu for cpu in rest if online and cpu not in online]:
        parts.append(describe_absent(absent))
    if outside := [cpu for cpu in rest if cpu not in absent]:
        where = f"the cpuset {own.path}, which has {format_cpu_list(own.cpus)}" if own else "the cpuset"
        parts.append(f"CPU {format_cpu_list(outside)} is outside of {where}")
    return "; ".join(parts)


def read_mask(task: str = "thread-self") -> tuple[int, ...]:
    """Return the CPUs that a task may run on, from ``/proc/<task>/status``; none if it does not tell."""
    with suppress(OSError, KeyError, ValueError):
        return parse_cpu_list(parse_fields(read_text(f"/proc/{task}/status"))["Cpus_allowed_list"])
    return ()
