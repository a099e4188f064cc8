"""How far the outputs of one model are from those of another on the same samples, and whether that is tolerated.

A tolerance is held against the value itself, whatever its interval: the same files and samples give the same numbers.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeopt import units
from edgeopt.budget import QUANTITIES, Quantity
from edgeopt.errors import InputError
from edgeopt.measuring import quality
from edgeopt.statistics import paired_drop

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

ROWS = 256  # samples at once


def _number(text: object) -> float:
    try:
        value = float(str(text))
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{text!r} is not a number from 0 on, write it like '0.01'")
    return value


def _short(value: float) -> str:
    return f"{value:.3g}"


TOLERATED: dict[str, Quantity] = {
    **{name: QUANTITIES[name] for name in ("sqnr", "fidelity", "accuracy drop")},
    "max abs": Quantity("max abs", _number, _short, example="0.01"),
    "relative": Quantity("relative", units.parse_fraction, units.format_fraction, example="1 %"),
    "cosine": Quantity("cosine", _number, lambda value: f"{value:.6f}", lower_is_better=False, example="0.999"),
}


@dataclass(frozen=True)
class Tolerance:
    """How far a quantity may go, in dB, a fraction of one or the output's own unit."""

    quantity: str
    bound: float

    def judged(self, values: Mapping[str, float]) -> dict[str, Any]:
        """Held against what was found: quantity, limit, value (None for no difference at all), passed, told.

        Raises InputError where there is nothing to hold it against.
        """
        if self.quantity not in values:
            raise InputError(
                f"--tolerance {self.quantity}: there is nothing to hold it against",
                remedy={
                    "fidelity": "It is for class scores: (samples, classes). Use sqnr.",
                    "accuracy drop": "It needs labels in --data, and class scores.",
                }.get(self.quantity),
            )
        kind, value = TOLERATED[self.quantity], values[self.quantity]
        passed = value <= self.bound if kind.lower_is_better else value >= self.bound
        sign = ("≤" if passed else ">") if kind.lower_is_better else ("≥" if passed else "<")
        return {
            "quantity": self.quantity,
            "limit": self.bound,
            "value": value if math.isfinite(value) else None,
            "passed": passed,
            "told": f"{self.quantity} {kind.format(value)} {sign} {kind.format(self.bound)}",
        }


def tolerances(texts: Sequence[str]) -> tuple[Tolerance, ...]:
    """From "sqnr: 30 dB". Raises InputError."""
    found = []
    for text in texts:
        name, mark, bound = text.partition(":" if ":" in text else "=")
        name = " ".join(name.split())
        if not mark:
            raise InputError(f"--tolerance {text!r}: write it like --tolerance 'sqnr: 30 dB'")
        if name not in TOLERATED:
            near = difflib.get_close_matches(name, TOLERATED, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(TOLERATED)}"
            raise InputError(f"--tolerance: unknown quantity {name!r}, {hint}")
        try:
            found.append(Tolerance(name, TOLERATED[name].parse(bound.strip())))
        except ValueError as error:
            raise InputError(f"--tolerance {name}: {error}") from None
    return tuple(found)


def of_output(wanted: Array, found: Array) -> dict[str, Any]:
    """The difference of one output, samples along the first axis.

    max_abs and mean_abs are in its own unit, relative is max_abs over the largest magnitude wanted, sqnr_db the power
    of the signal over that of the difference (None where they are equal, `exact` is then true, or the signal is zero),
    cosine that of the angle between the two, None where one of them is zero. fidelity: the share of samples with the
    same top-1 class, with its 95 % interval, where the output looks like class scores.
    """
    import numpy as np

    signal, noise = quality.energies(wanted, found)
    largest = largest_difference = total = product = power = 0.0
    for start in range(0, len(wanted), ROWS):
        x, y = (value[start : start + ROWS].astype(np.float64) for value in (wanted, found))
        apart = np.abs(x - y)
        largest = max(largest, float(np.abs(x).max(initial=0.0)))
        largest_difference = max(largest_difference, float(apart.max(initial=0.0)))
        total += float(apart.sum())
        product += float((x * y).sum())
        power += float(np.square(y).sum())
    agreed = quality.agreements(wanted, found) if quality.is_scores(wanted) else None
    return {
        "max_abs": largest_difference,
        "mean_abs": total / wanted.size if wanted.size else 0.0,
        "relative": largest_difference / largest if largest else None,
        "sqnr_db": quality.decibels(signal, noise),
        "exact": noise == 0.0,
        "cosine": product / math.sqrt(signal * power) if signal and power else None,
        "fidelity": None if agreed is None else _share(int(agreed.sum()), len(agreed)),
    }


def values(outputs: Sequence[Mapping[str, Any]], drop: float | None) -> dict[str, float]:
    """What tolerances are held against: of several outputs the worst."""
    told: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
        "sqnr": lambda one: math.inf if one["exact"] else one["sqnr_db"],
        "fidelity": lambda one: one["fidelity"] and one["fidelity"]["value"],
        "max abs": lambda one: one["max_abs"],
        "relative": lambda one: one["relative"],
        "cosine": lambda one: one["cosine"],
    }
    found: dict[str, float] = {} if drop is None else {"accuracy drop": drop}
    for name, get in told.items():
        known = [value for one in outputs if (value := get(one)) is not None]
        if known:
            found[name] = max(known) if TOLERATED[name].lower_is_better else min(known)
    return found


def _share(hits: int, count: int) -> dict[str, float]:
    """The interval is that of a paired drop from full agreement (Agresti and Min 2005)."""
    drop = paired_drop(hits, count - hits, 0, 0)
    return {"value": hits / count, "low": 1 - drop.high, "high": min(1.0, 1 - drop.low)}
