"""The gate on a run: its budgets, and whether it got worse than a baseline.

Budgets are judged again, on numbers computed from the raw samples. A run is worse in a quantity where the whole 95 %
interval of the change lies beyond the tolerance: what cannot be told from chance is a tie, and a tie is no regression.
The change of a time, a size or a rate is a ratio, that of a share or of dB a difference; its interval is put together
from those of the two readings, on the scale of logarithms for ratios (MOVER: Zou and Donner 2008, Statistics in
Medicine 27, 1693-1702). What was measured once has no interval: there the value decides.

"inconclusive" is said where an interval is more than four tolerances wide, where its bounds are unknown, or where too
few calls ran without being switched out. It passes with a warning, and fails where `strict` asks for certainty.

Accuracies of two artifacts that were held against the same original on the same samples are compared by their drops,
which are paired with it; others by the intervals of their shares.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgeopt import units
from edgeopt.budget import QUANTITIES, Interval, Quantity, judge
from edgeopt.errors import BudgetError, InputError, RegressionError, StageError, UnlikeMachines
from edgeopt.evidence import ACCURACY, LATENCIES, SPEEDUP, Evidence, Reading, Record
from edgeopt.statistics import LEAST_MARGIN, LEAST_ROUNDS

SCHEMA = 1
WIDEST = 4  # an interval of more tolerances than this tells nothing


def _times(value: float) -> str:
    return f"{value:.2f}x"


def _parse_times(text: object) -> float:
    raise ValueError(f"{text!r}: write it in percent, like '10 %'")


COMPARED: dict[str, Quantity] = {
    **{name: quantity for name, quantity in QUANTITIES.items() if name != "accuracy drop"},
    ACCURACY: Quantity(ACCURACY, units.parse_fraction, units.format_fraction, lower_is_better=False),
    SPEEDUP: Quantity(SPEEDUP, _parse_times, _times, lower_is_better=False),
}
ALIASES = {"latency": "latency p50", "memory": "peak memory", "accuracy drop": ACCURACY}
DIFFERENCES = (ACCURACY, "fidelity", "sqnr")  # all others are ratios
TIMED = (*LATENCIES, "throughput", SPEEDUP)
SAMPLED = (*LATENCIES, SPEEDUP, ACCURACY, "fidelity")
PORTABLE = ("size", "cpu operators")


@dataclass(frozen=True)
class Tolerance:
    """By how much a quantity may get worse: a share of the baseline's value, or an amount, whichever is more."""

    relative: float = 0.0
    absolute: float = 0.0

    def to_json(self) -> dict[str, float]:
        return {"relative": self.relative, "absolute": self.absolute}


DEFAULTS: dict[str, Tolerance] = {
    "latency p50": Tolerance(relative=0.10),  # the same artifact in two sessions under other loads: up to 8 %
    "latency p95": Tolerance(relative=0.25),  # up to 27 %, where other programs came and went
    "peak memory": Tolerance(relative=0.05, absolute=2**20),  # repeats agree within 1 MiB
    "size": Tolerance(relative=0.01),
    ACCURACY: Tolerance(absolute=0.005),
    "sqnr": Tolerance(absolute=1.0),  # only where there is no accuracy
}


@dataclass(frozen=True)
class Rule:
    """One thing that was checked.

    `kind` is "winner", "budget" or "regression". `gates` says whether it decides: budgets of candidates that lost are
    told, and decide nothing. `value` is the run's, `baseline` the baseline's, `limit` what the value had to keep; all
    in ns, bytes, per second, dB or fractions of one. `change` is how much worse, a share of the baseline's value or a
    difference, from `low` to `high`. `verdict` is "inside", "outside" or "unmeasured" of a budget, and of a regression
    "tie", "regression", "improvement", "inconclusive", "unmeasured", "new" (the baseline lacks it) or "refused" (of
    unlike machines).
    """

    kind: str
    candidate: str | None
    quantity: str
    passed: bool
    verdict: str
    told: str
    gates: bool = True
    value: float | None = None
    limit: float | None = None
    baseline: float | None = None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    tolerance: Tolerance | None = None

    @property
    def name(self) -> str:
        return f"{self.quantity} against the baseline" if self.kind == "regression" else self.quantity

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "candidate": self.candidate,
            "quantity": self.quantity,
            "passed": self.passed,
            "gates": self.gates,
            "verdict": self.verdict,
            "value": _finite(self.value),
            "limit": _finite(self.limit),
            "baseline": _finite(self.baseline),
            "change": _finite(self.change),
            "low": _finite(self.low),
            "high": _finite(self.high),
            "tolerance": self.tolerance.to_json() if self.tolerance else None,
            "told": self.told,
        }


