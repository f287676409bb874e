"""Limits and capabilities of this process, and the lines that would grant what is missing."""

from __future__ import annotations

import os
import resource

from rtloop.system.text import read_text

__all__ = [
    "CAP_IPC_LOCK",
    "CAP_SYS_NICE",
    "RLIMIT_RTTIME",
    "device_fix",
    "format_limit",
    "has_capability",
    "is_capable",
    "limit_fix",
    "rt_group_runtime",
]

CAP_IPC_LOCK = 14
CAP_SYS_NICE = 23

#: Not in the ``resource`` module: microseconds of CPU time a real-time thread may use without blocking (getrlimit(2)).
RLIMIT_RTTIME = 15

_LIMITS = {
    "RLIMIT_MEMLOCK": ("memlock", "LimitMEMLOCK", "--ulimit memlock=-1:-1 --cap-add=IPC_LOCK", "unlimited", "infinity"),
    "RLIMIT_RTPRIO": ("rtprio", "LimitRTPRIO", "--ulimit rtprio={v} --cap-add=SYS_NICE", "{v}", "{v}"),
    "RLIMIT_RTTIME": ("rttime", "LimitRTTIME", "--ulimit rttime=-1:-1", "unlimited", "infinity"),
}


def _user() -> str:
    try:
        import getpass  # here, for an import of rtloop is to be quick

        return getpass.getuser()
    except (ImportError, KeyError, OSError):  # nameless, or a Python without the module
        return str(os.getuid())


def has_capability(bit: int, status: str | None = None) -> bool:
    """Tell whether the calling thread has a capability in its effective set.

    Parameters
    ----------
    bit : int
        The capability's number, such as `CAP_IPC_LOCK`.
    status : str, optional
        The text of ``/proc/thread-self/status``; read from there by default.
    """
    if status is None:
        status = read_text("/proc/thread-self/status")
    for line in status.splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> bit & 1)
    return False


def is_capable(bit: int) -> bool:
    """Tell whether the kernel will honour a capability: held, and in the initial user namespace.

    In a rootless container a process may hold every capability of its own namespace, and memory locking and
    scheduling still go by the limits.
    """
    if not has_capability(bit):
        return False
    try:
        uid_map = read_text("/proc/self/uid_map").split()
    except OSError:
        return True
    return uid_map == ["0", "0", "4294967295"]


def format_limit(value: int) -> str:
    """Write a limit's value: ``"unlimited"`` for RLIM_INFINITY."""
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


def limit_fix(limit: str, value: int = 0) -> str:
    """Return the lines that raise a limit, for a login, a systemd unit and a container.

    Parameters
    ----------
    limit : str
        ``"RLIMIT_MEMLOCK"``, ``"RLIMIT_RTPRIO"`` or ``"RLIMIT_RTTIME"``.
    value : int
        The value needed, where the limit is not simply taken away.
    """
    item, directive, flags, login, unit = _LIMITS[limit]
    return (
        f"login:     echo '{_user()} - {item} {login.format(v=value)}' | "
        "sudo tee -a /etc/security/limits.d/99-rtloop.conf   # then log in again\n"
        f"systemd:   in the unit's [Service] section\n           {directive}={unit.format(v=value)}\n"
        f"container: docker run {flags.format(v=value)} ..."
    )


def device_fix(path: str) -> str:
    """Return the lines that open a device to a user, for a login, a systemd unit and a container."""
    name = path.rpartition("/")[2]
    return (
        f"login:     sudo groupadd -f realtime && sudo usermod -aG realtime {_user()}\n"
        f'           echo \'KERNEL=="{name}", GROUP="realtime", MODE="0660"\' | '
        "sudo tee /etc/udev/rules.d/99-rtloop.rules\n"
        f"           sudo udevadm control --reload && sudo udevadm trigger --name-match={path}   # then log in again\n"
        "systemd:   in the unit's [Service] section; the group with the rule above, where the unit has a User=\n"
        f"           DeviceAllow={path} rw\n"
        "           SupplementaryGroups=realtime\n"
        f"container: docker run --device {path} ...   # a container has only the devices that are passed in"
    )


def rt_group_runtime(cgroup: str = "/proc/self/cgroup", mount: str = "/sys/fs/cgroup/cpu") -> int | None:
    """Return the real-time runtime of this process's control group, in microseconds per period.

    None where the kernel has no such limit (no ``CONFIG_RT_GROUP_SCHED`` with version 1 control groups).
    Zero explains an EPERM even for root (sched(7)).
    """
    try:
        for line in read_text(cgroup).splitlines():
            _, controllers, path = line.split(":", 2)
            if "cpu" in controllers.split(","):
                group = path.strip("/")
                return int(read_text(f"{mount}/{group}/cpu.rt_runtime_us"))
    except (OSError, ValueError):
        pass
    return None
