"""Checks of the kernel's configuration, at build time and at run time, by the kernel's list for real time.

The list is Documentation/core-api/real-time/kernel-configuration.rst of the kernel.
"""

from __future__ import annotations

from collections.abc import Iterator

from rtloop.machine.doctor import parse
from rtloop.machine.doctor.checks.kernel import is_preempt_rt, preemption
from rtloop.machine.doctor.machine_files import Machine, unread
from rtloop.system.checks import Check
from rtloop.system.cpu import format_cpu_list, format_cpu_mask
from rtloop.system.fixes import boot_fix, sysctl_fix

__all__ = ["examine"]

_PREEMPT = "/sys/kernel/debug/sched/preempt"
_EFI_WORK = "/sys/devices/virtual/workqueue/efi_runtime/cpumask"
_NO_CONFIG = "no configuration of this kernel"
#: Options that check each access or each allocation, and those that check less often.
_HEAVY = (
    "KASAN", "KCSAN", "KMSAN", "DEBUG_KMEMLEAK", "DEBUG_OBJECTS", "SLUB_DEBUG_ON", "DEBUG_PAGEALLOC_ENABLE_DEFAULT",
    "KCOV", "GCOV_KERNEL",
)  # fmt: skip
_LIGHT = ("DEBUG_PREEMPT", "DEBUG_SPINLOCK", "DEBUG_MUTEXES", "DEBUG_RT_MUTEXES", "DEBUG_VM", "LATENCYTOP")
_LOCKDEP = ("PROVE_LOCKING", "DEBUG_LOCK_ALLOC", "LOCK_STAT")


def examine(machine: Machine) -> Iterator[Check]:
    """Yield the checks of the kernel's configuration."""
    yield _preemption_mode(machine)
    yield _threaded_interrupts(machine)
    yield _idle_tick(machine)
    yield _tracing(machine)
    yield _tracers(machine)
    yield _lock_debugging(machine)
    yield _debug_options(machine)
    yield _lockup_detectors(machine)
    yield _efi_runtime(machine)


def _boot(machine: Machine, arguments: str) -> str:
    return boot_fix(arguments, machine.boots_as, is_raspberry_pi=machine.place.is_raspberry_pi)


def _built(machine: Machine, *options: str) -> list[str]:
    """Return the options that are built in, without their prefix."""
    return [option for option in options if machine.config.get(f"CONFIG_{option}") == "y"]


def _preemption_mode(machine: Machine) -> Check:
    """Judge the mode; without PREEMPT_RT the check of the preemption warns already, so no mode warns again."""
    name = "preemption mode"
    why = "in the modes none and voluntary, real-time threads wait for kernel code; lazy delays ordinary threads only"
    model, source = preemption(machine)
    if model == "PREEMPT_RT":
        mode = parse.bracketed(machine.text(_PREEMPT), "(", ")")
        found = f"PREEMPT_RT, {mode} for ordinary threads" if mode else "PREEMPT_RT: preemptible in every mode"
        return Check("kernel", name, found, source, "ok", why)
    if not model or unread() in model:
        return Check("kernel", name, unread("run this as root") if model else unread(), source, "note", why)
    if any(word in ("full", "lazy") for word in model.replace(",", "").split()):
        return Check("kernel", name, model, source, "ok", why)
    if not model.startswith("PREEMPT_DYNAMIC"):
        fix = "a kernel with CONFIG_PREEMPT_DYNAMIC=y, or PREEMPT_RT"
        return Check("kernel", name, f"{model}, built in", source, "note", why, fix)
    fix = f"now:        echo full | sudo tee {_PREEMPT}\n{_boot(machine, 'preempt=full')}"
    return Check("kernel", name, model, source, "note", why, fix)


