"""Checks of CPU isolation at run time: partitions, unbound kernel work, affinity of new interrupts, shared caches.

See Documentation/admin-guide/cpu-isolation.rst and cgroup-v2.rst of the kernel.
"""

from __future__ import annotations

from collections.abc import Iterator

from rtloop.machine.doctor import parse
from rtloop.machine.doctor.machine_files import Machine, unread
from rtloop.system import cpuset
from rtloop.system.checks import Check
from rtloop.system.cpu import format_cpu_list, format_cpu_mask
from rtloop.system.fixes import boot_fix

__all__ = ["examine"]

_GROUPS = "/sys/fs/cgroup"
_WORK = "/sys/devices/virtual/workqueue/cpumask"
_AFFINITY = "/proc/irq/default_smp_affinity"
_CPU = "/sys/devices/system/cpu"


def examine(machine: Machine) -> Iterator[Check]:
    """Yield the checks of the isolation."""
    yield _partitions(machine)
    yield _unbound_work(machine)
    yield _later_interrupts(machine)
    yield _caches(machine)


def _partitions(machine: Machine) -> Check:
    name, source = "cpuset partitions", "cpuset.cpus.partition below /sys/fs/cgroup"
    why = "an isolated partition keeps other threads off its CPUs without a reboot; an invalid one has no effect"
    if not machine.names(_GROUPS):
        return Check("cpus", name, unread(machine.read(f"{_GROUPS}/cgroup.procs")[1]), source, "note", why)
    found = cpuset.list_partitions(machine.root + _GROUPS)
    if found is None:
        return Check("cpus", name, "none: no control groups of version 2 with cpusets here", source, "ok", why)
    texts = []
    for partition in found:
        cpus = f" ({format_cpu_list(partition.cpus)})" if partition.cpus else ""
        texts.append(f"{partition.path}: {partition.state}{cpus}")
    invalid = [partition for partition in found if "invalid" in partition.state]
    if invalid:
        path = f"{_GROUPS}{invalid[0].path}"
        fix = (
            f"now:        cat {path}/cpuset.cpus.partition   # the reason in parentheses\n"
            f"            echo member | sudo tee {path}/cpuset.cpus.partition   # or correct cpuset.cpus, then isolated"
        )
        return Check("cpus", name, "; ".join(texts), source, "warn", why, fix)
    return Check("cpus", name, "; ".join(texts) or "none", source, "ok", why)


def _mask_check(machine: Machine, name: str, path: str, why: str, verdict: str, boot: str) -> Check:
    """Check a mask that should contain no isolated CPUs; `boot` is the name of the boot argument that sets it."""
    cpus = parse.cpu_mask(machine.text(path))
    if cpus is None:
        return Check("cpus", name, unread(machine.read(path)[1] or "not understood"), path, "note", why)
    there = sorted(set(cpus) & set(machine.online)) if machine.online else list(cpus)
    found = f"on CPUs {format_cpu_list(there)}" if there else "on none of the CPUs here"
    hit, rest = set(there) & set(machine.isolated), set(machine.online) - set(machine.isolated)
    if not hit or not rest:
        return Check("cpus", name, found, path, "ok", why)
    found += f", of which {format_cpu_list(hit)} {'is' if len(hit) == 1 else 'are'} isolated"
    fix = f"now:        echo {format_cpu_mask(rest)} | sudo tee {path}"
    if boot:
        place = machine.place
        arguments = f"{boot}={format_cpu_list(rest)}"
        fix += "\n" + boot_fix(arguments, machine.boots_as, is_raspberry_pi=place.is_raspberry_pi)
    return Check("cpus", name, found, path, verdict, why, fix)


def _unbound_work(machine: Machine) -> Check:
    why = "the kernel's work that is not bound to a CPU runs on these CPUs"
    return _mask_check(machine, "unbound kernel work", _WORK, why, "warn", "")


def _later_interrupts(machine: Machine) -> Check:
    why = "an interrupt that a driver requests in the future may arrive on these CPUs"
    return _mask_check(machine, "new interrupts", _AFFINITY, why, "note", "irqaffinity")


def _caches(machine: Machine) -> Check:
    name, source = "shared caches", f"{_CPU}/cpu*/cache/index*/shared_cpu_list"
    why = "a program on another CPU may evict a loop's data from a shared cache; a step then takes longer"
    last: dict[int, tuple[int, tuple[int, ...]]] = {}
    for cpu in machine.online:
        folder = f"{_CPU}/cpu{cpu}/cache"
        for index in machine.numbered(folder, "index"):
            level = machine.number(f"{folder}/index{index}/level")
            cpus = parse.cpu_list(machine.text(f"{folder}/index{index}/shared_cpu_list"))
            if level and cpus:
                last[cpu] = max(last.get(cpu, (0, ())), (level, cpus))
    if not last:
        return Check("cpus", name, unread("no cache is described"), source, "note", why)
    groups = sorted({cpus for _, cpus in last.values()})
    level = max(level for level, _ in last.values())
    found = f"L{level} of " + ", ".join(f"CPUs {format_cpu_list(cpus)}" for cpus in groups)
    flags = machine.cpu_flags & {"cat_l3", "cat_l2", "mba"}
    if flags:
        found += f"; can be divided ({', '.join(sorted(flags))})"
    isolated = set(machine.isolated)
    beside = {cpu for own in isolated for cpu in last.get(own, (0, ()))[1]} & set(machine.online) - isolated
    if not beside:
        return Check("cpus", name, found, source, "ok", why)
    found += f"; {format_cpu_list(beside)} share it with isolated CPUs"
    fix = (
        "now:        sudo mount -t resctrl resctrl /sys/fs/resctrl   # then give the loop a part of the cache"
        if flags
        else ""
    )
    return Check("cpus", name, found, source, "note", why, fix)
