"""Parsing and formatting of durations and sizes, the only place that does either."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable
from datetime import timedelta
from fractions import Fraction

from rtloop.errors import ConfigError

__all__ = [
    "as_index",
    "format_duration",
    "format_page_size",
    "format_rate",
    "format_rounded",
    "format_size",
    "lcm_of",
    "parse_duration",
    "parse_exact_duration",
    "parse_period",
    "parse_phase",
    "parse_size",
    "parse_timeout",
    "show",
]

_NS = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9, "min": 60 * 10**9, "h": 3600 * 10**9}
_HZ = {"hz": 1, "khz": 10**3, "mhz": 10**6}
_BYTES = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_DECIMAL = r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_NUMBER = re.compile(rf"\s*{_DECIMAL}\s*(?:/\s*{_DECIMAL}\s*)?([^\s0-9./]*)\s*", re.ASCII | re.IGNORECASE)
_INT64_MAX = 2**63 - 1
_MAX_DIGITS = 60
#: A timeout given as a bare int below this is taken for a forgotten unit.
_MIN_BARE_TIMEOUT_NS = 1000
#: A sleep costs a CPU a microsecond or more: its timer interrupt and two context switches.
_MIN_PERIOD_NS = 2000
#: RT_UNIT_MAX of schedule.h, which carries the fraction of a release as a whole number of parts.
_MAX_DENOMINATOR = _INT64_MAX // 4

_DURATION_FORMS = (
    'an int (nanoseconds), a str with a unit ("250us", "1 ms", "1/60s"), a datetime.timedelta or a fractions.Fraction '
    "(seconds)"
)
_RATE_FORMS = _DURATION_FORMS + ', or a rate ("4kHz")'
_SIZE_FORMS = 'an int (bytes) or a str ("512K", "2M", "1G", powers of 1024)'


def _decimal(text: str) -> Fraction:
    whole, _, decimals = text.partition(".")
    return Fraction(int((whole + decimals) or "0"), 10 ** len(decimals))


def _split(text: str) -> tuple[Fraction, str] | None:
    """Split ``"2.5ms"`` into the exact fraction 5 / 2 and ``"ms"``, and ``"1/60s"`` into 1 / 60 and ``"s"``."""
    match = _NUMBER.fullmatch(text)
    if match is None or len(match[1]) > _MAX_DIGITS or len(match[2] or "") > _MAX_DIGITS:
        return None
    number = _decimal(match[1])
    if match[2] is not None:
        divisor = _decimal(match[2])
        if not divisor:
            return None
        number /= divisor
    return number, match[3]


def _nearest(value: Fraction) -> int:
    """Round to the nearest int, a half up."""
    return (2 * value.numerator + value.denominator) // (2 * value.denominator)


def lcm_of(values: Iterable[Fraction | int]) -> Fraction:
    """Return the least common multiple of positive fractions."""
    fractions = [Fraction(value) for value in values]
    return Fraction(math.lcm(*(f.numerator for f in fractions)), math.gcd(*(f.denominator for f in fractions)))


def parse_duration(
    value: int | str | timedelta | Fraction,
    name: str,
    *,
    rate: bool = False,
    minimum: int = 0,
    maximum: int = _INT64_MAX,
) -> int:
    """Turn a duration into nanoseconds, rounded to the nearest one; see :func:`parse_exact_duration`.

    Returns
    -------
    int
        Nanoseconds.
    """
    return _nearest(parse_exact_duration(value, name, rate=rate, minimum=minimum, maximum=maximum))


def parse_exact_duration(
    value: int | str | timedelta | Fraction,
    name: str,
    *,
    rate: bool = False,
    minimum: int = 0,
    maximum: int = _INT64_MAX,
) -> Fraction:
    """Turn a duration into nanoseconds, without rounding.

    Parameters
    ----------
    value : int, str, datetime.timedelta or fractions.Fraction
        Nanoseconds, a number or a fraction with a unit (``"250us"``, ``"1/60s"``), a timedelta, or seconds as a
        Fraction.
    name : str
        The argument's name, for the error message.
    rate : bool
        True to accept a frequency (``"4kHz"``, ``"30000/1001Hz"``); it is turned into its period.
    minimum, maximum : int
        The least and the greatest duration accepted, in nanoseconds.

    Returns
    -------
    fractions.Fraction
        Nanoseconds.

    Raises
    ------
    ConfigError
        On any other type, form or range.
    """
    forms = _RATE_FORMS if rate else _DURATION_FORMS
    result: Fraction | None = None
    if isinstance(value, timedelta):
        result = Fraction((value.days * 86400 + value.seconds) * 10**9 + value.microseconds * 1000)
    elif isinstance(value, Fraction):
        result = value * 10**9
    elif isinstance(value, str):
        parts = _split(value)
        if parts is not None:
            number, unit = parts
            if unit in _NS:
                result = number * _NS[unit]
            elif rate and unit.lower() in _HZ and number:
                if unit.startswith("m"):
                    raise ConfigError(
                        f"{name}={value!r}: in 'mHz' the m is a thousandth, in 'MHz' the M is a million; "
                        "write 'MHz', or give the period"
                    )
                result = 10**9 / (number * _HZ[unit.lower()])
    elif (index := as_index(value)) is not None:
        result = Fraction(index)
    shown = f"{name}={show(value)}"
    if (result is not None and result < 0) or _is_negative(value):
        raise ConfigError(f"{shown} is negative; give {forms}")
    if result is None:
        raise ConfigError(
            f"{shown} is not a {'rate or a duration' if rate else 'duration'}{_unit_hint(value)}; give {forms}"
        )
    nearest = _nearest(result)
    if nearest < minimum:
        least = "more than zero" if minimum == 1 else f"at least {format_duration(minimum)}"
        raise ConfigError(f"{shown} must be {least}; give {forms}")
    if nearest > _INT64_MAX:
        raise ConfigError(f"{shown} does not fit into 64-bit nanoseconds (about 292 years)")
    if nearest > maximum:
        raise ConfigError(f"{shown} must be at most {format_duration(maximum)}; give {forms}")
    return result


def parse_period(
    value: int | str | timedelta | Fraction, name: str = "period", *, maximum: int = _INT64_MAX
) -> Fraction:
    """Turn a period, or a rate such as ``"4kHz"``, into nanoseconds, without rounding.

    Parameters
    ----------
    value : int, str, datetime.timedelta or fractions.Fraction
        As for :func:`parse_exact_duration`. At least 2 us: below it a CPU has no time left to sleep between two
        releases. A bare int is at least 10 000 (100 kHz), because a smaller one more likely lacks its unit.
    name : str
        The argument's name, for the error message.
    maximum : int
        The greatest period accepted, in nanoseconds.

    Raises
    ------
    ConfigError
        On any other type, form or range.
    """
    period = parse_exact_duration(value, name, rate=True, minimum=1, maximum=maximum)
    if period < _MIN_PERIOD_NS:
        if not isinstance(value, (str, timedelta, Fraction)):
            raise ConfigError(
                f"{name}={show(value)} is {format_duration(period)}, because a bare int is nanoseconds: "
                f"did you mean '{period}us' or '{period}Hz'? Write the unit"
            )
        raise ConfigError(
            f"{name}={show(value)} must be at least {format_duration(_MIN_PERIOD_NS)}: a sleep alone costs a CPU a "
            "microsecond or more, so the loop would take the whole CPU, and the kernel stops real-time threads that do"
        )
    if period.denominator > _MAX_DENOMINATOR:
        near = (period / 10**9).limit_denominator(10**9)
        raise ConfigError(
            f"{name}={show(value)} is a fraction of nanoseconds with a denominator of more than 61 bits, which is too "
            f"fine for a loop; '{near}s' is nearly the same"
        )
    return period


def parse_phase(value: int | str | timedelta | Fraction, period: Fraction, *, maximum: int = _INT64_MAX) -> Fraction:
    """Turn a phase into nanoseconds, without rounding.

    Parameters
    ----------
    value : int, str, datetime.timedelta or fractions.Fraction
        As for :func:`parse_exact_duration`.
    period : fractions.Fraction
        The exact period, ns. A release is a sum of both, so they need a common denominator of at most 61 bits.
    maximum : int
        The greatest phase accepted, in nanoseconds.

    Raises
    ------
    ConfigError
        On any other type, form or range.
    """
    phase = parse_exact_duration(value, "phase", maximum=maximum)
    if math.lcm(phase.denominator, period.denominator) > _MAX_DENOMINATOR:
        periods = (phase / period).limit_denominator(1000)
        raise ConfigError(
            f"phase={show(value)} and the period are fractions of nanoseconds whose common denominator has more than "
            f"61 bits, which is too fine for a loop; '{_nearest(phase)}ns' is nearly the same, and so is "
            f"Fraction('{periods * period / 10**9}')"
        )
    return phase


def parse_timeout(value: int | str | timedelta | Fraction, name: str = "timeout") -> int:
    """Turn a timeout into nanoseconds. A bare int from 1 to 999 is taken for a forgotten unit, and refused."""
    timeout = parse_duration(value, name)
    if 0 < timeout < _MIN_BARE_TIMEOUT_NS and not isinstance(value, (str, timedelta, Fraction)):
        raise ConfigError(
            f"{name}={show(value)} is {timeout} ns, because a bare int is nanoseconds: did you mean '{timeout}s', "
            f"'{timeout}ms' or '{timeout}us'? '{timeout}ns' is accepted if it is meant"
        )
    return timeout


def _is_negative(value: object) -> bool:
    return isinstance(value, str) and value.lstrip()[:1] in ("-", "\N{MINUS SIGN}") and bool(_split(value.lstrip()[1:]))


def _unit_hint(value: object) -> str:
    """Return what is wrong with the unit of a str, if that is known."""
    parts = _split(value) if isinstance(value, str) else None
    if parts is None:
        return ""
    unit = parts[1]
    if not unit:
        return ": its unit is missing"
    return f": units are in lower case, {unit.lower()!r}" if unit.lower() in _NS else ""


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
        On any other type, form or range, or if the size is not a whole number of bytes.
    """
    result: int | None = None
    if isinstance(value, str):
        parts = _split(value)
        if parts is not None:
            number, unit = parts
            unit = unit.upper().removesuffix("IB").removesuffix("B")
            if unit in _BYTES and (number * _BYTES[unit]).denominator == 1 and "/" not in value:
                result = int(number * _BYTES[unit])
    else:
        result = as_index(value)
    if (result is not None and result < 0) or _is_negative(value):
        raise ConfigError(f"{name}={show(value)} is negative; give {_SIZE_FORMS}")
    if result is None:
        raise ConfigError(f"{name}={show(value)} is not a size; give {_SIZE_FORMS}")
    if result < minimum:
        raise ConfigError(f"{name}={show(value)} must be at least {format_size(minimum)}; give {_SIZE_FORMS}")
    if result > maximum:
        raise ConfigError(f"{name}={show(value)} must be at most {format_size(maximum)}; give {_SIZE_FORMS}")
    return result


