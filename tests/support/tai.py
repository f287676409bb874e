"""Steps of CLOCK_TAI, which move no other clock: its offset from the time of day is a number in the kernel."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

_ADJ_TAI = 0x80
#: The most that the kernel takes, in s (MAX_TAI_OFFSET of kernel/time/ntp.c).
MOST_S = 100_000


class _Timex(ctypes.Structure):
    """struct timex of <sys/timex.h>."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("before", ctypes.c_long * 4),
        ("status", ctypes.c_int),
        ("constant", ctypes.c_long),
        ("rest", ctypes.c_char * 200),
    )


def get_offset() -> int:
    """Return CLOCK_TAI - CLOCK_REALTIME, in s."""
    return round((time.clock_gettime_ns(time.CLOCK_TAI) - time.clock_gettime_ns(time.CLOCK_REALTIME)) / 1e9)


def set_offset(seconds: int) -> None:
    """Set CLOCK_TAI - CLOCK_REALTIME, in s (adjtimex(2)); a step of CLOCK_TAI, and of nothing else.

    Raises
    ------
    OSError
        If the kernel refuses it: it takes CAP_SYS_TIME, which a container often lacks.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.adjtimex(ctypes.byref(_Timex(modes=_ADJ_TAI, constant=seconds))) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"adjtimex(ADJ_TAI, {seconds}): {os.strerror(number)}")


@contextmanager
def kept_offset() -> Iterator[None]:
    """Put the offset back at the end, whatever happens."""
    before = get_offset()
    try:
        yield
    finally:
        set_offset(before)
