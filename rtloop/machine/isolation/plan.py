"""Steps of an isolation, in their order: each is planned when those before it have been made.

A later value may depend on an earlier step, because newer kernels move unbound work and threads of their own when a
partition is made. See Documentation/admin-guide/cgroup-v2.rst (cpuset), cgroup-v1/cpusets.rst,
core-api/workqueue.rst, core-api/irq/irq-affinity.rst and admin-guide/pm/cpuidle.rst of the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rtloop.machine.isolation import devices
from rtloop.machine.isolation.kernel import Kernel, Thread
from rtloop.machine.isolation.step import ABSENT, PRESENT, Step, read, thread_target
from rtloop.system.cpu import format_cpu_list

__all__ = ["TOP", "Hierarchy", "Request", "find_hierarchy", "group_of", "plan"]

TOP = "/sys/fs/cgroup"
_CPU = "/sys/devices/system/cpu"


@dataclass(frozen=True)
class Request:
    """An isolation that is asked for.

    Attributes
    ----------
    cpus : tuple of int
        The CPUs to isolate.
    housekeeping : tuple of int
        The CPUs that are left for all other work.
    online : tuple of int
        All CPUs that are online.
    devices : tuple of str
        Devices whose interrupts and NAPI threads get a priority.
    device_priority : int
        This priority.
    idle_latency_us : int
        Idle states that take longer to leave are disabled.
    """

    cpus: tuple[int, ...]
    housekeeping: tuple[int, ...]
    online: tuple[int, ...]
    devices: tuple[str, ...] = ()
    device_priority: int = 60
    idle_latency_us: int = 10


@dataclass(frozen=True)
class Hierarchy:
    """The control groups that can set CPUs: `version` 2, 1, or 0 if there are none, and where they are mounted."""

    version: int
    top: str


def find_hierarchy(kernel: Kernel) -> Hierarchy:
    """Find the mount of control groups that has the cpuset controller."""
    for top in (TOP, f"{TOP}/unified"):
        if "cpuset" in kernel.text(f"{top}/cgroup.controllers").split():
            return Hierarchy(2, top)
    if kernel.exists(f"{TOP}/cpuset/cpuset.cpus"):
        return Hierarchy(1, f"{TOP}/cpuset")
    return Hierarchy(0, TOP)


def group_of(hierarchy: Hierarchy, cpus: Iterable[int]) -> str:
    """Return the control group of an isolation."""
    return f"{hierarchy.top}/rtloop-cpu-{format_cpu_list(cpus).replace(',', '_')}"


def plan(kernel: Kernel, request: Request) -> Iterator[Step]:
    """Yield the steps; the caller makes each before it takes the next, or makes none."""
    hierarchy = find_hierarchy(kernel)
    before = {(thread.tid, thread.start): thread for thread in kernel.threads()}
    if hierarchy.version == 2:
        yield from _partition(kernel, request, hierarchy)
    else:
        yield from _cpusets(kernel, request, hierarchy)
    yield from _threads(kernel, request, before)
    yield from _workqueues(kernel, request)
    yield from _interrupts(kernel, request)
    yield from _watchdog(kernel, request)
    yield from _power(kernel, request)
    for name in request.devices:
        yield from devices.plan(kernel, name, request.device_priority)
    yield from _remarks(kernel, request)


def _step(kernel: Kernel, topic: str, target: str, label: str, wanted: str, *, essential: bool = False) -> Step:
    """Return the step that writes a file."""
    return Step(topic, "write", target, label, kernel.read(target) or "", wanted, is_essential=essential)


def _group(kernel: Kernel, folder: str, label: str) -> Step:
    step = Step("partition", "group", folder, label, ABSENT, PRESENT, is_essential=True)
    step.before = read(kernel, step) or ABSENT
    return step


def _partition(kernel: Kernel, request: Request, hierarchy: Hierarchy) -> Iterator[Step]:
    """Yield an isolated partition of version 2."""
    control, group = f"{hierarchy.top}/cgroup.subtree_control", group_of(hierarchy, request.cpus)
    text = kernel.read(control) or ""
    yield Step("partition", "controller", control, "cpuset for groups below the root", text, "+cpuset",
               is_essential=True)  # fmt: skip
    yield _group(kernel, group, "control group")
    cpus = format_cpu_list(request.cpus)
    yield _step(kernel, "partition", f"{group}/cpuset.cpus", "CPUs", cpus, essential=True)
    yield _step(kernel, "partition", f"{group}/cpuset.cpus.partition", "partition", "isolated", essential=True)


def _cpusets(kernel: Kernel, request: Request, hierarchy: Hierarchy) -> Iterator[Step]:
    """Yield two cpusets of version 1: the isolated one, and one to which all threads of the root are moved."""
    top, rest = hierarchy.top, f"{hierarchy.top}/rtloop-housekeeping"
    own = group_of(hierarchy, request.cpus)
    memory = kernel.text(f"{top}/cpuset.mems")
    for folder, label, cpus in ((rest, "others'", request.housekeeping), (own, "isolated", request.cpus)):
        yield _group(kernel, folder, f"{label} cpuset")
        yield _step(kernel, "partition", f"{folder}/cpuset.mems", f"{label} memory nodes", memory, essential=True)
        text = format_cpu_list(cpus)
        yield _step(kernel, "partition", f"{folder}/cpuset.cpus", f"{label} CPUs", text, essential=True)
    yield _step(kernel, "partition", f"{own}/cpuset.sched_load_balance", "load balancing, isolated", "0",
                essential=True)  # fmt: skip
    yield _step(kernel, "partition", f"{top}/cpuset.sched_load_balance", "load balancing, root", "0", essential=True)
    yield Step("partition", "tasks", f"{top}:{rest}", "threads of the root", "here", "moved")
    for name in kernel.folders(top):
        shared = set(kernel.cpus(f"{top}/{name}/cpuset.cpus")) & set(request.cpus)
        if shared and not name.startswith("rtloop-"):
            count = len(kernel.text(f"{top}/{name}/tasks").split())
            why = f"it has CPU {format_cpu_list(shared)} as well, and {count} threads; narrow its cpuset.cpus"
            yield _note("partition", f"cpuset /{name}", why)


def _note(topic: str, label: str, why: str) -> Step:
    return Step(topic, "note", label, label, "", "", "", why)


def _threads(kernel: Kernel, request: Request, before: dict[tuple[int, int], Thread]) -> Iterator[Step]:
    """Yield the threads that have to leave the CPUs, and those whose own choice of CPUs was overwritten.

    Before Linux 6.2 a change of a cpuset gives every thread in it all of its CPUs, whatever the thread had asked for;
    later kernels still do so with masks that the kernel itself has set.
    """
    isolated = set(request.cpus)
    # A thread that only lacks the CPUs of other partitions has not chosen its CPUs; the kernel gives them back to it.
    everywhere = isolated | set(request.housekeeping)
    hierarchy = find_hierarchy(kernel)
    inside = {int(tid) for tid in kernel.text(f"{group_of(hierarchy, request.cpus)}/cgroup.procs").split()}
    bound = []
    for thread in kernel.threads():
        earlier = before.get((thread.tid, thread.start), thread)
        had, has = set(earlier.cpus), set(thread.cpus)
        if thread.tid in inside:
            continue
        if not thread.can_move:
            if thread.is_kernel and isolated & has:
                bound.append(thread.name)
        elif not everywhere <= had:
            # Its mask is restored at the end even if it need not move, because the kernel may have widened it.
            yield _thread_step(earlier, had - isolated or has - isolated or request.housekeeping)
        elif isolated & has and thread.is_kernel:
            yield _thread_step(earlier, had - isolated)
    if bound:
        shown = ", ".join(sorted(bound)[:4])
        yield _note("kernel threads", "kernel threads", f"{len(bound)} are bound to their CPU, such as {shown}")


def _thread_step(thread: Thread, wanted: Iterable[int]) -> Step:
    topic = "kernel threads" if thread.is_kernel else "threads"
    target, before = thread_target(thread.tid, thread.start), format_cpu_list(thread.cpus)
    return Step(topic, "affinity", target, f"{thread.tid} {thread.name}", before, format_cpu_list(wanted))


def _workqueues(kernel: Kernel, request: Request) -> Iterator[Step]:
    """Yield the mask of unbound workqueues; a kernel from 6.7 on has taken the partition's CPUs out of it."""
    path = "/sys/devices/virtual/workqueue/cpumask"
    if kernel.exists(path):
        yield _step(kernel, "workqueues", path, "unbound workqueues", _without(kernel.text(path), request))
    else:
        yield _note("workqueues", "unbound workqueues", f"the kernel has no {path}")


