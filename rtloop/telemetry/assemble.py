"""Assembly of a Stats from the raw content of a telemetry block."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, TypedDict, Unpack

import numpy as np

from rtloop.settings import Settings
from rtloop.stats import guard_summary
from rtloop.stats.figures import ContextSwitches, PageFaults, StackUse
from rtloop.stats.histogram import Histogram
from rtloop.stats.stats import Stats
from rtloop.system.grant import Grant
from rtloop.system.host import host_facts
from rtloop.telemetry.block import Snapshot, record_dtype
from rtloop.telemetry.gc_watch import collector_facts

__all__ = ["assemble_stats", "machine", "make_stats", "tai_facts"]

machine = cache(host_facts)


class RunFigures(TypedDict, total=False):
    """Figures of a run that are not in its telemetry block.

    Attributes
    ----------
    stack : StackUse
        Stack of the thread.
    forks : int or None
        Number of forks of the process; None if unknown.
    violations : list of dict
        Violations of the guards.
    live : mapping
        Figures of parameters and swaps, by their names in `Stats`.
    """

    stack: StackUse
    forks: int | None
    violations: list[dict[str, Any]]
    live: Mapping[str, Any]


def tai_facts(offsets_s: tuple[int, int] | None) -> dict[str, int]:
    """Return the facts of a machine that are CLOCK_TAI's: its offset when the loop was started, and later."""
    return {} if offsets_s is None else {"tai_offset_start_s": offsets_s[0], "tai_offset_s": offsets_s[1]}


def _empty() -> Snapshot:
    counters: dict[str, Any] = dict.fromkeys(
        (
            "cycles",
            "missed",
            "overruns",
            "late",
            "stalls",
            "warmup",
            "shifted",
            "first_release",
            "last_end",
            "clock_steps",
            "clock_gap",
        ),
        0,
    )
    counters["clock_step_sizes"] = counters["clock_step_cycles"] = ()
    counters["usage"] = counters["guard"] = (0, 0, 0, 0)
    return Snapshot(counters, (Histogram.empty(),) * 5, np.empty(0, record_dtype))


def make_stats(
    settings: Settings,
    state: str,
    grants: tuple[Grant, ...],
    snapshot: Snapshot | None,
    *,
    has_own_wait: bool = False,
    simulation: dict[str, Any] | None = None,
    tai_offsets_s: tuple[int, int] | None = None,
    **figures: Unpack[RunFigures],
) -> Stats:
    """Make the Stats of a loop of this process; the snapshot of a loop that never ran is None."""
    extra: dict[str, Any] = {}
    if simulation is not None:
        extra["simulation"] = simulation
    elif has_own_wait:
        extra["has_own_wait"] = True
    return assemble_stats(
        settings.to_dict() | extra,
        state,
        grants,
        snapshot or _empty(),
        machine() | tai_facts(tai_offsets_s) | ({} if simulation is not None else collector_facts()),
        **figures,
    )


def assemble_stats(
    settings: dict[str, Any],
    state: str,
    grants: tuple[Grant, ...],
    snapshot: Snapshot,
    host: dict[str, Any],
    **figures: Unpack[RunFigures],
) -> Stats:
    """Make the Stats of a loop of any process.

    A loop with its own wait has no latency and no response, because they would refer to a grid that it does not follow.
    A simulated run, whose models ``settings["simulation"]`` describes, has no thread and hence no usage.
    """
    counters = snapshot.counters
    usage = counters["usage"]
    latency, execution, response, interval, waiting = snapshot.histograms
    stack, forks = figures.get("stack", StackUse(0, 0)), figures.get("forks", 0)
    if "simulation" in settings:
        usage, forks, stack = (None,) * 4, 0, StackUse(0, 0)
    elif settings.get("has_own_wait"):
        latency = response = Histogram.empty()
    return Stats(
        name=settings["name"],
        state=state,
        cycles=counters["cycles"],
        missed=counters["missed"],
        overruns=counters["overruns"],
        late=counters["late"],
        stalls=counters["stalls"],
        shifted_ns=counters["shifted"],
        device_cycles=counters.get("device_cycles") or None,
        device_missed=counters["device_missed"] if counters.get("device_cycles") else None,
        warmup=counters["warmup"],
        clock_steps=counters["clock_steps"],
        clock_step_sizes=counters["clock_step_sizes"],
        clock_step_cycles=counters["clock_step_cycles"],
        clock_gap_ns=counters["clock_gap"],
        # An own wait may end before the first release; a loop may be stopped before it.
        duration_ns=max(0, counters["last_end"] - counters["first_release"]),
        page_faults=PageFaults(*usage[:2]),
        context_switches=ContextSwitches(*usage[2:]),
        forks=forks,
        guard=guard_summary.summarise(settings, grants, counters, figures.get("violations", [])),
        grants=grants,
        settings=settings,
        host=dict(host),
        latency=latency,
        execution=execution,
        response=response,
        interval=interval,
        waiting=waiting,
        records=snapshot.records,
        stack=stack,
        **figures.get("live", {}),
    )
