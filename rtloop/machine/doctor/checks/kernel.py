"""Checks of the kernel: preemption, version, and the CPU time left to real-time threads."""

from __future__ import annotations

from collections.abc import Iterator

from rtloop.machine.doctor import parse
from rtloop.machine.doctor.checks.platform import hypervisor
from rtloop.machine.doctor.machine_files import Machine, unread
from rtloop.system import checks
from rtloop.system.checks import Check
from rtloop.system.cpu import format_cpu_list
from rtloop.system.fixes import cpuset_fix, kernel_fix, throttling_fix
from rtloop.units import format_duration

__all__ = ["examine", "is_preempt_rt", "preemption"]

_PREEMPT = "/sys/kernel/debug/sched/preempt"
_FAIR_SERVER = "/sys/kernel/debug/sched/fair_server"


def is_preempt_rt(machine: Machine) -> bool:
    """Tell whether the kernel is a PREEMPT_RT one."""
    words = machine.text("/proc/sys/kernel/version").replace("PREEMPT RT", "PREEMPT_RT").split()
    in_config = {"CONFIG_PREEMPT_RT", "CONFIG_PREEMPT_RT_FULL"}
    return (
        machine.text("/sys/kernel/realtime") == "1"
        or "PREEMPT_RT" in words
        or any(machine.config.get(option) == "y" for option in in_config)
    )


def preemption(machine: Machine) -> tuple[str, str]:
    """Return the preemption model and its source; the model is "" if it is not known."""
    if is_preempt_rt(machine):
        return "PREEMPT_RT", "/sys/kernel/realtime, /proc/sys/kernel/version"
    version = machine.text("/proc/sys/kernel/version")
    words = version.split()
    if mode := parse.bracketed(machine.text(_PREEMPT), "(", ")"):
        return f"PREEMPT_DYNAMIC, {mode}", _PREEMPT
    if mode := machine.arguments.get("preempt"):
        return f"PREEMPT_DYNAMIC, {mode} by the kernel's command line", "/proc/cmdline"
    built = [word for word in ("NONE", "VOLUNTARY", "LAZY") if machine.config.get(f"CONFIG_PREEMPT_{word}") == "y"]
    if machine.config.get("CONFIG_PREEMPT") == "y":
        built.append("FULL")
    if "PREEMPT_DYNAMIC" in words:
        mode = f"{built[0].lower()} unless changed since" if len(built) == 1 else f"mode {unread(_PREEMPT)}"
        return f"PREEMPT_DYNAMIC, {mode}", f"/proc/sys/kernel/version, {machine.config_source}"
    if "PREEMPT" in words:
        return "full", "/proc/sys/kernel/version"
    if len(built) == 1:
        return built[0].lower(), machine.config_source
    return ("none or voluntary" if version else ""), "/proc/sys/kernel/version"


def examine(machine: Machine) -> Iterator[Check]:
    """Yield the checks of the kernel and of its limits for real-time threads."""
    yield _preemption(machine)
    yield _version(machine)
    version = parse.kernel_version(machine.release)
    yield checks.throttling(
        machine.number("/proc/sys/kernel/sched_rt_runtime_us"),
        machine.number("/proc/sys/kernel/sched_rt_period_us"),
        is_for_deadline_alone=machine.config.get("CONFIG_RT_GROUP_SCHED") == "n"
        and version is not None
        and version >= (6, 12),
    )
    yield _fair_server(machine)
    yield _group_runtime(machine)
    yield _quota(machine)
    yield _cpuset(machine)


def _preemption(machine: Machine) -> Check:
    model, source = preemption(machine)
    why = "without PREEMPT_RT a driver or a long system call can hold a loop's CPU for milliseconds"
    if model == "PREEMPT_RT":
        return Check("kernel", "preemption", model, source, "ok", why)
    place = machine.place
    fix = kernel_fix(place.distribution, place.machine, is_raspberry_pi=place.is_raspberry_pi)
    if place.container:
        fix = kernel_fix()  # the host may run another distribution
    elif hypervisor(machine)[0] not in ("", "?") and machine.release and not machine.names("/lib/modules"):
        fix = (
            f"host:       {machine.release} is not from a package (no /lib/modules here): the kernel is"
            f" chosen where this machine is started; {kernel_fix()}"
        )
    if not model:
        return Check("kernel", "preemption", unread(), source, "note", why, fix)
    return Check("kernel", "preemption", model, source, "warn", why, fix)


