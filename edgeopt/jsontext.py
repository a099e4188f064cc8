"""JSON that others wrote: plain JSON alone, so that what is read is finite, and a damaged file is told as one.

Python's reader also takes NaN and Infinity, makes infinity of 1e999, counts as far as memory goes, and ends in a
RecursionError where brackets are nested deeply.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn, Union

LONGEST_INTEGER = 20  # digits: what 64 bits hold


def parse(text: Union[str, bytes]) -> Any:
    """The value. Raises ValueError for what is not JSON, is nested too deep, or is a number that nothing here holds."""
    try:
        return json.loads(text, parse_int=_integer, parse_float=_finite, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _integer(text: str) -> int:
    return int(text) if len(text) <= LONGEST_INTEGER else _refuse(text)


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text[:LONGEST_INTEGER]} is no number here")
