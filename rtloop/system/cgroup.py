"""Control groups of this process, and the memory, the huge pages and the threads that they allow it.

See Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst, hugetlb.rst and pids.rst of the kernel.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from rtloop.system.fileio import read_text
from rtloop.units import format_page_size

__all__ = ["controller_groups", "hugetlb_room", "memory_groups", "memory_room", "thread_room"]

_ROOT = "/sys/fs/cgroup"
_UNLIMITED = 1 << 60  # version 1 writes a huge number for "none"

# Files in version 1 and 2: the limit, the usage, and the fields of memory.stat for file pages, which can be dropped.
_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
    2: ("memory.max", "memory.current", ("inactive_file", "active_file")),
}
# The limit and the usage of huge pages of one size, behind "hugetlb.2MB." or "hugetlb.2MB.rsvd.".
_HUGETLB_FILES = {1: ("limit_in_bytes", "usage_in_bytes"), 2: ("max", "current")}


def memory_groups(text: str) -> list[tuple[int, str]]:
    """Read ``/proc/self/cgroup`` (cgroups(7)): version and path of each group that may limit memory."""
    return [(version, path) for version, _, path in controller_groups(text, "memory")]


def controller_groups(text: str, controller: str, root: str = _ROOT) -> list[tuple[int, str, str]]:
    """Read ``/proc/self/cgroup`` (cgroups(7)): version, mount and path of each group that a controller may act on."""
    found = []
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(","):
            found.append((1, f"{root}/{controller}", path))
        elif number == "0" and not controllers:
            found.append((2, f"{root}/unified" if os.path.isdir(f"{root}/unified") else root, path))
    return found


def _folders(controller: str, proc: str, root: str) -> Iterator[tuple[int, str]]:
    """Yield version and folder of this process's group and of those above it, for each hierarchy of a controller."""
    try:
        groups = controller_groups(read_text(proc), controller, root)
    except OSError:
        return
    for version, top, path in groups:
        # In a container the path may be the host's and not exist; then the root is the container's group.
        folder = f"{top}{path}".rstrip("/")
        while folder.startswith(top):
            yield version, folder
            folder = folder.rpartition("/")[0]


def _read_limit(path: str) -> int | None:
    """Read a limit in bytes, None if there is none. The root group has no such files."""
    try:
        text = read_text(path).strip()
        return int(text) if text != "max" and int(text) < _UNLIMITED else None
    except (OSError, ValueError):
        return None


def memory_room(proc: str = "/proc/self/cgroup", root: str = _ROOT) -> dict[str, int]:
    """Return the bytes that are left in each control group with a limit, by the path of the limit's file.

    The groups are this process's own and those above it. File pages count as left, because the kernel drops them if
    memory is short.
    """
    room = {}
    for version, folder in _folders("memory", proc, root):
        limit_name, used_name, droppable = _FILES[version]
        limit = _read_limit(f"{folder}/{limit_name}")
        if limit is None:
            continue
        try:
            used = int(read_text(f"{folder}/{used_name}"))
            stat = dict(line.split() for line in read_text(f"{folder}/memory.stat").splitlines())
            files = sum(int(stat.get(name, 0)) for name in droppable)
            room[f"{folder}/{limit_name}"] = max(0, limit - max(0, used - files))
        except (OSError, ValueError):
            continue
    return room


def hugetlb_room(page_size: int, proc: str = "/proc/self/cgroup", root: str = _ROOT) -> dict[str, int]:
    """Return the bytes of huge pages that are left in each control group with a limit, by the path of its file.

    A group can limit pages that are present, and pages that are reserved (``rsvd``), for each page size.
    """
    room = {}
    for version, folder in _folders("hugetlb", proc, root):
        limit_name, used_name = _HUGETLB_FILES[version]
        for kind in ("", "rsvd."):
            prefix = f"{folder}/hugetlb.{format_page_size(page_size)}B.{kind}"
            limit = _read_limit(prefix + limit_name)
            if limit is None:
                continue
            try:
                room[prefix + limit_name] = max(0, limit - int(read_text(prefix + used_name)))
            except (OSError, ValueError):
                continue
    return room


def thread_room(proc: str = "/proc/self/cgroup", root: str = _ROOT) -> dict[str, tuple[int, int]]:
    """Return how many threads and processes may still be created in each control group with a limit, and the limit.

    The keys are the paths of the limits' files. The files have the same names in version 1 and 2.
    """
    room = {}
    for _, folder in _folders("pids", proc, root):
        limit = _read_limit(f"{folder}/pids.max")
        if limit is None:
            continue
        try:
            room[f"{folder}/pids.max"] = max(0, limit - int(read_text(f"{folder}/pids.current"))), limit
        except (OSError, ValueError):
            continue
    return room
