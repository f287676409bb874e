"""Checks of the platform: the board, a container, a hypervisor, and stolen time."""

from __future__ import annotations

from collections.abc import Iterator

from rtloop.machine.doctor import parse
from rtloop.machine.doctor.machine_files import Machine, unread
from rtloop.machine.doctor.samples import Sample
from rtloop.system.checks import Check
from rtloop.system.fileio import parse_fields
from rtloop.system.host import find_hypervisor

__all__ = ["examine", "hypervisor"]

#: A greater share of stolen CPU time is not an accident.
_STOLEN = 0.005


def hypervisor(machine: Machine) -> tuple[str, str]:
    """Return this machine's hypervisor and where that was read; "" means none, "?" not known."""
    return find_hypervisor(machine.text, machine.names)


def examine(machine: Machine, before: Sample | None = None, after: Sample | None = None) -> Iterator[Check]:
    """Yield the checks of the platform, with two samples also of the time stolen between them."""
    yield _board(machine)
    yield _container(machine)
    yield _virtual(machine)
    yield _steal(machine, before, after)


def _board(machine: Machine) -> Check:
    name, why = "machine", "the kind of machine decides which fixes apply"
    cpuinfo = parse_fields(machine.text("/proc/cpuinfo"))
    model = machine.text("/proc/device-tree/model") or cpuinfo.get("Model") or cpuinfo.get("model name", "")
    system = parse.assignments(machine.text("/etc/os-release")).get("PRETTY_NAME", "")
    if not model and not system:
        return Check("machine", name, unread(), "/proc/cpuinfo, /etc/os-release", "note", why)
    found = f"{model or machine.machine}, {len(machine.online)} CPUs, {system or 'distribution not known'}"
    return Check("machine", name, found, "/proc/cpuinfo, /proc/device-tree/model, /etc/os-release", "ok", why)


def _container(machine: Machine) -> Check:
    name = "container"
    source = "/proc/self/ns, /.dockerenv, /run/.containerenv, /run/systemd/container, /proc/self/cgroup"
    why = "a container shares its host's kernel, CPUs and huge pages, and has only the privileges passed to it"
    if not machine.place.container:
        if not machine.status:
            return Check("machine", name, unread(), source, "note", why)
        return Check("machine", name, "none", source, "ok", why)
    return Check("machine", name, machine.place.container, source, "note", why)


def _virtual(machine: Machine) -> Check:
    name = "virtual machine"
    why = "a hypervisor may take a CPU away at any time, and no setting inside the guest prevents that"
    kind, source = hypervisor(machine)
    if kind == "?":
        return Check("machine", name, unread(), source, "note", why)
    if not kind:
        return Check("machine", name, "none", source, "ok", why)
    fix = "host:       give it whole CPUs (pin its virtual CPUs, no overcommitment), or run on the host itself"
    return Check("machine", name, kind, source, "warn", why, fix)


def _steal(machine: Machine, before: Sample | None, after: Sample | None) -> Check:
    name, source = "stolen time", "steal in /proc/stat"
    why = "the hypervisor gave other machines CPU time that this one needed; a loop does not run during that time"
    times = parse.cpu_times(machine.text("/proc/stat"))
    if times is None or not times[1]:
        return Check("machine", name, unread(machine.read("/proc/stat")[1]), source, "note", why)
    share = times[0] / times[1]
    found = f"{100 * share:.2f} % since boot"
    if before is not None and after is not None and before.times and after.times:
        stolen, total = (b - a for a, b in zip(before.times, after.times, strict=True))
        if total > 0:
            now = stolen / total
            found += f", {100 * now:.1f} % in the last {after.seconds - before.seconds:.1f} s"
            share = max(share, now)
    if share <= _STOLEN:
        return Check("machine", name, found, source, "ok", why)
    fix = "host:       reduce its load, or give this machine whole CPUs"
    return Check("machine", name, found, source, "warn", why, fix)
