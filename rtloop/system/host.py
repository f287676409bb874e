"""Facts about the machine that belong to any measurement."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from rtloop.system.cpu import format_cpu_list, isolated_cpus
from rtloop.system.fileio import read_text

__all__ = ["find_hypervisor", "host_facts", "uname"]

_DMI = "/sys/class/dmi/id"
_TREE = "/proc/device-tree"
#: Words in the vendor's and the product's name, and the hypervisors that they stand for.
_VENDORS = {
    "VMware": "VMware", "VirtualBox": "VirtualBox", "innotek": "VirtualBox", "QEMU": "QEMU", "KVM": "KVM",
    "Virtual Machine": "Hyper-V", "Xen": "Xen", "Amazon EC2": "Amazon EC2", "Google": "Google Compute Engine",
    "Parallels": "Parallels", "Apple Virtualization": "Apple Virtualization", "OpenStack": "OpenStack",
    "Bochs": "Bochs", "BHYVE": "bhyve",
}  # fmt: skip
#: These also name bare-metal machines.
_AMBIGUOUS = {"Amazon EC2", "Google Compute Engine", "Xen"}
_CLOCKS = {"kvm-clock": "KVM", "hyperv_clocksource": "Hyper-V", "xen": "Xen"}
#: The board that virtual machines without firmware describe in their device tree: QEMU's, kvmtool's, crosvm's.
_VIRTUAL_BOARD = "linux,dummy-virt"


def _read(path: str) -> str:
    try:
        return read_text(path).strip()
    except OSError:
        return ""


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def uname() -> os.uname_result:
    """Return what ``os.uname`` returns, even under a seccomp filter that forbids uname(2); "" means not known."""
    try:
        return os.uname()
    except OSError:
        kernel = [_read(f"/proc/sys/kernel/{name}") for name in ("ostype", "hostname", "osrelease", "version")]
        machine = getattr(sys.implementation, "_multiarch", "").partition("-")[0]
        return os.uname_result((*kernel, machine))


def _cpu_model(cpuinfo: str) -> str:
    for key in ("model name", "Model", "Hardware", "CPU part"):
        for line in cpuinfo.splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return uname().machine


def host_facts() -> dict[str, Any]:
    """Return facts of this machine, ready for JSON: kernel, CPU, clocksource, versions."""
    import platform  # here, because `import rtloop` has to be quick

    names = uname()
    version = names.version.replace("PREEMPT RT", "PREEMPT_RT")  # as kernels before 5.15 write it
    return {
        "kernel": names.release,
        "kernel_version": names.version,
        "machine": names.machine,
        "preempt_rt": _read("/sys/kernel/realtime") == "1" or "PREEMPT_RT" in version,
        "cpu": _cpu_model(_read("/proc/cpuinfo")),
        "cpus": os.cpu_count(),
        "isolated_cpus": format_cpu_list(isolated_cpus()),
        "clocksource": _read("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "is_virtual": find_hypervisor(lambda path: _read(path).strip("\0"), _names)[0] not in ("", "?"),
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
    }


def find_hypervisor(text: Callable[[str], str], names: Callable[[str], list[str]]) -> tuple[str, str]:
    """Return a machine's hypervisor and where that was read; "" means none, "?" not known.

    Parameters
    ----------
    text : callable
        Returns a file's text without surrounding blanks; empty if it cannot be read.
    names : callable
        Returns the names in a folder; none if it cannot be read.
    """
    cpuinfo = text("/proc/cpuinfo")
    if "microsoft" in text("/proc/sys/kernel/osrelease").lower():
        return "WSL", "/proc/sys/kernel/osrelease"
    is_flagged = any(
        "hypervisor" in line.split() for line in cpuinfo.splitlines() if line.startswith(("flags", "Features"))
    )
    vendor = f"{text(f'{_DMI}/sys_vendor')} {text(f'{_DMI}/product_name')}"
    by_name = next((name for word, name in _VENDORS.items() if word in vendor), "")
    if xen := text("/sys/hypervisor/type"):
        return xen.capitalize(), "/sys/hypervisor/type"
    tree = names(_TREE)
    if "hypervisor" in tree:
        return by_name or "unknown kind", f"{_TREE}/hypervisor"
    if _VIRTUAL_BOARD in text(f"{_TREE}/compatible").split("\0"):
        has_qemu = any(name.startswith("fw-cfg@") for name in tree)
        return by_name or ("QEMU" if has_qemu else "unknown kind"), f"{_TREE}/compatible"
    if is_flagged:
        clocks = text("/sys/devices/system/clocksource/clocksource0/available_clocksource")
        by_clock = next((name for word, name in _CLOCKS.items() if word in clocks), "")
        return by_name or by_clock or "unknown kind", f"/proc/cpuinfo, {_DMI}, clocksources"
    if by_name and by_name not in _AMBIGUOUS:  # not all architectures and hypervisors set the flag
        return by_name, _DMI
    return ("" if cpuinfo else "?"), "/proc/cpuinfo"
