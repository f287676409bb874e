"""Resources of a loop: acquired in a fixed order, each with a Grant, and released in reverse.

Every function returns the :class:`~rtloop.system.grant.Grant`, and pushes the call that undoes it on the exit stack.
"""

from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any, ClassVar

from rtloop.errors import SetupError
from rtloop.memory import heap, process_lock
from rtloop.memory.own_locks import own_grant
from rtloop.settings import POLICIES, Settings, format_policy
from rtloop.system import checks, grant_errors, refusal_cause
from rtloop.system.cpu import format_cpu_list, mask_to_cpus
from rtloop.system.cpu_choice import CpuChoice, auto_cpus
from rtloop.system.cpuset import explain_outside, read_mask
from rtloop.system.fileio import read_text
from rtloop.system.fixes import capability_fix, cpuset_fix, filter_fix, throttling_fix
from rtloop.system.grant import Grant
from rtloop.system.privilege import (
    CAP_SYS_NICE,
    RLIMIT_RTTIME,
    has_seccomp_filter,
    is_capable,
    read_limit,
    rt_group_file,
    rt_group_runtime,
)
from rtloop.telemetry.block import TelemetryBlock
from rtloop.units import format_duration

__all__ = [
    "choose_cpus",
    "dma_latency",
    "first_cpu",
    "process_wide",
    "raise_if_refused",
    "rt_bandwidth",
    "sched_attr",
    "spin_budget",
    "telemetry",
    "thread_grants",
]

_SPIN_BUDGET_PERCENT = 25
#: Major number of /dev/cpu_dma_latency (MISC_MAJOR of linux/major.h).
_MISC_MAJOR = 10
_ADVICE = "More about this machine: rtloop doctor\nOr run degraded: strict=False"


def process_wide(settings: Settings, stack: ExitStack) -> Iterator[Grant]:
    """Acquire what all loops of the process share, one by one: limits, core dumps, the lock of all memory, malloc."""
    if settings.lock_memory != "off":
        grant = process_lock.memlock_limit.acquire()
        stack.callback(process_lock.memlock_limit.release)
        yield grant
    if not settings.core_dumps:
        grant = process_lock.core_dumps.acquire()
        stack.callback(process_lock.core_dumps.release)
        yield grant
    is_refused = False
    if settings.lock_memory in ("all", "onfault"):
        less = "or lock only what the loop itself uses: lock_memory='own'"
        grant = process_lock.memory_lock.acquire(settings.lock_memory, instead="own memory only", advice=less)
        # A grant can be partial. Whatever was acquired is released in the end.
        if not grant.errno:
            stack.callback(process_lock.memory_lock.release, settings.lock_memory)
        is_refused = not grant.ok
        yield grant
    elif settings.lock_memory == "own":
        detail = "the loop's stack, state and telemetry, as below"
        yield Grant("memory_lock", "own", "own", ok=True, detail=detail, kind="lock")
    # It cannot be undone, so it is skipped if the start is bound to fail.
    if settings.tune_malloc and not (settings.strict and is_refused):
        yield heap.tune()


