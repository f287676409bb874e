"""Results of a group's run: statistics, schedulability, age of data, a plot of the schedule, and files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from rtloop.errors import ConfigError
from rtloop.group import member
from rtloop.group.plan import tasks_of
from rtloop.settings import Duration, Settings

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

    from rtloop.analysis.results import Analysis
    from rtloop.child.process_loop import ProcessLoop
    from rtloop.group.chain import Chain
    from rtloop.group.data_age import Ages
    from rtloop.loop.loop import RTLoop
    from rtloop.stats.stats import Stats

__all__ = ["ages_of", "analyze_loops", "draw", "save_all", "stats_of"]


def stats_of(loops: Iterable[RTLoop | ProcessLoop]) -> Mapping[str, Stats]:
    """Return the statistics of each loop by its name; see :attr:`LoopGroup.stats`."""
    return MappingProxyType({loop.name: _stats_of(loop) for loop in loops})


def analyze_loops(
    settings: Mapping[str, Settings],
    stats: Mapping[str, Stats],
    wcet: Mapping[str, Duration],
    percentile: float | None,
) -> Analysis:
    """Analyze the loops as one system; see :meth:`LoopGroup.analyze`."""
    from rtloop.analysis.schedulability import analyze

    tasks, policy = tasks_of(settings, stats, wcet, percentile)
    return analyze(tasks, policy=policy)


def ages_of(
    chains: Sequence[Chain],
    settings: Mapping[str, Settings],
    stats: Mapping[str, Stats],
    wcet: Mapping[str, Duration],
    percentile: float | None,
    origin_ns: int | None,
) -> Ages:
    """Trace the age of data through the chains; see :meth:`LoopGroup.ages`."""
    from rtloop.analysis.results import remarks
    from rtloop.group.data_age import Ages, make_age

    analysis: Analysis | str
    notes: list[str] = []
    try:
        analysis = analyze_loops(settings, stats, wcet, percentile)
        of_the_run = list(remarks(analysis.rows))
        notes = [note for note in analysis.notes if note not in of_the_run]
    except ConfigError as error:
        analysis = str(error)
    return Ages([make_age(chain, stats, analysis, origin_ns) for chain in chains], notes)


def draw(
    name: str,
    stats: Mapping[str, Stats],
    path: str | os.PathLike[str] | None,
    at: str | Duration,
    duration: Duration | None,
) -> Figure:
    """Draw the measured schedule; see :meth:`LoopGroup.plot`."""
    from rtloop.stats.gantt import choose_window, draw_schedule

    every = list(stats.values())
    return draw_schedule(every, choose_window(every, at, duration), name=name, path=path)


def _stats_of(loop: RTLoop | ProcessLoop) -> Stats:
    """Return a loop's statistics; after a group's run their settings contain `group`, its name, and `origin_ns`."""
    run = member.run_of(loop)  # read first, so that the statistics of a later run cannot be attributed to this one
    stats = loop.stats
    if run is None or run.origin_ns is None or stats.is_simulated:
        return stats
    return replace(stats, settings={**stats.settings, "group": run.name, "origin_ns": run.origin_ns})


def save_all(every: Mapping[str, Stats], folder: str | os.PathLike[str]) -> list[Path]:
    """Write each loop's statistics to a file in the folder, named after the loop, and return the files."""
    from pathlib import Path  # here, because an import of rtloop has to be quick

    target = Path(folder)
    target.mkdir(exist_ok=True)
    names: list[str] = []
    for name in every:
        plain = re.sub(r"[^\w.-]+", "_", name).strip(".") or "loop"
        names.append(plain if plain not in names else f"{plain}-{len(names) + 1}")
    return [stats.save(target / f"{name}.npz") for name, stats in zip(names, every.values(), strict=True)]