def _without(mask: str, request: Request) -> str:
    """Return a mask of the kernel without the isolated CPUs, or that of all others if none is left."""
    try:
        bits = int(mask.replace(",", ""), 16)
    except ValueError:
        bits = 0
    left = bits & ~sum(1 << cpu for cpu in request.cpus) or sum(1 << cpu for cpu in request.housekeeping)
    digits = f"{left:x}"
    groups = []
    while digits:
        digits, group = digits[:-8], digits[-8:]
        groups.append(group)
    text = ",".join(reversed(groups))
    return mask if _value(text) == bits else text


def _value(mask: str) -> int:
    return int(mask.replace(",", ""), 16)


def _interrupts(kernel: Kernel, request: Request) -> Iterator[Step]:
    """Yield the interrupts that may arrive on the CPUs, and the mask of those that are requested later."""
    isolated = set(request.cpus)
    for number in kernel.names("/proc/irq"):
        path = f"/proc/irq/{number}/smp_affinity_list"
        cpus = set(kernel.cpus(path)) if number.isdigit() else set()
        action = kernel.text(f"/sys/kernel/irq/{number}/actions")
        is_unused = not action and kernel.exists("/sys/kernel/irq")
        if cpus & isolated and not is_unused:
            wanted = format_cpu_list(cpus - isolated or request.housekeeping)
            yield _step(kernel, "interrupts", path, f"IRQ {number} {action}".strip(), wanted)
    path = "/proc/irq/default_smp_affinity"
    if kernel.exists(path):
        yield _step(kernel, "interrupts", path, "new ones", _without(kernel.text(path), request))


