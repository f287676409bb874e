"""What a LoopGroup can say of its runs: statistics, schedulability, age of data, the schedule as a picture, files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
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
    from rtloop.group.chain import Chain
    from rtloop.group.data_age import Ages
    from rtloop.loop.loop import RTLoop
    from rtloop.stats.stats import Stats

__all__ = ["GroupResults"]


class GroupResults:
    """The part of a LoopGroup that looks at what its loops have done, and never changes it."""

    _name: str
    _loops: tuple[RTLoop, ...]
    _chains: Sequence[Chain]
    _wcet: Mapping[str, Duration]
    _origin_ns: int | None

    @property
    def settings(self) -> Mapping[str, Settings]:
        """What each loop asks for in this group, by its name."""
        raise NotImplementedError

    @property
    def stats(self) -> Mapping[str, Stats]:
        """Each loop's statistics by its name, of the present run or of the last one.

        After a run of the group their `settings` tell ``group``, its name, and ``origin_ns``.
        """
        return MappingProxyType({loop.name: _stats_of(loop) for loop in self._loops})

    def analyze(self, wcet: Mapping[str, Duration] | None = None, *, percentile: float | None = None) -> Analysis:
        """Find out whether all loops meet their deadlines, with the group's priorities and CPUs: `rtloop.analyze`.

        Parameters
        ----------
        wcet : mapping, optional
            The most CPU time of a step, by the loop's name, in place of the group's own. A loop without one gets its
            longest measured step.
        percentile : float, optional
            Instead of the longest step and the latest wake-up, this percentile: the answer is then no bound, and says
            so.

        Raises
        ------
        ConfigError
            Where a loop has neither run nor a `wcet`, or the loops' policies or CPUs cannot be analysed together.
        """
        from rtloop.analysis.schedulability import analyze

        tasks, policy = tasks_of(self.settings, self.stats, {**self._wcet, **(wcet or {})}, percentile)
        return analyze(tasks, policy=policy)

    def ages(self, wcet: Mapping[str, Duration] | None = None, *, percentile: float | None = None) -> Ages:
        """Tell how old the data is that the last loop of each chain acts on: as recorded, and at most.

        The age of a cycle is from the release of the first loop's cycle that has sensed to the end of its own step.
        It is traced through the records of all loops, and never less than the true one; the bound follows from the
        worst response times of :meth:`analyze`, and holds where no release is missed.

        Parameters
        ----------
        wcet, percentile
            As for :meth:`analyze`.
        """
        from rtloop.analysis.results import remarks
        from rtloop.group.data_age import Ages, make_age

        stats = self.stats
        analysis: Analysis | str
        notes: list[str] = []
        try:
            analysis = self.analyze(wcet, percentile=percentile)
            of_the_run = list(remarks(analysis.rows))
            notes = [note for note in analysis.notes if note not in of_the_run]
        except ConfigError as error:
            analysis = str(error)
        return Ages([make_age(chain, stats, analysis, self._origin_ns) for chain in self._chains], notes)

    def plot(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        at: str | Duration = "last",
        duration: Duration | None = None,
    ) -> Figure:
        """Draw the measured schedule of all loops over a hyperperiod as a Gantt chart, from their records.

        Parameters
        ----------
        path : path, optional
            Where to write it, in the format of its suffix.
        at : {"last", "worst"} or duration
            Which hyperperiod: the last of which all loops have records, the one with the longest response in periods
            of its loop (and as many more as that takes to end), or the one so much time after the origin.
        duration : duration, optional
            How long the picture's window is, instead of a hyperperiod; with a time as `at` it begins there. By default
            ten hyperperiods where all periods are equal. Beyond 300 cycles it is cut, and says so.

        Raises
        ------
        ConfigError
            Where a loop has no records, or there are none of that time.
        ImportError
            Where matplotlib is missing: ``pip install 'rtloop[plot]'``.
        """
        from rtloop.stats.gantt import choose_window, draw_schedule

        every = list(self.stats.values())
        return draw_schedule(every, choose_window(every, at, duration), name=self._name, path=path)

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write each loop's :attr:`stats` to ``folder/NAME.npz``, for ``rtloop plot``, ``export`` and ``analyze``.

        Parameters
        ----------
        folder : path
            Made where there is none. Files of these names are replaced, others stay.

        Returns
        -------
        list of pathlib.Path
            The files, in the order of the loops. Where a name has a space or a slash, the file's has ``_``.
        """
        return _save_all(self.stats, folder)


def _stats_of(loop: RTLoop) -> Stats:
    """Return a loop's statistics; after a group's run its settings tell `group`, the name, and `origin_ns`."""
    run = member.run_of(loop)  # before the statistics: those of a later run are not taken for this one's
    stats = loop.stats
    if run is None or run.origin_ns is None or stats.is_simulated:
        return stats
    return replace(stats, settings={**stats.settings, "group": run.name, "origin_ns": run.origin_ns})


def _save_all(every: Mapping[str, Stats], folder: str | os.PathLike[str]) -> list[Path]:
    """Write each loop's statistics to a file in the folder, named as the loop, and return the files."""
    from pathlib import Path  # here, for an import of rtloop is to be quick

    target = Path(folder)
    target.mkdir(exist_ok=True)
    names: list[str] = []
    for name in every:
        plain = re.sub(r"[^\w.-]+", "_", name).strip(".") or "loop"
        names.append(plain if plain not in names else f"{plain}-{len(names) + 1}")
    return [stats.save(target / f"{name}.npz") for name, stats in zip(names, every.values(), strict=True)]
