"""Checks of the CPUs: isolation, interrupts, threads per core, NUMA."""

from __future__ import annotations

from collections.abc import Iterator

from rtloop.machine.doctor import parse
from rtloop.machine.doctor.machine_files import Machine, unread
from rtloop.system import cpuset
from rtloop.system.checks import Check
from rtloop.system.cpu import format_cpu_list
from rtloop.system.fixes import boot_fix, interrupt_fix, isolation_fix

__all__ = ["examine"]

_CPU = "/sys/devices/system/cpu"


def examine(machine: Machine) -> Iterator[Check]:
    """Yield the checks of the CPUs."""
    yield _isolated(machine)
    yield _nohz_full(machine)
    yield _rcu(machine)
    yield _interrupts(machine)
    yield _irqbalance(machine)
    yield _smt(machine)
    yield _numa(machine)


def _isolate(machine: Machine, cpus: str) -> str:
    has_rcu = machine.config.get("CONFIG_RCU_NOCB_CPU") != "n"
    return isolation_fix(cpus, machine.boots_as, is_raspberry_pi=machine.place.is_raspberry_pi, has_rcu_nocbs=has_rcu)


def _isolated(machine: Machine) -> Check:
    name, source = "isolated CPUs", f"{_CPU}/isolated, /proc/cmdline"
    why = "no ordinary thread runs on an isolated CPU unless it is pinned to it; cpu='auto' uses isolated CPUs"
    if machine.read(f"{_CPU}/isolated")[0] is None or not machine.online:
        return Check("cpus", name, unread(machine.read(f"{_CPU}/isolated")[1]), source, "note", why)
    own = cpuset.own_cpuset(f"{machine.root}/proc/self/cgroup", f"{machine.root}/sys/fs/cgroup")
    if own is not None and own.partition:
        found = f"{format_cpu_list(own.cpus)} of {format_cpu_list(machine.online)}, by the partition {own.partition}"
        return Check("cpus", name, found, f"{source}, cpuset.cpus.partition", "ok", why)
    if machine.isolated:
        found = f"{format_cpu_list(machine.isolated)} of {format_cpu_list(machine.online)}"
        if "isolcpus" in machine.arguments:
            flags, _ = parse.isolation(machine.arguments["isolcpus"])
            found += f" ({', '.join(sorted(flags))})"
        return Check("cpus", name, found, source, "ok", why)
    found = f"none of {format_cpu_list(machine.online)}"
    if len(machine.online) < 2:
        return Check("cpus", name, found + ": there is only one", source, "note", why)
    last = str(machine.online[-1])
    now = f"now:        sudo $(which rtloop) isolate --cpus {last} -- $(which python) main.py   # undone at its end\n"
    return Check("cpus", name, found, source, "note", why, now + _isolate(machine, last))


def _covers(machine: Machine, name: str, why: str, source: str, cpus: tuple[int, ...], option: str) -> Check:
    """Check that a set of CPUs contains all isolated ones; `option` is the kernel option that it needs."""
    if machine.config.get(option) == "n":
        text = f"none: this kernel was built without {option}"
        return Check("cpus", name, text, machine.config_source, "note", why)
    text = format_cpu_list(cpus) or "none"
    missing = set(machine.isolated) - set(cpus)
    if not machine.isolated:
        return Check("cpus", name, text, source, "ok" if cpus else "note", why)
    if missing:
        text += f"; the isolated {format_cpu_list(missing)} {'is' if len(missing) == 1 else 'are'} not in it"
        return Check("cpus", name, text, source, "note", why, _isolate(machine, format_cpu_list(machine.isolated)))
    return Check("cpus", name, text, source, "ok", why)


def _nohz(machine: Machine) -> tuple[int, ...]:
    text = machine.text(f"{_CPU}/nohz_full")
    return parse.cpu_list(text) or () if text and text != "(null)" else ()


def _nohz_full(machine: Machine) -> Check:
    name, source = "nohz_full", f"{_CPU}/nohz_full"
    why = (
        "if the tick stops, each entry into the kernel costs more: a loop that sleeps in every period is better with "
        "the tick; one that computes for long without system calls may gain"
    )
    if machine.config.get("CONFIG_NO_HZ_FULL") == "n":
        return Check("cpus", name, "none: this kernel was built without CONFIG_NO_HZ_FULL", machine.config_source, "ok",
                     why)  # fmt: skip
    text, reason = machine.read(source)
    if text is None and (machine.exists(source) or not machine.online):
        return Check("cpus", name, unread(reason), source, "note", why)
    if not (cpus := _nohz(machine)):
        return Check("cpus", name, "none: every CPU has its tick", source, "ok", why)
    found = format_cpu_list(cpus)
    fix = f"boot:       remove nohz_full={found} from the kernel's command line, unless the steps compute for long"
    return Check("cpus", name, found, source, "note", why, fix)


def _rcu(machine: Machine) -> Check:
    why = "RCU callbacks, which are deferred work of the kernel, are moved off these CPUs"
    text, source = machine.arguments.get("rcu_nocbs", ""), "/proc/cmdline"
    if not text and machine.config.get("CONFIG_RCU_NOCB_CPU_DEFAULT_ALL") == "y":
        text, source = "all", machine.config_source
    possible = parse.cpu_list(machine.text(f"{_CPU}/possible")) or machine.online or (0,)
    offloaded = parse.boot_cpu_list(text, possible[-1])
    if offloaded is None:
        return Check("cpus", "rcu_nocbs", unread(f"not understood: {text}"), source, "note", why)
    there = {cpu for cpu in offloaded if not machine.online or cpu in machine.online}
    both = tuple(sorted(there | {*_nohz(machine)}))  # nohz_full implies it
    return _covers(machine, "rcu_nocbs", why, source, both, "CONFIG_RCU_NOCB_CPU")


