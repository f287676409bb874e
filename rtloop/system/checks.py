"""Checks of the machine and of this process: each has a finding, a verdict, a reason and a fix.

The doctor, the grants, the strict error and the warning all use them. Every function is pure: the caller reads the
values.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable
from typing import Any, NamedTuple

from rtloop.system.fixes import device_fix, group_runtime_fix, limit_fix, throttling_fix
from rtloop.system.privilege import format_limit

__all__ = [
    "VERDICTS",
    "Check",
    "device",
    "group_runtime",
    "locked_memory",
    "real_time_cpu_time",
    "real_time_priority",
    "throttling",
    "worst",
]

_INFINITY = resource.RLIM_INFINITY

#: From the best to the worst. A value that could not be read is a note, never ok.
VERDICTS = ("ok", "note", "warn", "fail")


class Check(NamedTuple):
    """Finding about one condition, with a verdict.

    Attributes
    ----------
    topic : str
        The section that shows it: ``"session"``, ``"kernel"`` and so on.
    name : str
        The condition.
    found : str
        The value that was found.
    source : str
        Source of the value: a file, a system call, or an experiment.
    verdict : {"ok", "note", "warn", "fail"}
        ``fail``: a loop with the default settings does not start, or will be stopped. ``warn``: it costs latency.
        ``note``: worth knowing, or not readable.
    why : str
        Its consequence, in one line.
    fix : str
        Exact commands or lines that fix it.
    """

    topic: str
    name: str
    found: str
    source: str
    verdict: str
    why: str = ""
    fix: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the check as a dict that JSON can hold."""
        return self._asdict()


def worst(checks: Iterable[Check]) -> str:
    """Return the worst verdict of all, ``"ok"`` if there are none."""
    return VERDICTS[max((VERDICTS.index(check.verdict) for check in checks), default=0)]


def real_time_priority(limit: int, hard: int | None = None, *, is_capable: bool, needed: int = 80) -> Check:
    """Judge whether threads may have a real-time priority (sched(7)).

    Parameters
    ----------
    limit : int
        Soft RLIMIT_RTPRIO, which the kernel applies.
    hard : int, optional
        Hard limit, to which the soft one can be raised.
    is_capable : bool
        True if CAP_SYS_NICE is held in the initial user namespace; then the limit does not matter.
    needed : int
        Priority that the loop needs.
    """
    found = f"RLIMIT_RTPRIO is {format_limit(limit)}"
    source = "getrlimit(2), /proc/thread-self/status"
    why = f"SCHED_FIFO {needed} requires RLIMIT_RTPRIO of at least {needed}, or CAP_SYS_NICE"
    name = "real-time priority"
    if is_capable:
        return Check("session", name, f"{found}, not enforced because of CAP_SYS_NICE", source, "ok", why)
    found += " and CAP_SYS_NICE is missing"
    if limit == _INFINITY or limit >= needed:
        return Check("session", name, found, source, "ok", why)
    fix = limit_fix("RLIMIT_RTPRIO", max(95, needed))
    if hard is not None and (hard == _INFINITY or hard >= needed):
        found += f"; the hard limit is {format_limit(hard)}"
        fix = f"this shell: ulimit -Sr {format_limit(hard)}\n{fix}"
    return Check("session", name, found, source, "fail", why, fix)


def locked_memory(limit: int, *, is_capable: bool) -> Check:
    """Judge whether all memory may be locked; `limit` is RLIMIT_MEMLOCK in bytes, raised as far as allowed.

    Under a finite limit without CAP_IPC_LOCK, later allocations and thread starts would fail.
    """
    unit = "" if limit == _INFINITY else " bytes"
    found = f"RLIMIT_MEMLOCK is {format_limit(limit)}{unit}"
    source = "getrlimit(2), /proc/thread-self/status"
    why = "locked memory is not swapped out, so no cycle faults on it; under a finite limit later allocations fail"
    if is_capable:
        return Check("session", "locked memory", f"{found}, not enforced because of CAP_IPC_LOCK", source, "ok", why)
    found += " and CAP_IPC_LOCK is missing"
    if limit == _INFINITY:
        return Check("session", "locked memory", found, source, "ok", why)
    return Check("session", "locked memory", found, source, "fail", why, limit_fix("RLIMIT_MEMLOCK"))