def _watchdog(kernel: Kernel, request: Request) -> Iterator[Step]:
    """Yield the CPUs of the lockup detectors (Documentation/admin-guide/lockup-watchdogs.rst)."""
    path = "/proc/sys/kernel/watchdog_cpumask"
    if cpus := set(kernel.cpus(path)):
        wanted = format_cpu_list(cpus - set(request.cpus) or request.housekeeping)
        yield _step(kernel, "lockup detectors", path, "lockup detectors", wanted)


def _power(kernel: Kernel, request: Request) -> Iterator[Step]:
    """Yield governors and idle states, where the machine has them."""
    has_governor = has_states = is_deep = False
    for cpu in request.cpus:
        path = f"{_CPU}/cpu{cpu}/cpufreq/scaling_governor"
        if kernel.exists(path):
            has_governor = True
            step = _step(kernel, "governor", path, f"CPU {cpu}", "performance")
            shared = set(kernel.cpus(f"{_CPU}/cpu{cpu}/cpufreq/affected_cpus")) - {cpu}
            if shared:
                step.label += f", shared with {format_cpu_list(shared)}"
            yield step
        for state in kernel.names(f"{_CPU}/cpu{cpu}/cpuidle"):
            folder = f"{_CPU}/cpu{cpu}/cpuidle/{state}"
            latency = kernel.text(f"{folder}/latency")
            if not kernel.exists(f"{folder}/disable"):
                continue
            has_states = True
            if latency.isdigit() and int(latency) > request.idle_latency_us:
                is_deep = True
                label = f"CPU {cpu} {kernel.text(f'{folder}/name') or state}, {latency} us"
                yield _step(kernel, "idle states", f"{folder}/disable", label, "1")
    if not has_governor:
        yield _note("governor", "governor", "there is none: a virtual machine, or the firmware decides")
    if not has_states:
        yield _note("idle states", "idle states", "there are none: a virtual machine, or the boot argument idle=poll")
    elif not is_deep:
        yield _note("idle states", "idle states", f"none takes longer than {request.idle_latency_us} us to leave")


def _remarks(kernel: Kernel, request: Request) -> Iterator[Step]:
    """Yield what no step changes and the user should know."""
    beside = {
        other
        for cpu in request.cpus
        for other in kernel.cpus(f"{_CPU}/cpu{cpu}/topology/thread_siblings_list")
        if other not in request.cpus and other in request.online
    }
    if beside:
        why = f"CPU {format_cpu_list(beside)} shares a core with an isolated one: isolate it as well, or disable SMT"
        yield _note("threads per core", "threads per core", why)
    if any(kernel.text(f"/proc/{pid}/comm") == "irqbalance" for pid in kernel.names("/proc") if pid.isdigit()):
        why = "it runs and may move interrupts back: stop it, or set IRQBALANCE_BANNED_CPULIST"
        yield _note("interrupts", "irqbalance", why)
