"""Threads that handle a device: those of its interrupts, and of NAPI for a network device.

See Documentation/networking/napi.rst (threaded NAPI) and core-api/real-time of the kernel.
"""

from __future__ import annotations

from collections.abc import Iterator

from rtloop.machine.isolation.kernel import Kernel
from rtloop.machine.isolation.step import Step, thread_target

__all__ = ["plan"]

_NET = "/sys/class/net"


def plan(kernel: Kernel, device: str, priority: int) -> Iterator[Step]:
    """Yield the steps that raise the threads of a device to SCHED_FIFO, at a priority."""
    topic, wanted = f"device {device}", f"fifo {priority}"
    numbers = _interrupts(kernel, device)
    is_network = kernel.exists(f"{_NET}/{device}")
    if not numbers and not is_network:
        yield Step(topic, "note", device, device, "", "", None, "there is no such network device, and no interrupt "
                   "with this name in /proc/interrupts")  # fmt: skip
        return
    found = 0
    prefixes = tuple(f"irq/{number}-" for number in numbers)
    if prefixes:
        for step in _threads(kernel, topic, prefixes, wanted):
            found += 1
            yield step
    path = f"{_NET}/{device}/threaded"
    if is_network and kernel.exists(path):
        yield Step(topic, "write", path, "threaded NAPI", kernel.read(path) or "", "1")
        prefix, count = f"napi/{device}-", 0
        for step in _threads(kernel, topic, (prefix,), wanted):
            count += 1
            yield step
        if not count:  # not yet there, or the device's driver does not use NAPI
            yield Step(topic, "scheduler", prefix, f"{prefix}*", "", wanted)
    elif not found:
        why = "its interrupts have no threads: boot with threadirqs, or a PREEMPT_RT kernel"
        yield Step(topic, "note", device, device, "", "", None, why)


def _threads(kernel: Kernel, topic: str, prefixes: tuple[str, ...], wanted: str) -> Iterator[Step]:
    for thread in kernel.threads():
        # comm has 15 characters
        if thread.is_kernel and thread.name.startswith(tuple(prefix[:15] for prefix in prefixes)):
            target, label = thread_target(thread.tid, thread.start), f"{thread.tid} {thread.name}"
            yield Step(topic, "scheduler", target, label, kernel.scheduler(thread.tid), wanted)


def _interrupts(kernel: Kernel, device: str) -> list[str]:
    """Return the numbers of a device's interrupts: from sysfs, or by the names in ``/proc/interrupts``."""
    found = set()
    for folder in (f"{_NET}/{device}/device/msi_irqs", f"{_NET}/{device}/device/../msi_irqs"):
        found |= set(kernel.names(folder))
    for number in kernel.names("/sys/kernel/irq"):
        actions = kernel.text(f"/sys/kernel/irq/{number}/actions").split(",")
        if any(action == device or action.startswith((f"{device}-", f"{device}:", f"{device}.")) for action in actions):
            found.add(number)
    return sorted((number for number in found if number.isdigit()), key=int)
