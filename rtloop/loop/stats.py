"""Stats: what a loop did, as one immutable value that every table, plot and file is made of."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rtloop.data.histogram import Histogram
from rtloop.errors import ConfigError
from rtloop.loop import guarding, stored, table
from rtloop.system.grant import Grant
from rtloop.system.text import replaced

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["ContextSwitches", "PageFaults", "StackUse", "Stats"]

_FORMAT = "rtloop-stats"
_VERSION = 1
_HISTOGRAMS = ("latency", "execution", "response", "interval")
_RECORD_FIELDS = ("release", "start", "end")
_RECORD_DTYPE = np.dtype([(name, "<i8") for name in _RECORD_FIELDS])


class PageFaults(NamedTuple):
    """Page faults of the loop's thread since its warm-up; None where ``/proc`` could not be read."""

    minor: int | None
    major: int | None


class ContextSwitches(NamedTuple):
    """Context switches of the loop's thread since its warm-up, voluntary ones its sleeps; None as for page faults."""

    voluntary: int | None
    involuntary: int | None


class StackUse(NamedTuple):
    """The stack of the loop's thread, bytes; how much of it was used is None for a loop of another process."""

    size: int
    high_water: int | None


_PAIRS: dict[str, type[Any]] = {"page_faults": PageFaults, "context_switches": ContextSwitches, "stack": StackUse}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stats:
    """A snapshot of what a loop did.

    The terms: *release* is when a cycle was planned, *start* when the loop was there, *end* when ``step`` had returned.
    Wake-up latency is start - release, execution time end - start, response time end - release, interval the time from
    one start to the next. An overrun is a cycle whose end is later than the next release; a missed release is one that
    never ran. Always ``cycles + missed ==`` releases elapsed on the grid.

    A loop with a ``wait`` of its own, paced by hardware, does not follow the grid of its period: its `latency` and
    `response` are empty, and its `overruns`, `missed` and `late` are counted on the nominal grid. `interval` and
    `execution` hold for it as for any other.

    A simulated run (`is_simulated`) has virtual times, no page faults, no context switches and no stack: None, and 0.

    Attributes
    ----------
    name, state : str
        The loop's name, and its state when the snapshot was taken; ``"died"``, of a loop in another process, is one
        whose thread was killed.
    cycles : int
        Cycles that ran, warm-up included.
    missed : int
        Releases that never ran.
    overruns : int
        Cycles that ended later than the next release.
    late : int
        Cycles whose release had passed before the loop turned to it.
    stalls : int
        Gaps of more than a second: a suspended machine, a stopped process, a stepped clock.
    warmup : int
        Cycles that are in no histogram.
    duration_ns : int
        From the first release to the last end; 0 where no cycle ran.
    page_faults, context_switches : tuple of two int
        ``(minor, major)`` and ``(voluntary, involuntary)`` of the loop's thread, since the warm-up; None where unknown.
    forks : int
        How often the process has forked in its life; each fork makes memory copy-on-write. None for a loop of another
        process, which cannot be asked.
    guard : dict
        What the guards found in ``step`` after the warm-up; empty where none was armed. ``page_faults`` (a dict of
        ``minor`` and ``major``), ``system_calls`` and ``allocations`` are counts, None where they were not counted,
        for the reason in ``unavailable``. ``violations`` lists the first 256 as dicts of ``cycle kind detail address
        symbol through file line note``; ``unlisted`` counts the others. ``mode``, ``cycles`` and
        ``allowed`` (system calls, which are not counted) say what was guarded.
    grants : tuple of Grant
        What was asked of the kernel, and what it granted.
    settings, host : dict
        The loop's settings, and facts of the machine.
    latency, execution, response, interval : Histogram
        In nanoseconds.
    records : structured array
        The last cycles, oldest first: ``release``, ``start``, ``end`` in ns on the loop's clock. Read-only.
    stack : tuple of two int
        ``(size, high_water)`` of the thread's stack, bytes.
    """

    name: str
    state: str
    cycles: int
    missed: int
    overruns: int
    late: int
    stalls: int
    warmup: int
    duration_ns: int
    page_faults: PageFaults
    context_switches: ContextSwitches
    forks: int | None
    guard: dict[str, Any]
    grants: tuple[Grant, ...]
    settings: dict[str, Any]
    host: dict[str, Any]
    latency: Histogram
    execution: Histogram
    response: Histogram
    interval: Histogram
    records: NDArray[Any]
    stack: StackUse

    def __post_init__(self) -> None:
        if self.records.dtype != _RECORD_DTYPE or self.records.ndim != 1:
            raise ValueError(f"records are of {self.records.dtype}, not one-dimensional of {_RECORD_DTYPE}")
        self.records.flags.writeable = False
        for name, kind in _PAIRS.items():
            object.__setattr__(self, name, kind(*getattr(self, name)))
        for name in ("guard", "settings", "host"):
            object.__setattr__(self, name, dict(getattr(self, name)))

    @property
    def duration(self) -> float:
        """From the first release to the last end, seconds."""
        return self.duration_ns * 1e-9

    @property
    def has_own_wait(self) -> bool:
        """Whether the loop's class overrides ``wait``: then nothing is measured against a planned release."""
        return bool(self.settings.get("has_own_wait"))

    @property
    def is_simulated(self) -> bool:
        """Whether no clock was read: all times are those of the models in ``settings["simulation"]``."""
        return bool(self.settings.get("simulation"))

    @property
    def guard_sentence(self) -> str:
        """What the guards have found, to be quoted: ``100 000 cycles: 0 page faults, 0 system calls, ... in step``.

        What could not be counted is named, with the reason. Empty where no guard was armed.
        """
        return guarding.sentence(self.guard)

    def worst(self, n: int = 10) -> NDArray[Any]:
        """Return the `n` recorded cycles after the warm-up with the greatest wake-up latency, the worst first.

        With a ``wait`` of the loop's own, those with the longest interval before them.
        """
        return self.records[self.worst_places(n)]

    def worst_places(self, n: int = 10) -> NDArray[np.intp]:
        """Return where in `records` the cycles of :meth:`worst` are."""
        start = self.records["start"]
        since = np.concatenate([start[:1], start[:-1]]) if self.has_own_wait else self.records["release"]
        first = min(max(0, self.warmup - (self.cycles - len(start))), len(start))
        return first + np.argsort((since - start)[first:], kind="stable")[: max(0, n)]

    def to_dict(self, *, records: bool = False) -> dict[str, Any]:
        """Return everything as a dict that JSON can hold.

        Parameters
        ----------
        records : bool
            Whether to include the timestamps, as three lists.
        """
        values: dict[str, Any] = {"format": _FORMAT, "version": _VERSION}
        for name in self.__dataclass_fields__:
            if name != "records":
                values[name] = getattr(self, name)
        values.update(
            duration=self.duration,
            page_faults=self.page_faults._asdict(),
            context_switches=self.context_switches._asdict(),
            stack=self.stack._asdict(),
            grants=[_plain(grant.to_dict()) for grant in self.grants],
            guard=_plain(self.guard),
            settings=_plain(self.settings),
            host=_plain(self.host),
        )
        for name in _HISTOGRAMS:
            histogram: Histogram = getattr(self, name)
            values[name] = histogram.to_dict() | _summary(histogram)
        if records:
            values["records"] = {field: self.records[field].tolist() for field in _RECORD_FIELDS}
        return values

    def to_json(self, *, records: bool = False, indent: int | None = None) -> str:
        """Return :meth:`to_dict` as JSON text."""
        import json  # here, for an import of rtloop is to be quick

        return json.dumps(self.to_dict(records=records), indent=indent)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write everything, the records too, to a NumPy ``.npz`` file; an existing one is replaced as a whole.

        Parameters
        ----------
        path : path
            ``.npz`` is added where it is missing.

        Returns
        -------
        pathlib.Path
            The file that was written.
        """
        from pathlib import Path  # here, for an import of rtloop is to be quick

        target = _with_suffix(Path(path))
        if not target.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(target.parent))
        with replaced(target) as file:
            np.savez_compressed(file, stats=np.array(self.to_json()), records=self.records)
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Stats:
        """Read what :meth:`save` wrote; nothing in the file is executed.

        Parameters
        ----------
        path : path
            As given to :meth:`save`, with or without ``.npz``.

        Raises
        ------
        ConfigError
            Where the file is none of rtloop's, is damaged, or is of a newer version.
        OSError
            Where there is no such file, or it cannot be read.
        """
        import json
        import zipfile
        from pathlib import Path

        source = Path(path)
        if not source.exists():
            source = _with_suffix(source)
        content = io.BytesIO(source.read_bytes())
        try:
            with zipfile.ZipFile(content) as archive:
                stored.check_archive(archive)
            content.seek(0)
            with np.load(content, allow_pickle=False) as file:
                values = json.loads(str(file["stats"]))
                if values["format"] != _FORMAT:
                    raise ValueError("it has another format")
                if values["version"] <= _VERSION:
                    return cls._from_dict(values, np.array(file["records"]))
        except Exception as error:  # damage shows in whatever zipfile, zlib, NumPy or json come upon
            raise ConfigError(f"{source} is not a file that Stats.save wrote, or is damaged: {error}") from error
        raise ConfigError(
            f"{source}: written by a newer rtloop (version {values['version']} of the format; this one reads "
            f"up to {_VERSION}): upgrade rtloop"
        )

    @classmethod
    def _from_dict(cls, values: dict[str, Any], records: NDArray[Any]) -> Stats:
        fields = {name: values[name] for name in cls.__dataclass_fields__ if name != "records"}
        stored.check_fields(fields)
        for name in _HISTOGRAMS:
            fields[name] = Histogram.from_dict(fields[name])
        for name, kind in _PAIRS.items():
            fields[name] = kind(**fields[name])
        fields["grants"] = tuple(Grant(**grant) for grant in fields["grants"])
        return cls(records=records, **fields)

    def __reduce__(self) -> tuple[Any, ...]:
        # Through the constructor, so that the copy's records are read-only too.
        return _from_fields, ({name: getattr(self, name) for name in self.__dataclass_fields__},)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Stats):
            return NotImplemented
        return self.to_dict() == other.to_dict() and bool(np.array_equal(self.records, other.records))

    __hash__ = None  # type: ignore[assignment]

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Draw the histograms of latency, execution and response, and the time lines of the last cycles.

        Parameters
        ----------
        path : path, optional
            Where to write the picture, in the format of its suffix.

        Returns
        -------
        matplotlib.figure.Figure
        """
        from rtloop.loop.drawing import draw_stats

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


def _plain(value: Any) -> Any:
    """Return a copy in JSON's own types: what a file gives back is then equal to what went into it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset | np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _summary(histogram: Histogram) -> dict[str, float | None]:
    """Return the figures that a reader of JSON wants beside the bins; None where there are no values."""
    if not histogram.count:
        return dict.fromkeys(("mean_ns", "std_ns", "p50_ns", "p90_ns", "p99_ns", "p99_9_ns", "p99_99_ns"))
    p = histogram.percentile([50, 90, 99, 99.9, 99.99]).tolist()
    names = ("p50_ns", "p90_ns", "p99_ns", "p99_9_ns", "p99_99_ns")
    std = histogram.std if histogram.count > 1 else None  # a single value has no spread
    return {"mean_ns": histogram.mean, "std_ns": std, **dict(zip(names, p, strict=True))}
