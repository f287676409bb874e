"""How late a simulated loop wakes up, and how long its step takes: the forms in which a user may say it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtloop.errors import ConfigError
from rtloop.stats.stats import Stats
from rtloop.units import as_index, parse_duration, show

__all__ = ["MAX_NS", "each", "sequence"]

#: A day: the longest that a model may make a cycle late or last.
MAX_NS = 86400 * 10**9


def sequence(value: Any, name: str, *, is_latency: bool) -> NDArray[np.int64] | None:
    """Turn a sequence of durations, or recorded ones, into an array of ns of its own; None for a single duration.

    Raises
    ------
    ConfigError
        Naming the argument, and what is wrong with it.
    """
    if isinstance(value, Stats):
        values = _recorded(value, name, is_latency)
    elif isinstance(value, np.ndarray):
        if value.dtype.kind not in "iu":
            raise ConfigError(
                f"{name} is an array of {value.dtype}: durations are integers, in nanoseconds; "
                "(array * 1e9).astype('int64') makes them of seconds"
            )
        values = value
    elif isinstance(value, (list, tuple)):
        values = np.array([parse_duration(v, f"{name}[{i}]", maximum=MAX_NS) for i, v in enumerate(value)])
    else:
        if not isinstance(value, str) and as_index(value) is None and hasattr(value, "__iter__"):
            raise ConfigError(f"{name}={show(value)}: give an array, a list or a tuple of durations")
        return None
    if values.ndim != 1 or values.size == 0:
        raise ConfigError(f"{name} is of shape {values.shape}: give at least one duration, in one dimension")
    wrong = (values < 0) | (values > MAX_NS)
    if wrong.any():
        at = int(wrong.argmax())
        raise ConfigError(f"{name}[{at}] is {values[at]}: a duration is from 0 to {MAX_NS} ns, which is a day")
    return np.array(values, np.int64)  # of our own: whoever writes to theirs meanwhile changes nothing


def _recorded(stats: Stats, name: str, is_latency: bool) -> NDArray[Any]:
    """Return how long each recorded cycle took, or how late it was after its release and the end of the one before."""
    records = stats.records
    if stats.has_own_wait and is_latency:
        raise ConfigError(f"{name}: {stats.name!r} was paced by a wait of its own, and has no wake-up latency")
    if not len(records):
        raise ConfigError(f"{name}: {stats.name!r} has no records; run it with record= of at least 1")
    if not is_latency:
        return np.asarray(records["end"] - records["start"])
    ready = records["release"].copy()
    np.maximum(ready[1:], records["end"][:-1], out=ready[1:])
    return np.asarray(records["start"] - ready)


def each(value: Any, loops: Sequence[Any], name: str) -> list[Any]:
    """Return a model for each loop: the same for all, or what a dict has for each, 0 where it has none."""
    if not isinstance(value, dict):
        return [value] * len(loops)
    for loop in value:
        if not any(loop is known for known in loops):
            raise ConfigError(f"{name} has a model for {show(loop)}, which is not among the loops that are simulated")
    return [value.get(loop, 0) for loop in loops]
