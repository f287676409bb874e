"""Output of ``rtloop latency``: progress, tables, records around a breakpoint, histogram, conclusion."""

from __future__ import annotations

import statistics
import time
from contextlib import nullcontext
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

import numpy as np

from rtloop.machine.latency.tail import Tail, conclude
from rtloop.tools.options import as_options
from rtloop.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table

    from rtloop.machine.latency.runner import Run
    from rtloop.stats.histogram import Histogram
    from rtloop.stats.stats import Stats
    from rtloop.system.grant import Grant

__all__ = ["Progress", "conclude_run", "draw", "join_pairs", "print_comparison", "print_early", "print_run", "tails_of"]

_PERCENTILES = (50, 99, 99.9, 99.99)
_SHOWN_RECORDS = 8
_BARS = 24


class Progress:
    """Progress bar with the worst latency so far; nothing without a terminal, or for less than a second."""

    def __init__(self, console: Console, asked: dict[str, Any]) -> None:
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self._seconds = asked["duration_ns"] * 1e-9
        self._bars = Bars(
            BarColumn(bar_width=30), TextColumn("{task.fields[note]}"), TimeRemainingColumn(),
            console=console, auto_refresh=False, transient=True,
        )  # fmt: skip
        self._is_shown = console.is_terminal and self._seconds > 1
        self._live = self._bars if self._is_shown else nullcontext()
        self._task = self._bars.add_task("", total=self._seconds, note="")
        self._next = 0.0

    def __enter__(self) -> Progress:
        self._live.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._live.__exit__(*exception)

    def update(self, seconds: float, stats: list[Stats]) -> None:
        """Update the bar."""
        if not self._is_shown or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + 0.25
        worst = max((one.latency.max for one in stats if one.latency.count), default=0)
        cycles = sum(one.cycles for one in stats)
        note = f"{cycles:,} cycles, worst {format_duration(worst, 1)}"
        self._bars.update(self._task, completed=min(seconds, self._seconds), note=note)
        self._bars.refresh()


def _cells(histogram: Histogram) -> list[str]:
    if not histogram.count:
        return ["-"] * (len(_PERCENTILES) + 1)
    figures = [*histogram.percentile(_PERCENTILES).tolist(), histogram.max]
    # With too few cycles a percentile is just the maximum.
    is_known = [*(histogram.count * (100 - q) / 100 >= 1 for q in _PERCENTILES), True]
    return [format_duration(x, 1) if known else "-" for x, known in zip(figures, is_known, strict=True)]


def _new_table(title: str, first: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, min_width=3, overflow="fold")
    for name in (*(f"{q:g} %" for q in _PERCENTILES), "max"):
        table.add_column(name, justify="right", overflow="fold")  # in a narrow window a unit is wrapped, not cut
    return table


def print_run(out: Console, run: Run, cpus: Sequence[Any], *, histogram: bool) -> None:
    """Print a table with a row for each loop, the refused requests, and whatever else was asked for."""
    table = _new_table("Wake-up latency", "CPU")
    for name in ("cycles", "missed"):
        table.add_column(name, justify="right", overflow="fold")
    for cpu, stats in zip(cpus, run.stats, strict=True):
        name = "any" if cpu == "auto" else str(cpu)
        table.add_row(name, *_cells(stats.latency), f"{stats.cycles:,}", f"{stats.missed:,}")
    out.print(table)
    faults = [x for stats in run.stats for x in stats.page_faults if x is not None]
    if any(faults):
        out.print(f"{sum(faults):,} page faults in the loops: their memory was not locked.", highlight=False)
    if histogram:
        for cpu, stats in zip(cpus, run.stats, strict=True):
            _print_histogram(out, "" if cpu == "auto" else f"CPU {cpu}", stats.latency)
    for cpu, stats, hit in zip(cpus, run.stats, run.hits, strict=True):
        if hit:
            _print_records(out, cpu, stats)
    _print_refused(out, run.stats)


def _print_histogram(out: Console, whose: str, histogram: Histogram) -> None:
    """Print bars with two logarithmic axes, because rare latencies matter most."""
    if not histogram.count:
        return
    used = np.flatnonzero(histogram.counts)
    lower, upper = float(max(histogram.edges[used[0]], 1.0)), float(histogram.edges[used[-1] + 1])
    edges = np.geomspace(lower, max(upper, 2 * lower), _BARS + 1)
    middles = np.sqrt(np.maximum(histogram.edges[:-1], 1.0) * np.maximum(histogram.edges[1:], 1.0))
    counts = np.histogram(np.clip(middles[used], edges[0], edges[-1]), bins=edges, weights=histogram.counts[used])[0]
    title = f"{whose}: cycles" if whose else "Cycles"
    out.print(f"\n{title} by wake-up latency, the bars on a logarithmic scale", highlight=False)
    for edge, count in zip(edges, counts, strict=False):
        bar = "█" * round(40 * np.log1p(count) / np.log1p(counts.max()))
        out.print(f"{format_duration(edge, 1):>10} {int(count):>12,} {bar}", highlight=False)


