"""Findings: sentences on what deserves a look in a Stats, for readers who are not used to tables of percentiles."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rtloop.settings import exact_period
from rtloop.stats import guard_summary
from rtloop.stats.table import collections_of, describe_refusal, is_supported
from rtloop.units import format_duration, format_rounded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rtloop.stats.explanation import Explanation
    from rtloop.stats.stats import Stats

__all__ = ["Finding", "elapsed_releases", "find"]

#: A worst wake-up beyond this share of the period, and this many medians, becomes a finding.
_SHARE, _MEDIANS = 0.1, 10
#: A sleep of the loop is shorter than this, or is divided into longer ones.
_LOOK_NS = 40_000_000
#: Sleeps of the loop that need not belong to a cycle, as at a step of its clock.
_SLACK = 10


#: Culprits of late cycles that are named.
_MOST_NAMED = 3
#: Grants on threads that a step may wait for; their value is 0 or None if there were none.
_THREADS = {"thread_pools": "Thread pools of libraries", "started_threads": "Threads that a loop has started"}


class Finding(NamedTuple):
    """A sentence or two, and its level: ``"bad"``, ``"note"`` or ``"good"``."""

    level: str
    text: str


def elapsed_releases(stats: Stats) -> tuple[int, int] | None:
    """Return the smallest and the largest ``cycles + missed`` that the recorded releases allow.

    They differ by the releases that the last cycle has passed, because no cycle follows it. None if the grid cannot
    tell: without records, with the loop's own wait, after a shift.
    """
    records, period = stats.records, exact_period(stats.settings)
    if stats.has_own_wait or not len(records) or not period or stats.settings.get("overrun") == "shift":
        return None
    release, end = int(records["release"][-1]), int(records["end"][-1])
    # A step of the clock moves all stamps, and the waits for its new grid are not periods.
    elapsed = release - (end - stats.duration_ns) - stats.clock_gap_ns
    periods = round(elapsed / period)
    if abs(elapsed - periods * period) > stats.clock_steps + 1:  # the first and the last release are rounded
        return None
    behind = max(0, math.ceil((end - release - period) / period))
    return periods + 1, periods + 1 + behind


def find(stats: Stats) -> list[Finding]:
    """Return the findings, the worst first; never empty."""
    if not stats.cycles:
        return [Finding("note", "No cycle ran: there are no figures, only the settings.")]
    found = [Finding("bad", text) for text in _bad(stats)]
    if stats.is_simulated:
        if not found:
            found.append(Finding("good", "No cycle overran, and no release was missed, in virtual time."))
        text = "Simulated: nothing was measured, and the times are those of the models that Settings names."
        return [*found, Finding("note", text)]
    if not found:
        held = "" if stats.has_own_wait else " No cycle overran, and no release was missed."
        found.append(Finding("good", f"The loop has detected no fault.{held}"))
    if stats.guard and not guard_summary.count(stats.guard):
        found.append(Finding("good", f"{guard_summary.sentence(stats.guard)}."))
    return found + [Finding("note", text) for text in _notes(stats)]


def _bad(stats: Stats) -> Iterator[str]:
    for grant in stats.grants:
        if grant.lost is not None:
            yield f"Lost while the loop ran: {describe_refusal(grant)}. The figures since are those of a degraded loop."
    if stats.state == "failed":
        yield "The loop failed: it ended with an error."
    if stats.overruns and not stats.has_own_wait:
        yield _overruns(stats)
    if stats.missed and not stats.has_own_wait:
        share = 100 * stats.missed / (stats.missed + stats.cycles)
        yield (
            f"The loop missed {_count(stats.missed, 'release')} ({share:.2g} %), because the cycle before took too long"
            " or the thread did not get the CPU: outputs did not change meanwhile."
        )
    if stats.shifted_ns and stats.settings.get("overrun") == "shift" and stats.overruns and not stats.has_own_wait:
        share = 100 * abs(stats.shifted_ns) / max(1, stats.duration_ns)
        yield (
            f"The grid moved by {format_rounded(stats.shifted_ns)} in all ({share:.2g} % of the run), after overruns:"
            " the loop ran slower than its period, and out of step with others."
        )
    if stats.device_missed:
        share = 100 * stats.device_missed / (stats.device_missed + (stats.device_cycles or 0))
        yield (
            f"The loop missed {_count(stats.device_missed, 'cycle')} of the device ({share:.2g} %): a"
            " step took longer than the device's cycle, or the thread did not get the CPU."
        )
    if stats.stalls:
        yield (
            f"{_count(stats.stalls, 'gap')} of more than a second: the machine was suspended, or the process"
            " stopped. The delays of that time in the figures are not caused by the loop."
        )
    if stats.clock_steps:
        sizes = ", ".join(f"{'+' if ns > 0 else ''}{format_duration(ns)}" for ns in stats.clock_step_sizes[-4:])
        yield (
            f"The clock {stats.settings.get('clock', '')} was set {_count(stats.clock_steps, 'time')} during the run"
            f" ({'the last: ' if stats.clock_steps > 4 else ''}{sizes}). The loop continued with its next release on"
            " the newly set clock; times before and after a step cannot be compared."
        )
    faults = (stats.page_faults.minor or 0) + (stats.page_faults.major or 0)
    if faults:
        yield (
            f"{_count(faults, 'page fault')} in the loop's thread: it touched memory that was not locked or not yet"
            " present. Allocate in setup(), and look at the grant memory_lock."
        )
    violations = guard_summary.count(stats.guard)
    if violations:
        first = min(stats.guard.get("violations", []), key=lambda v: v["cycle"], default=None)
        text = f", the first one in cycle {first['cycle']}: {guard_summary.describe(first)}" if first else ""
        yield f"The guards counted {_count(violations, 'violation')}{text}."
    for grant in stats.grants:
        if not grant.ok and grant.lost is None:
            yield f"Not granted: {describe_refusal(grant)}. The loop ran in degraded mode."


def _overruns(stats: Stats) -> str:
    period, records = stats.settings.get("period_ns", 0), stats.records
    text = f"{_count(stats.overruns, 'cycle')} of {stats.cycles:,} ({100 * stats.overruns / stats.cycles:.2g} %) ended"
    text += " after the next release."
    if stats.response.count:
        text += f" The longest response was {format_rounded(stats.response.max)}"
        text += f", {stats.response.max / period:.3g} periods." if period else "."
    late = records[records["end"] - records["release"] > period] if period else records[:0]
    if len(late):
        slow = int(np.count_nonzero(late["end"] - late["start"] > period))
        text += f" Of the {len(late):,} that are recorded"
        if slow:
            text += f", {slow:,} had a step that alone took longer than the period: look at its code and its waits"
        if len(late) - slow:
            text += (
                f"{';' if slow else ','} {len(late) - slow:,} began too late, though the step was short enough:"
                " after a slow cycle, or because something else had the CPU"
            )
        text += "."
    return text


def _notes(stats: Stats) -> Iterator[str]:
    period, latency, records = stats.settings.get("period_ns", 0), stats.latency, stats.records
    yield from _explained(stats)
    for grant in stats.grants:
        if grant.name in _THREADS and grant.value:
            yield f"{_THREADS[grant.name]}: {grant.granted}. {grant.detail[:1].upper()}{grant.detail[1:]}."
    involuntary = stats.context_switches.involuntary or 0
    if waits := _waits(stats):
        gil = ", or the interpreter" if any(grant.name == "gil" for grant in stats.grants) else ""
        yield (
            f"The step itself gave up the CPU, at least {_count(waits, 'time')}: it waited for a lock, a device, or"
            f" another thread, such as one of a library's pool{gil}."
        )
    if involuntary:
        yield (
            f"The thread was preempted {_count(involuntary, 'time')}: by a thread of higher or equal priority, by load"
            " balancing of an unpinned thread, or by real-time throttling."
        )
    collections, longest, missed = collections_of(stats)
    if missed:
        yield (
            f"{_count(missed, 'collection')} of garbage went unmeasured, because the program removed rtloop's entry"
            " from gc.callbacks. How long a step in Python waited for them is unknown."
        )
    if longest > _SHARE * period > 0:
        yield (
            f"Python's garbage collector ran {_count(collections, 'time')}, for up to"
            f" {format_rounded(longest)}, and a step in Python waits for it: gc.freeze() before the start, or"
            " gc.disable()."
        )
    if latency.count and latency.max > max(_SHARE * period, _MEDIANS * latency.percentile(50)):
        yield (
            f"The worst wake-up came {format_rounded(latency.max)} late,"
            f" {latency.max / max(latency.percentile(50), 1):,.0f} times the median: see under"
            " Worst cycles whether such delays come in groups or at regular intervals."
        )
    measured = stats.execution.count
    if not is_supported(stats.execution, 99.9):
        yield (
            f"Only {_count(measured, 'cycle')} measured: rare delays may not have occurred yet. Run it for longer"
            " before you rely on the maxima."
        )
    if 0 < len(records) < stats.cycles:
        text = f"The time line and the worst cycles show the last {len(records):,} of {stats.cycles:,} cycles;"
        text += " the table and the histograms contain all since the warm-up."
        if latency.count and latency.max > int((records["start"] - records["release"]).max()):
            text += " The worst wake-up of the run is older, and is not among them; a larger record=... keeps more."
        yield text
    if stats.has_own_wait:
        yield "The loop is paced by its own wait: look at the interval and the execution time."
    if stats.host.get("is_virtual"):
        yield "It ran in a virtual machine: time taken by the host shows as latency, and nothing inside can prevent it."


def _explained(stats: Stats) -> Iterator[str]:
    """Tell what delayed most of the late cycles that were traced, with the worst of them."""
    every = stats.explanations or ()
    names: dict[str, list[Explanation]] = {}
    for one in every:
        names.setdefault(one.name, []).append(one)
    unknown = len(names.pop("", []))
    for name in sorted(names, key=lambda name: -len(names[name]))[:_MOST_NAMED]:
        worst = max(names[name], key=lambda one: one.delay_ns)
        total = _count(len(every), "late cycle")
        who = name.replace("the ", "The ", 1) if name.startswith("the ") else name  # a thread's name stays as it is
        yield f"{who} delayed {len(names[name]):,} of the {total} that were traced. The worst: {worst}."
    if unknown and not names:
        yield f"{_count(unknown, 'late cycle')} could not be explained by the trace: see stats.explain()."


def _waits(stats: Stats) -> int:
    """Return how often the step has slept at least; 0 if that cannot be told from the loop's own sleeps."""
    voluntary = stats.context_switches.voluntary or 0
    if stats.has_own_wait or stats.waiting.count:
        return 0
    own = stats.cycles + _SLACK
    if stats.settings.get("period_ns", 0) > _LOOK_NS:  # a longer sleep is divided, to look for a command
        own += stats.duration_ns // _LOOK_NS
    return max(0, voluntary - own)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
