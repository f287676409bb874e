"""Checks of power saving that costs latency: frequency scaling and idle states."""

from __future__ import annotations

from collections.abc import Iterator

from rtloop.machine.doctor.machine_files import Machine, unread
from rtloop.system.checks import Check
from rtloop.system.cpu import format_cpu_list
from rtloop.system.fixes import boot_fix, governor_fix

__all__ = ["examine"]

_CPU = "/sys/devices/system/cpu"
_NO_BOUND_US = 2_000_000_000
_DEEP_US = 10


def examine(machine: Machine) -> Iterator[Check]:
    """Yield the checks of frequencies and idle states."""
    yield _governor(machine)
    yield _idle_states(machine)
    yield _dma_latency(machine)


def _governor(machine: Machine) -> Check:
    name, source = "frequency governor", f"{_CPU}/cpu*/cpufreq"
    why = "a CPU that lowers its frequency between cycles starts the next one slowly; a change takes tens of µs"
    governors: dict[str, list[int]] = {}
    lowest, highest = [], []
    for cpu in machine.online:
        folder = f"{_CPU}/cpu{cpu}/cpufreq"
        if governor := machine.text(f"{folder}/scaling_governor"):
            governors.setdefault(governor, []).append(cpu)
        low, high = machine.number(f"{folder}/scaling_min_freq"), machine.number(f"{folder}/scaling_max_freq")
        if low and high:
            lowest.append(low)
            highest.append(high)
    if not governors:
        text = "no frequency scaling is visible: the host or the firmware decides" if machine.online else unread()
        return Check("power", name, text, source, "note", why)
    one = len(governors) == 1
    found = ", ".join(text if one else f"{text} on {format_cpu_list(cpus)}" for text, cpus in governors.items())
    if lowest:
        found += f", {min(lowest) / 1e6:.2f} to {max(highest) / 1e6:.2f} GHz"
    # These two keep the frequency steady; equal bounds do so under any governor.
    is_steady = set(governors) <= {"performance"} or (bool(lowest) and min(lowest) == max(highest))
    if is_steady:
        return Check("power", name, found, source, "ok", why)
    return Check("power", name, found, source, "warn", why, governor_fix(is_raspberry_pi=machine.place.is_raspberry_pi))


def _idle_states(machine: Machine) -> Check:
    name, source = "idle states", f"{_CPU}/cpu*/cpuidle/state*"
    why = "waking up from a deep idle state takes its exit latency; a loop prevents that through /dev/cpu_dma_latency"
    deepest: tuple[int, str] = (-1, "")
    for cpu in machine.online:
        folder = f"{_CPU}/cpu{cpu}/cpuidle"
        for state in machine.numbered(folder, "state"):
            latency = machine.number(f"{folder}/state{state}/latency")
            if latency is not None and machine.number(f"{folder}/state{state}/disable") == 0:
                deepest = max(deepest, (latency, machine.text(f"{folder}/state{state}/name")))
    driver = machine.text(f"{_CPU}/cpuidle/current_driver") or "no driver"
    if deepest[0] < 0:
        text = f"none visible ({driver}): the host or the firmware decides" if machine.online else unread()
        return Check("power", name, text, source, "note", why)
    found = f"the deepest in use is {deepest[1]}, exit latency {deepest[0]} us ({driver})"
    if deepest[0] <= _DEEP_US:
        return Check("power", name, found, source, "ok", why)
    place = machine.place
    is_intel = driver == "intel_idle"
    arguments = "intel_idle.max_cstate=1 processor.max_cstate=1" if is_intel else "cpuidle.off=1"
    fix = "loop:       dma_latency=0, which is the default, while it runs\n" + boot_fix(
        arguments, machine.boots_as, is_raspberry_pi=place.is_raspberry_pi
    )
    return Check("power", name, found, source, "note", why, fix)


def _dma_latency(machine: Machine) -> Check:
    name, source = "idle latency bound", "/dev/cpu_dma_latency"
    why = "the strictest request of all programs now: the CPUs use no idle state with a longer exit latency"
    data, reason = machine.read_bytes(source, 4)
    if data is None or len(data) != 4:
        return Check("power", name, unread(reason), source, "note", why)
    bound = int.from_bytes(data, "little", signed=True)
    return Check("power", name, "none now" if bound >= _NO_BOUND_US else f"{bound} us now", source, "ok", why)
