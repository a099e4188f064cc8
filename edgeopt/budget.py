"""Budgets, verdicts and the choice among candidates: pure, on numbers that were measured elsewhere.

A quantity that was not measured is None, and breaks every limit set on it. Where a value is an estimate with an
interval, a limit inside the interval is undecided: the value itself decides then, and it is said to be undecided, with
the number of samples that would tell. This module knows nothing of models or of how a number came about; which of two
latencies is really lower is asked of `compare`, which knows the raw samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from edgeopt import units
from edgeopt.statistics import samples_to_decide


@dataclass(frozen=True)
class Quantity:
    """Something that can be limited or preferred. `lower_is_better` says which side of a limit is inside."""

    name: str
    parse: Callable[[object], float]
    format: Callable[[float], str]
    lower_is_better: bool = True
    example: str = ""


def _points(value: float) -> str:
    return f"{value * 100:.2f} points"


def _decibels(value: float) -> str:
    return f"{value:.1f} dB" if math.isfinite(value) else "exact"


def _count(value: float) -> str:
    return f"{value:.0f}"


def _rate(value: float) -> str:
    return f"{value:.0f} /s"


NAMES_LISTED = 3  # in a sentence
LATENCY_CLASSES_NS: Dict[str, int] = {
    "real-time": 10**6,
    "near-real-time": 10**7,
    "interactive": 10**8,
    "batch": 10**9,
}


def _latency(text: object) -> float:
    name = str(text)
    return LATENCY_CLASSES_NS[name] if name in LATENCY_CLASSES_NS else units.parse_time(text)


QUANTITIES: Dict[str, Quantity] = {
    quantity.name: quantity
    for quantity in (
        Quantity("latency p50", _latency, units.format_time, example="5 ms"),
        Quantity("latency p90", _latency, units.format_time, example="5 ms"),
        Quantity("latency p95", _latency, units.format_time, example="5 ms"),
        Quantity("latency p99", _latency, units.format_time, example="5 ms"),
        Quantity("throughput", units.parse_rate, _rate, lower_is_better=False, example="100 /s"),
        Quantity("cold start", units.parse_time, units.format_time, example="500 ms"),
        Quantity("peak memory", units.parse_size, units.format_size, example="180 MiB"),
        Quantity("size", units.parse_size, units.format_size, example="2 MB"),
        Quantity("accuracy drop", units.parse_fraction, _points, example="1 %"),
        Quantity("fidelity", units.parse_fraction, units.format_fraction, lower_is_better=False, example="98 %"),
        Quantity("sqnr", units.parse_decibels, _decibels, lower_is_better=False, example="20 dB"),
        Quantity("cpu operators", units.parse_count, _count, example="0"),  # left to the CPU by an accelerator
    )
}

Values = Mapping[str, Optional[float]]


@dataclass(frozen=True)
class Interval:
    """Where a value lies at 95 %, as taken over so many samples."""

    low: float
    high: float
    samples: int


Intervals = Mapping[str, Interval]


@dataclass(frozen=True)
class Limit:
    """A quantity and the bound that it has to keep, in ns, bytes, per second, dB, a count or a fraction of one."""

    quantity: str
    bound: float

    def __str__(self) -> str:
        quantity = QUANTITIES[self.quantity]
        return f"{self.quantity} {'≤' if quantity.lower_is_better else '≥'} {quantity.format(self.bound)}"


@dataclass(frozen=True)
class Budget:
    """The limits, and what to prefer among candidates inside them: quantities, the first one first."""

    limits: Tuple[Limit, ...] = ()
    prefer: Tuple[str, ...] = ("latency p50",)

    def to_json(self) -> Dict[str, Any]:
        return {"limits": {limit.quantity: limit.bound for limit in self.limits}, "prefer": list(self.prefer)}


@dataclass(frozen=True)
class Verdict:
    """One limit held against one value. `excess` is how far outside, as a fraction of the bound, None where unknown.

    `interval` is the value's, None where it was measured once. `needed` is the number of samples that would decide what
    is undecided, None where no number would.
    """

    limit: Limit
    value: Optional[float]
    passed: bool
    excess: Optional[float]
    interval: Optional[Interval] = None

    @property
    def undecided(self) -> bool:
        """Whether the limit lies inside the interval."""
        return self.interval is not None and self.interval.low <= self.limit.bound < self.interval.high

    @property
    def needed(self) -> Optional[int]:
        found = self.interval
        if found is None or self.value is None:
            return None
        return samples_to_decide(self.value, (found.low, found.high), found.samples, self.limit.bound)

    def __str__(self) -> str:
        quantity = QUANTITIES[self.limit.quantity]
        if self.value is None:
            return f"{self.limit.quantity} was not measured, the limit is {quantity.format(self.limit.bound)}"
        inside, outside = ("≤", ">") if quantity.lower_is_better else ("≥", "<")
        sign = inside if self.passed else outside
        told = f"{self.limit.quantity} {quantity.format(self.value)} {sign} {quantity.format(self.limit.bound)}"
        if self.undecided and self.interval is not None:
            needed = f"about {self.needed} samples would decide" if self.needed else "no number of samples would decide"
            return f"{told} (undecided: {needed}, {self.interval.samples} were taken)"
        return told if self.passed or self.excess is None else f"{told} ({_percent(self.excess)} outside)"


@dataclass(frozen=True)
class Scored:
    """A candidate as the choice sees it. `steps` counts what was done to the model: fewer is simpler."""

    id: str
    values: Values
    steps: int
    error: Optional[str] = None
    intervals: Intervals = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """The winner (None when nothing is inside), the fallbacks in rank order, the others with reasons, and why.

    `ties` are the fallbacks that cannot be told from the winner in what is preferred most; `nearest` is the candidate
    that came nearest when there is no winner. `unclear` are the fallbacks of which the measurements do not tell for
    certain whether they are worse than the winner.
    """

    winner: Optional[str]
    fallbacks: Tuple[str, ...]
    rejected: Mapping[str, Tuple[str, ...]]
    ties: Tuple[str, ...]
    why: str
    nearest: Optional[str] = None
    unclear: Tuple[str, ...] = ()


Compare = Callable[[str, str, str], str]
"""compare(quantity, a, b): "faster", "slower", "tie" or "inconclusive": how candidate `a` stands to `b`."""


def judge(budget: Budget, values: Values, intervals: Optional[Intervals] = None) -> Tuple[Verdict, ...]:
    """Every limit of the budget held against a candidate's values, and their intervals where they have one."""
    verdicts: List[Verdict] = []
    for limit in budget.limits:
        value = values.get(limit.quantity)
        over = None if value is None else value - limit.bound
        if over is not None and not QUANTITIES[limit.quantity].lower_is_better:
            over = -over
        excess = over / abs(limit.bound) if over is not None and limit.bound else None
        interval = (intervals or {}).get(limit.quantity)
        verdicts.append(Verdict(limit, value, over is not None and over <= 0, excess, interval))
    return tuple(verdicts)