def spin_budget(settings: Settings) -> int:
    """Return the share of a CPU that ``spin="auto"`` may use, in per cent."""
    if settings.runtime_ns is None:
        return _SPIN_BUDGET_PERCENT
    # The step needs the rest of the runtime.
    return min(_SPIN_BUDGET_PERCENT, 50 * settings.runtime_ns // settings.period_ns)


def telemetry(settings: Settings, stack: ExitStack) -> tuple[Grant, TelemetryBlock]:
    """Map, seal and prefault the telemetry block, and lock it unless ``lock_memory="off"``."""
    hidden: Grant | None = None
    try:
        block = TelemetryBlock(settings.name, settings.record)
    except OSError as error:
        why, fix = refusal_cause.explain("memfd_create", error.errno or 0)
        if settings.strict or not fix:
            text = f"record={settings.record}: {error.strerror}" + (f"; {why}\n{fix}" if fix else "")
            raise SetupError(error.errno, text) from error
        asked = f"{settings.record} records, shared"
        detail = f"{why}; no other process can read it"
        hidden = Grant("telemetry", asked, "of this process alone", False, detail, fix, error.errno or 0)
        block = TelemetryBlock(settings.name, settings.record, is_shared=False)
    stack.callback(block.close)
    rc = block.lock() if settings.lock_memory != "off" else 0
    if hidden is not None:
        return hidden, block
    return own_grant(
        settings.lock_memory, "telemetry", f"sealed memfd, {settings.record} records", block.size, rc
    ), block


def dma_latency(settings: Settings, stack: ExitStack) -> list[Grant]:
    """Bound the exit latency of idle states while a file is open (Documentation/power/pm_qos_interface.rst)."""
    if settings.dma_latency_us is None:
        return []
    asked = f"{settings.dma_latency_us} us"
    path = "/dev/cpu_dma_latency"
    try:
        held = _HeldFile(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        stack.callback(held.close)
        if not _is_misc_device(held.fd):
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        os.write(held.fd, settings.dma_latency_us.to_bytes(4, "little", signed=True))
        os.lseek(held.fd, 0, os.SEEK_SET)
        granted = int.from_bytes(os.read(held.fd, 4), "little", signed=True)
    except OSError as error:
        cause = checks.device(path, error.errno or errno.EIO)
        fix = cause.fix + "\nor leave the idle states alone: dma_latency=None"
        found = f"{cause.found}; another file is in its place" if error.errno == errno.ENODEV else cause.found
        return [Grant("dma_latency", asked, "nothing", False, found, fix, error.errno or 0, kind="device")]
    detail = "the smallest of all requests on this machine, read back from the device"
    return [Grant("dma_latency", asked, f"{granted} us", granted <= settings.dma_latency_us, detail, kind="device")]


def _is_misc_device(fd: int) -> bool:
    """Return False for another file in its place, such as /dev/null in a container that hides devices."""
    status = os.fstat(fd)
    return stat.S_ISCHR(status.st_mode) and os.major(status.st_rdev) == _MISC_MAJOR


class _HeldFile:
    """File that has an effect while it is open; a forked child closes its inherited copy."""

    _open: ClassVar[set[_HeldFile]] = set()

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._open.add(self)

    def close(self) -> None:
        self._open.discard(self)
        if self.fd >= 0:
            with suppress(OSError):  # a program that becomes a daemon has closed all files
                os.close(self.fd)
            self.fd = -1

    @classmethod
    def close_in_child(cls) -> None:
        for held in list(cls._open):
            held.close()


os.register_at_fork(after_in_child=_HeldFile.close_in_child)


def rt_bandwidth(settings: Settings) -> list[Grant]:
    """Refuse a loop that spins for a larger share of a CPU than the kernel gives real-time threads (sched(7))."""
    if settings.policy not in ("fifo", "rr"):
        return []
    grants = []
    try:
        runtime = int(read_text("/proc/sys/kernel/sched_rt_runtime_us"))
        period = int(read_text("/proc/sys/kernel/sched_rt_period_us"))
    except (OSError, ValueError):
        runtime, period = -1, 1
    share = 1.0 if runtime < 0 else runtime / period
    asked = settings.spin_ns / settings.period_ns
    if settings.spin_ns and runtime >= 0 and asked >= share:
        grants.append(
            Grant(
                "rt_bandwidth",
                f"{100 * asked:.1f} % of a CPU",
                f"{100 * share:.1f} % of a CPU",
                ok=False,
                detail=f"spin={format_duration(settings.spin_ns)} of a period of "
                f"{format_duration(settings.period_ns)}; {checks.throttling(runtime, period).why}",
                fix="spin for less of the period, so that the loop sleeps longer,\n"
                f"or remove the limit for the whole machine:\n{throttling_fix(-1)}",
                kind="limit",
            )
        )
    cpu_time_us = read_limit(RLIMIT_RTTIME)[0]
    if cpu_time_us != resource.RLIM_INFINITY:
        needed = settings.period_ns // 1000
        cause = checks.real_time_cpu_time(cpu_time_us, needed)
        grants.append(
            Grant(
                "rt_time",
                f"{needed} us without blocking",
                f"{cpu_time_us} us without blocking",
                ok=cause.verdict == "ok",
                detail=cause.why,
                fix=cause.fix,
                kind="limit",
            )
        )
    return grants


def sched_attr(settings: Settings, size: int, flags: int) -> dict[str, int]:
    """Return the arguments of the thread's sched_setattr(2)."""
    runtime, deadline, period = 0, 0, 0
    if settings.policy == "deadline":
        runtime, deadline, period = settings.runtime_ns or 0, settings.deadline_ns or 0, settings.period_ns
    return {
        "size": size, "sched_policy": POLICIES[settings.policy], "sched_flags": flags, "sched_nice": 0,
        "sched_priority": settings.priority,
        "sched_runtime": runtime, "sched_deadline": deadline, "sched_period": period,
    }  # fmt: skip


def choose_cpus(settings: Settings) -> CpuChoice:
    """Return the CPUs to ask for, None for those that are inherited, and why."""
    if settings.cpu == "auto" and settings.policy != "deadline":
        return auto_cpus()
    return CpuChoice(settings.cpu if isinstance(settings.cpu, tuple) else None, "")


def _explained(detail: str, call: str, rc: int) -> tuple[str, str]:
    """Return a detail with the refused call, if there is one, and the fix."""
    if not rc:
        return detail, ""
    why, fix = refusal_cause.explain(call, -rc)
    return f"{why}; {detail}" if detail else why, fix


def first_cpu(request: dict[str, Any]) -> int:
    """Return the first CPU that a thread asks for, -1 for one that is not pinned."""
    return mask_to_cpus(request["cpus"])[0] if request["is_pinned"] else -1


def _policy_text(policy: int, priority: int, attr: dict[str, Any]) -> str:
    if policy == POLICIES["deadline"]:
        times = (attr["sched_runtime"], attr["sched_deadline"], attr["sched_period"])
        return "deadline " + "/".join(format_duration(ns) for ns in times)
    return format_policy(policy, priority)


def _policy_grant(settings: Settings, request: dict[str, Any], report: dict[str, Any]) -> Grant:
    rc, got = report["policy_rc"], report["attr"]
    asked_attr = request["attr"]
    asked = _policy_text(asked_attr["sched_policy"], asked_attr["sched_priority"], asked_attr)
    granted = _policy_text(got["sched_policy"], got["sched_priority"], got)
    if not got["size"]:  # sched_getattr failed: nothing was read back
        granted = "not known"
        if rc == 0:
            detail, fix = "set, but sched_getattr could not read it back", ""
            if has_seccomp_filter():
                detail, fix = f"{detail}; a seccomp filter may forbid it", filter_fix("sched_getattr")
            return Grant("policy", asked, granted, False, detail, fix, kind="priority")
    if rc == 0:
        has_reset = bool(got["sched_flags"] & 1)
        detail = "reset on fork, read back with sched_getattr" if has_reset else "without reset on fork"
        return Grant("policy", asked, granted, ok=asked == granted and has_reset, detail=detail, kind="priority")
    may_be_capable = is_capable(CAP_SYS_NICE)
    detail, fix = refusal_cause.explain("sched_setattr", -rc, is_privileged=may_be_capable)
    if -rc == errno.EPERM and not fix:
        group = checks.group_runtime(rt_group_runtime(), rt_group_file() or "")
        if settings.policy == "deadline":
            detail += "; SCHED_DEADLINE needs CAP_SYS_NICE, and a thread that may run on every CPU of its cpuset"
            fix = "" if may_be_capable else capability_fix("SYS_NICE") + "\nor policy='fifo'"
        else:
            limits = read_limit(resource.RLIMIT_RTPRIO)
            cause = checks.real_time_priority(*limits, is_capable=may_be_capable, needed=settings.priority)
            detail += f"; {cause.found}"
            fix = cause.fix
        if group.verdict == "fail":
            detail += f"; {group.found}"
            fix = group.fix
    elif -rc == errno.EBUSY:
        share = 100 * asked_attr["sched_runtime"] / max(asked_attr["sched_period"], 1)
        detail += (
            f"; the admission test did not find {share:.1f} % of a CPU (runtime / period) free: all SCHED_DEADLINE "
            "threads together get at most the share of sched_rt_runtime_us on the CPUs of their cpuset"
        )
        fix = (
            "request less runtime, or a longer period,\n"
            "or end other SCHED_DEADLINE threads: ps -eLo cls,pid,tid,comm | grep DLN,\n"
            f"or restore the default share, if it has been lowered:\n{throttling_fix()}\n"
            "or policy='fifo'"
        )
    elif -rc == errno.EINVAL and settings.policy == "deadline":
        detail += "; the period may be outside of kernel.sched_deadline_period_min_us and _max_us"
        fix = "sysctl kernel.sched_deadline_period_min_us kernel.sched_deadline_period_max_us   # and a period between"
    return Grant("policy", asked, granted, ok=False, detail=detail, fix=fix, errno=-rc, kind="priority")


def _cpu_grant(settings: Settings, request: dict[str, Any], report: dict[str, Any], why: str) -> Grant:
    """Return the grant of the CPUs: always the mask that the thread really has, and the reason for it."""
    granted, allowed = mask_to_cpus(report["cpus"]), mask_to_cpus(report["allowed"])
    if not granted:  # a filter forbids sched_getaffinity(2)
        granted = allowed = read_mask(f"self/task/{report['tid']}")
    if not request["is_pinned"]:
        shown, whole = format_cpu_list(granted), format_cpu_list(allowed)
        detail = f"inherited: {shown}, the whole cpuset"
        if set(granted) != set(allowed):
            detail = f"inherited: {shown} of {whole}, narrower than the cpuset"
        asked_for = "auto" if settings.cpu == "auto" else "inherited"
        return Grant("cpu", asked_for, shown, True, f"{detail}; {why}" if why else detail, kind="cpu")
    asked = mask_to_cpus(request["cpus"])
    rc = report["cpu_rc"]
    is_same = granted == asked and rc == 0
    detail = f"{why}; " if why else ""
    detail += f"allowed here: {format_cpu_list(allowed)}"
    fix = ""
    if not is_same:
        fix = cpuset_fix(format_cpu_list(allowed))
        if outside := explain_outside(asked, allowed):
            detail += f"; {outside}"
        elif rc:
            refused, filtered = refusal_cause.explain("sched_setaffinity", -rc)
            detail, fix = f"{refused}; {detail}", filtered or fix
    error = -rc if rc else (0 if is_same else errno.EINVAL)
    return Grant("cpu", format_cpu_list(asked), format_cpu_list(granted), is_same, detail, fix, error, "cpu")


def thread_grants(
    settings: Settings, request: dict[str, Any], report: dict[str, Any], why_cpus: str = ""
) -> list[Grant]:
    """Return the grants of the thread's own report, made by the thread before its first release.

    `why_cpus` is the reason for the choice of its CPUs.
    """
    grants = [
        Grant(
            "signal_stack",
            "on the thread",
            "on the thread" if report["signal_stack_rc"] == 0 else "none",
            report["signal_stack_rc"] == 0,
            *_explained("so that a stack overflow is reported", "sigaltstack", report["signal_stack_rc"]),
            -report["signal_stack_rc"],
            "thread",
        )
    ]
    grants.append(_cpu_grant(settings, request, report, why_cpus))
    grants.append(_policy_grant(settings, request, report))
    # Only an ordinary thread has timer slack, and has requested the minimum.
    if settings.policy == "other" or report["policy_rc"]:
        slack = report["slack_ns"]
        grants.append(
            Grant(
                "timer_slack",
                "1 ns",
                f"{slack} ns" if slack >= 0 else "not known",
                slack == 1,
                *_explained("", "prctl", report["slack_rc"]),
                -report["slack_rc"],
                "thread",
            )
        )
    if settings.flush_denormals:
        is_set = bool(report["denormals_flushed"])
        granted = "flushed" if is_set else "kept"
        grants.append(Grant("denormals", "flushed", granted, ok=is_set, detail="on this thread only", kind="thread"))
    return grants


def raise_if_refused(settings: Settings, grants: list[Grant]) -> None:
    """Raise one SetupError for all refused grants, in strict mode."""
    if settings.strict:
        grant_errors.raise_if_refused(grants, settings.name, advice=_ADVICE)
