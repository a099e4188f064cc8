"""Percentiles, ratios, differences of shares, each with a 95 % interval, and the verdicts that they allow.

Nothing is assumed of how latencies are distributed. What this module does not know: the intervals of percentiles take
calls for independent, which on a machine with bursts of other work they are not; those of ratios take rounds for
independent, which a slow drift over both sides of the ratio does not harm.
"""

from __future__ import annotations

import math
import random
from dataclasses import asdict, dataclass
from statistics import NormalDist, median
from typing import Any, Callable, Dict, Mapping, Optional, Sequence, Tuple

from edgeopt.errors import InputError

CONFIDENCE = 0.95
RESAMPLES = 2000
LEAST_MARGIN = 0.03  # two processes that run the same artifact differ by up to 2 %: nothing smaller is claimed
LEAST_ROUNDS = 6  # 2 * 0.5 ** 6 < 5 %: with fewer, no interval of a median reaches 95 %
NARROW = 0.05  # of an interval: how far its upper end is above its lower one
PERCENTILES: Mapping[str, float] = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True)
class Percentile:
    """A percentile in ns with its interval, ends included. A bound is None where the samples cannot give it."""

    value: int
    low: Optional[int]
    high: Optional[int]

    def to_json(self) -> Dict[str, Any]:
        return asdict(self)


def least_samples(q: float, confidence: float) -> int:
    """The fewest samples whose largest one is above the `q` quantile with this confidence: q ** n <= 1 - confidence.

    59 for the 95th percentile at 95 %, 459 for the 99th at 99 %.
    """
    return math.ceil(math.log(1 - confidence) / math.log(q) - 1e-9)


def percentile(
    samples: Sequence[int], q: float, confidence: float = CONFIDENCE
) -> Tuple[Optional[Percentile], Optional[str]]:
    """The `q` quantile of latencies in ns, and why it or its bounds are missing.

    The value is the order statistic of rank ceil(q * n), the inverse of the empirical distribution (definition 1 of
    Hyndman and Fan 1996, The American Statistician 50, 361-365). The interval is distribution-free: the bounds are the
    order statistics whose ranks the binomial distribution gives, each tail at most (1 - confidence) / 2 (David and
    Nagaraja, Order Statistics, section 7.1). `high` is None where even the largest sample is not surely above: under 72
    samples for the 95th percentile. From the 99th on, a percentile that cannot be bounded is not told at all: None
    under `least_samples(q, q)`, 459 for the 99th.
    """
    count = len(samples)
    if count == 0:
        return None, "there are no samples"
    needed = least_samples(q, q) if q >= 0.99 else 1
    if count < needed:
        return None, f"{count} samples cannot bound it: {needed} are needed"
    ordered = sorted(samples)
    rank = max(1, math.ceil(q * count - 1e-9))
    low, high = _ranks(count, q, (1 - confidence) / 2)
    found = Percentile(
        ordered[rank - 1],
        ordered[low - 1] if low is not None else None,
        ordered[high - 1] if high is not None else None,
    )
    missing = [name for name, bound in (("lower", low), ("upper", high)) if bound is None]
    needed = least_samples(max(q, 1 - q), (1 + confidence) / 2)
    return found, f"{count} samples give no {' and no '.join(missing)} bound: {needed} are needed" if missing else None


def _ranks(count: int, q: float, tail: float) -> Tuple[Optional[int], Optional[int]]:
    """The largest rank l with P(B < l) <= tail and the smallest u with P(B >= u) <= tail; B is binomial(count, q)."""
    mean, spread = count * q, math.sqrt(count * q * (1 - q))
    first, last = max(0, int(mean - 12 * spread) - 12), min(count, int(mean + 12 * spread) + 12)
    log_q, log_p = math.log(q), math.log(1 - q)

    def probability(hits: int) -> float:
        ways = math.lgamma(count + 1) - math.lgamma(hits + 1) - math.lgamma(count - hits + 1)
        return math.exp(ways + hits * log_q + (count - hits) * log_p)

    below, low = 0.0, first
    while low < last and below + probability(low) <= tail:
        below += probability(low)
        low += 1
    above, high = 0.0, last + 1
    while high > first and above + probability(high - 1) <= tail:
        above += probability(high - 1)
        high -= 1
    return (low if low >= 1 else None), (high if high <= count else None)


@dataclass(frozen=True)
class Ratio:
    """How many times as long as b does a take, with a 95 % interval. `rounds` is how many it stands on.

    `low` and `high` are None under 6 rounds. `basis` is "clean", or "all" where too few rounds had clean samples of
    both.
    """

    value: float
    low: Optional[float]
    high: Optional[float]
    basis: str
    rounds: int

    @property
    def is_precise(self) -> bool:
        """Whether it is of clean calls, and its interval narrow."""
        return self.basis == "clean" and bool(self.low and self.high and self.high / self.low <= 1 + NARROW)

    def to_json(self) -> Dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Ratio:
        return Ratio(**value)


def is_narrow(ratios: Sequence[float]) -> bool:
    """Whether the median of ratios is known to within 5 %: by the order statistics that bound it, which costs next to
    nothing and is no narrower than it should be, whatever the distribution (see `percentile`)."""
    low, high = _ranks(len(ratios), 0.5, (1 - CONFIDENCE) / 2)
    ordered = sorted(ratios)
    return low is not None and high is not None and ordered[high - 1] <= (1 + NARROW) * ordered[low - 1]


