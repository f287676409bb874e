"""Limits and capabilities of this process."""

from __future__ import annotations

import ctypes
import resource
from contextlib import suppress

from rtloop.system.fileio import parse_field, read_text

__all__ = [
    "CAP_IPC_LOCK",
    "CAP_SYS_ADMIN",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "RLIMIT_RTTIME",
    "format_limit",
    "has_capability",
    "has_seccomp_filter",
    "is_capable",
    "read_limit",
    "rt_group_file",
    "rt_group_runtime",
]

CAP_IPC_LOCK = 14
CAP_SYS_ADMIN = 21
CAP_SYS_NICE = 23
CAP_SYS_RESOURCE = 24

#: Not in the ``resource`` module: microseconds of CPU time a real-time thread may use without blocking (getrlimit(2)).
RLIMIT_RTTIME = 15
#: As ``/proc/self/limits`` writes them.
_LIMIT_NAMES = {
    resource.RLIMIT_CORE: "Max core file size",
    resource.RLIMIT_MEMLOCK: "Max locked memory",
    resource.RLIMIT_RTPRIO: "Max realtime priority",
    RLIMIT_RTTIME: "Max realtime timeout",
}


def has_capability(bit: int, status: str | None = None) -> bool:
    """Return True if the calling thread has a capability in its effective set.

    Parameters
    ----------
    bit : int
        The capability's number, such as `CAP_IPC_LOCK`.
    status : str, optional
        The text of ``/proc/thread-self/status``; read from there by default, else the kernel is asked with capget(2).
    """
    if status is None:
        try:
            status = read_text("/proc/thread-self/status")
        except OSError:
            return bool(_effective() >> bit & 1)
    try:
        return bool(int(parse_field(status, "CapEff") or "", 16) >> bit & 1)
    except ValueError:
        return False


def _effective() -> int:
    """Return the effective capabilities of the calling thread, from capget(2); 0 if it is forbidden."""
    version_3 = 0x20080522  # of <linux/capability.h>
    header, data = (ctypes.c_uint32 * 2)(version_3, 0), (ctypes.c_uint32 * 6)()
    with suppress(AttributeError):  # a C library that does not export it
        if ctypes.CDLL(None).capget(header, data) == 0:
            return int(data[0]) | int(data[3]) << 32
    return 0


def has_seccomp_filter(status: str | None = None) -> bool:
    """Return True if a seccomp(2) filter restricts the system calls of the calling thread.

    Parameters
    ----------
    status : str, optional
        The text of ``/proc/thread-self/status``; read from there by default. ``Seccomp: 2`` is a filter.
    """
    if status is None:
        try:
            status = read_text("/proc/thread-self/status")
        except OSError:
            return False
    return parse_field(status, "Seccomp") == "2"


def is_capable(bit: int) -> bool:
    """Return True if a capability is held in the initial user namespace, so that the kernel honours it.

    In a rootless container a process may hold every capability of its own namespace, but the limits still apply to
    memory locking and scheduling.
    """
    if not has_capability(bit):
        return False
    try:
        uid_map = read_text("/proc/self/uid_map").split()
    except OSError:
        return True
    return uid_map == ["0", "0", "4294967295"]


def read_limit(which: int) -> tuple[int, int]:
    """Return the soft and the hard value of a limit, from ``/proc/self/limits`` if a filter forbids getrlimit(2).

    Raises
    ------
    OSError
        If neither tells.
    """
    try:
        return resource.getrlimit(which)
    except OSError:
        name = _LIMIT_NAMES.get(which)
        for line in read_text("/proc/self/limits").splitlines():
            if name is not None and line.startswith(name):
                soft, hard = (
                    resource.RLIM_INFINITY if word == "unlimited" else int(word)
                    for word in line[len(name) :].split()[:2]
                )
                return soft, hard
        raise


def format_limit(value: int) -> str:
    """Format a limit's value: ``"unlimited"`` for RLIM_INFINITY."""
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


def rt_group_file(cgroup: str = "/proc/self/cgroup", mount: str = "/sys/fs/cgroup/cpu") -> str | None:
    """Return the file with the real-time runtime of this process's control group, None if there is none.

    It exists only with ``CONFIG_RT_GROUP_SCHED`` and version 1 control groups.
    """
    try:
        for line in read_text(cgroup).splitlines():
            _, controllers, path = line.split(":", 2)
            if "cpu" in controllers.split(","):
                # In a container the path may be the host's and not exist; then the root is the container's group.
                for group in (path.strip("/"), ""):
                    file = f"{mount}/{group}/cpu.rt_runtime_us".replace("//", "/")
                    try:
                        read_text(file)
                    except OSError:
                        continue
                    return file
    except (OSError, ValueError):
        pass
    return None


def rt_group_runtime(cgroup: str = "/proc/self/cgroup", mount: str = "/sys/fs/cgroup/cpu") -> int | None:
    """Return the real-time runtime of this process's control group, in microseconds per period.

    None if the kernel has no such limit. Zero explains an EPERM even for root (sched(7)).
    """
    file = rt_group_file(cgroup, mount)
    try:
        return None if file is None else int(read_text(file))
    except (OSError, ValueError):
        return None
