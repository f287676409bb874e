"""Reading a machine: this one, or one that was captured as a tree of files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from typing import NamedTuple

from rtloop.machine.doctor import parse

__all__ = ["Machine", "Place", "unread"]

_MAX_CHARS = 1 << 20


def unread(reason: str = "") -> str:
    """Write that a value is not known: never to be taken for a good one."""
    return f"could not be read ({reason})" if reason else "could not be read"


class Place(NamedTuple):
    """What kind of machine this is, as far as fixes depend on it.

    Attributes
    ----------
    distribution : str
        ID and ID_LIKE of ``/etc/os-release``, separated by blanks.
    machine : str
        The processor's architecture, as uname(2) names it.
    is_raspberry_pi : bool
        Whether the device tree says so.
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
        Where ``/proc``, ``/sys``, ``/etc`` and so on begin; empty is this machine.
    env : mapping
        The environment of the session.
    machine : str
        The architecture, as uname(2) names it.
    """

    def __init__(self, root: str = "", env: Mapping[str, str] | None = None, machine: str = "") -> None:
        self.root = root
        self.env = dict(os.environ if env is None else env)
        self.machine = machine or os.uname().machine

    def read(self, path: str) -> tuple[str | None, str]:
        """Return a file's text and an empty reason, or None and the reason why it could not be read."""
        try:
            if path.endswith(".gz"):
                import gzip

                with gzip.open(self.root + path, "rt", errors="replace") as packed:
                    return packed.read(_MAX_CHARS), ""
            with open(self.root + path, errors="replace") as file:
                return file.read(_MAX_CHARS), ""
        except (OSError, EOFError) as error:
            return None, getattr(error, "strerror", None) or str(error)

    def read_bytes(self, path: str, count: int) -> tuple[bytes | None, str]:
        """Return the first bytes of a file and an empty reason, or None and the reason."""
        try:
            with open(self.root + path, "rb", buffering=0) as file:
                return file.read(count), ""
        except OSError as error:
            return None, error.strerror or str(error)

    def text(self, path: str) -> str:
        """Return a file's text without the blanks around it; empty where it cannot be read."""
        return (self.read(path)[0] or "").strip("\0 \t\n")

    def number(self, path: str) -> int | None:
        """Return the number in a file; None where there is none."""
        return parse.number(self.text(path))

    def exists(self, path: str) -> bool:
        """Tell whether there is such a file or folder; one that may not be looked at counts as none."""
        return os.path.lexists(self.root + path)

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder, in order; none where it cannot be read."""
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
        return parse.fields(self.text("/proc/self/status"))

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
        """The options that the kernel was built with, as far as it, or the distribution, tells."""
        return parse.kernel_config(self.text(self.config_source))

    @cached_property
    def config_source(self) -> str:
        """Where `config` was read."""
        paths = ("/proc/config.gz", f"/boot/config-{self.release}", f"/lib/modules/{self.release}/config")
        return next((path for path in paths if self.text(path)), "the kernel's configuration")

    @cached_property
    def boots_as(self) -> str:
        """The distribution, for what to do about the boot loader; empty where it has none of its own here."""
        known = self.place.distribution.split()
        has_grub = not {"debian", "ubuntu"} & {*known} or self.exists("/etc/default/grub")
        return self.place.distribution if has_grub and not self.place.container else ""

    @cached_property
    def place(self) -> Place:
        """What kind of machine this is."""
        system = parse.assignments(self.text("/etc/os-release"))
        return Place(
            f"{system.get('ID', '')} {system.get('ID_LIKE', '')}".strip(),
            self.machine,
            "raspberrypi" in self.text("/proc/device-tree/compatible"),
            self._container(),
        )

    def link(self, path: str) -> str:
        """Return where a symbolic link points to; empty where there is none."""
        with suppress(OSError):
            return os.readlink(self.root + path)
        return ""

    def _container(self) -> str:
        # An image of a container that was booted as a machine still has the marks of one; the namespaces tell.
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
        """The CPUs that the kernel keeps free of ordinary threads."""
        found = parse.cpu_list(self.text("/sys/devices/system/cpu/isolated")) or ()
        return tuple(cpu for cpu in found if cpu in self.online)
