"""Facts about a machine for the report of a latency: what the maintainers of a real-time kernel ask for first.

See Documentation/admin-guide/reporting-issues.rst of the kernel. No fact names the machine, its users or its network:
serial numbers are not read, the values of unknown boot arguments are dropped, and names and addresses are removed at
the end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

from rtloop.machine.doctor import parse
from rtloop.machine.doctor.checks.kernel import preemption
from rtloop.machine.doctor.checks.platform import hypervisor
from rtloop.machine.doctor.machine_files import Machine
from rtloop.system.cpu import format_cpu_list
from rtloop.system.fileio import parse_fields

__all__ = ["Section", "gather_facts", "remove_private", "safe_arguments"]

_CPU = "/sys/devices/system/cpu"
_DMI = "/sys/class/dmi/id"
#: Letters of the taint flags, from bit 0 (Documentation/admin-guide/tainted-kernels.rst).
_TAINTS = "PFSRMBUDAWCIOELKXTNJ"
#: Prefixes of the kernel's options that affect its latency.
_OPTIONS = (
    "PREEMPT", "HZ", "NO_HZ", "HIGH_RES_TIMERS", "RCU_NOCB", "RCU_BOOST", "CPU_FREQ", "CPU_IDLE", "CPU_ISOLATION",
    "IRQ_FORCED_THREADING", "RT_GROUP_SCHED", "CPUSETS", "SCHED_CORE", "LOCKUP_DETECTOR", "SOFTLOCKUP", "HARDLOCKUP",
    "PROVE_LOCKING", "LOCK_STAT", "DEBUG_LOCK_ALLOC", "DEBUG_PREEMPT", "DEBUG_ATOMIC_SLEEP", "KASAN", "KCSAN",
    "IRQSOFF_TRACER", "PREEMPT_TRACER", "HWLAT_TRACER", "OSNOISE_TRACER", "TIMERLAT_TRACER", "EFI_DISABLE_RUNTIME",
    "TRANSPARENT_HUGEPAGE", "KSM", "NUMA_BALANCING", "COMPACTION",
)  # fmt: skip
#: Prefixes of the boot arguments whose values are shown; the values of all others may be private.
_ARGUMENTS = (
    "isolcpus", "nohz", "rcu", "irqaffinity", "idle", "intel_idle", "processor", "intel_pstate", "amd_pstate",
    "cpufreq", "cpuidle", "mitigations", "preempt", "threadirqs", "tsc", "clocksource", "highres", "efi", "pcie_aspm",
    "nosmt", "skew_tick", "nmi_watchdog", "nowatchdog", "nosoftlockup", "mce", "transparent_hugepage", "hugepage",
    "default_hugepagesz", "numa", "workqueue", "kthread_cpus", "acpi", "console", "panic", "cgroup",
    "systemd.unified", "maxcpus", "nr_cpus", "hpet", "lapic", "kvm", "iommu", "intel_iommu", "amd_iommu", "vdso",
    "rt_group_sched", "psi", "swiotlb", "kernel", "sched", "haltpoll", "force_turbo", "quiet", "audit", "selinux",
    "apparmor", "notsc", "nohlt",
)  # fmt: skip
_SETTINGS = (
    "kernel/sched_rt_runtime_us", "kernel/sched_rt_period_us", "kernel/watchdog", "kernel/nmi_watchdog",
    "kernel/numa_balancing", "kernel/timer_migration", "kernel/hung_task_timeout_secs", "vm/swappiness",
    "vm/stat_interval", "vm/compact_unevictable_allowed",
)  # fmt: skip
_MOST_INTERRUPTS = 40


class Section(NamedTuple):
    """A part of the report: a title, then rows of a table, or the lines of a block of text."""

    title: str
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    lines: tuple[str, ...] = ()


def gather_facts(machine: Machine) -> list[Section]:
    """Return the facts in the order in which the report shows them."""
    found = [
        Section("Kernel", ("fact", "value"), tuple(_kernel(machine))),
        Section("Kernel command line", lines=(safe_arguments(machine.text("/proc/cmdline")) or "not readable",)),
        Section("Kernel configuration, excerpt", lines=tuple(_config(machine))),
        Section("Hardware and firmware", ("fact", "value"), tuple(_hardware(machine))),
        Section("CPUs", ("CPUs", "isolated", "governor", "GHz", "idle states in use"), tuple(_cpus(machine))),
        Section("Interrupts", ("IRQ", "name", "CPUs", "thread"), tuple(_interrupts(machine))),
        Section("Settings", ("setting", "value"), tuple(_settings(machine))),
    ]
    return [section for section in found if section.rows or section.lines]


def _rows(*pairs: tuple[str, str]) -> Iterator[tuple[str, str]]:
    for name, value in pairs:
        yield name, value or "not readable"


def _kernel(machine: Machine) -> Iterator[tuple[str, str]]:
    system = parse.assignments(machine.text("/etc/os-release")).get("PRETTY_NAME", "")
    clock = "/sys/devices/system/clocksource/clocksource0"
    yield from _rows(
        ("release", machine.release),
        ("version", machine.text("/proc/sys/kernel/version")),
        ("distribution", system),
        ("tainted", _taint(machine.number("/proc/sys/kernel/tainted"))),
        ("preemption", preemption(machine)[0]),
        ("clocksource", machine.text(f"{clock}/current_clocksource")),
        ("clocksources", machine.text(f"{clock}/available_clocksource")),
        ("tick device", machine.text("/sys/devices/system/clockevents/clockevent0/current_device")),
        ("tracer", machine.text("/sys/kernel/tracing/current_tracer")),
        ("trace events", machine.text("/sys/kernel/tracing/events/enable")),
    )


def _taint(number: int | None) -> str:
    if number is None:
        return ""
    letters = "".join(letter for bit, letter in enumerate(_TAINTS) if number >> bit & 1)
    return f"{number} ({letters})" if letters else str(number)


def safe_arguments(text: str) -> str:
    """Return the kernel's command line without private parts: values of unknown arguments, and arguments of init."""
    words = []
    for word in re.findall(r'(?:[^\s"]|"[^"]*"?)+', text):
        name, equals, _ = word.partition("=")
        if word == "--":
            break
        if equals and not name.replace("-", "_").startswith(_ARGUMENTS):
            word = f"{name}=..."
        words.append(word)
    return " ".join(words)


