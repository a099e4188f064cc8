"""Quantities as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt import units

PARSERS = {
    "5 ms": units.parse_time,
    "180 MiB": units.parse_size,
    "1 %": units.parse_fraction,
    "100 /s": units.parse_rate,
    "20 dB": units.parse_decibels,
    "25 W": units.parse_power,
}


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("12 ms", 12_000_000),
        ("12ms", 12_000_000),
        (" 0.5 us ", 500),
        ("1.5 µs", 1500),
        ("1.5 \u03bcs", 1500),
        ("3 ns", 3),
        ("2 s", 2 * 10**9),
        ("2 min", 120 * 10**9),
        ("1 h", 3600 * 10**9),
        ("0 ms", 0),
    ],
)
def test_times_are_nanoseconds(text: str, nanoseconds: int) -> None:
    assert units.parse_time(text) == nanoseconds


@pytest.mark.parametrize(
    ("text", "size"), [("180 MiB", 180 * 2**20), ("2 MB", 2_000_000), ("1.5 KiB", 1536), ("7 B", 7), ("1 GB", 10**9)]
)
def test_sizes_are_bytes(text: str, size: int) -> None:
    assert units.parse_size(text) == size


def test_shares_are_fractions_of_one() -> None:
    assert units.parse_fraction("1 %") == 0.01
    assert units.parse_fraction("99.5%") == 0.995


def test_rates_ratios_and_powers() -> None:
    assert units.parse_rate("100 /s") == units.parse_rate("100 per second") == units.parse_rate("100 Hz") == 100
    assert units.parse_decibels("20.5 dB") == 20.5
    assert units.parse_power("500 mW") == 0.5


@pytest.mark.parametrize("example", PARSERS)
@pytest.mark.parametrize("number", [5, "5", 0.5, "1e3"])
def test_a_number_without_its_unit_is_refused_with_an_example(example: str, number: object) -> None:
    with pytest.raises(ValueError, match=r"has no unit|unknown unit"):
        PARSERS[example](number)
    with pytest.raises(ValueError, match="write it like") as caught:
        PARSERS[example](5)
    assert example in str(caught.value)


@pytest.mark.parametrize("parse", PARSERS.values())
@pytest.mark.parametrize("text", ["", "fast", "-5 ms", "5 parsec", "5 5 ms", "nan ms", "inf %", None, True, [1], {}])
def test_what_is_no_quantity_is_refused(parse, text: object) -> None:
    with pytest.raises(ValueError, match=r"is not|unknown unit"):
        parse(text)


@pytest.mark.parametrize("example", PARSERS)
def test_a_number_beyond_all_measure_is_refused(example: str) -> None:
    with pytest.raises(ValueError, match="too large"):
        PARSERS[example]("9" * 400 + example.lstrip("0123456789"))


@given(st.text() | st.integers() | st.floats() | st.lists(st.text(max_size=3)))
def test_any_value_is_a_quantity_or_a_value_error(value: object) -> None:
    for parse in PARSERS.values():
        try:
            assert parse(value) >= 0
        except ValueError as error:
            assert str(error)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (units.format_time(1_240_000), "1.24 ms"),
        (units.format_time(9_999_999), "10.0 ms"),
        (units.format_time(999_999), "1.00 ms"),
        (units.format_time(123_456_789), "123 ms"),
        (units.format_time(7), "7 ns"),
        (units.format_time(-2_500), "-2.50 µs"),
        (units.format_time(90e9), "90.0 s"),
        (units.format_size(2_800_000), "2.67 MiB"),
        (units.format_size(2**20 - 1), "1.00 MiB"),
        (units.format_size(1023), "1023 B"),
        (units.format_count(79_400_000), "79.4 M"),
        (units.format_count(12), "12"),
        (units.format_fraction(0.9352), "93.52 %"),
    ],
)
def test_numbers_are_told_with_three_significant_digits(text: str, expected: str) -> None:
    assert text == expected


@given(st.integers(0, 10**15))
def test_what_is_told_can_be_read_back(number: int) -> None:
    assert units.parse_time(units.format_time(number)) == pytest.approx(number, rel=0.0051)
    assert units.parse_size(units.format_size(number)) == pytest.approx(number, rel=0.0051)
