"""What this process holds; also as text before the code of a process of its own."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any


def account() -> dict[str, Any]:
    """Everything that rtloop acquires, by the kernel's account: where nothing is left behind, it is as before."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    maps = Path("/proc/self/maps").read_text()
    # What the device itself tells is the least of all that this machine's programs ask for, not of this one alone.
    files = {number: Path(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")}
    held = [path for path in files.values() if path.is_symlink() and os.readlink(path) == "/dev/cpu_dma_latency"]
    limits = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]
    return {
        "files": sorted(files),
        "threads": status["Threads"].strip(),
        "locked": status["VmLck"].strip(),
        "limits": [resource.getrlimit(which) for which in limits],
        "telemetry": maps.count("memfd:rtloop"),
        "guards": sum(" ---p 00000000 00:00 0" in line for line in maps.splitlines()),
        "dma": len(held),
        "cpus": sorted(os.sched_getaffinity(0)),
        "policy": os.sched_getscheduler(0),
    }