def _version(machine: Machine) -> Check:
    source, release = "/proc/sys/kernel/osrelease", machine.release
    why = "PREEMPT_RT is in mainline from 6.12 on; before 5.9 much that real time needs is missing"
    version = parse.kernel_version(release)
    if version is None:
        return Check("kernel", "version", unread(), source, "note", why)
    return Check("kernel", "version", release, source, "warn" if version < (5, 9) else "ok", why)


def _fair_server(machine: Machine) -> Check:
    name, why = (
        "fair server",
        "from 6.12 on it takes some time from a real-time thread that never sleeps, for ordinary threads",
    )
    version = parse.kernel_version(machine.release)
    servers: dict[tuple[int, int], list[int]] = {}
    for cpu in machine.numbered(_FAIR_SERVER, "cpu"):
        runtime = machine.number(f"{_FAIR_SERVER}/cpu{cpu}/runtime")
        period = machine.number(f"{_FAIR_SERVER}/cpu{cpu}/period")
        if runtime is not None and period:
            servers.setdefault((runtime, period), []).append(cpu)
    if servers:
        texts = [
            f"{format_duration(runtime)} of each {format_duration(period)} on CPUs {format_cpu_list(cpus)}"
            for (runtime, period), cpus in servers.items()
        ]
        return _judge_fair_server(
            machine, servers, Check("scheduling", name, "; ".join(texts), _FAIR_SERVER, "ok", why)
        )
    if version is not None and version < (6, 12):
        return Check("scheduling", name, "none in this kernel", "/proc/sys/kernel/osrelease", "ok", why)
    if not machine.names("/sys/kernel/debug"):
        fix = "now:        sudo mount -t debugfs none /sys/kernel/debug   # if it is not mounted; then run this as root"
        return Check(
            "scheduling", name, unread("debugfs is not mounted, or not readable"), _FAIR_SERVER, "note", why, fix
        )
    reason = machine.read(f"{_FAIR_SERVER}/cpu0/runtime")[1]
    return Check("scheduling", name, unread(reason), _FAIR_SERVER, "note", why)


def _judge_fair_server(machine: Machine, servers: dict[tuple[int, int], list[int]], check: Check) -> Check:
    """Compare the fair servers with ``sched_rt_runtime_us``, which does not limit them (sched-rt-group.rst)."""
    runtime = machine.number("/proc/sys/kernel/sched_rt_runtime_us")
    period = machine.number("/proc/sys/kernel/sched_rt_period_us")
    share = max(runtime / period for runtime, period in servers)
    if share > 0.1:
        return check._replace(verdict="warn", fix=_fair_server_fix("50000000"))
    if runtime is None or not period:
        return check._replace(found=f"{check.found}; sched_rt_runtime_us {unread()}", verdict="note" if share else "ok")
    if 0 <= runtime / period <= share and share:
        found = f"{check.found}; sched_rt_runtime_us allows no more than that for all of SCHED_DEADLINE"
        return check._replace(found=found, verdict="warn", fix=throttling_fix())
    if runtime < 0 and share:
        found = f"{check.found}, although sched_rt_runtime_us is -1"
        return check._replace(found=found, verdict="note", fix=_fair_server_fix("0"))
    return check


def _fair_server_fix(runtime_ns: str) -> str:
    never = "   # a thread that never sleeps then starves all others on its CPU" if runtime_ns == "0" else ""
    return f"now:        echo {runtime_ns} | sudo tee {_FAIR_SERVER}/cpu*/runtime{never}"


def _controller(machine: Machine, name: str) -> list[str] | None:
    """Return a controller's folders for this process's control group and its parents, the group's own first.

    They are those of version 1 if its hierarchy has the controller, else of version 2; None if there are none.
    """
    root = "/sys/fs/cgroup"
    groups = parse.cgroups(machine.text("/proc/self/cgroup"))
    versions = [(1, path) for controllers, path in groups if name in controllers]
    versions += [(2, path) for controllers, path in groups if not controllers]
    if not versions:
        return None
    version, path = versions[0]
    top = f"{root}/{name}" if version == 1 else f"{root}/unified" if machine.exists(f"{root}/unified") else root
    if not machine.exists(f"{top}{path}"):  # in a container the path may be the host's
        path = ""
    parts = [part for part in path.split("/") if part]
    return ["/".join([top, *parts[:count]]) for count in range(len(parts), -1, -1)]


