"""Trace of runs for Perfetto and Chrome: the JSON trace-event format, with a slice for each cycle."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rtloop.stats.records import (
    exact_period_of,
    find_missed,
    find_overruns,
    first_index,
    have_one_origin,
    on_one_clock,
    period_of,
    recorded_swaps,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rtloop.tools.saved_runs import Run

__all__ = ["to_trace"]

_STEPS, _WAITS, _RELEASES, _OVERRUNS, _SWAPS = 1, 2, 3, 4, 5


def to_trace(runs: Sequence[Run]) -> str:
    """Return the trace: a process for each run, with tracks of its steps, latencies, releases, overruns and swaps.

    Instants have tracks of their own, because viewers hide an instant at the beginning of a slice of its track.

    Times are microseconds with three decimals, so that no nanosecond is lost, from the first recorded release on:
    readers of the format hold them as doubles, which cannot hold nanoseconds since the epoch. Runs on one clock that
    overlap in time, or are of one group's run, keep their relative places; others begin at 0 each. Times before a step
    of the clock are shown on the clock as it was at the end.
    """
    runs = [run._replace(stats=on_one_clock(run.stats)) for run in runs]
    origins = _origins(runs)
    lines = [json.dumps(event) for event in _names(runs)]
    for number, (run, origin) in enumerate(zip(runs, origins, strict=True), start=1):
        lines += _events(run, number, origin)
    about = {
        "rtloop": [
            {
                "name": run.stats.name,
                "label": run.label,
                "clock": run.stats.settings.get("clock"),
                "origin_ns": origin,
                "period_ns": period_of(run.stats),
                "cycles": run.stats.cycles,
                "recorded": len(run.stats.records),
            }
            for run, origin in zip(runs, origins, strict=True)
        ]
    }
    body = ",\n".join(lines)
    return f'{{"displayTimeUnit": "ns", "otherData": {json.dumps(about)},\n"traceEvents": [\n{body}\n]}}\n'


def _origins(runs: Sequence[Run]) -> list[int]:
    """Return the time 0 of each run, ns on its clock."""
    spans = []
    for run in runs:
        records = run.stats.records
        first = int(min(records["release"][0], records["start"][0])) if len(records) else 0
        spans.append((first, int(records["end"][-1]) if len(records) else 0))
    used = sorted(span for span, run in zip(spans, runs, strict=True) if len(run.stats.records))
    clocks = {(run.stats.settings.get("clock"), str(sorted(run.stats.host.items()))) for run in runs}
    reach = used[0][1] if used else 0
    together = len(clocks) == 1
    # The loops of one group's run are together, whether their records meet or not.
    if not have_one_origin([run.stats for run in runs]):
        for first, last in used[1:]:
            together = together and first <= reach
            reach = max(reach, last)
    return [used[0][0]] * len(runs) if together and used else [first for first, _ in spans]


def _names(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    for number, run in enumerate(runs, start=1):
        group = run.stats.settings.get("group")
        name = run.label if group is None else f"{group}/{run.label}"
        yield {"ph": "M", "pid": number, "name": "process_name", "args": {"name": name}}
        yield {"ph": "M", "pid": number, "name": "process_sort_index", "args": {"sort_index": number}}
        tracks = {_STEPS: "steps"}
        if not run.stats.has_own_wait:
            tracks |= {_WAITS: "wake-up latency", _RELEASES: "releases", _OVERRUNS: "overruns"}
        if recorded_swaps(run.stats):
            tracks[_SWAPS] = "swaps"
        for track, name in tracks.items():
            yield {"ph": "M", "pid": number, "tid": track, "name": "thread_name", "args": {"name": name}}
            yield {"ph": "M", "pid": number, "tid": track, "name": "thread_sort_index", "args": {"sort_index": track}}


def _us(ns: int) -> str:
    """Format nanoseconds as microseconds, without floating point."""
    sign, ns = ("-", -ns) if ns < 0 else ("", ns)
    return f"{sign}{ns // 1000}.{ns % 1000:03d}"


def _events(run: Run, pid: int, origin: int) -> Iterator[str]:
    """Yield the events of one run as JSON, in the order of time within each track."""
    stats = run.stats
    releases, starts, ends = (stats.records[name].tolist() for name in ("release", "start", "end"))
    overrun, missed = find_overruns(stats).tolist(), find_missed(stats).tolist()
    period, first, busy_until = period_of(stats), first_index(stats), None
    swaps = dict(recorded_swaps(stats))
    for number, (release, start, end) in enumerate(zip(releases, starts, ends, strict=True)):
        place = f'"pid": {pid}, "tid": {_STEPS}'
        if missed[number]:
            at, count = release - round(missed[number] * exact_period_of(stats)), missed[number]
            yield (
                f'{{"ph": "i", "s": "t", "pid": {pid}, "tid": {_RELEASES}, "name": "missed", "cat": "missed", '
                f'"ts": {_us(at - origin)}, '
                f'"args": {{"releases": {count}}}}}'
            )
        if not stats.has_own_wait:
            yield (
                f'{{"ph": "i", "s": "t", "pid": {pid}, "tid": {_RELEASES}, "name": "release", "cat": "release", '
                f'"ts": {_us(release - origin)}, "args": {{"cycle": {first + number}}}}}'
            )
        if not stats.has_own_wait and start > release:
            # Two releases may wait at once, but slices of a track must not overlap: one begins where the other ends.
            begin = release if busy_until is None else min(max(release, busy_until), start)
            yield (
                f'{{"ph": "X", "pid": {pid}, "tid": {_WAITS}, "name": "latency", "cat": "latency", '
                f'"ts": {_us(begin - origin)}, "dur": {_us(start - begin)}, '
                f'"args": {{"cycle": {first + number}, "latency_ns": {start - release}}}}}'
            )
        busy_until = start
        cycle = first + number
        if number in swaps:
            names = json.dumps({"cycle": cycle, "former": swaps[number].former, "successor": swaps[number].successor})
            yield (
                f'{{"ph": "i", "s": "t", "pid": {pid}, "tid": {_SWAPS}, "name": "swap", "cat": "swap", '
                f'"ts": {_us(start - origin)}, "args": {names}}}'
            )
        latency = "" if stats.has_own_wait else f', "latency_ns": {start - release}, "response_ns": {end - release}'
        yield (
            f'{{"ph": "X", {place}, "name": "step", "cat": "step", "ts": {_us(start - origin)}, '
            f'"dur": {_us(end - start)}, "args": {{"cycle": {cycle}, "execution_ns": {end - start}{latency}}}}}'
        )
        if overrun[number]:
            yield (
                f'{{"ph": "i", "s": "t", "pid": {pid}, "tid": {_OVERRUNS}, "name": "overrun", "cat": "overrun", '
                f'"ts": {_us(end - origin)}, '
                f'"args": {{"cycle": {first + number}, "late_ns": {end - release - period}}}}}'
            )