def real_time_cpu_time(limit_us: int, needed_us: int | None = None) -> Check:
    """Judge RLIMIT_RTTIME: how many microseconds a real-time thread may run without blocking (getrlimit(2)).

    `needed_us` is the longest time that the loop may run, if there is a loop; a limit above it is ok.
    """
    name, source = "real-time CPU time", "getrlimit(2)"
    why = "beyond RLIMIT_RTTIME the kernel sends SIGXCPU, and then kills the process"
    if limit_us == _INFINITY:
        return Check("session", name, "RLIMIT_RTTIME is unlimited", source, "ok", why)
    found = f"RLIMIT_RTTIME is {limit_us} us without blocking"
    if needed_us is not None and needed_us < limit_us:
        return Check("session", name, found, source, "ok", why)
    verdict = "warn" if needed_us is None else "fail"
    return Check("session", name, found, source, verdict, why, limit_fix("RLIMIT_RTTIME"))


def group_runtime(runtime_us: int | None, source: str = "cpu.rt_runtime_us") -> Check:
    """Judge the real-time runtime of the control group (CONFIG_RT_GROUP_SCHED); None: the kernel has no such limit."""
    name = "control group's real-time runtime"
    why = "with RT_GROUP_SCHED a group without runtime cannot have real-time threads: EPERM, even for root"
    if runtime_us is None:
        return Check("scheduling", name, "not limited by control group", source, "ok", why)
    if runtime_us == 0:
        found = "this control group has no real-time runtime (cpu.rt_runtime_us is 0)"
        folder = source.rpartition("/")[0] or "/sys/fs/cgroup/cpu/..."
        return Check("scheduling", name, found, source, "fail", why, group_runtime_fix(folder))
    found = "no limit" if runtime_us < 0 else f"{runtime_us} us in each period"
    return Check("scheduling", name, found, source, "ok", why)


def device(path: str, error: int = 0) -> Check:
    """Judge whether a device could be opened and written; `error` is the errno, 0 for none."""
    name = "idle states"
    why = "waking up from a deep idle state takes its exit latency; holding the device prevents deep states"
    if error == 0:
        return Check("probe", name, f"{path} was opened and held", path, "ok", why)
    return Check("probe", name, f"{path}: {os.strerror(error)}", path, "fail", why, device_fix(path))


def throttling(runtime_us: int | None, period_us: int | None, *, is_for_deadline_alone: bool = False) -> Check:
    """Judge ``sched_rt_runtime_us`` and ``sched_rt_period_us`` (sched(7)); None: it could not be read.

    In kernels from 6.12 on without RT_GROUP_SCHED they only bound the admission to SCHED_DEADLINE; pass
    `is_for_deadline_alone` then.
    """
    name = "real-time throttling"
    source = "/proc/sys/kernel/sched_rt_runtime_us, sched_rt_period_us"
    why = "beyond sched_rt_runtime_us the kernel stops real-time threads for the rest of sched_rt_period_us"
    if runtime_us is None or period_us is None or period_us <= 0:
        return Check("scheduling", name, "could not be read", source, "note", why)
    if is_for_deadline_alone:
        why = "in this kernel it only bounds SCHED_DEADLINE; other real-time threads give way to the fair server"
        share = "all" if runtime_us < 0 else f"{100 * runtime_us / period_us:.0f} %"
        return Check("scheduling", name, f"none; {share} of the CPUs for SCHED_DEADLINE", source, "ok", why)
    if runtime_us < 0:
        why = "a real-time thread that never sleeps keeps everything else off its CPU"
        return Check("scheduling", name, "off: no limit for real-time threads", source, "note", why)
    found = f"{runtime_us} of each {period_us} us ({100 * runtime_us / period_us:.0f} %) for real-time threads"
    if runtime_us == 0:
        return Check("scheduling", name, found, source, "fail", why, throttling_fix())
    low = runtime_us < 0.9 * period_us
    return Check("scheduling", name, found, source, "warn" if low else "ok", why, throttling_fix() if low else "")
