"""Durations and sizes are parsed exactly, and refused with the accepted forms."""

from collections.abc import Callable
from datetime import timedelta
from fractions import Fraction

import numpy as np
import pytest

import rtloop
from rtloop.units import (
    format_duration,
    format_page_size,
    format_rate,
    format_size,
    parse_duration,
    parse_period,
    parse_size,
    parse_timeout,
)


@pytest.mark.parametrize(
    ("value", "ns"),
    [
        (0, 0),
        (1000, 1000),
        ("250ns", 250),
        ("250us", 250_000),
        ("250 µs", 250_000),
        ("1 ms", 1_000_000),
        ("1.5ms", 1_500_000),
        (".5s", 500_000_000),
        ("2s", 2_000_000_000),
        ("2min", 120_000_000_000),
        ("1h", 3_600_000_000_000),
        ("0.1ns", 0),
        (timedelta(microseconds=125), 125_000),
        (timedelta(days=1), 86_400_000_000_000),
        (np.int64(7000), 7000),
        (np.array(7000), 7000),
    ],
)
def test_a_duration_is_exact(value: object, ns: int) -> None:
    assert parse_duration(value, "x") == ns  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "text"), [(4 << 10, "4K"), (64 << 10, "64K"), (2 << 20, "2M"), (32 << 20, "32M"), (16 << 30, "16G")]
)
def test_a_page_size_is_written_as_the_kernel_writes_it(size: int, text: str) -> None:
    assert format_page_size(size) == text


@pytest.mark.parametrize(("value", "ns"), [("4kHz", 250_000), ("1 Hz", 10**9), ("3 kHz", 333_333), ("0.5MHz", 2000)])
def test_a_rate_is_its_period_rounded_to_the_nearest_nanosecond(value: str, ns: int) -> None:
    assert parse_duration(value, "period", rate=True) == ns


@pytest.mark.parametrize(
    "value",
    [
        0.001,
        1.0,
        True,
        None,
        "",
        "ms",
        "1",
        "1 parsec",
        "1e3us",
        "-1ms",
        "1ms 2us",
        "4kHz",
        b"1ms",
        "nan s",
        "١ms",
        int,
        np.array([1]),
    ],
)
def test_anything_else_is_refused_with_the_accepted_forms(value: object) -> None:
    with pytest.raises(rtloop.ConfigError, match="nanoseconds") as caught:
        parse_duration(value, "phase")  # type: ignore[arg-type]
    assert "phase" in str(caught.value) and repr(value) in str(caught.value)


@pytest.mark.parametrize("value", [0, -5, "0ms", "0Hz", timedelta(0)])
def test_a_period_is_more_than_zero(value: object) -> None:
    with pytest.raises(rtloop.ConfigError, match="period"):
        parse_duration(value, "period", rate=True, minimum=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value", [-5, -(10**6), "-1ms", " - 1 ms", "\N{MINUS SIGN}2s", timedelta(seconds=-1), np.int64(-3)]
)
def test_a_negative_duration_is_called_negative(value: object) -> None:
    with pytest.raises(rtloop.ConfigError, match="is negative; give an int") as caught:
        parse_duration(value, "phase", minimum=1)  # type: ignore[arg-type]
    assert f"phase={value!r}" in str(caught.value)
    with pytest.raises(rtloop.ConfigError, match="stack_size='-2M' is negative"):
        parse_size("-2M", "stack_size")


@pytest.mark.parametrize("value", [1, 2, 999, np.int64(5)])
def test_a_timeout_that_can_only_lack_its_unit_is_refused(value: int) -> None:
    hint = rf"timeout=.*{value}.* is {value} ns.*bare int is nanoseconds: did you mean '{value}s'"
    with pytest.raises(rtloop.ConfigError, match=hint):
        parse_timeout(value)
    assert parse_timeout(f"{value}ns") == value, "with its unit it is meant"
    assert parse_duration(value, "phase") == value, "a phase may be as short"


@pytest.mark.parametrize(
    ("text", "hint"), [("1", "its unit is missing"), ("5 MS", "lower case, 'ms'"), ("5 parsec", "not a duration; give")]
)
def test_what_is_wrong_with_a_unit_is_said(text: str, hint: str) -> None:
    with pytest.raises(rtloop.ConfigError, match=hint):
        parse_duration(text, "phase")


