"""Exact schedulability analysis of tasks with fixed priorities, or under EDF, on each CPU.

The arithmetic is integer and rational, in nanoseconds, so it has no rounding errors. Each test names its source. What
no analysis knows (caches, interrupts, firmware) is in docs/explanation/schedulability.md.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction

from rtloop.analysis.results import Analysis, Bounds, Response, remarks
from rtloop.analysis.task import Task
from rtloop.errors import ConfigError
from rtloop.units import format_duration, lcm_of, show

__all__ = ["Analysis", "Bounds", "Response", "Task", "analyze", "partition"]

#: The share of a CPU that the kernel leaves to real-time threads (sched_rt_runtime_us over sched_rt_period_us).
RT_SHARE = Fraction(95, 100)
#: Most steps of an iteration; beyond them the answer is "undecided", never a guess.
_MOST_STEPS = 1_000_000
_POLICIES = ("fixed-priority", "edf")


def analyze(tasks: Iterable[Task], *, policy: str = "fixed-priority") -> Analysis:
    """Determine whether tasks meet their deadlines, for each CPU separately.

    ``"fixed-priority"`` is preemptive scheduling by priority, as with SCHED_FIFO. For independent tasks the analysis is
    exact: the worst response time occurs if all are released at once (Joseph & Pandya, 1986). It covers release jitter
    and blocking (Audsley et al., 1993), and deadlines beyond the period (Lehoczky, 1990; Tindell, Burns & Wellings,
    1994). Tasks of equal priority are assumed to delay each other, which SCHED_FIFO does in one order at most; for them
    the result is an upper bound.

    ``"edf"`` is earliest deadline first, as with SCHED_DEADLINE: the demand of every interval is compared with its
    length (Baruah, Rosier & Howell, 1990). The result is whether deadlines are met, not by how much.

    Parameters
    ----------
    tasks : iterable of Task
        With unique names. Either all have a priority or none has; without priorities, a shorter period is more urgent.
    policy : {"fixed-priority", "edf"}
        Scheduling policy.

    Returns
    -------
    Analysis
        True if all deadlines are met; ``print`` shows the table.

    Raises
    ------
    ConfigError
        If there are no tasks, two have the same name, or only some have a priority.

    Examples
    --------
    >>> from rtloop import Task, analyze
    >>> analyze([Task("current", "100us", "20us"), Task("velocity", "1ms", "300us")])["velocity"].response
    380000
    """
    every = _checked(tasks)
    if policy not in _POLICIES:
        raise ConfigError(f"policy={show(policy)} must be one of {', '.join(map(repr, _POLICIES))}")
    if policy == "fixed-priority" and all(task.priority is None for task in every):
        ranks = {period: -i for i, period in enumerate(sorted({task.exact_period for task in every}))}
        ranked = {task.name: ranks[task.exact_period] for task in every}
    else:
        ranked = {task.name: task.priority or 0 for task in every}
    cpus = sorted({task.cpu for task in every}, key=lambda cpu: -1 if cpu is None else cpu)
    rows: dict[str, Response] = {}
    for cpu in cpus:
        here = [task for task in every if task.cpu == cpu]
        found, verdict = None, _edf(here) if policy == "edf" else ""
        for task in here:
            if policy == "fixed-priority":
                more = [other for other in here if other is not task and ranked[other.name] >= ranked[task.name]]
                found, verdict = _response(task, more)
            rows[task.name] = Response(
                task.name, round(task.exact_period), task.ns("wcet"), task.ns("deadline"), task.priority, task.cpu,
                found, verdict, None if task.measured is None else task.ns("measured"),
            )  # fmt: skip
    bounds = tuple(_bounds(cpu, [task for task in every if task.cpu == cpu], ranked) for cpu in cpus)
    notes = tuple(dict.fromkeys(f"{task.name}: {task.note}" for task in every if task.note))
    late = [f"{task.name} {format_duration(task.ns('jitter'))}" for task in every if task.ns("jitter")]
    if late:
        notes += (f"the worst response counts from the release, so it includes the wake-up latency: {', '.join(late)}",)
    return Analysis(policy, tuple(rows[task.name] for task in every), bounds, (*notes, *remarks(rows.values())))


def _checked(tasks: Iterable[Task]) -> list[Task]:
    every = list(tasks)
    if not every or not all(isinstance(task, Task) for task in every):
        raise ConfigError(f"tasks={show(every)} must hold at least one Task, and nothing else")
    names = [task.name for task in every]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{names.count(name)} tasks are called {name!r}; give each a name of its own")
    without = [task.name for task in every if task.priority is None]
    if without and len(without) < len(every):
        raise ConfigError(f"{', '.join(without)}: no priority, but other tasks have one; give all tasks one, or none")
    return every


def _response(task: Task, more: Sequence[Task]) -> tuple[int | None, str]:
    """Return the worst response time of a task that `more` can delay, None if it is not known, and the verdict."""
    period = task.exact_period
    jitter, blocking = task.ns("jitter"), task.ns("blocking")
    wcet = task.ns("wcet") + task.ns("suspension")
    others = [_interference(other) for other in more]
    load = sum((c / t for c, t, _ in others), wcet / period)
    if load > 1:
        return None, "unbounded"
    # At full load the busy period may never end; but w(q) repeats after each hyperperiod, so one of them is enough.
    last = lcm_of([period, *(t for _, t, _ in others)]) // period if load == 1 else None
    worst, number, window = Fraction(0), 0, 0
    for _ in range(_MOST_STEPS):
        base = (number + 1) * wcet + blocking
        longer = base + sum(-(-(window + j) // t) * c for c, t, j in others)
        if longer > window:
            window = longer
            continue
        worst = max(worst, window + jitter - number * period)
        number += 1
        if window + jitter <= number * period or number == last:
            return math.ceil(worst), "meets" if worst <= task.ns("deadline") else "misses"
    return None, "misses" if max(worst, window + jitter - number * period) > task.ns("deadline") else "undecided"


def _interference(task: Task) -> tuple[int, Fraction, int]:
    """Return CPU time, period and release jitter of a task for those that it delays.

    A task that suspends itself delays others as one with a jitter of its deadline less its CPU time, as long as it
    meets a deadline within its period (Chen et al., Many suspensions, many problems, Real-Time Systems 55, 2019).
    Otherwise its sleep is taken for CPU time.
    """
    wcet, suspension, deadline = task.ns("wcet"), task.ns("suspension"), task.ns("deadline")
    if not suspension:
        return wcet, task.exact_period, task.ns("jitter")
    if deadline <= task.exact_period and wcet <= deadline:
        return wcet, task.exact_period, task.ns("jitter") + deadline - wcet
    return wcet + suspension, task.exact_period, task.ns("jitter")


def _edf(tasks: Sequence[Task]) -> str:
    """Return the verdict of the demand test: the demand of every interval has to fit into it."""
    if sum((task.utilisation for task in tasks), Fraction(0)) > 1:
        return "unbounded"
    # Sleep within a step is counted as CPU time, which is on the safe side.
    load = sum(((t.ns("wcet") + t.ns("suspension")) / t.exact_period for t in tasks), Fraction(0))
    if load > 1:
        return "undecided"
    slack = [(t.ns("wcet") + t.ns("suspension"), t.exact_period, t.ns("deadline") - t.ns("jitter")) for t in tasks]
    blocking = max(task.ns("blocking") for task in tasks)
    if any(d < c for c, _, d in slack):
        return "misses"
    if not blocking and all(d >= int(t) for _, t, d in slack):
        return "meets"
    # Longest interval to examine: at full load the excess repeats after a hyperperiod; below full load it is the
    # synchronous busy period or La of Baruah et al., whichever is shorter.
    latest = max(0, *(d for _, _, d in slack))
    if load == 1:
        limit = latest + math.ceil(lcm_of(t for _, t, _ in slack))
    else:
        excess = sum((c / t * (t - d) for c, t, d in slack), Fraction(blocking))
        limit = max(latest, math.ceil(excess / (1 - load)))
        busy = sum(c for c, _, _ in slack) + blocking
        for _ in range(_MOST_STEPS):
            longer = blocking + sum(
                -(-(busy + t.ns("jitter")) // t.exact_period) * (t.ns("wcet") + t.ns("suspension")) for t in tasks
            )
            if longer == busy or busy >= limit:
                break
            busy = longer
        limit = min(limit, busy) if longer == busy else limit
    points = sum(max(0, (limit - d) // t + 1) for _, t, d in slack)
    if points > _MOST_STEPS:
        raise ConfigError(
            f"the EDF test would have to examine {points} deadlines, at a load of {float(load):.6f}: round the periods "
            "so that they have small common multiples"
        )
    deadlines = sorted({d + k * t for _, t, d in slack for k in range(max(0, (limit - d) // t + 1))})
    fits = all(blocking + sum(max(0, (point - d) // t + 1) * c for c, t, d in slack) <= point for point in deadlines)
    return "meets" if fits else "misses"


def _bounds(cpu: int | None, tasks: Sequence[Task], ranked: dict[str, int]) -> Bounds:
    """Apply the utilisation tests to the tasks of one CPU."""
    shares = [task.utilisation for task in tasks]
    load = sum(shares, Fraction(0))
    density = sum((t.ns("wcet") / min(Fraction(t.ns("deadline")), t.exact_period) for t in tasks), Fraction(0))
    by_period = sorted(tasks, key=lambda task: task.exact_period)
    is_plain = all(t.ns("deadline") >= int(t.exact_period) and not t.jitter and not t.blocking for t in tasks) and all(
        ranked[a.name] > ranked[b.name] or (ranked[a.name] == ranked[b.name] and a.period == b.period)
        for a, b in itertools.pairwise(by_period)
    )
    # U <= n(2^(1/n) - 1) without a root is (1 + U/n)^n <= 2 (Liu & Layland, 1973; Bini, Buttazzo & Buttazzo, 2003).
    count = len(tasks)
    liu_layland = (1 + load / count) ** count <= 2 if is_plain else None
    hyperbolic = math.prod((1 + share for share in shares), start=Fraction(1)) <= 2 if is_plain else None
    return Bounds(cpu, load, density, liu_layland, hyperbolic, load <= RT_SHARE)


def partition(tasks: Iterable[Task], cpus: Iterable[int], *, most: Fraction | float = RT_SHARE) -> list[Task]:
    """Assign tasks to CPUs, first-fit decreasing: by falling utilisation, each to the first CPU that has room.

    Parameters
    ----------
    tasks : iterable of Task
        A task that has a CPU keeps it.
    cpus : iterable of int
        In the order in which they are filled.
    most : number
        Largest utilisation of a CPU; by default the kernel's 95 %. Tasks that fit do not necessarily meet their
        deadlines: check that with :func:`analyze`.

    Returns
    -------
    list of Task
        In the order given, each with its `cpu`.

    Raises
    ------
    ConfigError
        If a task does not fit on any CPU.
    """
    every, places = _checked(tasks), list(cpus)
    if not places:
        raise ConfigError("cpus=[]: give at least one CPU")
    limit = Fraction(most)
    used = {cpu: sum((t.utilisation for t in every if t.cpu == cpu), Fraction(0)) for cpu in places}
    chosen: dict[str, Task] = {task.name: task for task in every if task.cpu is not None}
    for task in sorted((t for t in every if t.cpu is None), key=lambda t: -t.utilisation):
        cpu = next((cpu for cpu in places if used[cpu] + task.utilisation <= limit), None)
        if cpu is None:
            room = ", ".join(f"CPU {cpu} has {float(limit - share):.3f} left" for cpu, share in used.items())
            raise ConfigError(
                f"{task.name} needs {float(task.utilisation):.3f} of a CPU, and none has room: {room}; add a CPU, "
                "shorten the task, or lengthen its period"
            )
        used[cpu] += task.utilisation
        chosen[task.name] = replace(task, cpu=cpu)
    return [chosen[task.name] for task in every]