@dataclass(frozen=True)
class Checked:
    """What came of a check. `exit_code` is 0, or that of the gravest rule that is broken: 4, 3, 7, 8.

    `against` is the baseline's place, `baseline_candidate` the one of it that was compared, `baseline_line` where that
    stands in its file.
    """

    run: str
    recipe: str
    target: str
    candidate: str | None
    rules: tuple[Rule, ...]
    exit_code: int
    against: str | None = None
    baseline_candidate: str | None = None
    baseline_line: int | None = None
    differences: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return self.exit_code == 0

    def broken(self) -> tuple[Rule, ...]:
        return tuple(rule for rule in self.rules if rule.gates and not rule.passed)

    def doubtful(self) -> tuple[Rule, ...]:
        """The rules that passed because nothing could be told."""
        return tuple(rule for rule in self.rules if rule.passed and rule.verdict == "inconclusive")

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "run": self.run,
            "recipe": self.recipe,
            "target": self.target,
            "candidate": self.candidate,
            "baseline": {"place": self.against, "candidate": self.baseline_candidate} if self.against else None,
            "machine_differences": list(self.differences),
            "passed": self.passed,
            "exit_code": self.exit_code,
            "rules": [rule.to_json() for rule in self.rules],
            "notes": list(self.notes),
        }


def tolerances(texts: Sequence[str]) -> dict[str, Tolerance]:
    """The defaults with what the user wrote over them: "latency p50: 5 %", "peak memory: 2 MiB", "latency p95: any".

    Of accuracy and fidelity, "1 %" is a point; of all else a percent is of the baseline's value. "any" drops the rule.
    Raises InputError.
    """
    found = dict(DEFAULTS)
    for text in texts:
        name, mark, bound = text.partition(":" if ":" in text else "=")
        name, bound = " ".join(name.split()), bound.strip()
        quantity = ALIASES.get(name, name)
        if not mark or not bound:
            raise InputError(f"--tolerance {text!r}: write it like --tolerance 'latency p50: 5 %'")
        if quantity not in COMPARED:
            near = difflib.get_close_matches(quantity, [*COMPARED, *ALIASES], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(COMPARED)}"
            raise InputError(f"--tolerance: unknown quantity {name!r}, {hint}")
        if bound == "any":
            found.pop(quantity, None)
            continue
        try:
            found[quantity] = _tolerance(quantity, bound)
        except ValueError as error:
            raise InputError(f"--tolerance {name}: {error}") from None
    return found


def _tolerance(quantity: str, bound: str) -> Tolerance:
    if quantity in DIFFERENCES or "%" not in bound:
        return Tolerance(absolute=COMPARED[quantity].parse(bound))
    share = units.parse_fraction(bound)
    if quantity in TIMED and share < LEAST_MARGIN:
        raise ValueError(f"differences under {LEAST_MARGIN * 100:.0f} % cannot be told by measuring times")
    if share >= 1 and not COMPARED[quantity].lower_is_better:
        raise ValueError(f"{bound} of it would be all: nothing could break that")
    return Tolerance(relative=share)


def check(
    record: Record,
    baseline: Record | None = None,
    *,
    candidate: str | None = None,
    allowed: Mapping[str, Tolerance] | None = None,
    strict: bool = False,
    unlike: bool = False,
) -> Checked:
    """Check a run's winner, or the candidate named, against its budgets and against a baseline's winner or candidate.

    `strict`: what is inconclusive fails. Raises InputError where a candidate is not there or not measured.
    """
    tried = _found(record, candidate, "run") if candidate else record.candidates.get(record.winner or "")
    rules = [_has_winner(record)] if candidate is None else []
    rules += [_strict(rule) if strict else rule for rule in _budgets(record, tried)]
    differences: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    other = None
    if baseline is not None and tried is not None:
        other = _found(baseline, candidate or baseline.winner, "baseline")
        differences, notes = _differences(record, baseline, tried, other), _notes(record, baseline, tried, other)
        refused = bool(differences) and not unlike
        compared = _regressions(record, baseline, tried, other, allowed or DEFAULTS, refused, asked=allowed is not None)
        rules += [_strict(rule) if strict else rule for rule in compared]
    found = Checked(
        run=record.place,
        recipe=record.recipe,
        target=record.target,
        candidate=tried.id if tried else None,
        rules=tuple(rules),
        exit_code=0,
        against=baseline.place if baseline else None,
        baseline_candidate=other.id if other else None,
        baseline_line=baseline.lines.get(other.id) if baseline and other else None,
        differences=differences,
        notes=notes,
    )
    return replace(found, exit_code=_exit_code(found, record))


