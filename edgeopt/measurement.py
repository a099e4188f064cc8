"""What was measured: raw samples first, every summary computed from them.

A candidate is measured in rounds. In each round every candidate runs one block of inferences, in random order, so that
two candidates are compared within the same seconds of the same machine. A call during which the system took the
processor away is marked as switched out: it says more of the other programs than of the model. A round in which the
machine throttled, swapped or was taken away is marked as disturbed. "Clean" samples are the others.

What this module does not know: clean samples say little of tails, because a longer call is likelier to be switched
out. All samples are therefore kept and told beside the clean ones. Accuracy of the model is known only as counts.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from edgeopt import jsontext
from edgeopt.conditions import REASONS, Disturbance, Machine
from edgeopt.errors import InputError, UnlikeMachines
from edgeopt.fields import checked
from edgeopt.statistics import (
    LEAST_MARGIN,
    LEAST_ROUNDS,
    PERCENTILES,
    Comparison,
    Percentile,
    Ratio,
    is_narrow,
    paired_ratio,
    percentile,
    verdict,
)

LEAST_CLEAN_SAMPLES = 20
LEAST_CLEAN_FRACTION = 0.1
LEAST_CLEAN_CALLS_OF_A_ROUND = 2


@dataclass(frozen=True)
class Block:
    """The calls of one round, in order: wall-clock ns of each, and whether it was switched out.

    `wall_ns` and `cpu_ns` (of all threads) cover the block from its first call to its last. `energy_uj` is what the
    processor took meanwhile, all that ran on it included; None where it does not tell. `disturbed` names what makes the
    whole round worth nothing, as `edgeopt.conditions.REASONS` does: none of its calls are clean.
    """

    latencies_ns: Tuple[int, ...]
    switched: Tuple[bool, ...]
    wall_ns: int
    cpu_ns: int
    energy_uj: Optional[int] = None
    disturbed: Tuple[str, ...] = ()

    @property
    def clean_ns(self) -> Tuple[int, ...]:
        if self.disturbed:
            return ()
        return tuple(ns for ns, switched in zip(self.latencies_ns, self.switched) if not switched)

    def to_json(self) -> Dict[str, Any]:
        """`switched` is the list of positions of the calls that were."""
        positions = [position for position, switched in enumerate(self.switched) if switched]
        return {
            "latencies_ns": list(self.latencies_ns),
            "switched": positions,
            "wall_ns": self.wall_ns,
            "cpu_ns": self.cpu_ns,
            "energy_uj": self.energy_uj,
            "disturbed": list(self.disturbed),
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Block:
        latencies, positions = tuple(value["latencies_ns"]), set(value["switched"])
        return checked(
            Block(
                latencies,
                tuple(index in positions for index in range(len(latencies))),
                value["wall_ns"],
                value["cpu_ns"],
                value.get("energy_uj"),
                tuple(value.get("disturbed", ())),
            )
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


def ratio(a_rounds: Sequence[Block], b_rounds: Sequence[Block], seed: int = 0) -> Ratio:
    """The median over rounds of median(a) / median(b); the speed-up of b over a. `edgeopt.statistics.paired_ratio`.

    `a_rounds` and `b_rounds` are the blocks of the same rounds, from the first on: where one was measured in more of
    them, its last ones are left out. A round counts where both blocks have at least two clean calls. Where that leaves
    fewer than half of the rounds or fewer than six, all calls of all rounds are taken and the basis says so. Raises
    InputError where there are none.
    """
    clean = _clean_ratios(a_rounds, b_rounds)
    if clean is not None:
        return paired_ratio(clean, "clean", seed)
    found = [median(a.latencies_ns) / median(b.latencies_ns) for a, b in zip(a_rounds, b_rounds)]
    if not found:
        raise InputError("a comparison needs rounds of both")
    return paired_ratio(found, "all", seed)


def is_precise(a_rounds: Sequence[Block], b_rounds: Sequence[Block]) -> bool:
    """Whether further rounds have little to add to `ratio`: enough of them are clean, and it is known to within 5 %."""
    clean = _clean_ratios(a_rounds, b_rounds)
    return clean is not None and is_narrow(clean)


def _clean_ratios(a_rounds: Sequence[Block], b_rounds: Sequence[Block]) -> Optional[List[float]]:
    """The ratio of each round that counts, None where they are too few."""
    rounds = list(zip(a_rounds, b_rounds))
    found = [
        median(a.clean_ns) / median(b.clean_ns)
        for a, b in rounds
        if min(len(a.clean_ns), len(b.clean_ns)) >= LEAST_CLEAN_CALLS_OF_A_ROUND
    ]
    return found if len(found) >= max(LEAST_ROUNDS, len(rounds) / 2) else None


def compare(
    a_rounds: Sequence[Block], b_rounds: Sequence[Block], twin: Optional[Ratio] = None, margin: float = LEAST_MARGIN
) -> Comparison:
    """Whether b is faster than a, by `edgeopt.statistics.verdict`."""
    return verdict(ratio(a_rounds, b_rounds), twin, margin, told_disturbed(a_rounds))


def told_disturbed(rounds: Sequence[Block]) -> Optional[str]:
    """What disturbed rounds and how many, most often first; None where nothing did."""
    counts = Counter(reason for block in rounds for reason in block.disturbed)
    told = [f"in {count} of {len(rounds)} rounds {REASONS[reason]}" for reason, count in counts.most_common()]
    return "; ".join(told) or None


@dataclass(frozen=True)
class Memory:
    """Resident memory of a process above what it had with the runtime imported and the inputs ready, in bytes.

    `load_peak_bytes` and `inference_peak_bytes` are the highest (VmHWM of proc(5)) while the artifact was loaded, and
    while it ran first. `uss_bytes` (its own pages alone) and `pss_bytes` (shared pages by share) are those it then had,
    of /proc/self/smaps_rollup. None where the system does not tell.
    """

    load_peak_bytes: Optional[int]
    inference_peak_bytes: Optional[int]
    uss_bytes: Optional[int] = None
    pss_bytes: Optional[int] = None

    @property
    def peak_bytes(self) -> Optional[int]:
        peaks = self.load_peak_bytes, self.inference_peak_bytes
        return None if None in peaks else max(filter(None, peaks), default=0)

    def to_json(self) -> Dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Measurement:
    """One artifact on one machine, as measured.

    `load_ns` is opening the file to a session, after the runtime was imported and with the file likely in the page
    cache; `first_inference_ns` the call after it. `peak_memory_bytes` is the highest resident memory of the process
    above what it had with the runtime imported and the inputs ready, None where the system does not tell; its parts are
    `memory`. `steady` says whether the warm-up ended because latencies had settled. `size_bytes` is that of the
    artifact. `conditions` is what went on meanwhile.

    `clock_overhead_ns` is what two readings of the clock take, `call_overhead_ns` a call of the smallest model that the
    runtime runs (None where the backend has none): both are part of every latency, and are not taken off it.
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
    memory: Optional[Memory] = None
    conditions: Optional[Disturbance] = None
    clock_overhead_ns: Optional[int] = None
    call_overhead_ns: Optional[int] = None

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

    @property
    def energy_uj_per_inference(self) -> Optional[float]:
        """Energy of the whole processor while it ran, by the number of inferences; None where it does not tell."""
        read = [(block.energy_uj, len(block.latencies_ns)) for block in self.rounds if block.energy_uj is not None]
        calls = sum(count for _, count in read)
        return sum(energy for energy, _ in read) / calls if calls else None

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
            "energy_uj_per_inference": self.energy_uj_per_inference,
            "load_ns": self.load_ns,
            "first_inference_ns": self.first_inference_ns,
            "peak_memory_bytes": self.peak_memory_bytes,
            "memory": self.memory.to_json() if self.memory else None,
            "size_bytes": self.size_bytes,
            "warm_up_calls": self.warm_up_calls,
            "steady": self.steady,
            "clock_overhead_ns": self.clock_overhead_ns,
            "call_overhead_ns": self.call_overhead_ns,
            "conditions": self.conditions.to_json() if self.conditions else None,
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
        found = Measurement(
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
            memory=checked(Memory(**value["memory"])) if value.get("memory") else None,
            conditions=Disturbance.from_json(value["conditions"]) if value.get("conditions") else None,
            clock_overhead_ns=value.get("clock_overhead_ns"),
            call_overhead_ns=value.get("call_overhead_ns"),
        )
        return checked(found)

    def to_line(self) -> str:
        """One line of a .jsonl file, without the line's end."""
        return json.dumps(self.to_json(), separators=(",", ":"), allow_nan=False)

    @staticmethod
    def from_line(line: str) -> Measurement:
        return Measurement.from_json(jsontext.parse(line))

    def with_warnings(self, *more: str) -> Measurement:
        return replace(self, warnings=(*self.warnings, *more))


def require_alike(a: Measurement, b: Measurement) -> None:
    """Raises UnlikeMachines where times of the two say nothing about each other: other machines, or other threads."""
    different = a.machine.differences(b.machine)
    if a.threads != b.threads:
        different.append(f"threads: {a.threads} and {b.threads}")
    if different:
        raise UnlikeMachines(
            "these measurements are of unlike machines: " + "; ".join(different),
            remedy="Measure both on the same machine, with the same settings.",
        )