def _threaded_interrupts(machine: Machine) -> Check:
    name, source = "threaded interrupts", "/proc/cmdline, /sys/kernel/realtime"
    why = "an interrupt handler in a thread has a priority, so a loop of a higher priority does not wait for it"
    if not machine.release:
        return Check("kernel", name, unread(), source, "note", why)
    if is_preempt_rt(machine):
        return Check("kernel", name, "forced by PREEMPT_RT", source, "ok", why)
    if machine.config.get("CONFIG_IRQ_FORCED_THREADING") == "n":
        return Check("kernel", name, "not supported by this kernel", machine.config_source, "note", why)
    if "threadirqs" in machine.arguments:
        return Check("kernel", name, "forced by threadirqs", source, "ok", why)
    found = "not forced: only drivers that ask for them have threads"
    return Check("kernel", name, found, source, "note", why, _boot(machine, "threadirqs"))


def _idle_tick(machine: Machine) -> Check:
    name, source = "idle tick", "/proc/cmdline"
    why = "a CPU that stops its tick while idle has to restart it when a loop wakes up; a steady tick avoids this"
    if machine.arguments.get("nohz") in ("off", "0"):
        return Check("kernel", name, "steady: nohz=off", source, "ok", why)
    source = machine.config_source
    if _built(machine, "HZ_PERIODIC"):
        return Check("kernel", name, "steady: this kernel was built with CONFIG_HZ_PERIODIC", source, "ok", why)
    if not machine.config:
        return Check("kernel", name, unread(_NO_CONFIG), source, "note", why)
    if not _built(machine, "NO_HZ_IDLE", "NO_HZ_FULL", "NO_HZ_COMMON"):
        return Check("kernel", name, unread("the configuration has no NO_HZ option"), source, "note", why)
    return Check("kernel", name, "stops on an idle CPU", source, "note", why, _boot(machine, "nohz=off"))


def _tracing(machine: Machine) -> Check:
    name, why = (
        "tracing",
        "a tracer or an event that is on costs time each time it records; one that is only built in costs none",
    )
    folder = next((x for x in ("/sys/kernel/tracing", "/sys/kernel/debug/tracing") if machine.names(x)), "")
    source = f"{folder or '/sys/kernel/tracing'}/current_tracer, events/enable, rv/enabled_monitors"
    if not folder:
        if machine.config.get("CONFIG_TRACING") == "n":
            text = "not built in: a spike cannot be traced"
            return Check("kernel", name, text, machine.config_source, "note", why)
        return Check("kernel", name, unread("tracefs is not mounted, or not readable"), source, "note", why)
    tracer, reason = machine.read(f"{folder}/current_tracer")
    events, event_reason = machine.read(f"{folder}/events/enable")
    active = [] if tracer is None or tracer.strip() in ("", "nop") else [f"the tracer {tracer.strip()}"]
    active += ["events"] if (events or "").strip() in ("1", "X") else []
    active += [f"the monitor {monitor}" for monitor in machine.text(f"{folder}/rv/enabled_monitors").split()]
    if active:
        files = [f"{folder}/events/enable"] if "events" in active else []
        lines = [f"echo nop | sudo tee {folder}/current_tracer"] if "tracer" in active[0] else []
        lines += [f"echo 0 | sudo tee {file}" for file in files]
        lines += [f"echo | sudo tee {folder}/rv/enabled_monitors"] if "monitor" in active[-1] else []
        fix = "now:        " + "\n            ".join(lines)
        return Check("kernel", name, f"on: {', '.join(active)}", source, "warn", why, fix)
    if tracer is None or events is None:
        return Check("kernel", name, unread(reason or event_reason), source, "note", why)
    return Check("kernel", name, "built in, and off", source, "ok", why)


def _tracers(machine: Machine) -> Check:
    name, why = "latency tracers", "IRQSOFF_TRACER and PREEMPT_TRACER cost latency even while nothing is traced"
    if not machine.config:
        return Check("kernel", name, unread(_NO_CONFIG), machine.config_source, "note", why)
    built = [f"CONFIG_{option}" for option in _built(machine, "IRQSOFF_TRACER", "PREEMPT_TRACER")]
    if not built:
        return Check("kernel", name, "not built in", machine.config_source, "ok", why)
    fix = f"a kernel without {' and '.join(built)}"
    return Check("kernel", name, f"built in: {', '.join(built)}", machine.config_source, "warn", why, fix)