def _config(machine: Machine) -> Iterator[str]:
    for option, value in machine.config.items():
        if option.removeprefix("CONFIG_").startswith(_OPTIONS):
            yield f"# {option} is not set" if value == "n" else f"{option}={value}"


def _hardware(machine: Machine) -> Iterator[tuple[str, str]]:
    fields = parse_fields(machine.text("/proc/cpuinfo"))
    memory = parse_fields(machine.text("/proc/meminfo")).get("MemTotal", "")
    board = [machine.text(f"{_DMI}/{name}") for name in ("sys_vendor", "product_name")]
    firmware = [machine.text(f"{_DMI}/{name}") for name in ("bios_vendor", "bios_version", "bios_date")]
    kind = hypervisor(machine)[0]
    nodes = parse.cpu_list(machine.text("/sys/devices/system/node/online"))
    yield from _rows(
        ("processor", fields.get("model name") or fields.get("Model") or machine.machine),
        ("architecture", machine.machine),
        ("microcode", fields.get("microcode", "not told")),
        ("machine", machine.text("/proc/device-tree/model") or " ".join(filter(None, board))),
        ("firmware", " ".join(filter(None, firmware)) or "not told"),
        ("memory", memory),
        ("NUMA nodes", str(len(nodes)) if nodes else "1"),
        ("hypervisor", {"": "none", "?": ""}.get(kind, kind)),
        ("container", machine.place.container or "none"),
    )


def _cpus(machine: Machine) -> Iterator[tuple[str, ...]]:
    def describe(cpu: int) -> tuple[str, ...]:
        folder = f"{_CPU}/cpu{cpu}"
        governor = machine.text(f"{folder}/cpufreq/scaling_governor")
        driver = machine.text(f"{folder}/cpufreq/scaling_driver")
        bounds = [machine.number(f"{folder}/cpufreq/scaling_{name}_freq") for name in ("min", "max")]
        states = []
        for state in machine.numbered(f"{folder}/cpuidle", "state"):
            path = f"{folder}/cpuidle/state{state}"
            if machine.number(f"{path}/disable") == 0:
                states.append(f"{machine.text(f'{path}/name')} {machine.text(f'{path}/latency')} us")
        speed = " to ".join(f"{bound / 1e6:.2f}" for bound in bounds if bound)
        return (
            "yes" if cpu in machine.isolated else "no",
            f"{governor} ({driver})" if driver else governor or "none",
            speed or "-",
            ", ".join(states) or "none",
        )

    for facts, group in groupby(sorted(machine.online, key=lambda cpu: (describe(cpu), cpu)), key=describe):
        yield format_cpu_list(group), *facts


