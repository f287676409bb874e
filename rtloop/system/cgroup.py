"""Control groups of this process, and the memory that they let it use.

See Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst of the kernel.
"""

from __future__ import annotations

import os

from rtloop.system.fileio import read_text

__all__ = ["controller_groups", "memory_groups", "memory_room"]

_ROOT = "/sys/fs/cgroup"

# Files in version 1 and 2: the limit, the usage, and the fields of memory.stat for file pages, which can be dropped.
_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
    2: ("memory.max", "memory.current", ("inactive_file", "active_file")),
}


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


def memory_room(proc: str = "/proc/self/cgroup", root: str = _ROOT) -> dict[str, int]:
    """Return the bytes that are left in each control group with a limit, by the path of the limit's file.

    The groups are this process's own and those above it. File pages count as left, because the kernel drops them if
    memory is short.
    """
    room = {}
    try:
        groups = controller_groups(read_text(proc), "memory", root)
    except OSError:
        return {}
    for version, top, path in groups:
        limit_name, used_name, droppable = _FILES[version]
        # In a container the path may be the host's and not exist; then the root is the container's group.
        folder = f"{top}{path}".rstrip("/")
        while folder.startswith(top):
            try:
                limit = read_text(f"{folder}/{limit_name}").strip()
                used = int(read_text(f"{folder}/{used_name}"))
                stat = dict(line.split() for line in read_text(f"{folder}/memory.stat").splitlines())
                files = sum(int(stat.get(name, 0)) for name in droppable)
                if limit != "max" and int(limit) < 1 << 60:  # version 1 writes a huge number for "none"
                    room[f"{folder}/{limit_name}"] = max(0, int(limit) - max(0, used - files))
            except (OSError, ValueError):
                pass  # the root group has no such files
            folder = folder.rpartition("/")[0]
    return room
