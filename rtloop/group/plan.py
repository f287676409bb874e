"""Planning of a group before its start: checks, priorities and CPUs of the loops, and tasks for the analysis."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from rtloop.errors import ConfigError, StateError
from rtloop.group import member
from rtloop.settings import Duration, Settings, with_cpu
from rtloop.system.cpu_choice import usable_isolated_cpus
from rtloop.units import show

if TYPE_CHECKING:
    from rtloop.analysis.task import Task
    from rtloop.child.process_loop import ProcessLoop
    from rtloop.loop.loop import RTLoop
    from rtloop.stats.stats import Stats

__all__ = ["check_loops", "check_wcet", "place", "rate_monotonic", "tasks_of"]

#: Rate-monotonic priorities: below 80, the default of a single loop, and above 50, the kernel's interrupt threads.
_TOP_PRIORITY, _BOTTOM_PRIORITY, _WIDEST_STEP = 79, 51, 4


def check_loops(loops: Iterable[RTLoop | ProcessLoop]) -> tuple[RTLoop | ProcessLoop, ...]:
    """Check that the loops can form a group."""
    every = tuple(loops) if isinstance(loops, Iterable) else ()
    if not every or not all(member.is_loop(loop) for loop in every):
        raise ConfigError(f"loops={show(loops)} must hold at least one RTLoop or ProcessLoop, and nothing else")
    if len({id(loop) for loop in every}) < len(every):
        twice = next(loop for i, loop in enumerate(every) if any(loop is other for other in every[:i]))
        raise ConfigError(f"{twice.name} is in the group twice; give each loop only once")
    names = [loop.name for loop in every]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{names.count(name)} loops are called {name!r}; give each its own name=")
    first = every[0]
    for loop in every:
        if loop.settings.clock != first.settings.clock:
            raise ConfigError(
                f"{loop.name} has clock={loop.settings.clock!r} and {first.name} has {first.settings.clock!r}: "
                "the loops of a group need the same clock"
            )
        if loop.settings.align_ns is not None:
            raise ConfigError(
                f"{loop.name} has align=, but in a group the loops share one origin: use LoopGroup(..., align=...)"
            )
        if loop.state == "running":
            raise StateError(f"{loop.name} is running, but a group starts its loops itself: stop it first")
    return every


def check_wcet(wcet: Mapping[str, Duration] | None) -> dict[str, Duration]:
    """Check that the execution times are given by the names of the loops."""
    if wcet is not None and not isinstance(wcet, Mapping):
        raise ConfigError(f"wcet={show(wcet)} must hold a time for each loop's name, such as {{'motor': '200us'}}")
    return dict(wcet or {})


def rate_monotonic(periods_ns: Sequence[int | Fraction]) -> list[int]:
    """Return a SCHED_FIFO priority for each period: a higher one for a shorter period, equal ones for equal periods.

    The shortest period gets 79. The others follow in equal steps of at most 4, and stay above 50, the priority of the
    kernel's interrupt threads, for up to 29 different periods. With more, the steps are 1.

    Raises
    ------
    ConfigError
        If there are more than 79 different periods.
    """
    rates = sorted(set(periods_ns))
    if len(rates) > _TOP_PRIORITY:
        raise ConfigError(
            f"priorities='rate-monotonic': {len(rates)} different periods, but only {_TOP_PRIORITY} priorities below "
            "80: set priority= on each loop, and use priorities='as-given'"
        )
    step = min(_WIDEST_STEP, max(1, (_TOP_PRIORITY - _BOTTOM_PRIORITY) // max(1, len(rates) - 1)))
    level = {period: _TOP_PRIORITY - step * i for i, period in enumerate(rates)}
    return [level[period] for period in periods_ns]


def place(
    loops: Sequence[RTLoop | ProcessLoop],
    is_monotonic: bool,
    cpus: Sequence[Any] | str | None,
    wcet: Mapping[str, Duration],
) -> tuple[Settings, ...]:
    """Return the settings of the loops with the group's priorities and CPUs."""
    every = [loop.settings for loop in loops]
    if unknown := [name for name in wcet if name not in {settings.name for settings in every}]:
        names = ", ".join(repr(settings.name) for settings in every)
        raise ConfigError(f"wcet names {show(unknown[0])}, but the group's loops are {names}")
    if is_monotonic:
        places = [i for i, settings in enumerate(every) if settings.policy in ("fifo", "rr")]
        for i, priority in zip(places, rate_monotonic([every[i].period for i in places]), strict=True):
            every[i] = every[i]._replace(priority=priority)
    if cpus is None:
        return tuple(every)
    if isinstance(cpus, str) and cpus == "partition":
        cpus = _partitioned(loops, wcet)
    if isinstance(cpus, (str, bytes)) or not isinstance(cpus, Sequence) or len(cpus) != len(every):
        raise ConfigError(
            f"cpus={show(cpus)} must be 'partition', or a sequence with one item for each of the {len(every)} loops, "
            f"such as {[0] * len(every)}"
        )
    return tuple(with_cpu(settings, cpu) for settings, cpu in zip(every, cpus, strict=True))


