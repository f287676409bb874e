"""Choice of the CPUs for ``cpu="auto"``: those that are isolated and that this process may use."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from rtloop.process.helper_thread import HelperThread
from rtloop.system.cpu import format_cpu_list, isolated_cpus
from rtloop.system.cpuset import own_cpuset, partitioned_cpus, read_cpus, read_mask

__all__ = ["CpuChoice", "auto_cpus", "choose_auto", "usable_isolated_cpus"]

_STACK_BYTES = 256 << 10


class CpuChoice(NamedTuple):
    """CPUs for ``cpu="auto"``: None for those that are inherited; and the reason, empty if no CPU is isolated."""

    cpus: tuple[int, ...] | None
    why: str


def _inherited() -> set[int]:
    """Return the mask of the calling thread, from ``/proc`` if a filter forbids sched_getaffinity(2)."""
    try:
        return os.sched_getaffinity(0)
    except OSError:
        return set(read_mask())


def _reachable_cpus() -> tuple[int, ...]:
    """Return where a thread of this process may go if it asks, found by a thread that asks for every CPU.

    The mask of a process does not tell, because the kernel starts every process off the CPUs that are isolated at boot.
    """
    possible = read_cpus("/sys/devices/system/cpu/possible") or range(os.cpu_count() or 1)
    found: list[set[int]] = [_inherited()]

    def ask() -> None:
        with suppress(OSError):  # a filter, for one
            os.sched_setaffinity(0, possible)
        found.append(_inherited())

    with suppress(RuntimeError):  # no thread can be created: the interpreter is about to end
        HelperThread(ask, "rtloop-cpus", _STACK_BYTES).join()
    return tuple(sorted(found[-1]))


def choose_auto(
    boot: Iterable[int], partition: Iterable[int], reachable: Iterable[int], inherited: Iterable[int]
) -> CpuChoice:
    """Choose the CPUs of ``cpu="auto"``: isolated and allowed.

    Parameters
    ----------
    boot, partition : iterable of int
        CPUs isolated on the kernel's command line, and by a partition.
    reachable : iterable of int
        Where a thread of this process may go if it asks.
    inherited : iterable of int
        The mask of the thread that starts the loop. If somebody has narrowed it, such as taskset(1), it counts.
    """
    isolated, may, mask = {*boot, *partition}, set(reachable), set(inherited)
    if not isolated:
        return CpuChoice(None, "")
    is_narrowed = mask not in (may, may - set(boot), may - isolated)
    found = tuple(sorted(isolated & (mask if is_narrowed else may)))
    if found:
        how = " and ".join(
            text for text, cpus in (("at boot", boot), ("by a partition", partition)) if set(cpus) & set(found)
        )
        return CpuChoice(found, f"isolated {how}")
    limit = f"the inherited mask {format_cpu_list(mask)}" if is_narrowed else f"the cpuset, {format_cpu_list(may)}"
    return CpuChoice(None, f"none of the isolated CPUs {format_cpu_list(isolated)} is in {limit}")


def auto_cpus() -> CpuChoice:
    """Choose the CPUs of ``cpu="auto"`` for the calling thread, on this machine, now."""
    own = own_cpuset()
    partition = own.cpus if own is not None and own.partition else ()
    boot = isolated_cpus()
    isolated = {*partition, *partitioned_cpus()} - set(boot)
    if not boot and not isolated:
        return CpuChoice(None, "")
    return choose_auto(boot, isolated, _reachable_cpus(), _inherited())


def usable_isolated_cpus() -> tuple[int, ...]:
    """Return the CPUs that are isolated and that this process may use; none if there are none."""
    return auto_cpus().cpus or ()
