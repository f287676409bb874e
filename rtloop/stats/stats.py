"""Stats: the figures of a run with their tables, plots and files."""

from __future__ import annotations

import errno
import io
import os
from dataclasses import MISSING, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rtloop.errors import ConfigError
from rtloop.stats import explanation, table, validation
from rtloop.stats.figures import FORMAT, HISTOGRAMS, PAIRS, VERSION, Figures, ParameterChange, Swap
from rtloop.stats.histogram import Histogram
from rtloop.stats.part import last_part
from rtloop.system.fileio import replaced
from rtloop.system.grant import Grant

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from rtloop.settings import Duration

__all__ = ["Stats"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stats(Figures):
    """An immutable snapshot of the figures of a run.

    Terms: *release* is the planned time of a cycle, *start* the time when the loop had woken up, *end* the time when
    ``step`` had returned. Wake-up latency is start - release, execution time end - start, response time end - release,
    interval the time from one start to the next. An overrun is a cycle whose end is later than the next release. A
    missed release is one without a cycle. Always ``cycles + missed ==`` releases elapsed on the grid.

    A loop with its own ``wait``, paced by hardware, does not follow the grid of its period. Its `latency` and
    `response` are empty, and its `overruns`, `missed` and `late` refer to the nominal grid. `interval` and `execution`
    are measured as for any other loop.

    A simulated run (`is_simulated`) has virtual times, and no page faults, context switches or stack: None, and 0.

    Attributes
    ----------
    name, state : str
        Name of the loop, and its state when the snapshot was taken; ``"died"`` is a loop in another process whose
        thread was killed.
    cycles : int
        Cycles that ran, warm-up included.
    missed : int
        Releases without a cycle.
    overruns : int
        Cycles that ended later than the next release.
    late : int
        Cycles whose release had passed before the loop turned to it.
    stalls : int
        Gaps of more than a second: a suspended machine, a stopped process.
    warmup : int
        Cycles that are in no histogram.
    duration_ns : int
        Time from the first release to the last end; 0 if no cycle ran.
    shifted_ns : int or None
        Net time by which the grid was moved: by ``overrun="shift"``, and by ``shift()``, which may also move it back.
        None in a file saved before rtloop 0.1.0 that does not contain it.
    device_cycles, device_missed : int or None
        Cycles of the device that paces the loop: those that ``device_cycle`` named, and those that were left out
        between them. None if the loop does not call it.
    page_faults, context_switches : tuple of two int
        ``(minor, major)`` and ``(voluntary, involuntary)`` of the loop's thread, since the warm-up; None where unknown.
    forks : int
        Number of forks in the life of the process; each one makes memory copy-on-write. None for a loop of another
        process.
    guard : dict
        Findings of the guards in ``step`` after the warm-up; empty if none was armed. ``page_faults`` (a dict of
        ``minor`` and ``major``), ``system_calls`` and ``allocations`` are counts, or None with the reason in
        ``unavailable``. ``violations`` lists the places, the first 64 of each kind, as dicts of ``cycle last_cycle
        count kind detail address symbol through file line note``; ``unlisted`` counts the violations elsewhere, by
        kind. ``mode``, ``cycles`` and ``allowed`` (system calls, which are not counted) tell what was guarded.
    grants : tuple of Grant
        Requests to the kernel, and what it granted.
    settings, host : dict
        Settings of the loop, and facts of the machine.
    latency, execution, response, interval, waiting : Histogram
        In nanoseconds. `waiting` is what a step has slept in ``sleep_until``, of the cycles that did; the execution
        time is without it.
    records : structured array
        The last cycles, oldest first: ``release``, ``start``, ``end`` in ns on the loop's clock. Read-only.
    stack : tuple of two int
        ``(size, high_water)`` of the thread's stack, bytes.
    clock_steps : int
        How often the loop's clock was set while it ran; only ``tai`` and ``realtime`` can be. What the clock jumped
        over is neither missed nor late, and the interval that ends with the next cycle is in no histogram.
    clock_step_sizes, clock_step_cycles : tuple of int
        Of the last 16 steps: by how much the clock was set forward (negative: back), in ns, and how many of the counted
        cycles had run.
    clock_gap_ns : int
        By how much longer than a period the loop waited because of steps, in all: until its next release on the grid of
        the clock as it was set.
    parameter_changes : tuple of ParameterChange or None
        Sets of parameters that the loop has applied, oldest first: ``cycle`` (index of the first cycle that used the
        set), ``values`` (those that changed; in the first one of a run all that it began with), and who asked for it,
        by its own account: ``pid tid host program``. ``simulate(parameters=...)`` replays them. None for a loop of
        another process.
    lost_parameter_changes : int
        Number of earlier changes for which there was no room: a run keeps the last 4096, or fewer, but at least 64, if
        all parameters together have more than 112 bytes. Not known, and 0, for a loop of another process.
    refused_parameter_sets : int
        Number of sets that the loop has refused, because a writer sent values outside of the limits or not of the
        types. Not known, and 0, for a loop of another process: see ``parameters.refused`` of :func:`rtloop.connect`.
    swaps : tuple of Swap or None
        Steps that the loop went on with, the last 4096, oldest first: ``cycle`` (index of the first cycle of the new
        step), ``former`` and ``successor`` (names of the classes or functions), ``reason`` (for which a step on trial
        was replaced by the one before it; otherwise None). None for a loop of another process.
    explanations : tuple of Explanation or None
        Late cycles that were looked at while the loop ran with ``explain=``, in their order; None without. See
        ``explain()``.
    """

    def to_json(self, *, records: bool = False, indent: int | None = None) -> str:
        """Return ``to_dict()`` as JSON text."""
        import json  # here, because importing rtloop has to be quick

        return json.dumps(self.to_dict(records=records), indent=indent)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write everything, records included, to a NumPy ``.npz`` file, replacing an existing one atomically.

        Parameters
        ----------
        path : path
            ``.npz`` is appended if it is missing.

        Returns
        -------
        pathlib.Path
            Path of the file.
        """
        from pathlib import Path  # here, because importing rtloop has to be quick

        target = _with_suffix(Path(path))
        if not target.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(target.parent))
        with replaced(target) as file:
            np.savez_compressed(file, stats=np.array(self.to_json()), records=self.records)
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Stats:
        """Read a file written by :meth:`save`. Nothing in the file is executed.

        Parameters
        ----------
        path : path
            As given to :meth:`save`, with or without ``.npz``.

        Raises
        ------
        ConfigError
            If the file was not written by rtloop, is damaged, or is of a newer version.
        OSError
            If there is no such file, or it cannot be read.
        """
        import json
        import zipfile
        from pathlib import Path

        source = Path(path)
        if not source.exists():
            source = _with_suffix(source)
        content = io.BytesIO(source.read_bytes())
        try:
            validation.check_kind(content.getbuffer()[:16].tobytes(), source.suffix)
            with zipfile.ZipFile(content) as archive:
                validation.check_archive(archive)
            content.seek(0)
            with np.load(content, allow_pickle=False) as file:
                values = json.loads(str(file["stats"]))
                if values["format"] != FORMAT:
                    raise ValueError("it has another format")
                if values["version"] <= VERSION:
                    return cls._from_dict(values, np.array(file["records"]))
        except Exception as error:  # a damaged file may fail in zipfile, zlib, NumPy or json
            raise ConfigError(f"{source} is not a file that Stats.save wrote, or is damaged: {error}") from error
        raise ConfigError(
            f"{source}: written by a newer rtloop (version {values['version']} of the format; this one reads "
            f"up to {VERSION}): upgrade rtloop"
        )

    @classmethod
    def _from_dict(cls, values: dict[str, Any], records: NDArray[Any]) -> Stats:
        fields = {
            name: values[name]
            for name, field in cls.__dataclass_fields__.items()
            if name != "records" and (name in values or field.default is field.default_factory is MISSING)
        }
        validation.check_fields(fields)
        for name in fields.keys() & set(HISTOGRAMS):
            fields[name] = Histogram.from_dict(fields[name])
        for name, kind in PAIRS.items():
            fields[name] = kind(**fields[name])
        fields["grants"] = tuple(Grant(**grant) for grant in fields["grants"])
        if fields.get("parameter_changes"):
            fields["parameter_changes"] = tuple(ParameterChange(**one) for one in fields["parameter_changes"])
        if fields.get("swaps"):
            fields["swaps"] = tuple(Swap(**one) for one in fields["swaps"])
        if fields.get("explanations") is not None:
            fields["explanations"] = tuple(map(explanation.from_dict, fields["explanations"]))
        return cls(records=records, **fields)

    def __reduce__(self) -> tuple[Any, ...]:
        # Through the constructor, so that the copy's records are read-only, too.
        return _from_fields, ({name: getattr(self, name) for name in self.__dataclass_fields__},)

    def last(self, duration: Duration) -> Stats:
        """Return the statistics of the last part of the run, made from `records`.

        Parameters
        ----------
        duration : duration
            Length of the part, ``"1s"``, counted back from the end of the last cycle. It is shorter if `records` do not
            reach so far back, or the run was shorter: see `duration_ns`.

        Returns
        -------
        Stats
            Of the cycles that started in that time, the warm-up excluded, and the releases dropped before them. The
            histograms are as exact as those of the run. Page faults, context switches and what the guards counted are
            only known for the whole run, and None or empty here; ``settings["last_ns"]`` is `duration`.
        """
        return last_part(self, duration)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Draw the histograms of latency, execution and response, and the time lines of the last cycles.

        Parameters
        ----------
        path : path, optional
            File to write the picture to, in the format of its suffix.

        Returns
        -------
        matplotlib.figure.Figure
        """
        from rtloop.stats.plots import draw_stats

        return draw_stats(self, path)

    def __str__(self) -> str:
        return table.to_text(self)

    def _repr_html_(self) -> str:
        return table.to_html(self)

    def __repr__(self) -> str:
        return f"<Stats of {self.name!r}: {self.cycles} cycles, {self.missed} missed, {self.overruns} overruns>"


def _from_fields(fields: dict[str, Any]) -> Stats:
    return Stats(**fields)


def _with_suffix(path: Path) -> Path:
    return path if path.suffix == ".npz" else path.with_name(path.name + ".npz")