def _lock_debugging(machine: Machine) -> Check:
    name, why = "lock debugging", "checking each lock of the kernel takes time; such a kernel is for tests"
    if not machine.config:
        return Check("kernel", name, unread(_NO_CONFIG), machine.config_source, "note", why)
    built = [f"CONFIG_{option}" for option in _built(machine, *_LOCKDEP)]
    if not built:
        return Check("kernel", name, "not built in", machine.config_source, "ok", why)
    fix = f"a kernel without {' and '.join(built)}"
    return Check("kernel", name, f"built in: {', '.join(built)}", machine.config_source, "warn", why, fix)


def _debug_options(machine: Machine) -> Check:
    name, why = "debug options", "most debug options of the kernel cost time, and increase its worst latency"
    source = machine.config_source
    if not machine.config:
        return Check("kernel", name, unread(_NO_CONFIG), source, "note", why)
    heavy, light = _built(machine, *_HEAVY), _built(machine, *_LIGHT)
    if _built(machine, "DEBUG_KMEMLEAK_DEFAULT_OFF") and machine.arguments.get("kmemleak") != "on":
        heavy = [option for option in heavy if option != "DEBUG_KMEMLEAK"]
    if not heavy and not light:
        return Check("kernel", name, "none that costs latency", source, "ok", why)
    found = f"built in: {', '.join(f'CONFIG_{option}' for option in heavy + light)}"
    fix = f"a kernel without {', '.join(f'CONFIG_{option}' for option in heavy or light)}"
    return Check("kernel", name, found, source, "warn" if heavy else "note", why, fix)


def _lockup_detectors(machine: Machine) -> Check:
    name, path = "lockup detectors", "/proc/sys/kernel/watchdog"
    why = "their timers run in hard interrupts every few seconds, even on PREEMPT_RT; a hardware watchdog does not"
    value, reason = machine.read(path)
    if value is None:
        if machine.config.get("CONFIG_LOCKUP_DETECTOR") == "n":
            return Check("kernel", name, "not built in", machine.config_source, "ok", why)
        return Check("kernel", name, unread(reason), path, "note", why)
    if value.strip() == "0":
        return Check("kernel", name, "off", path, "ok", why)
    cpus = parse.cpu_list(machine.text("/proc/sys/kernel/watchdog_cpumask"))
    if cpus and machine.isolated and not {*cpus} & {*machine.isolated}:
        return Check("kernel", name, f"on CPUs {format_cpu_list(cpus)}, none of them isolated", path, "ok", why)
    verdict = "warn" if is_preempt_rt(machine) else "note"
    found = f"on CPUs {format_cpu_list(cpus)}" if cpus else "on"
    return Check("kernel", name, found, path, verdict, why, sysctl_fix("kernel.watchdog", 0))


def _efi_runtime(machine: Machine) -> Check:
    name, source = "EFI runtime services", "/sys/firmware/efi, /proc/cmdline"
    why = "while the kernel calls the firmware, its CPU may answer no interrupt"
    if not machine.exists("/sys/firmware/efi"):
        if machine.place.container or not machine.release:
            return Check("kernel", name, unread("/sys/firmware/efi"), source, "note", why)
        return Check("kernel", name, "none: this machine did not boot by EFI", source, "ok", why)
    words = machine.arguments.get("efi", "").split(",")
    is_off = machine.config.get("CONFIG_EFI_DISABLE_RUNTIME") == "y" and "runtime" not in words
    if "noruntime" in words or is_off:
        return Check("kernel", name, "off", source, "ok", why)
    fix = f"{_boot(machine, 'efi=noruntime')}   # efivars are then not available"
    work, rest = parse.cpu_mask(machine.text(_EFI_WORK)), set(machine.online) - set(machine.isolated)
    if work and machine.isolated and rest:
        if not set(work) & set(machine.isolated):
            found = f"on, confined to CPUs {format_cpu_list(set(work) & set(machine.online))}"
            return Check("kernel", name, found, f"{source}, {_EFI_WORK}", "ok", why)
        fix = f"now:        echo {format_cpu_mask(rest)} | sudo tee {_EFI_WORK}\n{fix}"
    return Check("kernel", name, "on", source, "note", why, fix)
