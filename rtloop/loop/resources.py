"""Acquire what a loop needs, in a fixed order, each with a Grant, and give it back in reverse.

Every function returns the :class:`~rtloop.system.grant.Grant` and pushes what undoes it on the exit stack it is given.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any, ClassVar

from rtloop.errors import SetupError
from rtloop.memory import kernel, process_lock
from rtloop.memory.own_locks import own_grant
from rtloop.settings import POLICIES, Settings
from rtloop.system import checks, refusal
from rtloop.system.cpu import format_cpu_list, isolated_cpus, mask_to_cpus
from rtloop.system.fileio import read_text
from rtloop.system.fixes import capability_fix, cpuset_fix, throttling_fix
from rtloop.system.grant import Grant
from rtloop.system.privilege import CAP_SYS_NICE, RLIMIT_RTTIME, is_capable, rt_group_file, rt_group_runtime
from rtloop.telemetry.block import TelemetryBlock
from rtloop.units import format_duration

__all__ = [
    "choose_cpus",
    "dma_latency",
    "process_wide",
    "raise_if_refused",
    "rt_bandwidth",
    "sched_attr",
    "spin_budget",
    "telemetry",
    "thread_grants",
]

_SPIN_BUDGET_PERCENT = 25
_ADVICE = "More about this machine: rtloop doctor\nOr run degraded: strict=False"
_POLICY_NAMES = {number: name for name, number in POLICIES.items()}


def process_wide(settings: Settings, stack: ExitStack) -> Iterator[Grant]:
    """Acquire what all loops of the process share, one by one: limits, core dumps, the lock of all kernel, malloc."""
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
        # A grant can be partial: what was acquired is given back, whether or not it was all that was asked for.
        if not grant.errno:
            stack.callback(process_lock.memory_lock.release, settings.lock_memory)
        is_refused = not grant.ok
        yield grant
    elif settings.lock_memory == "own":
        detail = "the loop's stack, state and telemetry, as below"
        yield Grant("memory_lock", "own", "own", ok=True, detail=detail, kind="lock")
    # This one cannot be undone: it is not done for a start that is bound to fail.
    if settings.tune_malloc and not (settings.strict and is_refused):
        is_tuned = kernel.tune_malloc()
        granted = "tuned" if is_tuned else "not tuned"
        yield Grant("malloc", "tuned", granted, is_tuned, "for the rest of the process's life", kind="memory")


def spin_budget(settings: Settings) -> int:
    """Return the share of a CPU that ``spin="auto"`` may burn, per cent."""
    if settings.runtime_ns is None:
        return _SPIN_BUDGET_PERCENT
    # The step needs the rest of the runtime.
    return min(_SPIN_BUDGET_PERCENT, 50 * settings.runtime_ns // settings.period_ns)


def telemetry(settings: Settings, stack: ExitStack) -> tuple[Grant, TelemetryBlock]:
    """Map, seal and prefault the telemetry block, and lock it unless ``lock_memory="off"``."""
    try:
        block = TelemetryBlock(settings.name, settings.record)
    except OSError as error:
        raise SetupError(error.errno, f"record={settings.record}: {error.strerror}") from error
    stack.callback(block.close)
    rc = block.lock() if settings.lock_memory != "off" else 0
    return own_grant(
        settings.lock_memory, "telemetry", f"sealed memfd, {settings.record} records", block.size, rc
    ), block


def dma_latency(settings: Settings, stack: ExitStack) -> list[Grant]:
    """Bound the latency of idle states while a file is open (Documentation/power/pm_qos_interface.rst)."""
    if settings.dma_latency_us is None:
        return []
    asked = f"{settings.dma_latency_us} us"
    path = "/dev/cpu_dma_latency"
    try:
        held = _HeldFile(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        stack.callback(held.close)
        os.write(held.fd, settings.dma_latency_us.to_bytes(4, "little", signed=True))
        os.lseek(held.fd, 0, os.SEEK_SET)
        granted = int.from_bytes(os.read(held.fd, 4), "little", signed=True)
    except OSError as error:
        cause = checks.device(path, error.errno or errno.EIO)
        fix = cause.fix + "\nor leave the idle states alone: dma_latency=None"
        return [Grant("dma_latency", asked, "not held", False, cause.found, fix, error.errno or 0, kind="device")]
    detail = "the least of all requests on this machine, as the device tells it"
    return [Grant("dma_latency", asked, f"{granted} us", granted <= settings.dma_latency_us, detail, kind="device")]


class _HeldFile:
    """A file whose being open means something: a forked child, which inherits it, closes its copy."""

    _open: ClassVar[set[_HeldFile]] = set()

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._open.add(self)

    def close(self) -> None:
        self._open.discard(self)
        if self.fd >= 0:
            with suppress(OSError):  # a program that becomes a daemon closes all files, this one, too
                os.close(self.fd)
            self.fd = -1

    @classmethod
    def close_in_child(cls) -> None:
        for held in list(cls._open):
            held.close()


os.register_at_fork(after_in_child=_HeldFile.close_in_child)


def rt_bandwidth(settings: Settings) -> list[Grant]:
    """Refuse a loop that spins through more of a CPU than the kernel leaves to real-time threads (sched(7))."""
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
                f"or take the limit away, for the whole machine:\n{throttling_fix(-1)}",
                kind="limit",
            )
        )
    cpu_time_us = resource.getrlimit(RLIMIT_RTTIME)[0]
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
    """Return what the thread asks of sched_setattr(2)."""
    runtime, deadline, period = 0, 0, 0
    if settings.policy == "deadline":
        runtime, deadline, period = settings.runtime_ns or 0, settings.deadline_ns or 0, settings.period_ns
    return {
        "size": size, "sched_policy": POLICIES[settings.policy], "sched_flags": flags, "sched_nice": 0,
        "sched_priority": settings.priority,
        "sched_runtime": runtime, "sched_deadline": deadline, "sched_period": period,
    }  # fmt: skip


def choose_cpus(settings: Settings) -> tuple[int, ...] | None:
    """Return the CPUs to ask for; None leaves the affinity as it is inherited."""
    if settings.cpu == "auto":
        return (isolated_cpus() or None) if settings.policy != "deadline" else None
    return settings.cpu if isinstance(settings.cpu, tuple) else None


def _policy_text(policy: int, priority: int, attr: dict[str, Any]) -> str:
    name = _POLICY_NAMES.get(policy, str(policy))
    if name in ("fifo", "rr"):
        return f"{name} {priority}"
    if name == "deadline":
        times = (attr["sched_runtime"], attr["sched_deadline"], attr["sched_period"])
        return "deadline " + "/".join(format_duration(ns) for ns in times)
    return name


def _policy_grant(settings: Settings, request: dict[str, Any], report: dict[str, Any]) -> Grant:
    rc, got = report["policy_rc"], report["attr"]
    asked_attr = request["attr"]
    asked = _policy_text(asked_attr["sched_policy"], asked_attr["sched_priority"], asked_attr)
    granted = _policy_text(got["sched_policy"], got["sched_priority"], got)
    if not got["size"]:  # sched_getattr failed: nothing was read back
        granted = "not known"
        if rc == 0:
            return Grant(
                "policy",
                asked,
                granted,
                ok=False,
                detail="set, but sched_getattr could not read it back",
                kind="priority",
            )
    if rc == 0:
        has_reset = bool(got["sched_flags"] & 1)
        detail = "reset on fork, read back with sched_getattr" if has_reset else "without reset on fork"
        return Grant("policy", asked, granted, ok=asked == granted and has_reset, detail=detail, kind="priority")
    detail, fix = f"sched_setattr: {os.strerror(-rc)}", ""
    if -rc == errno.EPERM:
        may_be_capable = is_capable(CAP_SYS_NICE)
        group = checks.group_runtime(rt_group_runtime(), rt_group_file() or "")
        if settings.policy == "deadline":
            detail += "; SCHED_DEADLINE needs CAP_SYS_NICE, and a thread that may run on every CPU of its cpuset"
            fix = "" if may_be_capable else capability_fix("SYS_NICE") + "\nor policy='fifo'"
        else:
            limits = resource.getrlimit(resource.RLIMIT_RTPRIO)
            cause = checks.real_time_priority(*limits, is_capable=may_be_capable, needed=settings.priority)
            detail += f"; {cause.found}"
            fix = cause.fix
        if group.verdict == "fail":
            detail += f"; {group.found}"
            fix = group.fix
    elif -rc == errno.EBUSY:
        share = 100 * asked_attr["sched_runtime"] / max(asked_attr["sched_period"], 1)
        detail += (
            f"; the admission test found no {share:.1f} % of a CPU (runtime / period) free: all SCHED_DEADLINE threads "
            "together get the share of sched_rt_runtime_us on the CPUs of their cpuset"
        )
        fix = (
            "ask for less runtime, or for a longer period,\n"
            "or end other SCHED_DEADLINE threads: ps -eLo cls,pid,tid,comm | grep DLN,\n"
            f"or give them back the default share, where it has been lowered:\n{throttling_fix()}\n"
            "or policy='fifo'"
        )
    elif -rc == errno.EINVAL and settings.policy == "deadline":
        detail += "; the period may be outside of kernel.sched_deadline_period_min_us and _max_us"
        fix = "sysctl kernel.sched_deadline_period_min_us kernel.sched_deadline_period_max_us   # and a period between"
    return Grant("policy", asked, granted, ok=False, detail=detail, fix=fix, errno=-rc, kind="priority")


def _cpu_grant(asked: tuple[int, ...], report: dict[str, Any]) -> Grant:
    granted, allowed = mask_to_cpus(report["cpus"]), format_cpu_list(mask_to_cpus(report["allowed"]))
    is_same = granted == asked and report["cpu_rc"] == 0
    return Grant(
        "cpu",
        format_cpu_list(asked),
        format_cpu_list(granted),
        ok=is_same,
        detail=f"allowed here: {allowed}",
        fix="" if is_same else cpuset_fix(allowed),
        errno=-report["cpu_rc"] if report["cpu_rc"] else (0 if is_same else errno.EINVAL),
        kind="cpu",
    )


def thread_grants(settings: Settings, request: dict[str, Any], report: dict[str, Any]) -> list[Grant]:
    """Read the thread's own report, made by the thread before its first release."""
    grants = [
        Grant(
            "signal_stack",
            "on the thread",
            "on the thread" if report["signal_stack_rc"] == 0 else "none",
            ok=report["signal_stack_rc"] == 0,
            detail="so that a stack overflow is reported",
            errno=-report["signal_stack_rc"],
            kind="thread",
        )
    ]
    cpus = choose_cpus(settings)
    if cpus is not None:
        grants.append(_cpu_grant(cpus, report))
    grants.append(_policy_grant(settings, request, report))
    # Real-time threads have no slack; the thread asked for none if it is an ordinary one.
    if settings.policy == "other" or report["policy_rc"]:
        slack = report["slack_ns"]
        grants.append(Grant("timer_slack", "1 ns", f"{slack} ns", slack == 1, errno=-report["slack_rc"], kind="thread"))
    if settings.flush_denormals:
        is_set = bool(report["denormals_flushed"])
        granted = "flushed" if is_set else "kept"
        grants.append(Grant("denormals", "flushed", granted, ok=is_set, detail="on this thread only", kind="thread"))
    return grants


def raise_if_refused(settings: Settings, grants: list[Grant]) -> None:
    """Raise one SetupError for all grants that were refused, in strict mode."""
    if settings.strict:
        refusal.raise_if_refused(grants, settings.name, advice=_ADVICE)
