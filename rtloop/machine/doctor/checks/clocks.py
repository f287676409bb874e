"""Checks of the clocks: clocksource, cost of a timestamp, timer resolution."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from rtloop.machine.doctor.machine_files import Machine, unread
from rtloop.system.checks import Check
from rtloop.units import format_duration

__all__ = ["ClockCost", "examine", "measure_clock"]

_FOLDER = "/sys/devices/system/clocksource/clocksource0"
_GOOD = ("tsc", "arch_sys_counter", "arch_mem_counter", "kvm-clock", "hyperv_clocksource_tsc_page", "riscv_clocksource",
         "timebase", "stp", "tod")  # fmt: skip
_SLOW = ("hpet", "acpi_pm", "jiffies", "refined-jiffies", "pit", "xen", "hyperv_clocksource_msr")


class ClockCost(NamedTuple):
    """Cost of CLOCK_MONOTONIC, as a loop calls it and as a bare system call, and its resolution, all in ns."""

    call_ns: float
    syscall_ns: float
    resolution_ns: int


def measure_clock() -> ClockCost:
    """Measure on this machine; keeps the calling thread busy for about a millisecond."""
    import time

    from rtloop.machine.doctor.clock_cost import clock_cost

    call, syscall = clock_cost(time.CLOCK_MONOTONIC)
    return ClockCost(call, syscall, round(time.clock_getres(time.CLOCK_MONOTONIC) * 1e9))


def examine(machine: Machine, cost: ClockCost | None) -> Iterator[Check]:
    """Yield the checks of the clocks; `cost` is the measurement, None if there was none."""
    yield _source(machine)
    yield _cost(cost)
    yield _timers(machine, cost)


def _source(machine: Machine) -> Check:
    name, source = "clocksource", f"{_FOLDER}/current_clocksource"
    why = "with a slow clocksource every timestamp is a system call or a device access, which takes 1 µs or more"
    current = machine.text(source)
    others = [word for word in machine.text(f"{_FOLDER}/available_clocksource").split() if word != current]
    if not current:
        return Check("clock", name, unread(machine.read(source)[1]), source, "note", why)
    found = current + (f" (also available: {', '.join(others)})" if others else "")
    if current in _GOOD:
        return Check("clock", name, found, source, "ok", why)
    if current not in _SLOW:
        return Check("clock", name, found + ", whose speed is not known", source, "note", why)
    better = [word for word in _GOOD if word in others]
    fix = (
        f"now:        echo {better[0]} | sudo tee {source}"
        if better
        else "sudo dmesg | grep -i tsc   # why the kernel gave up the TSC: firmware, hypervisor, clocksource="
    )
    return Check("clock", name, found, source, "warn", why, fix)


def _cost(cost: ClockCost | None) -> Check:
    name, source = "clock_gettime", "measured: CLOCK_MONOTONIC, compared with the bare system call"
    why = "a loop reads the clock twice a cycle, and all the time while it spins; without a vDSO each is a system call"
    if cost is None:
        return Check("clock", name, "not measured", source, "note", why)
    found = f"{cost.call_ns:.0f} ns; the bare system call takes {cost.syscall_ns:.0f} ns"
    if cost.call_ns < 0.6 * cost.syscall_ns:
        return Check("clock", name, f"{found}: through the vDSO", source, "ok", why)
    fix = "see the clocksource check; vdso=0 on the kernel's command line, gVisor and some hypervisors also turn it off"
    return Check("clock", name, f"{found}: not through the vDSO", source, "warn", why, fix)


def _timers(machine: Machine, cost: ClockCost | None) -> Check:
    name = "timer resolution"
    why = "without high-resolution timers a sleep ends with a tick, up to 10 ms late"
    source = "clock_getres(2), CONFIG_HIGH_RES_TIMERS"
    built = machine.config.get("CONFIG_HIGH_RES_TIMERS")
    fix = "boot:       without highres=off; a kernel with CONFIG_HIGH_RES_TIMERS=y"
    if cost is not None:
        verdict = "ok" if cost.resolution_ns <= 1000 else "fail"
        found = format_duration(cost.resolution_ns)
        return Check("clock", name, found, source, verdict, why, fix if verdict == "fail" else "")
    if built is None:
        return Check("clock", name, unread(), source, "note", why)
    is_off = built != "y" or machine.arguments.get("highres") == "off"
    found = "high-resolution timers are " + ("off" if is_off else "built in")
    return Check("clock", name, found, source, "fail" if is_off else "ok", why, fix if is_off else "")
