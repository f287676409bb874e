"""Facts about the machine that belong to any measurement."""

from __future__ import annotations

import os
from typing import Any

from rtloop.system.cpu import format_cpu_list, isolated_cpus
from rtloop.system.fileio import read_text

__all__ = ["host_facts"]


def _read(path: str) -> str:
    try:
        return read_text(path).strip()
    except OSError:
        return ""


def _cpu_model(cpuinfo: str) -> str:
    for key in ("model name", "Model", "Hardware", "CPU part"):
        for line in cpuinfo.splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return os.uname().machine


def host_facts() -> dict[str, Any]:
    """Return facts of this machine, ready for JSON: kernel, CPU, clocksource, versions."""
    import platform  # here, because `import rtloop` has to be quick

    uname = os.uname()
    version = uname.version.replace("PREEMPT RT", "PREEMPT_RT")  # as kernels before 5.15 write it
    return {
        "kernel": uname.release,
        "kernel_version": uname.version,
        "machine": uname.machine,
        "preempt_rt": _read("/sys/kernel/realtime") == "1" or "PREEMPT_RT" in version,
        "cpu": _cpu_model(_read("/proc/cpuinfo")),
        "cpus": os.cpu_count(),
        "isolated_cpus": format_cpu_list(isolated_cpus()),
        "clocksource": _read("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "is_virtual": " hypervisor " in _read("/proc/cpuinfo").replace("\n", " "),
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
    }
