"""State of the kernel's clock: whether a service keeps it, and the offset of CLOCK_TAI (adjtimex(2))."""

from __future__ import annotations

import time
from functools import cache
from typing import Any, ClassVar, NamedTuple

__all__ = ["TimeSync", "read_time_sync", "tai_offset_s"]

# From <sys/timex.h>.
_UNSYNC = 0x40
_NANO = 0x2000
_TIME_ERROR = 5


def tai_offset_s() -> int:
    """Return CLOCK_TAI - CLOCK_REALTIME now, in s: 0 until somebody has told the kernel (adjtimex(2))."""
    return round((time.clock_gettime_ns(time.CLOCK_TAI) - time.clock_gettime_ns(time.CLOCK_REALTIME)) / 10**9)


class TimeSync(NamedTuple):
    """State of the kernel's clock, as adjtimex(2) returns it.

    Attributes
    ----------
    tai_offset_s : int
        Seconds that CLOCK_TAI is ahead of CLOCK_REALTIME; 0 if the kernel was never told.
    is_synchronised : bool
        True if a service keeps the clock and reports it as synchronised.
    max_error_ns, offset_ns : int
        Greatest error that the service allows for, and the correction that is still to be made.
    estimated_error_ns : int
        Error that the service estimates.
    """

    tai_offset_s: int
    is_synchronised: bool
    max_error_ns: int
    offset_ns: int
    estimated_error_ns: int = 0


@cache
def _adjtimex() -> Any:
    """Return the C library's function and its struct; None if this machine has two forms of the struct."""
    import ctypes

    class Timex(ctypes.Structure):
        _fields_: ClassVar[Any] = (
            [("modes", ctypes.c_int)]
            + [(name, ctypes.c_long) for name in ("offset", "freq", "maxerror", "esterror")]
            + [("status", ctypes.c_int)]
            + [(name, ctypes.c_long) for name in ("constant", "precision", "tolerance", "sec", "usec", "tick")]
            + [(name, ctypes.c_long) for name in ("ppsfreq", "jitter")]
            + [("shift", ctypes.c_int)]
            + [(name, ctypes.c_long) for name in ("stabil", "jitcnt", "calcnt", "errcnt", "stbcnt")]
            + [("tai", ctypes.c_int), ("rest", ctypes.c_int * 64)]
        )

    if ctypes.sizeof(ctypes.c_long) != 8:
        return None
    library = ctypes.CDLL(None, use_errno=True)
    return lambda timex: library.adjtimex(ctypes.byref(timex)), Timex


def read_time_sync() -> TimeSync | None:
    """Read the kernel's clock state without changing it; None if it cannot be read."""
    found = _adjtimex()
    if found is None:
        return None
    call, kind = found
    timex = kind()
    state = call(timex)
    if state < 0:
        return None
    unit = 1 if timex.status & _NANO else 1000
    is_synchronised = state != _TIME_ERROR and not timex.status & _UNSYNC
    return TimeSync(timex.tai, is_synchronised, timex.maxerror * 1000, timex.offset * unit, timex.esterror * 1000)