def _partitioned(loops: Sequence[RTLoop | ProcessLoop], wcet: Mapping[str, Duration]) -> list[int | None]:
    """Return a CPU for each loop, of the isolated ones, or of those that this process may use if none is isolated."""
    from rtloop.analysis.schedulability import partition
    from rtloop.analysis.task import Task

    tasks = []
    for loop in loops:
        longest = wcet.get(loop.name)
        if longest is None:
            execution = loop.stats.execution
            if not execution.count:
                raise ConfigError(
                    f"cpus='partition' needs the execution time of {loop.name}, which has not run: run it first, or "
                    f"give wcet={{{loop.name!r}: ...}}"
                )
            longest = max(1, math.ceil(execution.max))
        tasks.append(Task(loop.name, loop.settings.period / 10**9, longest, cpu=_pinned(loop.settings)))
    return [task.cpu for task in partition(tasks, usable_isolated_cpus() or sorted(os.sched_getaffinity(0)))]


def _pinned(settings: Settings) -> int | None:
    return settings.cpu[0] if isinstance(settings.cpu, tuple) and len(settings.cpu) == 1 else None


def tasks_of(
    settings: Mapping[str, Settings], stats: Mapping[str, Stats], wcet: Mapping[str, Duration], percentile: float | None
) -> tuple[list[Task], str]:
    """Return the loops as tasks for `rtloop.analyze`, and the policy for it.

    Raises
    ------
    ConfigError
        If a loop is unknown or has neither run nor a `wcet`, or if policies or pinning differ.
    """
    from rtloop.analysis.task import Task, jitter_of

    if unknown := [name for name in wcet if name not in settings]:
        raise ConfigError(f"wcet names {show(unknown[0])}, but the group's loops are {', '.join(map(repr, settings))}")
    kinds = {"fixed-priority" if s.policy in ("fifo", "rr") else s.policy for s in settings.values()}
    if kinds not in ({"fixed-priority"}, {"deadline"}):
        raise ConfigError(
            f"policies {', '.join(sorted({s.policy for s in settings.values()}))}: only loops that are all 'fifo' or "
            "'rr', or all 'deadline', can be analysed together"
        )
    pinned = {name: cpu for name, s in settings.items() if (cpu := _pinned(s)) is not None}
    if loose := [name for name in settings if pinned and name not in pinned]:
        raise ConfigError(
            f"{', '.join(loose)}: not pinned to one CPU, unlike the other loops, so it is unknown which loops delay "
            "each other; pin all with LoopGroup(cpus=[...]), or none: then they are assumed to share one CPU"
        )
    tasks = []
    for name, s in settings.items():
        is_fixed = s.policy != "deadline"
        known: dict[str, Any] = {
            "priority": s.priority if is_fixed else None,
            "cpu": pinned.get(name),
            "deadline": s.deadline_ns,
        }
        if name in wcet:
            response = stats[name].response
            measured = max(0, math.ceil(response.max)) if response.count else None
            waiting = stats[name].waiting
            known["suspension"] = max(0, math.ceil(waiting.max)) if waiting.count else 0
            tasks.append(
                Task(
                    name,
                    s.period / 10**9,
                    wcet[name],
                    jitter=jitter_of(stats[name], percentile),
                    measured=measured,
                    **known,
                )
            )
        elif stats[name].execution.count:
            tasks.append(Task.from_stats(stats[name], percentile=percentile, **known))
        else:
            raise ConfigError(
                f"{name} has not run, so no step was measured: run the group first, or give wcet={{{name!r}: ...}}"
            )
    return tasks, "fixed-priority" if kinds == {"fixed-priority"} else "edf"
