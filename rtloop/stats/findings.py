"""What in a Stats deserves a look, in sentences: for a person who does not read tables of percentiles every day."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rtloop.stats import guard_summary
from rtloop.stats.table import describe_refusal, is_supported
from rtloop.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rtloop.stats.stats import Stats

__all__ = ["Finding", "elapsed_releases", "find"]

#: A worst wake-up beyond this share of the period, and this many medians, is worth a sentence.
_SHARE, _MEDIANS = 0.1, 10


class Finding(NamedTuple):
    """A sentence or two, and whether it is bad news (``"bad"``), a caution (``"note"``) or good (``"good"``)."""

    level: str
    text: str


def elapsed_releases(stats: Stats) -> tuple[int, int] | None:
    """Return the least and the most that ``cycles + missed`` can be of a run whose account adds up.

    They differ by the releases that the last cycle has passed, which no cycle comes after. None where the grid cannot
    tell: without records, with a wait of the loop's own, after a shift.
    """
    records, period = stats.records, stats.settings.get("period_ns", 0)
    if stats.has_own_wait or not len(records) or not period or stats.settings.get("overrun") == "shift":
        return None
    release, end = int(records["release"][-1]), int(records["end"][-1])
    periods, off = divmod(release - (end - stats.duration_ns), period)
    if off:
        return None
    behind = max(0, -(-(end - release - period) // period))
    return periods + 1, periods + 1 + behind


def find(stats: Stats) -> list[Finding]:
    """Return what to look at, the worst first; where there is nothing, that."""
    if not stats.cycles:
        return [Finding("note", "No cycle ran: there is nothing to see but the settings.")]
    found = [Finding("bad", text) for text in _bad(stats)]
    if stats.is_simulated:
        if not found:
            found.append(Finding("good", "No cycle overran, and no release was missed, in virtual time."))
        text = "Simulated: nothing was measured, and the times are those of the models. See Settings which."
        return [*found, Finding("note", text)]
    if not found:
        held = "" if stats.has_own_wait else " No cycle overran, and no release was missed."
        found.append(Finding("good", f"Nothing went wrong that the loop can see.{held}"))
    if stats.guard and not guard_summary.count(stats.guard):
        found.append(Finding("good", f"{guard_summary.sentence(stats.guard)}."))
    return found + [Finding("note", text) for text in _notes(stats)]


def _bad(stats: Stats) -> Iterator[str]:
    if stats.state == "failed":
        yield "The loop failed: it stopped by itself, with an error."
    if stats.overruns and not stats.has_own_wait:
        yield _overruns(stats)
    if stats.missed and not stats.has_own_wait:
        share = 100 * stats.missed / (stats.missed + stats.cycles)
        yield (
            f"{_count(stats.missed, 'release')} ({share:.2g} %) never ran, for the cycle before took too long or the"
            " thread was not there: outputs stood still meanwhile."
        )
    if stats.stalls:
        yield (
            f"{_count(stats.stalls, 'gap')} of more than a second: the machine was suspended, the process stopped, or"
            " the clock stepped. What stands beside it in the figures is no fault of the loop's."
        )
    faults = (stats.page_faults.minor or 0) + (stats.page_faults.major or 0)
    if faults:
        yield (
            f"{_count(faults, 'page fault')} in the loop's thread: it touched memory that was not locked or not yet"
            " there. Allocate in setup(), and look at the grant memory_lock."
        )
    violations = guard_summary.count(stats.guard)
    if violations:
        first = stats.guard.get("violations", [])[:1]
        text = f", the first one in cycle {first[0]['cycle']}: {guard_summary.describe(first[0])}" if first else ""
        yield f"The guards counted {_count(violations, 'violation')}{text}."
    for grant in stats.grants:
        if not grant.ok:
            yield f"Not granted: {describe_refusal(grant)}. The figures are those of a degraded loop."


def _overruns(stats: Stats) -> str:
    period, records = stats.settings.get("period_ns", 0), stats.records
    text = f"{_count(stats.overruns, 'cycle')} of {stats.cycles:,} ({100 * stats.overruns / stats.cycles:.2g} %) ended"
    text += " after the next release."
    if stats.response.count:
        text += f" The longest response was {_short(stats.response.max)}"
        text += f", {stats.response.max / period:.3g} periods." if period else "."
    late = records[records["end"] - records["release"] > period] if period else records[:0]
    if len(late):
        slow = int(np.count_nonzero(late["end"] - late["start"] > period))
        text += f" Of the {len(late):,} that are recorded"
        if slow:
            text += (
                f", {slow:,} had a step that alone took longer than the period: look at the code and what it waits for"
            )
        if len(late) - slow:
            text += (
                f"{';' if slow else ','} {len(late) - slow:,} began too late, though the step was short enough:"
                " behind a slow cycle, or because something else had the CPU"
            )
        text += "."
    return text


def _notes(stats: Stats) -> Iterator[str]:
    period, latency, records = stats.settings.get("period_ns", 0), stats.latency, stats.records
    involuntary = stats.context_switches.involuntary or 0
    if involuntary:
        yield (
            f"The thread lost its CPU {_count(involuntary, 'time')} against its will: to a thread of higher or equal"
            " priority, an unpinned CPU's balancing, or real-time throttling."
        )
    if latency.count and latency.max > max(_SHARE * period, _MEDIANS * latency.percentile(50)):
        yield (
            f"The worst wake-up came {_short(latency.max)} late, {latency.max / max(latency.percentile(50), 1):,.0f}"
            " times the median: see under Worst cycles whether they come in groups or at a regular distance."
        )
    measured = stats.execution.count
    if not is_supported(stats.execution, 99.9):
        yield (
            f"Only {_count(measured, 'cycle')} measured: rare delays cannot have shown themselves. Run it for longer"
            " before you rely on the maxima."
        )
    if 0 < len(records) < stats.cycles:
        text = f"The time line and the worst cycles are those of the last {len(records):,} of {stats.cycles:,} cycles;"
        text += " the table and the histograms hold all since the warm-up."
        if latency.count and latency.max > int((records["start"] - records["release"]).max()):
            text += " The worst wake-up of the run is older, and is not among them; a greater record=... keeps more."
        yield text
    if stats.has_own_wait:
        yield "The loop is paced by a wait of its own: look at the interval and the execution time."
    if stats.host.get("is_virtual"):
        yield "It ran in a virtual machine: what the host takes away shows as latency; nothing within can prevent it."


def _short(ns: float) -> str:
    return format_duration(float(f"{ns:.2e}"))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