@pytest.mark.parametrize("text", ["1mhz", "1 mHz", "0.5mHZ"])
def test_a_rate_in_mHz_is_not_taken_for_megahertz(text: str) -> None:
    with pytest.raises(rtloop.ConfigError, match=r"period=.*'mHz' the m is a thousandth.*write 'MHz'"):
        parse_period(text)


def test_a_period_leaves_the_cpu_time_to_sleep() -> None:
    assert parse_period("2us") == 2000 and parse_period("0.5MHz") == 2000
    for value in ("1999ns", "1MHz", "1us", timedelta(microseconds=1)):
        with pytest.raises(rtloop.ConfigError, match="at least 2 us: a sleep alone costs a CPU"):
            parse_period(value)
    with pytest.raises(rtloop.ConfigError, match="more than zero"):
        parse_period(0)


def test_a_bare_int_as_the_period_is_not_taken_for_a_rate() -> None:
    assert parse_period(10_000) == 10_000 and parse_period(2000) == 2000
    with pytest.raises(rtloop.ConfigError, match=r"period=1000 is 1 us, .*did you mean '1000us' or '1000Hz'"):
        parse_period(1000)


@pytest.mark.parametrize(
    "value",
    ["9" * 5000 + "s", "0." + "3" * 5000 + "s", 10**5000, -(10**5000)],
    ids=["str", "decimals", "int", "negative"],
)
def test_thousands_of_digits_are_refused_in_a_short_message(value: object) -> None:
    for parse in (parse_duration, parse_size):
        with pytest.raises(rtloop.ConfigError, match="phase=") as caught:
            parse(value, "phase")  # type: ignore[operator]
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "use",
    [
        lambda number: rtloop.Ring("f8", 4).push(number),
        lambda number: rtloop.Latest("i4").write([number] * 3),
        lambda number: rtloop.attach(pid=number),
        lambda number: rtloop.running(pid=1 << 31 if number else 0),
    ],
    ids=["push", "write", "attach", "running"],
)
def test_a_number_of_thousands_of_digits_is_refused_everywhere(use: Callable[[int], object]) -> None:
    with pytest.raises(rtloop.ConfigError) as caught:
        use(10**5000)
    assert len(str(caught.value)) < 300


def test_a_duration_fits_into_64_bits() -> None:
    assert parse_duration(2**63 - 1, "x") == 2**63 - 1
    with pytest.raises(rtloop.ConfigError, match="292 years"):
        parse_duration(2**63, "x")
    with pytest.raises(rtloop.ConfigError, match="292 years"):
        parse_duration("99999999999999h", "x")


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (4096, 4096),
        ("512K", 512 << 10),
        ("2M", 2 << 20),
        ("1G", 1 << 30),
        ("1.5 MiB", 3 << 19),
        ("64kB", 64 << 10),
        ("100", 100),
    ],
)
def test_a_size_counts_in_powers_of_1024(value: object, size: int) -> None:
    assert parse_size(value, "x") == size  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [1.5, "1.1", "5 bananas", "", None, False, "-2M"])
def test_a_size_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(rtloop.ConfigError, match="powers of 1024"):
        parse_size(value, "stack_size")  # type: ignore[arg-type]


def test_formats_read_well() -> None:
    assert format_duration(1500) == "1.5 us"
    assert format_duration(250_000) == "250 us"
    assert format_duration(999) == "999 ns"
    assert format_duration(2_000_000_000) == "2 s"
    assert format_rate(1_000_000) == "1 kHz"
    assert format_rate(10**9) == "1 Hz"
    assert format_rate(3_000_030) == "333.33 Hz"
    assert format_rate(Fraction(10**9, 59_940) * 1000) == "59.94 Hz"
    assert format_rate(Fraction(10**7, 441)) == "44.1 kHz"
    assert format_size(512 << 10) == "512 KiB"
    assert format_size(100) == "100 B"


@pytest.mark.parametrize("text", ["1.5 us", "250 us", "999 ns", "2 s", "3.25 ms"])
def test_what_is_formatted_can_be_parsed(text: str) -> None:
    assert format_duration(parse_duration(text, "x")) == text