def paired_ratio(ratios: Sequence[float], basis: str, seed: int = 0) -> Ratio:
    """The median of the rounds' ratios, with its interval: percentile bootstrap (Efron 1979) of the rounds."""
    low = high = None
    if len(ratios) >= LEAST_ROUNDS:
        low, high = _bootstrap(lambda draw: median(draw.choices(ratios, k=len(ratios))), seed)
    return Ratio(median(ratios), low, high, basis, len(ratios))


def unpaired_ratio(a: Sequence[float], b: Sequence[float], basis: str, seed: int = 0) -> Ratio:
    """The ratio of the medians of `a` and `b`, which were not measured in turn: each is resampled alone."""
    low = high = None
    if min(len(a), len(b)) >= LEAST_ROUNDS:
        low, high = _bootstrap(lambda draw: median(draw.choices(a, k=len(a))) / median(draw.choices(b, k=len(b))), seed)
    return Ratio(median(a) / median(b), low, high, basis, min(len(a), len(b)))


def _bootstrap(resample: Callable[[random.Random], float], seed: int) -> Tuple[float, float]:
    draw = random.Random(seed)
    found = sorted(resample(draw) for _ in range(RESAMPLES))
    cut = int((1 - CONFIDENCE) / 2 * RESAMPLES)
    return found[cut], found[-1 - cut]


def through(a: Ratio, b: Ratio) -> Ratio:
    """The speed-up of b over a, of two that never took turns, from the speed-ups of both over the same baseline.

    The interval is that of Zou and Donner 2008 for a difference (MOVER), of logarithms.
    """
    low = high = None
    if a.low and a.high and b.low and b.high:
        down = math.hypot(math.log(b.value / b.low), math.log(a.high / a.value))
        up = math.hypot(math.log(b.high / b.value), math.log(a.value / a.low))
        low, high = b.value / a.value * math.exp(-down), b.value / a.value * math.exp(up)
    basis = "clean" if a.basis == b.basis == "clean" else "all"
    return Ratio(b.value / a.value, low, high, basis, min(a.rounds, b.rounds))


@dataclass(frozen=True)
class Comparison:
    """What may be said of b beside a: "faster", "slower", "tie" or "inconclusive" with the reason.

    `speedup` is the ratio of a to b. Differences inside `margin` (a fraction of one) are not claimed.
    """

    verdict: str
    speedup: Ratio
    margin: float
    reason: Optional[str] = None

    def to_json(self) -> Dict[str, Any]:
        return asdict(self)


def verdict(
    speedup: Ratio, twin: Optional[Ratio] = None, margin: float = LEAST_MARGIN, disturbed: Optional[str] = None
) -> Comparison:
    """ "faster" or "slower" where the whole interval is beyond the margin, "tie" where they cannot be told apart.

    The margin is at least 3 %, and at least what the twin showed: two processes that ran the same artifact in the same
    rounds. "inconclusive" where too few samples are clean, `disturbed` saying by what, or where the interval that
    reaches into the margin is more than four margins wide.
    """
    margin = max(margin, LEAST_MARGIN, abs(twin.value - 1) if twin else 0.0)
    if speedup.low is None or speedup.high is None:
        reason = f"{speedup.rounds} rounds are too few: {LEAST_ROUNDS} are needed"
        return Comparison("inconclusive", speedup, margin, reason)
    if speedup.basis != "clean":
        reason = "too few calls ran without being switched out: stop other programs, or measure with fewer threads"
        return Comparison("inconclusive", speedup, margin, disturbed or reason)
    if speedup.low > 1 + margin:
        return Comparison("faster", speedup, margin)
    if speedup.high < 1 / (1 + margin):
        return Comparison("slower", speedup, margin)
    if speedup.high / speedup.low > (1 + margin) ** 4:
        reason = f"the speed-up is somewhere from {speedup.low:.2f} to {speedup.high:.2f}"
        why = disturbed or "measure more rounds"
        return Comparison("inconclusive", speedup, margin, f"{reason}: {why}")
    return Comparison("tie", speedup, margin)


@dataclass(frozen=True)
class Drop:
    """By how much a candidate's share of right answers is below the original's, as fractions of one, 95 % interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> Dict[str, Any]:
        return asdict(self)


def paired_drop(both: int, only_base: int, only_candidate: int, neither: int, confidence: float = CONFIDENCE) -> Drop:
    """The difference of two proportions over the same samples, from counts of who was right.

    The value is the plain difference; the interval is the adjusted Wald interval for matched pairs, half a sample added
    to each of the four cells (Agresti and Min 2005, Statistics in Medicine 24, 729-740). Raises InputError without
    samples.
    """
    count = both + only_base + only_candidate + neither
    if count <= 0 or min(both, only_base, only_candidate, neither) < 0:
        raise InputError("a drop in quality needs samples")
    b, c, n = only_base + 0.5, only_candidate + 0.5, count + 2
    middle = (b - c) / n
    spread = math.sqrt((b + c) - (b - c) ** 2 / n) / n * NormalDist().inv_cdf((1 + confidence) / 2)
    return Drop((only_base - only_candidate) / count, max(-1.0, middle - spread), min(1.0, middle + spread))


def samples_to_decide(value: float, interval: Tuple[float, float], samples: int, bound: float) -> Optional[int]:
    """About how many samples would put the whole interval of a value on its side of the bound, None where none would.

    Intervals narrow with the root of the number of samples; the value is taken to stay as it is.
    """
    room = bound - value
    if room == 0:
        return None
    reach = interval[1] - value if room > 0 else interval[0] - value
    return max(samples, math.ceil(samples * (reach / room) ** 2))