def _exit_code(found: Checked, record: Record) -> int:
    broken = found.broken()
    tried = [one for one in record.candidates.values() if one.status != "skipped"]
    if any(rule.kind == "winner" for rule in broken) and all(one.status == "failed" for one in tried):
        return StageError.exit_code
    if any(rule.kind in ("winner", "budget") for rule in broken):
        return BudgetError.exit_code
    if any(rule.verdict != "refused" for rule in broken):
        return RegressionError.exit_code
    return UnlikeMachines.exit_code if broken else 0


def _found(record: Record, name: str | None, what: str) -> Evidence:
    if name is None:
        raise InputError(f"the {what} {record.place} has no winner", remedy="Name a candidate with --candidate.")
    found = record.candidates.get(name)
    if found is None:
        near = difflib.get_close_matches(name, list(record.candidates), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(record.candidates)}"
        raise InputError(f"the {what} {record.place} has no candidate {name!r}, {hint}")
    if not found.readings:
        raise InputError(f"{name} was not measured: {'; '.join(found.reasons)}", where=record.place)
    return found


def _has_winner(record: Record) -> Rule:
    passed, told = record.winner is not None, record.why
    verdict = "inside" if passed else "outside"
    return Rule("winner", record.winner or record.nearest, "a candidate inside the budgets", passed, verdict, told)


def _budgets(record: Record, tried: Evidence | None) -> Iterator[Rule]:
    """Every limit held against every measured candidate; those of the one that is checked come first, and decide."""
    others = [one for one in record.candidates.values() if one is not tried and one.readings]
    for one in [tried, *others] if tried else others:
        for judged in judge(record.budget, {name: one.value(name) for name in QUANTITIES}, _intervals(one)):
            verdict = "unmeasured" if judged.value is None else "inside" if judged.passed else "outside"
            if judged.undecided and judged.passed:
                verdict = "inconclusive"
            yield Rule(
                kind="budget",
                candidate=one.id,
                quantity=judged.limit.quantity,
                passed=judged.passed,
                verdict=verdict,
                told=str(judged),
                gates=one is tried,
                value=judged.value,
                limit=judged.limit.bound,
            )


def _intervals(one: Evidence) -> dict[str, Interval]:
    drop = one.readings.get("accuracy drop")
    if drop is None or drop.low is None or drop.high is None or not one.samples:
        return {}
    return {"accuracy drop": Interval(drop.low, drop.high, one.samples)}


def _differences(record: Record, baseline: Record, tried: Evidence, other: Evidence) -> tuple[str, ...]:
    if record.machine is None or baseline.machine is None:
        return ("the machine is unknown",)
    found = record.machine.differences(baseline.machine)
    if tried.threads != other.threads:
        found.append(f"threads: {tried.threads} and {other.threads}")
    return tuple(found)


def _notes(record: Record, baseline: Record, tried: Evidence, other: Evidence) -> tuple[str, ...]:
    """What else is unlike, and may be why something changed."""
    runtimes = [f"{one.backend} {one.runtime_version}" for one in (tried, other)]
    pairs = (
        ("recipe", record.recipe, baseline.recipe),
        ("target", record.target, baseline.target),
        ("candidate", tried.id, other.id),
        ("runtime", runtimes[0], runtimes[1]),
        ("validation samples", str(tried.samples), str(other.samples)),
    )
    return tuple(f"{what}: {now}, in the baseline {before}" for what, now, before in pairs if now != before)


def _regressions(
    record: Record,
    baseline: Record,
    tried: Evidence,
    other: Evidence,
    allowed: Mapping[str, Tolerance],
    refused: bool,
    *,
    asked: bool,
) -> Iterator[Rule]:
    has_accuracy = any(one.value(ACCURACY) is not None for one in (tried, other))
    for name, tolerance in allowed.items():
        explicit = asked and tolerance != DEFAULTS.get(name)
        if not explicit and name == "sqnr" and has_accuracy:
            continue
        now, before = tried.value(name), other.value(name)
        if now is None and before is None and not explicit:
            continue
        if refused and _machine_bound(name, record, baseline):
            told = f"{name} is not compared: measured on another kind of machine"
            yield Rule("regression", tried.id, name, False, "refused", told, value=now, baseline=before)
        else:
            yield _compare(name, tried, other, tolerance)


