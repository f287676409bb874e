"""What the control groups of this process let it use.

See Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst of the kernel.
"""

from __future__ import annotations

import os

from rtloop.system.fileio import read_text

__all__ = ["memory_groups", "memory_room"]

_ROOT = "/sys/fs/cgroup"

# The names of version 1 and 2: the limit, what is used, and what of that are pages of files that can be dropped.
_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
    2: ("memory.max", "memory.current", ("inactive_file", "active_file")),
}


def memory_groups(text: str) -> list[tuple[int, str]]:
    """Read ``/proc/self/cgroup`` (cgroups(7)): version and path of each group that may limit memory."""
    found = []
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            found.append((1, path))
        elif number == "0" and not controllers:
            found.append((2, path))
    return found


def memory_room(proc: str = "/proc/self/cgroup", root: str = _ROOT) -> dict[str, int]:
    """Return how many bytes each group above this process, with a limit, has left, by the limit's file.

    Pages of files, which the kernel drops where memory is short, count as left.
    """
    room = {}
    try:
        groups = memory_groups(read_text(proc))
    except OSError:
        return {}
    for version, path in groups:
        top = f"{root}/memory" if version == 1 else f"{root}/unified" if os.path.isdir(f"{root}/unified") else root
        limit_name, used_name, droppable = _FILES[version]
        # In a container the path may be the host's, and not be there: then the root is the container's group.
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
