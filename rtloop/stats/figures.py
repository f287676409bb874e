"""Figures of a run: the immutable values that tables, plots and files are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rtloop.stats import guard_summary
from rtloop.stats.explanation import Explanation, untraced, untraced_run
from rtloop.stats.histogram import Histogram
from rtloop.system.grant import Grant

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "FORMAT",
    "HISTOGRAMS",
    "PAIRS",
    "VERSION",
    "ContextSwitches",
    "Figures",
    "PageFaults",
    "ParameterChange",
    "StackUse",
    "Swap",
]

#: Name and version of the saved form.
FORMAT = "rtloop-stats"
VERSION = 1
HISTOGRAMS = ("latency", "execution", "response", "interval", "waiting")
_RECORD_FIELDS = ("release", "start", "end")
_RECORD_DTYPE = np.dtype([(name, "<i8") for name in _RECORD_FIELDS])


class PageFaults(NamedTuple):
    """Page faults of the loop's thread since its warm-up; None if ``/proc`` could not be read."""

    minor: int | None
    major: int | None


class ContextSwitches(NamedTuple):
    """Context switches of the loop's thread since its warm-up, its sleeps being voluntary; None as for page faults."""

    voluntary: int | None
    involuntary: int | None


class StackUse(NamedTuple):
    """Stack of the loop's thread, bytes; the used part is None for a loop of another process."""

    size: int
    high_water: int | None


class ParameterChange(NamedTuple):
    """A set of parameters that a loop has applied.

    Attributes
    ----------
    cycle : int
        Index of the first cycle that used it.
    values : dict
        The values that changed, by name; in the first change of a run, all that the run began with.
    pid, tid, host, program : int, int, str, str
        Process, thread, host and program that asked for it, by their own account, which nothing verifies.
    """

    cycle: int
    values: dict[str, Any]
    pid: int = 0
    tid: int = 0
    host: str = ""
    program: str = ""


class Swap(NamedTuple):
    """A step that a running loop went on with.

    Attributes
    ----------
    cycle : int
        Index of its first cycle.
    former, successor : str
        Names of the classes of the former and the new step, or of their functions.
    reason : str or None
        Reason for which the loop has gone back to a former step from the one that was on trial:
        ``"overrun"``, ``"guard"``, ``"late"``, ``"nonfinite"``, ``"step returned -5"``, or several of them. None for a
        swap that was requested.
    """

    cycle: int
    former: str
    successor: str
    reason: str | None = None


