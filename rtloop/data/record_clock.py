"""Clock of a record's time: the present moment on each clock, and the clock that an integer time is on."""

from __future__ import annotations

import time
from typing import Any

__all__ = ["describe_clocks", "infer_clock", "read_clocks"]

#: Clocks that differ by little: the first is never ahead of the second.
_KINDS = (("realtime", "tai"), ("monotonic", "boottime"))
_FUTURE_NS = 1_000_000_000
_TRIES = 5
_CLOSE_NS = 20_000


def read_clocks() -> dict[str, int]:
    """Return the same moment on four clocks, ns, which places a record's time among those of other hosts."""
    best, shortest = {}, 1 << 63
    for _ in range(_TRIES):  # a thread that is preempted between two readings reads different moments
        before = time.monotonic_ns()
        realtime, tai = time.time_ns(), time.clock_gettime_ns(time.CLOCK_TAI)
        boottime = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        after = time.monotonic_ns()
        if after - before < shortest:
            shortest = after - before
            best = {"realtime": realtime, "tai": tai, "monotonic": (before + after) // 2, "boottime": boottime}
        if shortest < _CLOSE_NS:
            break
    return best


def describe_clocks(begun: dict[str, int], ended: dict[str, int]) -> dict[str, Any]:
    """Return the readings that convert the times of a recording to UTC, whichever clock they are on.

    Parameters
    ----------
    begun, ended : dict
        Each clock at the beginning and at the end, from :func:`read_clocks`.

    Returns
    -------
    dict
        ``begun_ns`` and ``ended_ns`` (time of day), ``tai_offset_start_s`` and ``tai_offset_s`` (CLOCK_TAI -
        CLOCK_REALTIME, 0 if the kernel was not told), and ``clocks_begun`` and ``clocks_ended``, all clocks in ns.
    """
    return {
        "begun_ns": begun["realtime"],
        "ended_ns": ended["realtime"],
        "tai_offset_start_s": round((begun["tai"] - begun["realtime"]) / 1e9),
        "tai_offset_s": round((ended["tai"] - ended["realtime"]) / 1e9),
        "clocks_begun": begun,
        "clocks_ended": ended,
    }


def infer_clock(newest: int, read: dict[str, int], declared: Any = None, known: str | None = None) -> tuple[str, bool]:
    """Return the clock that an integer time of a record is on, and whether it can be on no other.

    A time of day and a time since boot are decades apart. Within each kind, clocks differ by little: CLOCK_TAI is 37 s
    ahead of CLOCK_REALTIME, and CLOCK_BOOTTIME counts suspended time as well. A record is not from the future, which
    excludes the slower clock for recent records.

    Parameters
    ----------
    newest : int
        The latest time among some records, ns.
    read : dict
        The present moment on each clock, ns; not empty.
    declared : object
        The clock that the program says it is on, used if that is possible.
    known : str, optional
        The clock that former records could only be on.
    """
    nearest = min(read, key=lambda name: abs(read[name] - newest))
    kind = next((kind for kind in _KINDS if nearest in kind), (nearest,))
    possible = [name for name in kind if name in read and newest <= read[name] + _FUTURE_NS]
    if not possible:
        return nearest, False
    if declared in possible:
        return str(declared), True
    if known in possible:
        return str(known), True
    return min(possible, key=lambda name: abs(read[name] - newest)), kind[0] in read and kind[0] not in possible
