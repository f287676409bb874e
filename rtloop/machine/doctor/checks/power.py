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
    yield _other_governors(machine)
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
        if machine.config.get("CONFIG_CPU_FREQ") == "n":
            text = "none: this kernel was built without CONFIG_CPU_FREQ; the boot loader sets the frequency"
            return Check("power", name, text, machine.config_source, "note", why, "a kernel with CONFIG_CPU_FREQ=y")
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


def _other_governors(machine: Machine) -> Check:
    name, source = "available governors", f"{_CPU}/cpu*/cpufreq/scaling_available_governors"
    why = (
        "a program may choose another governor while a loop runs; ondemand, conservative and schedutil follow the load"
    )
    texts = {cpu: machine.text(f"{_CPU}/cpu{cpu}/cpufreq/scaling_available_governors") for cpu in machine.online}
    names = {word for text in texts.values() for word in text.split()}
    if not names:
        text = "none visible: the host or the firmware decides" if machine.online else unread()
        return Check("power", name, text, source, "note", why)
    found = ", ".join(sorted(names))
    varying = sorted(names - {"performance", "powersave", "userspace"})
    if not varying:
        return Check("power", name, found, source, "ok", why)
    fix = f"a kernel without {', '.join(varying)}, or no program that sets them, such as power-profiles-daemon"
    return Check("power", name, found, source, "note", why, fix)


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
    if machine.arguments.get("idle") == "poll" and deepest[0] <= 0:
        text = "none: idle=poll, so idle CPUs spin, which takes time from the other thread of the core or from the host"
        return Check("power", name, text, "/proc/cmdline", "note", why)
    if deepest[0] < 0:
        text = f"none visible ({driver}): the host or the firmware decides" if machine.online else unread()
        return Check("power", name, text, source, "note", why)
    found = f"the deepest in use is {deepest[1]}, exit latency {deepest[0]} us ({driver})"
    if deepest[0] <= _DEEP_US:
        return Check("power", name, found, source, "ok", why)
    place = machine.place
    is_intel = driver == "intel_idle"
    # C1 stays, because the hardware may be damaged without any idle state (kernel-configuration.rst).
    arguments = "intel_idle.max_cstate=1 processor.max_cstate=1" if is_intel else "processor.max_cstate=1"
    fix = "loop:       dma_latency=0, which is the default, while it runs\n"
    if place.machine in ("x86_64", "i686"):
        fix += boot_fix(arguments, machine.boots_as, is_raspberry_pi=place.is_raspberry_pi)
    else:
        fix += f"now:        echo 1 | sudo tee {_CPU}/cpu*/cpuidle/state[1-9]/disable"
    return Check("power", name, found, source, "note", why, fix)


def _dma_latency(machine: Machine) -> Check:
    name, source = "idle latency bound", "/dev/cpu_dma_latency"
    why = "the strictest request of all programs now: the CPUs use no idle state with a longer exit latency"
    data, reason = machine.read_bytes(source, 4)
    if data is None or len(data) != 4:
        return Check("power", name, unread(reason), source, "note", why)
    bound = int.from_bytes(data, "little", signed=True)
    return Check("power", name, "none now" if bound >= _NO_BOUND_US else f"{bound} us now", source, "ok", why)
