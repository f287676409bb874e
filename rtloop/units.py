"""Durations and sizes: the only place that parses them, and the only place that formats them."""

from __future__ import annotations

import re
from datetime import timedelta

from rtloop.errors import ConfigError

__all__ = ["format_duration", "format_rate", "format_size", "parse_duration", "parse_size"]

_NS = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9, "min": 60 * 10**9, "h": 3600 * 10**9}
_HZ = {"hz": 1, "khz": 10**3, "mhz": 10**6}
_BYTES = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([^\s0-9.]*)\s*", re.ASCII | re.IGNORECASE)
_INT64_MAX = 2**63 - 1

_DURATION_FORMS = 'an int (nanoseconds), a str with a unit ("250us", "1 ms", "2s") or a datetime.timedelta'
_RATE_FORMS = _DURATION_FORMS + ', or a rate ("4kHz")'
_SIZE_FORMS = 'an int (bytes) or a str ("512K", "2M", "1G", powers of 1024)'


def _split(text: str) -> tuple[int, int, str] | None:
    """Split ``"2.5ms"`` into the exact fraction 25 / 10 and ``"ms"``."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    whole, _, decimals = match[1].partition(".")
    return int((whole + decimals) or "0"), 10 ** len(decimals), match[2]


def parse_duration(
    value: int | str | timedelta,
    name: str,
    *,
    rate: bool = False,
    minimum: int = 0,
    maximum: int = _INT64_MAX,
) -> int:
    """Turn a duration into nanoseconds.

    Parameters
    ----------
    value : int, str or datetime.timedelta
        Nanoseconds, a number with a unit, or a timedelta.
    name : str
        The argument's name, for the error message.
    rate : bool
        Whether a frequency (``"4kHz"``) is accepted; it is turned into its period, rounded to the nearest nanosecond.
    minimum, maximum : int
        The least and the greatest duration accepted, in nanoseconds.

    Returns
    -------
    int
        Nanoseconds.

    Raises
    ------
    ConfigError
        On any other type, form or range.
    """
    forms = _RATE_FORMS if rate else _DURATION_FORMS
    result: int | None = None
    if isinstance(value, timedelta):
        result = (value.days * 86400 + value.seconds) * 10**9 + value.microseconds * 1000
    elif isinstance(value, str):
        parts = _split(value)
        if parts is not None:
            number, scale, unit = parts
            if unit in _NS:
                result = (2 * number * _NS[unit] + scale) // (2 * scale)
            elif rate and unit.lower() in _HZ and number:
                hertz = number * _HZ[unit.lower()]
                result = (2 * 10**9 * scale + hertz) // (2 * hertz)
    elif isinstance(value, int) and not isinstance(value, bool):
        result = int(value)
    else:
        result = _as_index(value)
    if result is None:
        raise ConfigError(f"{name}={value!r} is not a duration; give {forms}")
    if result < minimum:
        least = "more than zero" if minimum == 1 else f"at least {format_duration(minimum)}"
        raise ConfigError(f"{name}={value!r} must be {least}; give {forms}")
    if result > _INT64_MAX:
        raise ConfigError(f"{name}={value!r} does not fit into 64-bit nanoseconds (about 292 years)")
    if result > maximum:
        raise ConfigError(f"{name}={value!r} must be at most {format_duration(maximum)}; give {forms}")
    return result


def parse_size(value: int | str, name: str, *, minimum: int = 0, maximum: int = _INT64_MAX) -> int:
    """Turn a size into bytes.

    Parameters
    ----------
    value : int or str
        Bytes, or a number with ``K``, ``M`` or ``G`` (powers of 1024; ``KiB`` and ``KB`` are read alike).
    name : str
        The argument's name, for the error message.
    minimum, maximum : int
        The least and the greatest size accepted, in bytes.

    Raises
    ------
    ConfigError
        On any other type, form or range, or where the size is not a whole number of bytes.
    """
    result: int | None = None
    if isinstance(value, str):
        parts = _split(value)
        if parts is not None:
            number, scale, unit = parts
            unit = unit.upper().removesuffix("IB").removesuffix("B")
            if unit in _BYTES and (number * _BYTES[unit]) % scale == 0:
                result = number * _BYTES[unit] // scale
    elif isinstance(value, int) and not isinstance(value, bool):
        result = int(value)
    else:
        result = _as_index(value)
    if result is None:
        raise ConfigError(f"{name}={value!r} is not a size; give {_SIZE_FORMS}")
    if result < minimum:
        raise ConfigError(f"{name}={value!r} must be at least {format_size(minimum)}; give {_SIZE_FORMS}")
    if result > maximum:
        raise ConfigError(f"{name}={value!r} must be at most {format_size(maximum)}; give {_SIZE_FORMS}")
    return result


def _as_index(value: object) -> int | None:
    """Return a NumPy integer as an int, and None for a bool, a float or anything else."""
    index = getattr(value, "__index__", None)
    return None if index is None or isinstance(value, bool) else int(index())


def format_duration(ns: float, digits: int = 3) -> str:
    """Write nanoseconds as a person reads them: ``1500`` becomes ``"1.5 us"``."""
    for unit, scale in (("s", 10**9), ("ms", 10**6), ("us", 10**3)):
        if abs(ns) >= scale:
            return f"{ns / scale:.{digits}f}".rstrip("0").rstrip(".") + f" {unit}"
    return f"{ns:.{digits}f}".rstrip("0").rstrip(".") + " ns"


def format_rate(period_ns: int) -> str:
    """Write a period as a rate: ``1_000_000`` becomes ``"1 kHz"``."""
    hertz = 1e9 / period_ns
    for unit, scale in (("MHz", 1e6), ("kHz", 1e3)):
        if hertz >= scale:
            return f"{hertz / scale:.4g} {unit}"
    return f"{hertz:.4g} Hz"


def format_size(size: int) -> str:
    """Write bytes as a person reads them: ``524288`` becomes ``"512 KiB"``."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= scale:
            return f"{size / scale:.2f}".rstrip("0").rstrip(".") + f" {unit}"
    return f"{size} B"
