"""What was measured: raw samples first, every summary computed from them.

A candidate is measured in rounds. In each round every candidate runs one block of inferences, in random order, so that
two candidates are compared within the same seconds of the same machine. A call during which the system took the
processor away is marked as switched out: it says more of the other programs than of the model. "Clean" samples are the
others.

What this module does not know: the intervals of percentiles take calls for independent, which on a machine with bursts
of other work they are not; and clean samples say little of tails, because a longer call is likelier to be switched
out. All samples are therefore kept and told beside the clean ones. Accuracy of the model is known only as counts.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist, median
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from edgeopt.errors import InputError

CONFIDENCE = 0.95
RESAMPLES = 2000
LEAST_MARGIN = 0.03  # two processes that run the same artifact differ by up to 2 %: nothing smaller is claimed
LEAST_CLEAN_SAMPLES = 20
LEAST_CLEAN_FRACTION = 0.1
LEAST_CLEAN_CALLS_OF_A_ROUND = 2
LEAST_ROUNDS = 6  # 2 * 0.5 ** 6 < 5 %: with fewer, no interval of a median reaches 95 %
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

    The value is the order statistic of rank ceil(q * n). The interval is distribution-free: the bounds are the order
    statistics whose ranks the binomial distribution gives, each tail at most (1 - confidence) / 2 (David and Nagaraja,
    Order Statistics, section 7.1). `high` is None where even the largest sample is not surely above: under 72 samples
    for the 95th percentile. From the 99th on, a percentile that cannot be bounded is not told at all: None under
    `least_samples(q, q)`, 459 for the 99th.
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
class Block:
    """The calls of one round, in order: wall-clock ns of each, and whether it was switched out.

    `wall_ns` and `cpu_ns` (of all threads) cover the block from its first call to its last.
    """

    latencies_ns: Tuple[int, ...]
    switched: Tuple[bool, ...]
    wall_ns: int
    cpu_ns: int

    @property
    def clean_ns(self) -> Tuple[int, ...]:
        return tuple(ns for ns, switched in zip(self.latencies_ns, self.switched) if not switched)

    def to_json(self) -> Dict[str, Any]:
        """`switched` is the list of positions of the calls that were."""
        positions = [position for position, switched in enumerate(self.switched) if switched]
        return {
            "latencies_ns": list(self.latencies_ns),
            "switched": positions,
            "wall_ns": self.wall_ns,
            "cpu_ns": self.cpu_ns,
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Block:
        latencies, positions = tuple(value["latencies_ns"]), set(value["switched"])
        return Block(
            latencies, tuple(index in positions for index in range(len(latencies))), value["wall_ns"], value["cpu_ns"]
        )


@dataclass(frozen=True)
class Latency:
    """Percentiles by name ("p50"), None where the reason stands in `reasons` under the same name.

    `percentiles` are those of the clean samples (`basis` "clean"), or of all where too few are clean (`basis` "all").
    `of_all` are always those of all samples.
    """

    percentiles: Mapping[str, Optional[Percentile]]
    of_all: Mapping[str, Optional[Percentile]]
    reasons: Mapping[str, str]
    basis: str
    samples: int
    clean_samples: int

    @property
    def p50(self) -> Optional[Percentile]:
        return self.percentiles["p50"]

    @property
    def clean_fraction(self) -> float:
        return self.clean_samples / self.samples if self.samples else 0.0

    def to_json(self) -> Dict[str, Any]:
        def shown(found: Mapping[str, Optional[Percentile]]) -> Dict[str, Any]:
            return {name: value.to_json() if value else None for name, value in found.items()}

        return {
            **shown(self.percentiles),
            "all": shown(self.of_all),
            "reasons": dict(self.reasons),
            "basis": self.basis,
            "samples": self.samples,
            "clean_samples": self.clean_samples,
        }


def latency(rounds: Sequence[Block]) -> Latency:
    """The summary of all rounds. Clean samples count where there are at least 20 and 10 % of all."""
    everything = [ns for block in rounds for ns in block.latencies_ns]
    clean = [ns for block in rounds for ns in block.clean_ns]
    enough = len(clean) >= max(LEAST_CLEAN_SAMPLES, LEAST_CLEAN_FRACTION * len(everything))
    found: Dict[str, Optional[Percentile]] = {}
    reasons: Dict[str, str] = {}
    for name, q in PERCENTILES.items():
        found[name], reason = percentile(clean if enough else everything, q)
        if reason:
            reasons[name] = reason
    return Latency(
        percentiles=found,
        of_all={name: percentile(everything, q)[0] for name, q in PERCENTILES.items()},
        reasons=reasons,
        basis="clean" if enough else "all",
        samples=len(everything),
        clean_samples=len(clean),
    )


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

    def to_json(self) -> Dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Ratio:
        return Ratio(**value)


def ratio(a_rounds: Sequence[Block], b_rounds: Sequence[Block], seed: int = 0) -> Ratio:
    """The median over rounds of median(a) / median(b); the speed-up of b over a.

    `a_rounds` and `b_rounds` are the blocks of the same rounds. A round counts where both blocks have at least two
    clean calls. Where that leaves fewer than half of the rounds or fewer than six, all calls of all rounds are taken
    and the basis says so. The interval is the percentile bootstrap (Efron 1979) of 2,000 resamples of the rounds.
    Raises InputError where the rounds are not the same number, or none.
    """
    if len(a_rounds) != len(b_rounds) or not a_rounds:
        raise InputError(f"{len(a_rounds)} and {len(b_rounds)} rounds cannot be compared: they must be the same rounds")
    clean = [
        median(a.clean_ns) / median(b.clean_ns)
        for a, b in zip(a_rounds, b_rounds)
        if min(len(a.clean_ns), len(b.clean_ns)) >= LEAST_CLEAN_CALLS_OF_A_ROUND
    ]
    basis = "clean" if len(clean) >= max(LEAST_ROUNDS, len(a_rounds) / 2) else "all"
    if basis == "all":
        clean = [median(a.latencies_ns) / median(b.latencies_ns) for a, b in zip(a_rounds, b_rounds)]
    low, high = _bootstrap(clean, seed) if len(clean) >= LEAST_ROUNDS else (None, None)
    return Ratio(median(clean), low, high, basis, len(clean))


def _bootstrap(values: Sequence[float], seed: int) -> Tuple[float, float]:
    draw = random.Random(seed)
    medians = sorted(median(draw.choices(values, k=len(values))) for _ in range(RESAMPLES))
    cut = int((1 - CONFIDENCE) / 2 * RESAMPLES)
    return medians[cut], medians[-1 - cut]


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


def compare(
    a_rounds: Sequence[Block], b_rounds: Sequence[Block], twin: Optional[Ratio] = None, margin: float = LEAST_MARGIN
) -> Comparison:
    """Whether b is faster than a, by `verdict`."""
    return verdict(ratio(a_rounds, b_rounds), twin, margin)


def verdict(speedup: Ratio, twin: Optional[Ratio] = None, margin: float = LEAST_MARGIN) -> Comparison:
    """ "faster" or "slower" where the whole interval is beyond the margin, "tie" where they cannot be told apart.

    The margin is at least 3 %, and at least what the twin showed: two processes that ran the same artifact in the same
    rounds. "inconclusive" where too few samples are clean, or where the interval that reaches into the margin is more
    than four margins wide.
    """
    margin = max(margin, LEAST_MARGIN, abs(twin.value - 1) if twin else 0.0)
    if speedup.low is None or speedup.high is None:
        reason = f"{speedup.rounds} rounds are too few: {LEAST_ROUNDS} are needed"
        return Comparison("inconclusive", speedup, margin, reason)
    if speedup.basis != "clean":
        reason = "too few calls ran without being switched out: stop other programs, or measure with fewer threads"
        return Comparison("inconclusive", speedup, margin, reason)
    if speedup.low > 1 + margin:
        return Comparison("faster", speedup, margin)
    if speedup.high < 1 / (1 + margin):
        return Comparison("slower", speedup, margin)
    if speedup.high / speedup.low > (1 + margin) ** 4:
        reason = f"the speed-up is somewhere from {speedup.low:.2f} to {speedup.high:.2f}: measure more rounds"
        return Comparison("inconclusive", speedup, margin, reason)
    return Comparison("tie", speedup, margin)


@dataclass(frozen=True)
class Machine:
    """A machine as found. None is unreadable. `cores` are those that this process may use.

    `isa` holds the instruction set extensions that matter to inference ("avx512_vnni", "asimddp").
    """

    cpu: Optional[str]
    arch: str
    cores: int
    memory_bytes: Optional[int]
    governor: Optional[str]
    os: str
    python: str
    isa: Tuple[str, ...] = ()

    def to_json(self) -> Dict[str, Any]:
        return {**asdict(self), "isa": list(self.isa)}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Machine:
        return Machine(**{**value, "isa": tuple(value.get("isa", ()))})

    def differences(self, other: Machine) -> List[str]:
        """What makes times of the two incomparable, one line each. Kernel, Python and odd bytes of memory do not."""
        named: List[Tuple[str, object, object]] = [("cpu", self.cpu, other.cpu), ("arch", self.arch, other.arch)]
        named += [("cores", self.cores, other.cores)]
        named += [("governor", self.governor, other.governor), ("isa", self.isa, other.isa)]
        named += [("memory, GiB", _gib(self.memory_bytes), _gib(other.memory_bytes))]
        return [f"{name}: {mine} and {theirs}" for name, mine, theirs in named if mine != theirs]


def _gib(size_bytes: Optional[int]) -> Optional[int]:
    return None if size_bytes is None else round(size_bytes / 2**30)


@dataclass(frozen=True)
class MachineState:
    """Counters and sensors of a machine at one moment. None is unreadable.

    `pressure_us` counts the time in which some task waited for a processor (PSI, "some"); `steal_ticks` of
    `total_ticks` went to other guests of the hypervisor. `frequency_hz` and `temperature_c` are the highest of all
    cores and zones.
    """

    time_ns: int
    pressure_us: Optional[int] = None
    steal_ticks: Optional[int] = None
    total_ticks: Optional[int] = None
    frequency_hz: Optional[int] = None
    temperature_c: Optional[float] = None
    available_memory_bytes: Optional[int] = None


@dataclass(frozen=True)
class Disturbance:
    """What went on between two states: fractions of the time, None where it cannot be read.

    `pressure` includes waiting caused by the measurement itself where it runs more threads than there are cores.
    """

    pressure: Optional[float]
    steal: Optional[float]
    temperature_rise_c: Optional[float] = None

    def to_json(self) -> Dict[str, Any]:
        return asdict(self)


def disturbance(before: MachineState, after: MachineState) -> Disturbance:
    """How much of the time between two states went to others."""
    pressure = _share(before.pressure_us, after.pressure_us, (after.time_ns - before.time_ns) / 1000)
    ticks = 0 if before.total_ticks is None or after.total_ticks is None else after.total_ticks - before.total_ticks
    rise = None
    if before.temperature_c is not None and after.temperature_c is not None:
        rise = after.temperature_c - before.temperature_c
    return Disturbance(pressure, _share(before.steal_ticks, after.steal_ticks, ticks), rise)


def _share(before: Optional[int], after: Optional[int], whole: float) -> Optional[float]:
    return None if before is None or after is None or whole <= 0 else min(1.0, max(0.0, (after - before) / whole))


@dataclass(frozen=True)
class Measurement:
    """One artifact on one machine, as measured.

    `load_ns` is opening the file to a session, after the runtime was imported and with the file likely in the page
    cache; `first_inference_ns` the call after it. `peak_memory_bytes` is the highest resident memory of the process
    above what it had with the runtime imported and the inputs ready, None where the system does not tell. `steady` says
    whether the warm-up ended because latencies had settled. `size_bytes` is that of the artifact.
    """

    artifact: str
    backend: str
    runtime_version: Optional[str]
    threads: int
    machine: Machine
    rounds: Tuple[Block, ...]
    warm_up_calls: int
    steady: bool
    load_ns: int
    first_inference_ns: int
    peak_memory_bytes: Optional[int]
    size_bytes: Optional[int] = None
    warnings: Tuple[str, ...] = ()

    @property
    def latency(self) -> Latency:
        return latency(self.rounds)

    @property
    def throughput_per_s(self) -> Optional[float]:
        """Inferences per second of single samples one after the other: all calls over the time of their blocks."""
        wall_ns = sum(block.wall_ns for block in self.rounds)
        calls = sum(len(block.latencies_ns) for block in self.rounds)
        return calls * 1e9 / wall_ns if wall_ns else None

    @property
    def cpu_ns_per_inference(self) -> Optional[float]:
        """Processor time of all threads for one inference, the interpreter's share included."""
        calls = sum(len(block.latencies_ns) for block in self.rounds)
        return sum(block.cpu_ns for block in self.rounds) / calls if calls else None

    def summary(self) -> Dict[str, Any]:
        """What reports and results show of it: everything but the raw samples."""
        return {
            "artifact": self.artifact,
            "backend": self.backend,
            "runtime_version": self.runtime_version,
            "threads": self.threads,
            "machine": self.machine.to_json(),
            "latency_ns": self.latency.to_json(),
            "throughput_per_s": self.throughput_per_s,
            "cpu_ns_per_inference": self.cpu_ns_per_inference,
            "load_ns": self.load_ns,
            "first_inference_ns": self.first_inference_ns,
            "peak_memory_bytes": self.peak_memory_bytes,
            "size_bytes": self.size_bytes,
            "warm_up_calls": self.warm_up_calls,
            "steady": self.steady,
            "warnings": list(self.warnings),
        }

    def to_json(self) -> Dict[str, Any]:
        """The summary and the raw samples."""
        return {"schema": 1, **self.summary(), "rounds": [block.to_json() for block in self.rounds]}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Measurement:
        """From what `to_json` gave. Summaries are computed again from the raw samples, never read."""
        if value.get("schema") != 1:
            raise InputError(f"a measurement of schema {value.get('schema')!r}: this edgeopt reads schema 1")
        return Measurement(
            artifact=value["artifact"],
            backend=value["backend"],
            runtime_version=value["runtime_version"],
            threads=value["threads"],
            machine=Machine.from_json(value["machine"]),
            rounds=tuple(Block.from_json(block) for block in value["rounds"]),
            warm_up_calls=value["warm_up_calls"],
            steady=value["steady"],
            load_ns=value["load_ns"],
            first_inference_ns=value["first_inference_ns"],
            peak_memory_bytes=value["peak_memory_bytes"],
            size_bytes=value["size_bytes"],
            warnings=tuple(value["warnings"]),
        )

    def to_line(self) -> str:
        """One line of a .jsonl file, without the line's end."""
        return json.dumps(self.to_json(), separators=(",", ":"), allow_nan=False)

    @staticmethod
    def from_line(line: str) -> Measurement:
        return Measurement.from_json(json.loads(line))

    def with_warnings(self, *more: str) -> Measurement:
        return replace(self, warnings=(*self.warnings, *more))


def require_alike(a: Measurement, b: Measurement) -> None:
    """Raises InputError where times of the two say nothing about each other: unlike machines, or unlike threads."""
    different = a.machine.differences(b.machine)
    if a.threads != b.threads:
        different.append(f"threads: {a.threads} and {b.threads}")
    if different:
        raise InputError(
            "these measurements are of unlike machines: " + "; ".join(different),
            remedy="Measure both on the same machine, with the same settings.",
        )


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
