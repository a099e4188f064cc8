"""Damage to valid files: what a fuzzer does to bytes, and to the values of JSON. Equal numbers do equal damage."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

Edit = tuple[str, int, int]  # what is done, where, and with what: numbers are taken modulo what there is

NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)
TEXTS = (
    "",
    "-1",
    "0",
    "9" * 30,
    "9" * 5000,
    "1e999",
    "NaN",
    "../../x",
    "/etc/passwd",
    "$HOME",
    "\x1b[2J\x07",
    "a" * 70000,
)
VALUES = (None, True, -1, 0, 2**63, 10**30, 1e308, float("nan"), float("inf"), [], {}, [[]], [None], {"a": 1}, *TEXTS)
DEEP = 30000


def _truncate(data: bytes, place: int, _: int) -> bytes:
    return data[: place % (len(data) + 1)]


def _flip(data: bytes, place: int, what: int) -> bytes:
    at = place % max(1, len(data))
    return data[:at] + bytes([(data[at] if data else 0) ^ (1 << what % 8)]) + data[at + 1 :]


def _number(data: bytes, place: int, what: int) -> bytes:
    width = (1, 2, 4, 8)[what % 4]
    at = place % max(1, len(data))
    value = NUMBERS[what // 4 % len(NUMBERS)] % 256**width
    return data[:at] + value.to_bytes(width, "little") + data[at + width :]


def _digits(data: bytes, place: int, what: int) -> bytes:
    """One of the numbers that are written as text becomes another."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?", data))
    if not found:
        return data
    one = found[place % len(found)]
    return data[: one.start()] + TEXTS[what % len(TEXTS)].encode() + data[one.end() :]


def _insert(data: bytes, place: int, what: int) -> bytes:
    at = place % (len(data) + 1)
    return data[:at] + TEXTS[what % len(TEXTS)].encode() + data[at:]


def _deepen(data: bytes, place: int, what: int) -> bytes:
    at = place % (len(data) + 1)
    return data[:at] + (b"[", b'{"a":', b"<a>", b"- ", b"(", b"\x0a\x80")[what % 6] * DEEP + data[at:]


def _splice(data: bytes, place: int, what: int) -> bytes:
    """A piece comes again elsewhere."""
    start, at = what % (len(data) + 1), place % (len(data) + 1)
    return data[:at] + data[start : start + 1 + what % 64] + data[at:]


def _remove(data: bytes, place: int, what: int) -> bytes:
    at = place % (len(data) + 1)
    return data[:at] + data[at + 1 + what % 64 :]


BYTES = {f.__name__.lstrip("_"): f for f in (_truncate, _flip, _number, _digits, _insert, _deepen, _splice, _remove)}
JSON = ("replace", "delete", "rename", "repeat", "nest")


def damaged(data: bytes, edits: Sequence[Edit]) -> bytes:
    """The file after the edits, one after the other. Those of JSON leave alone what is none."""
    for what, place, number in edits:
        data = BYTES[what](data, place, number) if what in BYTES else _structure(data, what, place, number)
    return data


def edits(*, json_too: bool) -> st.SearchStrategy[list[Edit]]:
    """One to four edits; of every line or document of JSON, values too."""
    kinds = st.sampled_from((*BYTES, *JSON) if json_too else tuple(BYTES))
    number = st.integers(0, 2**32 - 1)
    return st.lists(st.tuples(kinds, number, number), min_size=1, max_size=4)


def _structure(data: bytes, what: str, place: int, number: int) -> bytes:
    lines = data.split(b"\n") if data.count(b"\n") and _parsed(data) is None else [data]
    at = number % len(lines)
    value = _parsed(lines[at])
    if not isinstance(value, (dict, list)):
        return data
    _edit(value, what, place, VALUES[number % len(VALUES)])
    lines[at] = json.dumps(value).encode()
    return b"\n".join(lines)


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _edit(value: Any, what: str, place: int, odd: Any) -> None:
    places = list(_places(value))
    if not places:
        return
    parent, key = places[place % len(places)]
    if what == "replace":
        parent[key] = odd
    elif what == "delete":
        del parent[key]
    elif what == "nest":
        parent[key] = [parent[key]]
    elif isinstance(parent, list):
        parent.extend([parent[key]] * 3)
    elif what == "rename":
        parent[str(odd)] = parent.pop(key)
    else:
        parent["again"] = parent[key]


def _places(value: Any) -> Any:
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from _places(value[key])