def _interrupts(machine: Machine) -> Check:
    name, why = "interrupts", "each interrupt on a loop's CPU delays the loop while the handler runs"
    source = "/proc/irq/*/effective_affinity_list, smp_affinity_list"
    numbers = machine.numbered("/proc/irq")
    affinity = {}
    for number in numbers:
        text = machine.read(f"/proc/irq/{number}/effective_affinity_list")[0]
        if text is None:  # an empty one belongs to an unused interrupt
            text = machine.text(f"/proc/irq/{number}/smp_affinity_list")
        cpus = parse.cpu_list(text)
        if cpus:
            affinity[number] = cpus
    if not affinity:
        return Check("cpus", name, unread("none in /proc/irq"), source, "note", why)
    isolated = set(machine.isolated)
    if not isolated:
        return Check("cpus", name, f"{len(affinity)}; no CPU is isolated from them", source, "note", why)
    there = [number for number, cpus in affinity.items() if isolated & set(cpus)]
    if not there:
        return Check("cpus", name, f"{len(affinity)}, none on {format_cpu_list(isolated)}", source, "ok", why)
    shown = ", ".join(f"{number}{_action(machine, number)}" for number in there[:4])
    more = f" and {len(there) - 4} more" if len(there) > 4 else ""
    found = f"{len(there)} of {len(affinity)} may arrive on isolated CPUs {format_cpu_list(isolated)}: {shown}{more}"
    rest = format_cpu_list(set(machine.online) - isolated)
    return Check("cpus", name, found, source, "warn", why, interrupt_fix(there, rest) if rest else "")


def _action(machine: Machine, number: int) -> str:
    name = machine.text(f"/sys/kernel/irq/{number}/actions")
    return f" ({name})" if name else ""


def _irqbalance(machine: Machine) -> Check:
    name, source = "irqbalance", "/proc/*/comm"
    why = "it moves interrupts between CPUs while a loop runs; it leaves isolated and nohz_full CPUs alone"
    pids = machine.numbered("/proc")
    if not pids:
        return Check("cpus", name, unread(), source, "note", why)
    if not any(machine.text(f"/proc/{pid}/comm") == "irqbalance" for pid in pids):
        return Check("cpus", name, "not running, as far as is visible", source, "ok", why)
    banned = machine.text("/etc/default/irqbalance")
    if "IRQBALANCE_BANNED_CPU" in "\n".join(x for x in banned.splitlines() if not x.lstrip().startswith("#")):
        return Check("cpus", name, "runs, with CPUs banned in /etc/default/irqbalance", source, "ok", why)
    if machine.isolated:
        return Check("cpus", name, "runs", source, "ok", why)
    return Check("cpus", name, "runs", source, "note", why, "now:        sudo systemctl disable --now irqbalance")


def _smt(machine: Machine) -> Check:
    name, source = "threads per core", f"{_CPU}/smt/active, cpu*/topology/thread_siblings_list"
    why = "two threads of one core share its units and caches: a busy neighbour slows a loop down"
    siblings = {}
    for cpu in machine.online:
        cpus = parse.cpu_list(machine.text(f"{_CPU}/cpu{cpu}/topology/thread_siblings_list"))
        if cpus:
            siblings[cpu] = cpus
    if not siblings:
        return Check("cpus", name, unread(), source, "note", why)
    most = max(len(cpus) for cpus in siblings.values())
    if most == 1:
        return Check("cpus", name, "1", source, "ok", why)
    place = machine.place
    fix = "now:        echo off | sudo tee /sys/devices/system/cpu/smt/control\n" + boot_fix(
        "nosmt", machine.boots_as, is_raspberry_pi=place.is_raspberry_pi
    )
    beside = {cpu for own in machine.isolated for cpu in siblings.get(own, ())} - set(machine.isolated)
    if beside:
        found = f"{most}; {format_cpu_list(beside)} share cores with isolated CPUs"
        return Check("cpus", name, found, source, "warn", why, fix)
    return Check("cpus", name, str(most), source, "ok" if machine.isolated else "note", why, fix if not
                 machine.isolated else "")  # fmt: skip


def _numa(machine: Machine) -> Check:
    name, source = "NUMA nodes", "/sys/devices/system/node/online"
    why = "memory of another node takes longer to reach: keep a loop's CPU and its memory on one node"
    text, reason = machine.read(source)
    nodes = parse.cpu_list(text) if text and text.strip() else None
    if nodes is None:
        is_absent = not machine.exists("/sys/devices/system/node") and bool(machine.online)
        if is_absent:
            return Check("cpus", name, "1: the kernel has no NUMA nodes", source, "ok", why)
        return Check("cpus", name, unread(reason), source, "note", why)
    if len(nodes) == 1:
        return Check("cpus", name, "1", source, "ok", why)
    places = ", ".join(f"{node}: {machine.text(f'/sys/devices/system/node/node{node}/cpulist')}" for node in nodes)
    fix = "start:      numactl --cpunodebind=0 --membind=0 python ...   # the node of the loop's CPU"
    return Check("cpus", name, f"{len(nodes)} ({places})", source, "note", why, fix)