def _group_runtime(machine: Machine) -> Check:
    for folder in _controller(machine, "cpu") or []:
        file = f"{folder}/cpu.rt_runtime_us"
        if machine.exists(file):
            runtime = machine.number(file)
            if runtime is None:
                return checks.group_runtime(None, file)._replace(found=unread(machine.read(file)[1]), verdict="note")
            return checks.group_runtime(runtime, file)
    check = checks.group_runtime(None, "/proc/self/cgroup")
    if machine.config.get("CONFIG_RT_GROUP_SCHED") == "y":
        return check._replace(
            found="the kernel has RT_GROUP_SCHED, and this control group shows no limit", verdict="note"
        )
    if _controller(machine, "cpu") is None:
        return check._replace(found=unread(), verdict="note")
    return check


def _quota(machine: Machine) -> Check:
    name, source = "control group's CPU limit", "cpu.max, cpu.cfs_quota_us"
    why = "it stops the group's ordinary threads, such as Python's, for the rest of the period, but not real-time ones"
    folders = _controller(machine, "cpu")
    if folders is None:
        return Check("scheduling", name, unread(), source, "note", why)
    found = []
    hidden = ""
    for folder in folders:
        limit = parse.cpu_max(machine.text(f"{folder}/cpu.max"))
        file = f"{folder}/cpu.max"
        if limit is None:
            quota = machine.number(f"{folder}/cpu.cfs_quota_us")
            period = machine.number(f"{folder}/cpu.cfs_period_us")
            if quota is None or not period:
                for name_ in ("cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us"):
                    if machine.exists(f"{folder}/{name_}") and parse.number(machine.text(f"{folder}/{name_}")) is None:
                        hidden = f"{folder}/{name_}"
                continue
            limit, file = (quota, period), f"{folder}/cpu.cfs_quota_us"
        if limit[0] >= 0:
            found.append((limit[0] / limit[1], limit, file))
    found = [entry for entry in found if entry[0] < (len(machine.online) or 1 << 16)]
    if not found and hidden:
        return Check("scheduling", name, unread(machine.read(hidden)[1]), hidden, "note", why)
    if not found:
        return Check("scheduling", name, "none", source, "ok", why)
    cpus, (quota, period), file = min(found)
    text = f"{cpus:.2f} CPUs: {quota} of each {period} us"
    fix = (
        "systemd:    in the unit's [Service] section\n            CPUQuota=\n"
        "container:  docker run without --cpus and --cpu-quota\n"
        "kubernetes: no cpu limit, or whole CPUs with cpuManagerPolicy: static and --cpu-cfs-quota=false"
    )
    return Check("scheduling", name, text, file, "warn", why, fix)


def _group_cpus(machine: Machine) -> tuple[int, ...] | None:
    """Return the CPUs of this process's cpuset, or all online CPUs if it has none; None if not known."""
    folders = _controller(machine, "cpuset")
    if folders is None:
        return None
    for folder in folders:
        for name in ("cpuset.cpus.effective", "cpuset.effective_cpus"):  # versions 2 and 1
            if machine.exists(f"{folder}/{name}"):
                return parse.cpu_list(machine.text(f"{folder}/{name}")) or None
    return machine.online


def _cpuset(machine: Machine) -> Check:
    name, source = "CPUs of this process", "Cpus_allowed_list in /proc/self/status, cpuset.cpus.effective"
    why = "a loop runs only on CPUs that are in its cpuset and its affinity"
    text = machine.status.get("Cpus_allowed_list", "")
    allowed = set(parse.cpu_list(text) or ())
    if not allowed or not machine.online:
        return Check("scheduling", name, unread(), source, "note", why)
    online, isolated = set(machine.online), set(machine.isolated)
    found = f"{format_cpu_list(allowed)} of {format_cpu_list(online)}"
    if not isolated or isolated & allowed:
        verdict = "note" if online - isolated - allowed else "ok"
        return Check("scheduling", name, found, source, verdict, why)
    # The kernel starts every process off the isolated CPUs; only a cpuset keeps it from moving there.
    group, there = _group_cpus(machine), format_cpu_list(isolated)
    if group is None:
        return Check("scheduling", name, f"{found}; the cpuset {unread()}", source, "note", why)
    if isolated & set(group):
        return Check("scheduling", name, f"{found}; may move to isolated {there}", source, "ok", why)
    found += f"; the isolated {there} are not in its cpuset"
    return Check("scheduling", name, found, source, "warn", why, cpuset_fix(format_cpu_list(allowed)))