def _interrupts(machine: Machine) -> Iterator[tuple[str, ...]]:
    threads = {}
    for pid in machine.numbered("/proc"):
        task = parse.task(machine.text(f"/proc/{pid}/stat"))
        if task is not None and (match := re.match(r"irq/([0-9]+)-", task.name)):
            threads[int(match[1])] = f"FIFO {task.priority}"
    numbers = machine.numbered("/proc/irq")
    for number in numbers[:_MOST_INTERRUPTS]:
        text = machine.text(f"/proc/irq/{number}/effective_affinity_list")
        name = machine.text(f"/sys/kernel/irq/{number}/actions")
        cpus = text or machine.text(f"/proc/irq/{number}/smp_affinity_list")
        if name or text:
            yield str(number), name or "-", cpus or "not readable", threads.get(number, "-")
    if len(numbers) > _MOST_INTERRUPTS:
        yield "...", f"{len(numbers) - _MOST_INTERRUPTS} more", "", ""


def _settings(machine: Machine) -> Iterator[tuple[str, str]]:
    for name in _SETTINGS:
        if value := machine.text(f"/proc/sys/{name}"):
            yield name.replace("/", "."), " ".join(value.split())
    for cpu in machine.numbered("/sys/kernel/debug/sched/fair_server", "cpu")[:1]:
        folder = f"/sys/kernel/debug/sched/fair_server/cpu{cpu}"
        yield (
            f"fair server of CPU {cpu}",
            f"{machine.text(f'{folder}/runtime')} of {machine.text(f'{folder}/period')} ns",
        )
    for name in ("transparent_hugepage/enabled", "ksm/run"):
        if value := machine.text(f"/sys/kernel/mm/{name}"):
            yield name, value
    if value := machine.text("/sys/devices/virtual/workqueue/cpumask"):
        yield "workqueue cpumask", value
    if value := machine.text("/proc/loadavg"):
        yield "load average", " ".join(value.split()[:3])


_PRIVATE = (
    re.compile(r"\b(?:[0-9a-fA-F]{2}[:-]){5}[0-9a-fA-F]{2}\b"),  # MAC addresses
    re.compile(r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b"),  # UUIDs
    re.compile(r"(?<![\d.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\d.])"),  # IPv4
    re.compile(  # IPv6
        r"(?<![\w:.])(?=[0-9a-fA-F:]*[0-9a-fA-F])"
        r"(?:(?:[0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}|(?:[0-9a-fA-F]{1,4}:){0,6}(?:[0-9a-fA-F]{1,4})?::"
        r"(?:[0-9a-fA-F]{1,4}:){0,6}(?:[0-9a-fA-F]{1,4})?)(?![\w:])"
    ),
    re.compile(r"(?<=\b(?:en|wl|ww)x)[0-9a-f]{12}(?![0-9a-f])"),  # names of network devices that are MAC addresses
)


def remove_private(text: str, machine: Machine) -> str:
    """Remove addresses, and the names of the machine and of its user, from a report."""
    # The release of a kernel may look like an address: 5.15.167.4-microsoft-standard-WSL2.
    parts = re.split(f"({re.escape(machine.release)})", text) if machine.release else [text]
    for pattern in _PRIVATE:
        parts[::2] = [pattern.sub("(removed)", part) for part in parts[::2]]
    text = "".join(parts)
    uid = parse.number((machine.status.get("Uid", "").split() or [""])[0])
    users = {machine.env.get(name, "") for name in ("USER", "LOGNAME", "SUDO_USER")}
    users.add((parse.user_name(machine.text("/etc/passwd"), uid) or "") if uid else "")
    host = machine.text("/proc/sys/kernel/hostname")
    names = dict.fromkeys(users - {"", "root"}, "USER") | ({host: "HOST"} if len(host) > 2 else {})
    for name, instead in names.items():
        text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", instead, text)
    return re.sub(r"/home/[^/\s|`]+", "/home/USER", text)
