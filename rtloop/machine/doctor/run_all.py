"""Whole examination: every check, in the order in which it is shown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from rtloop.machine.doctor import samples, trial_loop
from rtloop.machine.doctor.checks import (
    clocks,
    configuration,
    cpus,
    devices,
    isolation,
    kernel,
    known,
    memory,
    platform,
    power,
    session,
    timesync,
    toolchain,
)
from rtloop.machine.doctor.checks.clocks import ClockCost
from rtloop.machine.doctor.checks.toolchain import Toolchain
from rtloop.machine.doctor.machine_files import Machine
from rtloop.machine.doctor.samples import Sample
from rtloop.process.nap import nap
from rtloop.system.checks import Check
from rtloop.system.fixes import for_container
from rtloop.system.time_sync import TimeSync, read_time_sync

__all__ = ["TOPICS", "Evidence", "examine", "gather"]

#: Topics in the order in which they are shown, with their titles.
TOPICS = {
    "probe": "Tried: a loop with the default settings",
    "session": "This session",
    "kernel": "Kernel",
    "scheduling": "Scheduling",
    "machine": "Machine",
    "cpus": "CPUs and interrupts",
    "power": "Power",
    "clock": "Clocks",
    "memory": "Memory",
    "python": "Python",
    "measured": "Measured",
}
#: Topics that a container's host decides.
_OF_THE_HOST = {"kernel", "machine", "cpus", "power", "clock", "memory"}

_INTERVAL_S = 0.5


class Evidence(NamedTuple):
    """Measurements that take more than reading a file; None for one that was not made."""

    before: Sample | None = None
    after: Sample | None = None
    cost: ClockCost | None = None
    tools: Toolchain | None = None
    probe: dict[str, Any] | None = None
    sync: TimeSync | None = None


def gather(machine: Machine, interval_s: float = _INTERVAL_S) -> Evidence:
    """Sample the machine twice, `interval_s` apart, measure the clock, then run the experiment."""
    before = samples.take_sample(machine)
    nap(interval_s)
    after = samples.take_sample(machine)
    return Evidence(before, after, clocks.measure_clock(), toolchain.read_toolchain(), trial_loop.run_probe(),
                    read_time_sync())  # fmt: skip


_NOTHING = Evidence()


def examine(machine: Machine, evidence: Evidence = _NOTHING) -> list[Check]:
    """Make every check, in the order of the topics."""

    def all_checks() -> Iterator[Check]:
        yield from trial_loop.examine(evidence.probe)
        yield from session.examine(machine)
        yield from kernel.examine(machine)
        yield from known.examine(machine)
        yield from configuration.examine(machine)
        yield from samples.examine(machine, evidence.before, evidence.after)
        yield from platform.examine(machine, evidence.before, evidence.after)
        yield from devices.examine(machine, evidence.before, evidence.after)
        yield from cpus.examine(machine)
        yield from isolation.examine(machine)
        yield from power.examine(machine)
        yield from clocks.examine(machine, evidence.cost)
        yield from timesync.examine(machine, evidence.sync)
        yield from memory.examine(machine)
        if evidence.tools is not None:
            yield from toolchain.examine(evidence.tools, machine.place.distribution)

    checks = sorted(all_checks(), key=lambda check: list(TOPICS).index(check.topic))
    return [_with_fix_for(machine.place.container, check) for check in checks]


def _with_fix_for(container: str, check: Check) -> Check:
    """Keep the parts of a fix that apply here, and name the place: a container cannot change its host."""
    if container and check.fix and check.topic in _OF_THE_HOST:
        return check._replace(fix=f"on the host, not in the container:\n{for_container(check.fix, '')}")
    return check._replace(fix=for_container(check.fix, container))
