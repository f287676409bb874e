"""Timing models of a simulated loop: wake-up latency and execution time, in the forms that a user may give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtloop.errors import ConfigError
from rtloop.stats.stats import Stats
from rtloop.units import as_index, parse_duration, show

__all__ = ["MAX_NS", "each", "sequence"]

#: A day: the longest latency or execution time of a model.
MAX_NS = 86400 * 10**9


def sequence(value: Any, name: str, *, is_latency: bool) -> NDArray[np.int64] | None:
    """Copy a sequence of durations, or recorded ones, into an array of ns; return None for a single duration.

    Raises
    ------
    ConfigError
        If a duration is not valid; the message names the argument.
    """
    if isinstance(value, Stats):
        values = _recorded(value, name, is_latency)
    elif isinstance(value, np.ndarray):
        if value.dtype.kind not in "iu":
            raise ConfigError(
                f"{name} is an array of {value.dtype}: durations are integers, in nanoseconds; "
                "convert seconds with (array * 1e9).astype('int64')"
            )
        values = value
    elif isinstance(value, (list, tuple)):
        values = np.array([parse_duration(v, f"{name}[{i}]", maximum=MAX_NS) for i, v in enumerate(value)])
    else:
        if not isinstance(value, str) and as_index(value) is None and hasattr(value, "__iter__"):
            raise ConfigError(f"{name}={show(value)} must be a duration, or an array, a list or a tuple of durations")
        return None
    if values.ndim != 1 or values.size == 0:
        raise ConfigError(f"{name} has the shape {values.shape}: give at least one duration, in one dimension")
    wrong = (values < 0) | (values > MAX_NS)
    if wrong.any():
        at = int(wrong.argmax())
        raise ConfigError(f"{name}[{at}] is {values[at]}: it must be from 0 to {MAX_NS} ns, which is a day")
    return np.array(values, np.int64)  # a copy, so that later writes to the user's array change nothing


def _recorded(stats: Stats, name: str, is_latency: bool) -> NDArray[Any]:
    """Return the recorded execution times, or the latencies: from the release or the previous end to the start."""
    records = stats.records
    if stats.has_own_wait and is_latency:
        raise ConfigError(f"{name}: {stats.name!r} was paced by its own wait(), so it has no wake-up latency")
    if not len(records):
        raise ConfigError(f"{name}: {stats.name!r} has no records; run it with record= of at least 1")
    if not is_latency:
        return np.asarray(records["end"] - records["start"])
    ready = records["release"].copy()
    np.maximum(ready[1:], records["end"][:-1], out=ready[1:])
    return np.asarray(records["start"] - ready)


def each(value: Any, loops: Sequence[Any], name: str) -> list[Any]:
    """Return one model per loop: the same for all, or from a dict, with 0 for a loop that is not in it."""
    if not isinstance(value, dict):
        return [value] * len(loops)
    for loop in value:
        if not any(loop is known for known in loops):
            raise ConfigError(f"{name} has a model for {show(loop)}, which is not one of the simulated loops")
    return [value.get(loop, 0) for loop in loops]