def choose(candidates: Sequence[Scored], budget: Budget, compare: Compare) -> Choice:
    """The best candidate inside the budget, by what is preferred first; a tie is broken by what is preferred next.

    A tie that no preference breaks goes to the smaller artifact, then to the one with fewer steps.
    """
    rejected: Dict[str, Tuple[str, ...]] = {}
    inside: List[Scored] = []
    outside: List[Tuple[float, str]] = []
    for candidate in candidates:
        if candidate.error is not None:
            rejected[candidate.id] = (candidate.error,)
            continue
        broken = [verdict for verdict in judge(budget, candidate.values, candidate.intervals) if not verdict.passed]
        if broken:
            rejected[candidate.id] = tuple(str(verdict) for verdict in broken)
            if all(verdict.excess is not None for verdict in broken):
                outside.append((max(verdict.excess or 0.0 for verdict in broken), candidate.id))
        else:
            inside.append(candidate)
    if not inside:
        nearest = min(outside)[1] if outside else None
        failed = all(candidate.error is not None for candidate in candidates)
        why = "every candidate failed" if failed else "no candidate is inside the budgets"
        return Choice(None, (), rejected, (), why, nearest)
    ranked = _ranked(inside, budget.prefer[0])
    best = ranked[0]
    if best.values.get(budget.prefer[0]) is None:
        ties, unclear = ranked, []
    else:
        verdicts = {other.id: compare(budget.prefer[0], best.id, other.id) for other in ranked[1:]}
        ties = [best, *(other for other in ranked[1:] if verdicts[other.id] == "tie")]
        measured = [other.id for other in ranked[1:] if other.values.get(budget.prefer[0]) is not None]
        unclear = [name for name in measured if verdicts[name] == "inconclusive"]
    winner = min(ties, key=lambda candidate: _tie_break(candidate, budget.prefer[1:]))
    others = tuple(candidate.id for candidate in ranked if candidate is not winner)
    why = _why(winner, ties, inside, budget)
    for verdict in judge(budget, winner.values, winner.intervals):
        if verdict.undecided:
            why += f"; {verdict}"
    if unclear:
        why += f"; whether it is really better than {_listed(unclear)} could not be told: the machine was too busy"
    return Choice(
        winner.id, others, rejected, tuple(c.id for c in ties if c is not winner), why, unclear=tuple(unclear)
    )


def _order(quantity: str, values: Values) -> Tuple[bool, float]:
    value = values.get(quantity)
    if value is None:
        return (True, 0.0)
    return (False, value if QUANTITIES[quantity].lower_is_better else -value)


def _tie_break(candidate: Scored, preferences: Sequence[str]) -> Tuple[Any, ...]:
    keys = [_order(quantity, candidate.values) for quantity in (*preferences, "size")]
    return (*keys, candidate.steps, candidate.id)


def _ranked(candidates: Sequence[Scored], quantity: str) -> List[Scored]:
    return sorted(candidates, key=lambda candidate: (_order(quantity, candidate.values), candidate.steps, candidate.id))


def _why(winner: Scored, ties: Sequence[Scored], inside: Sequence[Scored], budget: Budget) -> str:
    first = budget.prefer[0]
    value = winner.values.get(first)
    told = "was not measured" if value is None else QUANTITIES[first].format(value)
    scope = f"{len(inside)} candidate{'s' if len(inside) > 1 else ''} inside the budgets"
    if len(ties) == 1:
        return f"best {first} ({told}) of {scope}"
    others = [candidate for candidate in ties if candidate is not winner]
    next_best = min(others, key=lambda candidate: _tie_break(candidate, budget.prefer[1:]))
    pairs = zip(_tie_break(winner, budget.prefer[1:]), _tie_break(next_best, budget.prefer[1:]))
    names = (*budget.prefer[1:], "size", "fewer steps", "name")
    breaker = next(name for name, (mine, its) in zip(names, pairs) if mine != its)
    return f"{first} {told} ties with {_listed([c.id for c in others])}, decided by {breaker}; {scope}"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - NAMES_LISTED
    return ", ".join(names[:NAMES_LISTED]) + (f" and {more} more" if more > 0 else "")


def _percent(fraction: float) -> str:
    return f"{fraction * 100:.0f} %" if fraction >= 0.095 else f"{fraction * 100:.1f} %"
