"""Scheduling of a loop's thread, requested and granted: policy and its admission, CPUs, bandwidth, timer slack."""

from __future__ import annotations

import errno
import os
import resource
from typing import Any

from rtloop.settings import POLICIES, Settings, format_policy
from rtloop.system import checks, refusal_cause
from rtloop.system.cpu import format_cpu_list, mask_to_cpus
from rtloop.system.cpu_choice import CpuChoice, auto_cpus
from rtloop.system.cpuset import describe_absent, explain_outside, read_mask
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
from rtloop.system.session import rtkit
from rtloop.units import format_duration

__all__ = [
    "TOP_PRIORITY",
    "choose_cpus",
    "first_cpu",
    "priority_above",
    "rt_bandwidth",
    "sched_attr",
    "spin_budget",
    "thread_grants",
    "through_rtkit",
]

#: Highest priority below 99, that of the kernel's own threads.
TOP_PRIORITY = 98
_SPIN_BUDGET_PERCENT = 25


def spin_budget(settings: Settings) -> int:
    """Return the share of a CPU that ``spin="auto"`` may use, in per cent."""
    if settings.runtime_ns is None:
        return _SPIN_BUDGET_PERCENT
    # The step needs the rest of the runtime.
    return min(_SPIN_BUDGET_PERCENT, 50 * settings.runtime_ns // settings.period_ns)


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
    return grants + _cpu_time_grants(settings)


def _cpu_time_grants(settings: Settings) -> list[Grant]:
    """Return the grant of RLIMIT_RTTIME, if there is a limit."""
    cpu_time_us, hard_us = read_limit(RLIMIT_RTTIME)
    if cpu_time_us == resource.RLIM_INFINITY:
        return []
    needed = settings.period_ns // 1000
    cause = checks.real_time_cpu_time(cpu_time_us, needed)
    detail = cause.why
    if rtkit.limits_in_use() is not None:
        detail = f"required by RealtimeKit: SIGXCPU after {cpu_time_us} us without a sleep, SIGKILL after {hard_us} us"
    granted = f"{cpu_time_us} us without blocking"
    is_ok = cause.verdict == "ok"
    return [Grant("rt_time", f"{needed} us without blocking", granted, is_ok, detail, cause.fix, kind="limit")]


def through_rtkit(settings: Settings, report: dict[str, Any], grants: list[Grant]) -> tuple[int, int] | None:
    """Ask RealtimeKit for the policy that the kernel has refused to a thread, and correct the grants.

    Does nothing unless the program has called `use_rtkit`. The thread waits meanwhile.

    Returns
    -------
    tuple or None
        The thread's new policy and priority; None if nothing has changed.
    """
    limits = rtkit.limits_in_use()
    if limits is None or report["policy_rc"] != -errno.EPERM or settings.policy not in ("fifo", "rr"):
        return None
    at = next(i for i, grant in enumerate(grants) if grant.name == "policy")
    refused = grants[at]
    if why := rtkit.make_real_time(report["tid"], settings.priority):
        grants[at] = refused._replace(detail=f"{refused.detail}; {why}")
        return None
    flagged, priority = os.sched_getscheduler(report["tid"]), os.sched_getparam(report["tid"]).sched_priority
    policy = flagged & ~os.SCHED_RESET_ON_FORK
    granted = format_policy(policy, priority)
    is_ok = granted == refused.requested and flagged != policy
    name = granted.split()[0]
    detail = f"granted by RealtimeKit, which allows {name} up to {limits.priority}; reset on fork, read back"
    fix = "" if is_ok else f"policy={name!r}, priority={limits.priority}\nor {refused.fix}"
    error = 0 if is_ok else errno.EPERM
    grants[at] = Grant("policy", refused.requested, granted, is_ok, detail, fix, error, "priority")
    grants[:] = [grant for grant in grants if grant.name != "rt_time"] + _cpu_time_grants(settings)
    return policy, priority


def priority_above(highest: int) -> int:
    """Return the priority of a thread that watches loops with this highest priority."""
    return min(highest + 1, TOP_PRIORITY)


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
    return format_policy(policy, priority, (attr["sched_runtime"], attr["sched_deadline"], attr["sched_period"]))


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
    of_group = None if settings.policy == "deadline" else rt_group_runtime()  # the kernel limits FIFO and RR only
    group = checks.group_runtime(of_group, rt_group_file() or "")
    may_be_filter = may_be_capable and group.verdict == "ok"
    detail, fix = refusal_cause.explain("sched_setattr", -rc, is_privileged=may_be_filter)
    if -rc == errno.EPERM and not fix:
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
        absent = describe_absent(asked)
        fix = f"request CPUs of this cpuset: {format_cpu_list(allowed)}"
        if not absent:
            fix = cpuset_fix(format_cpu_list(allowed), format_cpu_list({*allowed, *asked}))
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
    if report["mask_rc"]:
        grants.append(
            Grant(
                "signals",
                "blocked on the thread",
                "not blocked",
                False,
                *_explained("its handlers may run on this thread", "rt_sigprocmask", report["mask_rc"]),
                -report["mask_rc"],
                "thread",
            )
        )
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
