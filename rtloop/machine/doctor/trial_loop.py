"""Experiment: a child process starts a loop with the default settings and reports what it was granted.

The child locks its memory, runs one SCHED_FIFO thread and holds ``/dev/cpu_dma_latency`` for some milliseconds; the
caller, its limits and its memory stay as they are.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterable, Iterator
from typing import Any

from rtloop.errors import RtloopError
from rtloop.process.interpreter import python
from rtloop.system.checks import Check
from rtloop.system.grant import Grant

__all__ = ["examine", "run_probe"]

_TIMEOUT_S = 20

_PROGRAM = """
import json, warnings
import rtloop
warnings.simplefilter("ignore")
loop = rtloop.RTLoop("1ms", strict=False, warmup=0, record=64, name="doctor")
try:
    stats = loop.run(cycles=20)
    found = {"cycles": stats.cycles, "grants": [grant.to_dict() for grant in stats.grants]}
except rtloop.RtloopError as error:
    grants = [grant.to_dict() for grant in getattr(error, "grants", ())]
    found = {"failure": f"the loop did not start: {error}", "grants": grants}
print(json.dumps(found))
"""

#: The grants that decide, with a readable name, their source, and why they matter.
_SHOWN = {
    "policy": ("real-time thread", "sched_setattr(2)", "an ordinary thread waits for all the others"),
    "memory_lock": ("locking all memory", "mlockall(2)", "a page that is not locked can be missing in a cycle"),
    "dma_latency": (
        "limiting idle states", "/dev/cpu_dma_latency",
        "waking up from a deep idle state takes its exit latency",
    ),
    "stack": ("locked stack", "mlock(2)", "the thread's stack must not fault"),
    "cpu": ("CPUs of a loop", "sched_getaffinity(2)", "cpu='auto' takes the CPUs that are isolated and allowed"),
    "rt_time": ("real-time CPU time", "getrlimit(2)", "beyond RLIMIT_RTTIME the kernel kills the process"),
}  # fmt: skip


def run_probe(program: str = _PROGRAM, timeout_s: float = _TIMEOUT_S) -> dict[str, Any]:
    """Run the experiment in a child process.

    Returns
    -------
    dict
        ``cycles`` and ``grants``; or ``failure``, what went wrong; or ``unavailable``, why it was not made.
    """
    try:
        interpreter = python()
    except RtloopError as error:
        return {"unavailable": str(error)}
    try:
        done = subprocess.run(
            [interpreter, "-P", "-c", program], capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failure": f"the loop did not end within {timeout_s:g} s"}
    except OSError as error:
        return {"failure": f"no child process: {error}"}
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        hint = (
            ": a finite RLIMIT_RTTIME or a control group without memory does that"
            if name in ("SIGXCPU", "SIGKILL")
            else ""
        )
        return {"failure": f"the child was killed by {name}{hint}"}
    try:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
    except (ValueError, IndexError):
        said = done.stderr.strip() or f"exit code {done.returncode}"
        lines = said.splitlines()
        # A traceback is followed by the exception, whose text may have many lines.
        last = max((i for i, line in enumerate(lines) if line.startswith("  ")), default=-1)
        return {"failure": f"the loop did not start: {' '.join(lines[last + 1 :]) or lines[-1].strip()}"}


def examine(found: dict[str, Any] | None) -> Iterator[Check]:
    """Yield the checks of the experiment; None means that it was not made."""
    name, source = "a real loop", "a loop in a child process"
    why = "names and limits can mislead: this is what the kernel really granted"
    if found is None:
        yield Check("probe", name, "not tried", source, "note", why)
        return
    if "unavailable" in found:
        yield Check("probe", name, f"not tried: {found['unavailable']}", source, "note", why)
        return
    if "failure" in found:
        text, _, fix = str(found["failure"]).partition("\n")
        yield Check("probe", name, text, source, "fail", why, fix)
        yield from _grants(Grant(**grant) for grant in found.get("grants", ()) if not grant["ok"])
        return
    yield Check("probe", name, f"ran {found['cycles']} cycles", source, "ok", why)
    yield from _grants(Grant(**grant) for grant in found["grants"])


def _grants(grants: Iterable[Grant]) -> Iterator[Check]:
    for grant in grants:
        label, call, why = _SHOWN.get(grant.name, (grant.name.replace("_", " "), "the loop's grants", ""))
        if grant.ok and grant.name not in _SHOWN:
            continue
        source = f"{call}, by a loop in a child process"
        found = f"granted: {grant.granted}"
        if grant.kind == "cpu":
            found += f" ({grant.detail})"
        if grant.ok:
            yield Check("probe", label, found, source, "ok", why)
        else:
            yield Check(
                "probe",
                label,
                f"asked {grant.requested}, granted {grant.granted}: {grant.detail}",
                source,
                "fail",
                why,
                grant.fix,
            )