def _machine_bound(quantity: str, record: Record, baseline: Record) -> bool:
    """Times and memory belong to the machine; how right a model is, to its instruction set."""
    if quantity in DIFFERENCES and record.machine and baseline.machine:
        now, before = record.machine, baseline.machine
        return (now.arch, now.isa) != (before.arch, before.isa)
    return quantity not in PORTABLE


def _compare(name: str, tried: Evidence, other: Evidence, tolerance: Tolerance) -> Rule:
    """The rule for one quantity."""
    quantity = COMPARED[name]
    now, before = _readings(name, tried, other)
    rule = Rule(
        "regression", tried.id, name, True, "tie", "", value=now.value, baseline=before.value, tolerance=tolerance
    )
    if now.value is None:
        told = f"{name} was not measured" + (
            f", the baseline has {quantity.format(before.value)}" if before.value else ""
        )
        return replace(rule, passed=False, verdict="unmeasured", told=told)
    if before.value is None:
        return replace(rule, verdict="new", told=f"{name} {quantity.format(now.value)}, the baseline has none")
    if name == ACCURACY and tried.metric != other.metric:
        told = f"accuracy is {tried.metric} here, and {other.metric} in the baseline"
        return replace(rule, passed=False, verdict="unmeasured", told=told)
    if name == SPEEDUP and tried.against != other.against:
        told = f"speed-up is over {tried.against} here, and over {other.against} in the baseline"
        return replace(rule, passed=False, verdict="unmeasured", told=told)
    limit = _limit(name, before.value, tolerance)
    change, low, high, reason = _change(name, now, before, tried, other)
    verdict = _verdict(name, low, high, before.value, limit, reason) if name in SAMPLED else _by_value(rule, limit)
    if verdict == "inconclusive" and reason is None:
        reason = "the interval is too wide for this tolerance: measure more rounds, or tolerate more"
    back = _back(name)
    rule = replace(
        rule,
        verdict=verdict,
        passed=verdict != "regression",
        limit=limit,
        change=back(change),
        low=None if low is None else back(low),
        high=None if high is None else back(high),
    )
    return replace(rule, told=_told(rule, reason))


def _readings(name: str, tried: Evidence, other: Evidence) -> tuple[Reading, Reading]:
    """The two readings. Accuracies under the same original are bounded by their drops, which are paired with it."""
    now, before = tried.readings.get(name, Reading(None)), other.readings.get(name, Reading(None))
    if name != ACCURACY or now.value is None or before.value is None or tried.samples != other.samples:
        return now, before
    drops = tried.readings["accuracy drop"], other.readings["accuracy drop"]
    if any(drop.value is None or drop.low is None or drop.high is None for drop in drops):
        return now, before
    originals = [reading.value + (drop.value or 0) for reading, drop in zip((now, before), drops) if reading.value]
    if len(originals) != 2 or not math.isclose(*originals, abs_tol=1e-6):
        return now, before
    return _from_drop(now, drops[0], originals[0]), _from_drop(before, drops[1], originals[1])


def _from_drop(reading: Reading, drop: Reading, original: float) -> Reading:
    assert reading.value is not None and drop.low is not None and drop.high is not None
    return Reading(reading.value, min(reading.value, original - drop.high), max(reading.value, original - drop.low))


def _limit(name: str, before: float, tolerance: Tolerance) -> float:
    margin = max(before * tolerance.relative if tolerance.relative else 0.0, tolerance.absolute)
    return before + margin if COMPARED[name].lower_is_better else before - margin


def _scale(name: str) -> Callable[[float], float]:
    """What differences are taken of."""
    return float if name in DIFFERENCES else lambda value: math.log(value) if value > 0 else -math.inf


def _back(name: str) -> Callable[[float], float]:
    """From a difference on that scale to a change, in shares of the baseline's value or as the difference itself."""
    if name in DIFFERENCES:
        return float
    if COMPARED[name].lower_is_better:
        return lambda value: math.expm1(value) if value < 700 else math.inf
    return lambda value: -math.expm1(-value) if value > -700 else -math.inf


