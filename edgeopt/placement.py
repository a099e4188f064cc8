"""Where the operators of an artifact run, and what they compute in: as a runtime tells it of a model it has loaded.

A runtime fuses, splits and drops operators: what is counted here are those that it runs, under its own names for them.
What it does not tell is None. This module knows nothing of how long any of them takes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

CPU = "CPU"
REAL = ("fp32", "fp64", "tf32", "fp16", "bf16", "fp8", "int8", "int16", "int4")  # what stands for real numbers
SHOWN = 4  # kinds of operators that a line names


@dataclass(frozen=True)
class Placed:
    """Operators of one type that run alike, `count` of them, with the `names` that the runtime gives.

    `where` is "CPU", or the accelerator ("CUDA", "Edge TPU"). `precision` is what they compute in ("fp32", "int8"; of
    shapes and indices "int64"), None where the runtime does not tell. `kernel` is the code that runs them. `converts`
    says that they only change numbers from one type or layout to another. `reason` is why they are not where they
    might be.
    """

    operator: str
    where: str
    precision: Optional[str] = None
    kernel: Optional[str] = None
    converts: bool = False
    reason: Optional[str] = None
    count: int = 1
    names: Tuple[str, ...] = ()

    def to_json(self) -> Dict[str, Any]:
        return {
            "operator": self.operator,
            "where": self.where,
            "precision": self.precision,
            "kernel": self.kernel,
            "converts": self.converts,
            "reason": self.reason,
            "count": self.count,
            "names": list(self.names),
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Placed:
        return Placed(**{**value, "names": tuple(value.get("names", ()))})


@dataclass(frozen=True)
class Placement:
    """Where all operators of an artifact run. There are none where nobody tells: `reason` is then why."""

    operators: Tuple[Placed, ...] = ()
    reason: Optional[str] = None

    @property
    def counts(self) -> Dict[str, int]:
        """How many of each type, in alphabetical order."""
        return dict(sorted(_counts(self.operators).items()))

    @property
    def left_to_cpu(self) -> Optional[int]:
        """How many operators an accelerator left to the CPU, None where everything is the CPU's own."""
        if all(one.where == CPU for one in self.operators):
            return None
        return _total(one for one in self.operators if one.where == CPU)

    def exceptions(self, precision: str) -> Tuple[str, ...]:
        """What is not where it should be, in words: left to the CPU by an accelerator, in another precision than the
        artifact's, or with a reason of its own. Nothing is expected of the precision of weight-only and dynamic
        quantization, where it may be either.
        """
        told = []
        elsewhere = [one for one in self.operators if one.where != CPU]
        left = [one for one in self.operators if one.where == CPU]
        if elsewhere and left:
            where = " and ".join(sorted({one.where for one in elsewhere}))
            share = f"{_total(elsewhere)} of {_total(self.operators)} operators"
            told.append(f"{share} on the {where}; on the CPU: {_named(left)}")
        computing = [one for one in self.operators if one.precision in REAL and not one.converts]
        others = [one for one in computing if one.precision != precision]
        if precision in ("int8", "fp16", "bf16") and others:
            kept = "float" if precision == "int8" else " and ".join(sorted({str(one.precision) for one in others}))
            share = f"{_total(computing) - _total(others)} of {_total(computing)} operators"
            told.append(f"{share} in {precision}; {kept}: {_named(others)}")
        for reason in dict.fromkeys(one.reason for one in self.operators if one.reason):
            told.append(f"{reason}: {_named([one for one in self.operators if one.reason == reason])}")
        return tuple(told)

    def to_json(self) -> Dict[str, Any]:
        return {"operators": [one.to_json() for one in self.operators] or None, "reason": self.reason}

    def told(self, precision: str) -> Dict[str, Any]:
        """For a document: what runs where, and what of it is not where it should be."""
        return {**self.to_json(), "left_to_cpu": self.left_to_cpu, "exceptions": list(self.exceptions(precision))}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Placement:
        return Placement(tuple(Placed.from_json(one) for one in value["operators"] or ()), value["reason"])


def grouped(placed: Iterable[Placed]) -> Tuple[Placed, ...]:
    """Those that differ in names alone as one, the most frequent first, what converts last."""
    found: Dict[Placed, List[Placed]] = {}
    for one in placed:
        found.setdefault(replace(one, count=1, names=()), []).append(one)
    groups = (
        replace(kind, count=_total(alike), names=tuple(name for one in alike for name in one.names))
        for kind, alike in found.items()
    )
    return tuple(sorted(groups, key=lambda group: (group.converts, -group.count, group.operator)))


def _counts(placed: Iterable[Placed]) -> Counter[str]:
    found: Counter[str] = Counter()
    for one in placed:
        found[one.operator] += one.count
    return found


def _total(placed: Iterable[Placed]) -> int:
    return sum(one.count for one in placed)


def _named(placed: Sequence[Placed]) -> str:
    """ "Softmax 1, Resize 2", the most frequent first."""
    found = _counts(placed).most_common()
    more = f" and {len(found) - SHOWN} more kinds" if len(found) > SHOWN else ""
    return ", ".join(f"{name} {count}" for name, count in found[:SHOWN]) + more
