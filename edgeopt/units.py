"""Quantities as people write them ("12 ms", "180 MiB", "1 %") to numbers and back.

Times are integer nanoseconds, sizes integer bytes, shares are fractions of one, powers watts. A bare number has no unit
and is refused rather than guessed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

LARGEST = 1e18
_NUMBER = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([^\s0-9.].*?)?\s*$")
_TIME_NS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,  # U+00B5, on keyboards
    "\u03bcs": 10**3,  # a Greek mu, what Unicode prefers
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "min": 60 * 10**9,
    "h": 3600 * 10**9,
}
_SIZE_BYTES = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def _split(text: object, example: str, what: str) -> tuple[float, str]:
    match = _NUMBER.match(str(text))
    if match is None:
        raise ValueError(f"{text!r} is not {what}: write it like {example!r}")
    if not match.group(2):
        raise ValueError(f"{text!r} has no unit: write it like {example!r}")
    number = float(match.group(1))
    if number > LARGEST:
        raise ValueError(f"{number:g} {match.group(2)} is too large")
    return number, match.group(2)


def _scaled(text: object, units: dict[str, int], example: str, what: str) -> int:
    number, unit = _split(text, example, what)
    if unit not in units:
        raise ValueError(f"{text!r}: unknown unit {unit!r}, one of {', '.join(units)}")
    return round(number * units[unit])


def parse_time(text: object) -> int:
    """Nanoseconds. Raises ValueError for a bare number or an unknown unit."""
    return _scaled(text, _TIME_NS, "5 ms", "a time")


def parse_size(text: object) -> int:
    """Bytes. Raises ValueError for a bare number or an unknown unit."""
    return _scaled(text, _SIZE_BYTES, "180 MiB", "a size")


def parse_fraction(text: object) -> float:
    """A share as a fraction of one: "1 %" is 0.01. Raises ValueError without a percent sign."""
    number, unit = _split(text, "1 %", "a share")
    if unit != "%":
        raise ValueError(f"{text!r}: unknown unit {unit!r}, write it like '1 %'")
    return number / 100


def parse_rate(text: object) -> float:
    """Inferences per second, from "100 /s" or "100 per second"."""
    number, unit = _split(text, "100 /s", "a rate")
    if unit.replace(" ", "") not in ("/s", "persecond", "Hz"):
        raise ValueError(f"{text!r}: unknown unit {unit!r}, write it like '100 /s'")
    return number


def parse_count(text: object) -> int:
    """A whole number of things: 0, 1, 2. Raises ValueError for anything else."""
    if isinstance(text, bool) or not re.fullmatch(r"\s*[0-9]+\s*", str(text)):
        raise ValueError(f"{text!r} is not a whole number, write it like '0'")
    return int(str(text))


def parse_decibels(text: object) -> float:
    """Decibels, from "20 dB"."""
    number, unit = _split(text, "20 dB", "a ratio")
    if unit != "dB":
        raise ValueError(f"{text!r}: unknown unit {unit!r}, write it like '20 dB'")
    return number


def parse_power(text: object) -> float:
    """Watts, from "25 W" or "500 mW"."""
    number, unit = _split(text, "25 W", "a power")
    if unit not in ("W", "mW"):
        raise ValueError(f"{text!r}: unknown unit {unit!r}, one of W, mW")
    return number / 1000 if unit == "mW" else number


def format_time(nanoseconds: float) -> str:
    """Three significant digits with the unit that suits: "1.24 ms"."""
    return _told(nanoseconds, (("s", 1e9), ("ms", 1e6), ("µs", 1e3))) or f"{nanoseconds:.0f} ns"


def format_size(size_bytes: float) -> str:
    """Binary units with three significant digits: "2.67 MiB"."""
    return _told(size_bytes, (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))) or f"{size_bytes:.0f} B"


def format_count(number: float) -> str:
    """Large counts in short: "79.4 M"."""
    return _told(number, (("G", 1e9), ("M", 1e6), ("k", 1e3))) or f"{number:.0f}"


def format_fraction(fraction: float) -> str:
    """A fraction of one as percent with two digits: "93.52 %"."""
    return f"{fraction * 100:.2f} %"


def _told(number: float, scales: Sequence[tuple[str, float]]) -> str | None:
    """With three significant digits in the first unit that it reaches once rounded, None where it reaches none."""
    for unit, scale in scales:
        shown = number / scale
        if abs(shown) >= 0.9995:
            digits = 2 if abs(shown) < 9.995 else 1 if abs(shown) < 99.95 else 0
            return f"{shown:.{digits}f} {unit}"
    return None
