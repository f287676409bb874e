"""PID namespace of this process (pid_namespaces(7)), in which its ids and those of its threads are valid."""

from __future__ import annotations

import os

__all__ = ["FIRST", "own_pid_namespace"]

#: Inode of the first namespace: the kernel's PROC_PID_INIT_INO.
FIRST = 0xEFFFFFFC


def own_pid_namespace() -> int:
    """Return the inode of the PID namespace; 0 if it cannot be read, for example without a free descriptor."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0
