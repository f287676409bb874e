"""Checks of devices and firmware: graphics, network cards, PCI Express, the secure world, firmware interruptions.

See Documentation/core-api/real-time/hardware.rst of the kernel.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from rtloop.machine.doctor import parse
from rtloop.machine.doctor.checks.platform import hypervisor
from rtloop.machine.doctor.machine_files import Machine, unread
from rtloop.machine.doctor.samples import Sample
from rtloop.system.checks import Check

__all__ = ["examine"]

_NET = "/sys/class/net"
_DRM = "/sys/class/drm"
_ASPM = "/sys/module/pcie_aspm/parameters/policy"
#: Drivers of graphics units that share the memory, and often the last cache, with the CPUs.
_INTEGRATED = {
    "i915", "xe", "amdgpu", "radeon", "nouveau", "msm", "msm_dpu", "panfrost", "panthor", "lima", "v3d", "vc4-drm",
    "etnaviv", "powervr", "tegra-host1x", "zynqmp-dpsub", "imx-drm", "rockchip-drm",
}  # fmt: skip


def examine(machine: Machine, before: Sample | None, after: Sample | None) -> Iterator[Check]:
    """Yield the checks of devices and firmware."""
    yield _firmware(machine, before, after)
    yield _secure_world(machine)
    yield _graphics(machine)
    yield _pci(machine)
    yield _napi(machine)


def _firmware(machine: Machine, before: Sample | None, after: Sample | None) -> Check:
    name, source = "firmware interruptions", "MSR_SMI_COUNT of CPU 0, through /dev/cpu/0/msr"
    why = "in a system management interrupt, the firmware stops the kernel on all CPUs, at any priority"
    fix = "sudo rtla hwnoise -d 60s   # measures them; or the tracer hwlat of the kernel"
    kind, _ = hypervisor(machine)
    if kind not in ("", "?"):
        return Check("machine", name, "not visible in a virtual machine", "/proc/cpuinfo", "note", why)
    if before is not None and after is not None and before.smi is not None and after.smi is not None:
        count = (after.smi - before.smi) & 0xFFFFFFFF
        seconds = after.seconds - before.seconds
        found = f"{count or 'none'} in {seconds:.1f} s, {after.smi} since boot"
        if count:
            text = f"the firmware's settings: legacy USB, power and thermal management, error polling\n{fix}"
            return Check("machine", name, found, source, "warn", why, text)
        return Check("machine", name, found, source, "ok", why)
    if machine.cpu_vendor == "GenuineIntel":
        reason = machine.read_bytes("/dev/cpu/0/msr", 0)[1] or "no counter"
        fix = f"sudo modprobe msr && sudo $(which rtloop) doctor\n{fix}"
        return Check("machine", name, unread(reason), source, "note", why, fix)
    return Check("machine", name, unread("this processor does not count them"), source, "note", why, fix)


def _secure_world(machine: Machine) -> Check:
    name, source = "secure world (OP-TEE)", "/proc/device-tree/firmware"
    why = "a call to the secure world, or an interrupt for it, holds up Linux on that CPU; Linux cannot mask it"
    if not machine.release:
        return Check("machine", name, unread(), source, "note", why)
    if not machine.machine.startswith(("aarch64", "arm")):
        return Check("machine", name, "none: not an Arm machine", "uname(2)", "ok", why)
    tree = machine.names("/proc/device-tree")
    if not tree:
        return Check("machine", name, unread("no device tree"), source, "note", why)
    if "optee" in machine.names("/proc/device-tree/firmware"):
        return Check("machine", name, "OP-TEE runs next to Linux", source, "note", why)
    return Check("machine", name, "none is described", source, "ok", why)


def _graphics(machine: Machine) -> Check:
    name, source = "graphics", f"{_DRM}/card*/device/driver"
    why = "an integrated graphics unit shares caches and memory bandwidth with the CPUs"
    if not machine.names("/sys/class"):
        return Check("machine", name, unread(), source, "note", why)
    cards = {}
    for card in machine.names(_DRM):
        if re.fullmatch(r"card[0-9]+", card):
            cards[card] = machine.link(f"{_DRM}/{card}/device/driver").rpartition("/")[2] or "driver not known"
    found = ", ".join(f"{card} ({driver})" for card, driver in cards.items()) or "none"
    shared = [driver for driver in cards.values() if driver in _INTEGRATED or driver == "driver not known"]
    if not shared:
        return Check("machine", name, found, source, "ok", why)
    fix = "run rtloop latency together with a graphics load, such as glmark2; or run without a desktop"
    return Check("machine", name, found, source, "note", why, fix)


def _pci(machine: Machine) -> Check:
    name, why = "PCIe power management", "a link that sleeps (ASPM) delays the next access to its device"
    if machine.arguments.get("pcie_aspm") == "off":
        return Check("power", name, "off by the kernel's command line", "/proc/cmdline", "ok", why)
    text, reason = machine.read(_ASPM)
    policy = parse.bracketed(text or "")
    if policy is None:
        if machine.names("/sys/bus") and "pci" not in machine.names("/sys/bus"):
            return Check("power", name, "none: no PCI bus", "/sys/bus", "ok", why)
        return Check("power", name, unread(reason), _ASPM, "note", why)
    if policy == "performance":
        return Check("power", name, policy, _ASPM, "ok", why)
    fix = (
        f"now:        echo performance | sudo tee {_ASPM}\n"
        "boot:       pcie_aspm.policy=performance on the kernel's command line"
    )
    if policy == "default":
        return Check("power", name, "default: the firmware's setting", _ASPM, "note", why, fix)
    return Check("power", name, policy, _ASPM, "warn", why, fix)


def _napi(machine: Machine) -> Check:
    name, source = "threaded NAPI", f"{_NET}/*/threaded"
    why = "a thread with its own priority handles the card's frames, instead of a softirq in any thread"
    cards = [card for card in machine.names(_NET) if machine.exists(f"{_NET}/{card}/device")]
    if not machine.names(_NET):
        return Check("cpus", name, unread("no network device is visible"), source, "note", why)
    if not cards:
        return Check("cpus", name, "none: no network device is a card", source, "ok", why)
    states = {card: machine.number(f"{_NET}/{card}/threaded") for card in cards}
    hidden = [card for card, state in states.items() if state is None]
    without = [card for card, state in states.items() if state == 0]
    texts = [f"{card}: {unread() if state is None else 'on' if state else 'off'}" for card, state in states.items()]
    if not hidden and not without:
        return Check("cpus", name, ", ".join(texts), source, "ok", why)
    fix = ""
    if without:
        fix = (
            f"loop:       sudo $(which rtloop) isolate --cpus ... --device {without[0]} -- ...   # if the loop has it\n"
            f"now:        echo 1 | sudo tee {_NET}/{without[0]}/threaded"
        )
    return Check("cpus", name, ", ".join(texts), source, "note", why, fix)
