"""Access to a machine's files: this machine's, or those of one that was captured as a tree of files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from typing import NamedTuple

from rtloop.machine.doctor import parse
from rtloop.system import cpuset
from rtloop.system.fileio import parse_fields
from rtloop.system.host import uname

__all__ = ["Machine", "Place", "unread"]

_MAX_CHARS = 1 << 20


def unread(reason: str = "") -> str:
    """Return the text for a value that is not known, which is never judged as good."""
    return f"could not be read ({reason})" if reason else "could not be read"


class Place(NamedTuple):
    """Kind of machine, as far as fixes depend on it.

    Attributes
    ----------
    distribution : str
        ID and ID_LIKE of ``/etc/os-release``, separated by blanks.
    machine : str
        The processor's architecture, as uname(2) names it.
    is_raspberry_pi : bool
        True if the device tree names one.
    container : str
        ``"docker"``, ``"podman"``, ``"kubernetes"``, ``"lxc"`` and so on; empty outside of one.
    """

    distribution: str
    machine: str
    is_raspberry_pi: bool
    container: str


class Machine:
    """Files below a root, read and never written.

    Parameters
    ----------
    root : str
        Folder that holds ``/proc``, ``/sys``, ``/etc`` and so on; empty for this machine.
    env : mapping
        The environment of the session.
    machine : str
        The architecture, as uname(2) names it.
    """

    def __init__(self, root: str = "", env: Mapping[str, str] | None = None, machine: str = "") -> None:
        self.root = root
        self.env = dict(os.environ if env is None else env)
        self.machine = machine or uname().machine

    def read(self, path: str) -> tuple[str | None, str]:
        """Return a file's text and an empty reason, or None and why it could not be read."""
        try:
            if path.endswith(".gz"):
                import gzip

                with gzip.open(self.root + path, "rt", errors="replace") as packed:
                    return packed.read(_MAX_CHARS), ""
            with open(self.root + path, errors="replace") as file:
                return file.read(_MAX_CHARS), ""
        except (OSError, EOFError) as error:
            return None, getattr(error, "strerror", None) or str(error)

    def read_bytes(self, path: str, count: int, offset: int = 0) -> tuple[bytes | None, str]:
        """Return bytes of a file and an empty reason, or None and the reason."""
        try:
            with open(self.root + path, "rb", buffering=0) as file:
                return os.pread(file.fileno(), count, offset) if offset else file.read(count), ""
        except OSError as error:
            return None, error.strerror or str(error)

    def text(self, path: str) -> str:
        """Return a file's text without surrounding blanks; empty if it cannot be read."""
        return (self.read(path)[0] or "").strip("\0 \t\n")

    def number(self, path: str) -> int | None:
        """Return the number in a file; None if there is none."""
        return parse.number(self.text(path))

    def exists(self, path: str) -> bool:
        """Return whether a file or folder exists; one that is not accessible counts as missing."""
        return os.path.lexists(self.root + path)

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder, sorted; none if it cannot be read."""
        with suppress(OSError):
            return sorted(os.listdir(self.root + folder))
        return []

    def numbered(self, folder: str, prefix: str = "") -> list[int]:
        """Return the numbers of a folder's entries that are called ``<prefix><number>``, in order."""
        found = (parse.number(name[len(prefix) :]) for name in self.names(folder) if name.startswith(prefix))
        return sorted(number for number in found if number is not None and number >= 0)

    @cached_property
    def status(self) -> dict[str, str]:
        """The fields of ``/proc/self/status``."""
        return parse_fields(self.text("/proc/self/status"))

    @cached_property
    def arguments(self) -> dict[str, str]:
        """The kernel's command line."""
        return parse.command_line(self.text("/proc/cmdline"))

    @cached_property
    def release(self) -> str:
        """The kernel's release, such as ``6.12.48-rt``."""
        return self.text("/proc/sys/kernel/osrelease")

    @cached_property
    def config(self) -> dict[str, str]:
        """The options that the kernel was built with, as far as it or the distribution records them."""
        return parse.kernel_config(self.text(self.config_source))

    @cached_property
    def config_source(self) -> str:
        """The file that `config` was read from."""
        paths = ("/proc/config.gz", f"/boot/config-{self.release}", f"/lib/modules/{self.release}/config")
        return next((path for path in paths if self.text(path)), "the kernel's configuration")

    @cached_property
    def boots_as(self) -> str:
        """The distribution, which decides how the boot loader is set; empty if this machine has none of its own."""
        known = self.place.distribution.split()
        has_grub = not {"debian", "ubuntu"} & {*known} or self.exists("/etc/default/grub")
        return self.place.distribution if has_grub and not self.place.container else ""

    @cached_property
    def place(self) -> Place:
        """The kind of machine."""
        system = parse.assignments(self.text("/etc/os-release"))
        return Place(
            f"{system.get('ID', '')} {system.get('ID_LIKE', '')}".strip(),
            self.machine,
            "raspberrypi" in self.text("/proc/device-tree/compatible"),
            self._container(),
        )

    def link(self, path: str) -> str:
        """Return the target of a symbolic link; empty if there is none."""
        with suppress(OSError):
            return os.readlink(self.root + path)
        return ""

    def _container(self) -> str:
        # A container's image that was booted as a machine still has a container's marks; the namespaces decide.
        initial = {"pid": "pid:[4026531836]", "uts": "uts:[4026531838]"}
        if all(self.link(f"/proc/self/ns/{kind}") == name for kind, name in initial.items()):
            return ""
        if "KUBERNETES_SERVICE_HOST" in self.env or "kubepods" in self.text("/proc/self/cgroup"):
            return "kubernetes"
        if self.exists("/run/.containerenv"):
            return "podman"
        if self.exists("/.dockerenv"):
            return "docker"
        if name := self.text("/run/systemd/container") or self.env.get("container", ""):
            return name
        for kind in ("docker", "libpod", "lxc"):
            if f"/{kind}" in self.text("/proc/1/cgroup"):
                return {"libpod": "podman"}.get(kind, kind)
        return ""

    @cached_property
    def online(self) -> tuple[int, ...]:
        """The CPUs that are online."""
        return parse.cpu_list(self.text("/sys/devices/system/cpu/online")) or ()

    @cached_property
    def isolated(self) -> tuple[int, ...]:
        """The CPUs that the kernel keeps free of other threads: since boot, or by a cpuset partition."""
        found = set(parse.cpu_list(self.text("/sys/devices/system/cpu/isolated")) or ())
        found |= set(cpuset.partitioned_cpus(f"{self.root}/sys/fs/cgroup"))
        return tuple(sorted(cpu for cpu in found if cpu in self.online))

    @cached_property
    def cpu_flags(self) -> set[str]:
        """The features of the first CPU, as ``/proc/cpuinfo`` names them."""
        fields = parse_fields(self.text("/proc/cpuinfo"))
        return set((fields.get("flags") or fields.get("Features", "")).split())

    @cached_property
    def cpu_vendor(self) -> str:
        """The vendor of the CPUs, such as ``GenuineIntel``; empty if ``/proc/cpuinfo`` does not name it."""
        return parse_fields(self.text("/proc/cpuinfo")).get("vendor_id", "")