PAIRS: dict[str, type[Any]] = {"page_faults": PageFaults, "context_switches": ContextSwitches, "stack": StackUse}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Figures:
    """Figures of a run, documented in :class:`rtloop.Stats`, which adds tables, plots and files."""

    name: str
    state: str
    cycles: int
    missed: int
    overruns: int
    late: int
    stalls: int
    warmup: int
    duration_ns: int
    shifted_ns: int | None = None
    device_cycles: int | None = None
    device_missed: int | None = None
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
    waiting: Histogram = field(default_factory=Histogram.empty)
    clock_steps: int = 0
    clock_step_sizes: tuple[int, ...] = ()
    clock_step_cycles: tuple[int, ...] = ()
    clock_gap_ns: int = 0
    parameter_changes: tuple[ParameterChange, ...] | None = ()
    lost_parameter_changes: int = 0
    refused_parameter_sets: int = 0
    swaps: tuple[Swap, ...] | None = ()
    explanations: tuple[Explanation, ...] | None = None

    def __post_init__(self) -> None:
        if self.records.dtype != _RECORD_DTYPE or self.records.ndim != 1:
            raise ValueError(f"records are of {self.records.dtype}, not one-dimensional of {_RECORD_DTYPE}")
        self.records.flags.writeable = False
        for name, kind in PAIRS.items():
            object.__setattr__(self, name, kind(*getattr(self, name)))
        for name in ("guard", "settings", "host"):
            object.__setattr__(self, name, _ReadOnly.copy_of(getattr(self, name)))
        for name in ("clock_step_sizes", "clock_step_cycles"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.parameter_changes is not None:
            object.__setattr__(self, "parameter_changes", tuple(ParameterChange(*c) for c in self.parameter_changes))
        if self.swaps is not None:
            object.__setattr__(self, "swaps", tuple(Swap(*one) for one in self.swaps))
        if self.explanations is not None:
            object.__setattr__(self, "explanations", tuple(self.explanations))

    @property
    def duration(self) -> float:
        """Time from the first release to the last end, seconds."""
        return self.duration_ns * 1e-9

    @property
    def has_own_wait(self) -> bool:
        """True if the loop's class overrides ``wait``; nothing is then measured against a planned release."""
        return bool(self.settings.get("has_own_wait"))

    @property
    def is_simulated(self) -> bool:
        """True if the run was simulated, so that all times are those of the models in ``settings["simulation"]``."""
        return bool(self.settings.get("simulation"))

    @property
    def guard_sentence(self) -> str:
        """Sentence on the findings of the guards: ``100 000 cycles: 0 page faults, 0 system calls, ... in step``.

        It names what could not be counted, with the reason. Empty if no guard was armed.
        """
        return guard_summary.sentence(self.guard)

    def worst(self, n: int = 10) -> NDArray[Any]:
        """Return the `n` recorded cycles after the warm-up with the greatest wake-up latency, the worst first.

        For a loop with its own ``wait``, those with the longest interval before them.
        """
        return self.records[self.worst_places(n)]

    def worst_places(self, n: int = 10) -> NDArray[np.intp]:
        """Return the indices into `records` of the cycles of :meth:`worst`."""
        start = self.records["start"]
        since = np.concatenate([start[:1], start[:-1]]) if self.has_own_wait else self.records["release"]
        first = min(max(0, self.warmup - (self.cycles - len(start))), len(start))
        return first + np.argsort((since - start)[first:], kind="stable")[: max(0, n)]

    def explain(self, n: int | None = None) -> list[Explanation]:
        """Return the late cycles with the reason for each, the longest delay first.

        Parameters
        ----------
        n : int, optional
            Number of cycles. By default those that were looked at while the loop ran with ``explain=``: none if no
            cycle was late. Without ``explain=``, only the worst one, whose text says how to trace a run.

        Returns
        -------
        list of Explanation
            ``"unknown"`` is the culprit of a cycle that was not traced, because the loop ran without ``explain=``, and
            of one whose delay nobody accounts for most of.
        """
        found = {one.cycle: one for one in self.explanations or ()}
        first = self.cycles - len(self.records)
        is_traced_run = self.explanations is not None
        if (n is not None or not is_traced_run) and not self.has_own_wait:
            for place in self.worst_places(1 if n is None else n).tolist():
                release, start = (int(self.records[name][place]) for name in ("release", "start"))
                if first + place not in found:
                    found[first + place] = untraced(
                        first + place, release, start - release, is_traced_run=is_traced_run
                    )
        if n is None and not is_traced_run:
            return [untraced_run(one) for one in found.values()]
        return sorted(found.values(), key=lambda one: (-one.delay_ns, one.cycle))[: None if n is None else max(0, n)]

    def to_dict(self, *, records: bool = False) -> dict[str, Any]:
        """Return everything as a dict that JSON can hold.

        Parameters
        ----------
        records : bool
            Include the timestamps, as three lists.
        """
        values: dict[str, Any] = {"format": FORMAT, "version": VERSION}
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
            clock_step_sizes=list(self.clock_step_sizes),
            clock_step_cycles=list(self.clock_step_cycles),
            parameter_changes=None
            if self.parameter_changes is None
            else [_plain(change._asdict()) for change in self.parameter_changes],
            swaps=None if self.swaps is None else [one._asdict() for one in self.swaps],
            explanations=None if self.explanations is None else [one.to_dict() for one in self.explanations],
        )
        for name in HISTOGRAMS:
            histogram: Histogram = getattr(self, name)
            values[name] = histogram.to_dict() | histogram.summary()
        if records:
            values["records"] = {field: self.records[field].tolist() for field in _RECORD_FIELDS}
        return values

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Figures):
            return NotImplemented
        return self.to_dict() == other.to_dict() and bool(np.array_equal(self.records, other.records))

    __hash__ = None  # type: ignore[assignment]


class _ReadOnly(dict[str, Any]):
    """A dict that cannot be changed, nor the dicts in it; a copy of it can. Its lists are the caller's."""

    @classmethod
    def copy_of(cls, values: Mapping[str, Any]) -> _ReadOnly:
        if type(values) is cls:
            return values
        return cls({name: cls.copy_of(item) if isinstance(item, dict) else item for name, item in values.items()})

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError("statistics cannot be changed; change a copy, as of dict(stats.settings)")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return _ReadOnly, (dict(self),)


def _plain(value: Any) -> Any:
    """Return a copy in the types of JSON, so that a loaded file equals what was saved."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset | np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return value if value is None or isinstance(value, str | int | float) else str(value)