def _change(
    name: str, now: Reading, before: Reading, tried: Evidence, other: Evidence
) -> tuple[float, float | None, float | None, str | None]:
    """How much worse on the scale of `_scale`, its bounds, and why it is inconclusive."""
    scale, sign = _scale(name), 1 if COMPARED[name].lower_is_better else -1
    assert now.value is not None and before.value is not None
    if now.value == before.value and (name not in TIMED or tried.artifact == other.artifact):
        worse = 0.0
    else:
        worse = sign * (scale(now.value) - scale(before.value))
    if name not in SAMPLED:
        return worse, worse, worse, None
    if name in DIFFERENCES and now.value == before.value and tried.artifact == other.artifact:
        return 0.0, 0.0, 0.0, None
    if name in TIMED and not (tried.clean and other.clean):
        which = "this run" if not tried.clean else "the baseline"
        return (
            worse,
            None,
            None,
            f"in {which} too few calls ran without being switched out: measure on a quieter machine",
        )
    if None in (now.low, now.high, before.low, before.high):
        fewest = min(tried.rounds, other.rounds)
        why = f"{fewest} rounds are too few, {LEAST_ROUNDS} are needed" if fewest < LEAST_ROUNDS else "too few samples"
        return worse, None, None, f"its interval is not known: {why}"
    below, above = (now.low, now.high) if sign > 0 else (now.high, now.low)
    under, over = (before.low, before.high) if sign > 0 else (before.high, before.low)
    assert below is not None and above is not None and under is not None and over is not None
    down = math.hypot(scale(now.value) - scale(below), scale(over) - scale(before.value))
    up = math.hypot(scale(above) - scale(now.value), scale(before.value) - scale(under))
    return worse, worse - down, worse + up, None


def _verdict(name: str, low: float | None, high: float | None, before: float, limit: float, reason: str | None) -> str:
    if reason is not None or low is None or high is None:
        return "inconclusive"
    scale, sign = _scale(name), 1 if COMPARED[name].lower_is_better else -1
    margin = 0.0 if math.isinf(before) else sign * (scale(limit) - scale(before))
    margin += 1e-12  # of rounding
    if low > margin:
        return "regression"
    if high < -margin:
        return "improvement"
    return "inconclusive" if high - low > WIDEST * margin else "tie"


def _by_value(rule: Rule, limit: float) -> str:
    """The verdict on what was measured once: the limit decides, and its like on the better side."""
    assert rule.value is not None and rule.baseline is not None
    sign = 1 if COMPARED[rule.quantity].lower_is_better else -1
    if sign * (rule.value - limit) > 0:
        return "regression"
    better = rule.baseline - (limit - rule.baseline)
    return "improvement" if sign * (rule.value - better) < 0 else "tie"


def _told(rule: Rule, reason: str | None) -> str:
    """ "latency p50 1.30 ms, was 1.00 ms: 30.0 % worse (28.1 to 32.0), tolerated is ≤ 1.10 ms"."""
    quantity = COMPARED[rule.quantity]
    assert rule.value is not None and rule.baseline is not None and rule.limit is not None
    told = f"{rule.quantity} {quantity.format(rule.value)}, was {quantity.format(rule.baseline)}: {_amount(rule)}"
    told += f", tolerated is {'≤' if quantity.lower_is_better else '≥'} {quantity.format(rule.limit)}"
    return told + (f"; inconclusive: {reason}" if reason else "")


def _amount(rule: Rule) -> str:
    """How much worse or better, with its interval in the same direction."""
    change = rule.change
    if change is None or not math.isfinite(change):
        return "not exact any more" if change is not None and change > 0 else "exact now"
    sign = 1 if change > 0 else -1
    scale, digits, unit = (1, 1, "dB") if rule.quantity == "sqnr" else (100, 1, "%")
    if rule.quantity in (ACCURACY, "fidelity"):
        digits, unit = 2, "points"
    shown = f"{abs(change) * scale:.{digits}f}"
    told = "no change" if float(shown) == 0 else f"{shown} {unit} {'worse' if sign > 0 else 'better'}"
    if rule.low is None or rule.high is None or rule.low == rule.high:
        return told
    ends = sorted((sign * rule.low, sign * rule.high))
    return f"{told} ({' to '.join(f'{end * scale:.{digits}f}' for end in ends)})"


def _strict(rule: Rule) -> Rule:
    return replace(rule, passed=False) if rule.verdict in ("inconclusive", "new") else rule


def _finite(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else None
