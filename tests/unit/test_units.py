"""Durations and sizes are parsed exactly, and refused with the accepted forms."""

from datetime import timedelta

import numpy as np
import pytest

import rtloop
from rtloop.units import format_duration, format_rate, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("value", "ns"),
    [
        (250, 250),
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
        (np.int64(7), 7),
    ],
)
def test_a_duration_is_exact(value: object, ns: int) -> None:
    assert parse_duration(value, "x") == ns  # type: ignore[arg-type]


@pytest.mark.parametrize(("value", "ns"), [("4kHz", 250_000), ("1 Hz", 10**9), ("3 kHz", 333_333), ("0.5MHz", 2000)])
def test_a_rate_is_its_period_rounded_to_the_nearest_nanosecond(value: str, ns: int) -> None:
    assert parse_duration(value, "period", rate=True) == ns


@pytest.mark.parametrize(
    "value",
    [0.001, 1.0, True, None, "", "ms", "1", "1 parsec", "1e3us", "-1ms", "1ms 2us", "4kHz", b"1ms", "nan s", "١ms"],
)
def test_anything_else_is_refused_with_the_accepted_forms(value: object) -> None:
    with pytest.raises(rtloop.ConfigError, match="nanoseconds") as caught:
        parse_duration(value, "phase")  # type: ignore[arg-type]
    assert "phase" in str(caught.value) and repr(value) in str(caught.value)


@pytest.mark.parametrize("value", [0, -5, "0ms", "0Hz", timedelta(0)])
def test_a_period_is_more_than_zero(value: object) -> None:
    with pytest.raises(rtloop.ConfigError, match="period"):
        parse_duration(value, "period", rate=True, minimum=1)  # type: ignore[arg-type]


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
    assert format_size(512 << 10) == "512 KiB"
    assert format_size(100) == "100 B"


@pytest.mark.parametrize("text", ["1.5 us", "250 us", "999 ns", "2 s", "3.25 ms"])
def test_what_is_formatted_can_be_parsed(text: str) -> None:
    assert format_duration(parse_duration(text, "x")) == text
