"""Whether the fields of a dataclass hold what their annotations say: for values that were read from a file.

Knows the annotations that values here have: numbers, text, None, tuples, mappings with text as keys, and dataclasses,
which are taken for checked. A bool is no number, and a whole number is a float too.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import typing
from typing import Any, Mapping, TypeVar

T = TypeVar("T")
LONGEST = 60  # characters of a wrong value that are told


def checked(value: T) -> T:
    """The value itself. Raises TypeError naming the first field that holds something else."""
    kind: Any = type(value)
    for name, hint in _hints(kind).items():
        if not _fits(getattr(value, name), hint):
            told = repr(getattr(value, name))
            raise TypeError(f"{name} is {told[:LONGEST]}{'...' if len(told) > LONGEST else ''}")
    return value


@functools.cache
def _hints(kind: type) -> Mapping[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is typing.Union:
        return any(_fits(value, one) for one in inner)
    if origin is tuple:
        if inner[-1] is Ellipsis:
            return isinstance(value, tuple) and all(_fits(item, inner[0]) for item in value)
        return isinstance(value, tuple) and len(value) == len(inner) and all(map(_fits, value, inner))
    if origin is collections.abc.Mapping:
        return isinstance(value, dict) and all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items())
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)