def as_index(value: object) -> int | None:
    """Return an integer, NumPy's included, as an int; None for a bool, a float or anything else."""
    if isinstance(value, bool):
        return None
    try:
        return int(operator.index(value))  # type: ignore[arg-type]
    except TypeError:
        return None


def show(value: object) -> str:
    """Format a value for an error message: its repr, cut if it is long."""
    try:
        text = repr(value)
    except ValueError:  # an int with more digits than Python prints
        return "an int of thousands of digits"
    return text if len(text) <= 2 * _MAX_DIGITS else f"{text[:_MAX_DIGITS]}..."


def format_duration(ns: float | Fraction, digits: int = 3) -> str:
    """Format nanoseconds for reading: ``1500`` becomes ``"1.5 us"``."""
    if isinstance(ns, Fraction):
        ns = float(ns)
    for unit, scale in (("s", 10**9), ("ms", 10**6), ("us", 10**3)):
        if abs(ns) >= scale:
            return f"{_short(ns / scale, digits)} {unit}"
    return f"{_short(ns, digits)} ns"


def format_rounded(ns: float) -> str:
    """Format nanoseconds with three significant digits, which a bin of a histogram resolves: ``"1.23 ms"``."""
    return format_duration(float(f"{ns:.2e}"))


def _short(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def format_rate(period_ns: float | Fraction) -> str:
    """Format a period as a rate: ``1_000_000`` becomes ``"1 kHz"``."""
    hertz = 1e9 / float(period_ns)
    for unit, scale in (("MHz", 1e6), ("kHz", 1e3)):
        if hertz >= scale:
            return f"{hertz / scale:.5g} {unit}"
    return f"{hertz:.5g} Hz"


def format_size(size: int) -> str:
    """Format bytes for reading: ``524288`` becomes ``"512 KiB"``."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= scale:
            return f"{size / scale:.2f}".rstrip("0").rstrip(".") + f" {unit}"
    return f"{size} B"


def format_page_size(size: int) -> str:
    """Format the bytes of a page as the kernel does in parameters and file names: ``2097152`` becomes ``"2M"``."""
    for unit, shift in (("G", 30), ("M", 20)):
        if size >= 1 << shift:
            return f"{size >> shift}{unit}"
    return f"{size >> 10}K"