def _print_records(out: Console, cpu: Any, stats: Stats) -> None:
    """Print the last cycles up to the breakpoint."""
    records = stats.records[-_SHOWN_RECORDS:]
    first = stats.cycles - len(records)
    where = "" if cpu == "auto" else f" on CPU {cpu}"
    out.print(f"\nThe last cycles{where}, the late one at the end:", highlight=False)
    for index, record in enumerate(records, first):
        late = int(record["start"] - record["release"])
        note = "   (warm-up, which cannot stop the run)" if index < stats.warmup else ""
        out.print(
            f"  release {int(record['release']) / 1e9:.6f} s   {format_duration(late, 1):>10} late{note}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip


def _refused(stats: Sequence[Stats]) -> list[Grant]:
    """Return the refused grants of all loops, each once."""
    return list({grant.name: grant for one in stats for grant in one.grants if not grant.ok}.values())


def print_early(err: Console, refused: Sequence[Grant]) -> None:
    """Print which requests are refused of those that were made by an option, before the first cycle."""
    err.print("[yellow]The loop starts without what was asked for:[/]", highlight=False)
    err.print(_describe(*refused), highlight=False, markup=False, soft_wrap=True)


def _describe(*refused: Grant) -> str:
    from rtloop.system.grant import describe_refused_briefly

    return as_options(describe_refused_briefly(*refused))


def _print_refused(out: Console, stats: Sequence[Stats]) -> None:

    if refused := _refused(stats):
        out.print("\n[yellow]The loop ran degraded.[/] What is missing:", highlight=False)
        out.print(_describe(*refused), highlight=False, markup=False, soft_wrap=True)


def tails_of(run: Run) -> list[Tail]:
    """Return the tail of each loop."""
    return [Tail(stats.latency, stats.missed) for stats in run.stats]


def conclude_run(run: Run, period_ns: int) -> str:
    """Return the conclusion in a few sentences."""
    hit = max(run.hits)
    if hit:
        return f"A wake-up came {format_duration(hit, 1)} late, and the measurement ended there."
    return ("Interrupted. " if run.is_interrupted else "") + conclude(tails_of(run), period_ns)


def join_pairs(pairs: Sequence[tuple[Histogram, Histogram]]) -> dict[str, Histogram]:
    """Return the joined histograms of both sides."""
    ours, theirs = zip(*pairs, strict=True)
    return {"rtloop": reduce(add, ours), "cyclictest": reduce(add, theirs)}


def print_comparison(
    out: Console | None,
    pairs: Sequence[tuple[Histogram, Histogram]],
    stats: Sequence[Stats] = (),
    *,
    histogram: bool = False,
) -> dict[str, Any]:
    """Print both sides and the medians of the pairs' ratios if `out` is given; return the same for JSON.

    `stats` are those of our side: its refused grants are shown, because they make the two sides unequal.
    """
    ratios = {f"p{q}": statistics.median(a.percentile(q) / b.percentile(q) for a, b in pairs) for q in (50, 99)}
    if out is not None:
        sides = join_pairs(pairs)
        table = _new_table("Wake-up latency, all pairs", "")
        for name, side in sides.items():
            table.add_row(name, *_cells(side))
        out.print(table)
        if histogram:
            for name, side in sides.items():
                _print_histogram(out, name, side)
            out.print()
        out.print(
            f"Median of the pairs' ratios, rtloop to cyclictest: {ratios['p50']:.2f} at 50 %, {ratios['p99']:.2f} at"
            " 99 %. Maxima cannot be compared: a single interruption decides them.",
            highlight=False,
        )
        _print_refused(out, stats)
    return {
        "pairs": [{"rtloop": a.to_dict(), "cyclictest": b.to_dict()} for a, b in pairs],
        "ratios": ratios,
        "refused": [grant.to_dict() for grant in _refused(stats)],
    }


def draw(histograms: dict[str, Histogram], path: Path) -> None:
    """Draw the named latencies into one picture."""
    from rtloop.stats.plots import draw_histograms, new_figure, save_figure

    figure = new_figure(9.6, 5.0)
    axes = figure.subplots()
    draw_histograms(axes, histograms)
    axes.set_title("Wake-up latency of an empty loop", loc="left")
    save_figure(figure, path)
