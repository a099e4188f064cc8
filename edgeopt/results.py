"""The document that a run leaves: choice.json, `convert --json`, and what every report is drawn from.

Made of what was built and measured, with nothing added: a number that was not measured is null. Fields are only ever
added, and `schema` says which edition it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeopt.artifact import Artifact
from edgeopt.budget import Budget, Choice, Interval, Scored, choose, judge
from edgeopt.errors import EdgeoptError, MissingDependency, NoAccelerator, NoTimeLeft
from edgeopt.measurement import Measurement
from edgeopt.measuring.session import SessionResult
from edgeopt.pipeline import Built, Prepared
from edgeopt.placement import Placement
from edgeopt.plan import Candidate, Plan
from edgeopt.profile import BatchCurve
from edgeopt.statistics import Comparison, Drop
from edgeopt.store import Entry

SCHEMA = 1
NOT_TRIED = (NoTimeLeft, NoAccelerator, MissingDependency)  # nothing is known against such a candidate


@dataclass(frozen=True)
class Quality:
    """How right an artifact is, run by its backend.

    `value` is the recipe's metric (a fraction of one, dB for sqnr), `drop` how far below the original's, over the same
    samples. `fidelity` is top-1 agreement with the original's outputs, None where those are no class scores; `sqnr_db`
    the signal to quantization noise of all outputs, None where they are equal: `exact` is then true.
    """

    metric: str
    value: float
    drop: Drop | None
    fidelity: float | None
    sqnr_db: float | None
    exact: bool
    samples: int


@dataclass(frozen=True)
class Outcome:
    """What became of one candidate. What did not come about is None; `error` says why.

    `counts` holds parameters and macs (multiply-accumulates for one sample), None where unknown. `placement` is where
    its operators run. `batch_curve` is the winner's alone.
    """

    candidate: Candidate
    artifact: Artifact | None
    measurement: Measurement | None
    quality: Quality | None
    error: EdgeoptError | None
    log: str | None = None
    counts: Mapping[str, int | None] = field(default_factory=dict)
    batch_curve: BatchCurve | None = None
    placement: Placement = field(default_factory=Placement)


@dataclass(frozen=True)
class RunResult:
    """What was built and measured.

    `plan` is as it was run: its baseline may be another than the one planned. `builds` are by step, `qualities` (the
    store's entries, with outputs) and `logs` by candidate. `reused` says of each job whether it was there already.
    `sources` holds what decided the imported model ("import") and each set of samples ("data:<role>").
    `found` is what was found by measuring before anything was trained, as JSON.
    """

    plan: Plan
    outcomes: Mapping[str, Outcome]
    builds: Mapping[str, Built]
    qualities: Mapping[str, Entry]
    samples: Prepared | None
    session: SessionResult | None
    seconds: Mapping[str, float]
    reused: Mapping[str, bool]
    session_reused: bool
    warnings: Sequence[str]
    logs: Mapping[str, Path]
    sources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    found: Sequence[Mapping[str, Any]] = ()

    def compare(self, a: str, b: str) -> Comparison | None:
        """Whether candidate b is faster than a; None where they never took turns."""
        return self.session.compare(a, b) if self.session else None


def values(outcome: Outcome) -> dict[str, float | None]:
    """A candidate's quantities, as budgets name them."""
    measured, quality = outcome.measurement, outcome.quality
    latency = measured.latency if measured else None
    found: dict[str, float | None] = {
        f"latency {name}": p.value if latency and (p := latency.percentiles[name]) else None
        for name in ("p50", "p90", "p95", "p99")
    }
    found["throughput"] = measured.throughput_per_s if measured else None
    found["cold start"] = measured.load_ns + measured.first_inference_ns if measured else None
    found["peak memory"] = measured.peak_memory_bytes if measured else None
    found["size"] = outcome.artifact.size_bytes if outcome.artifact else None
    found["accuracy drop"] = quality.drop.value if quality and quality.drop else None
    found["fidelity"] = quality.fidelity if quality else None
    found["cpu operators"] = outcome.placement.left_to_cpu
    found["sqnr"] = (math.inf if quality.exact else quality.sqnr_db) if quality else None
    return found


def intervals(outcome: Outcome) -> dict[str, Interval]:
    """Those of the quantities that are estimates over samples."""
    quality = outcome.quality
    if not quality or not quality.drop:
        return {}
    return {"accuracy drop": Interval(quality.drop.low, quality.drop.high, quality.samples)}


CompareTwo = Callable[[str, str], Comparison | None]


def decide(outcomes: Mapping[str, Outcome], budget: Budget, compare: CompareTwo) -> Choice:
    """The choice among candidates. `compare(a, b)`: whether b is faster than a, None where they never took turns."""

    def compare_two(quantity: str, a: str, b: str) -> str:
        if quantity.startswith(("latency", "throughput")):
            found = compare(b, a)
            return found.verdict if found else "inconclusive"
        return "tie" if values(outcomes[a])[quantity] == values(outcomes[b])[quantity] else "faster"

    scored = [
        Scored(o.candidate.id, values(o), o.candidate.depth, _told(o.error) if o.error else None, intervals(o))
        for o in outcomes.values()
    ]
    return choose(scored, budget, compare_two)


def document(result: RunResult, choice: Choice, run: str, times: Mapping[str, float]) -> dict[str, Any]:
    """The whole result as plain JSON; see `candidate_json` for one candidate. `run` is the run directory."""
    plan, outcomes = result.plan, result.outcomes
    budget = plan.recipe.budget
    speedups = {name: result.compare(plan.baseline, name) for name in outcomes if name != plan.baseline}
    rows = [
        {
            **candidate_json(o, choice, budget, speedups.get(name), plan.baseline),
            "over_float": _over_float(o.candidate, result),
        }
        for name, o in outcomes.items()
    ]
    rows += [_skipped(name, reason) for name, reason in plan.left_out.items()]
    return {
        "schema": SCHEMA,
        "run": run,
        "recipe": plan.recipe.name,
        "target": plan.recipe.target.name,
        "winner": choice.winner,
        "why": choice.why,
        "ties": list(choice.ties),
        "unclear": list(choice.unclear),
        "nearest": choice.nearest,
        "fallbacks": list(choice.fallbacks),
        "baseline": plan.baseline,
        "budget": budget.to_json(),
        "candidates": rows,
        "seconds": dict(times),
        "reused": {
            "steps": sum(result.reused.values()),
            "of": len(result.reused),
            "measurements": result.session_reused,
        },
        "search": [dict(found) for found in result.found],
        "pruned": list(_pruned(result)),
        "time_limit_seconds": plan.recipe.seconds,
        "warnings": list(result.warnings),
    }


def candidate_json(
    outcome: Outcome, choice: Choice, budget: Budget, speedup: Comparison | None, baseline: str
) -> dict[str, Any]:
    """One candidate: id, steps, backend, artifact, what was measured, status and reasons."""
    artifact, measured, quality = outcome.artifact, outcome.measurement, outcome.quality
    name = outcome.candidate.id
    details = artifact.details if artifact else {}
    return {
        "id": name,
        "steps": dict(outcome.candidate.labels),
        "backend": outcome.candidate.backend,
        "untouched": outcome.candidate.untouched,
        "artifact": {
            "digest": artifact.digest,
            "format": artifact.format,
            "precision": artifact.precision,
            "size_bytes": artifact.size_bytes,
        }
        if artifact
        else None,
        "parameters": outcome.counts.get("parameters"),
        "macs": outcome.counts.get("macs"),
        "details": dict(details),
        "latency_ns": measured.latency.to_json() if measured else None,
        "throughput_per_s": measured.throughput_per_s if measured else None,
        "cpu_ns_per_inference": measured.cpu_ns_per_inference if measured else None,
        "load_ns": measured.load_ns if measured else None,
        "first_inference_ns": measured.first_inference_ns if measured else None,
        "peak_memory_bytes": measured.peak_memory_bytes if measured else None,
        "batch_curve": outcome.batch_curve.summary() if outcome.batch_curve else None,
        "runtime_version": measured.runtime_version if measured else None,
        "threads": measured.threads if measured else None,
        "warnings": list(measured.warnings) if measured else [],
        "quality": {
            "metric": quality.metric,
            "value": quality.value,
            "drop": quality.drop.value if quality.drop else None,
            "drop_low": quality.drop.low if quality.drop else None,
            "drop_high": quality.drop.high if quality.drop else None,
            "fidelity": quality.fidelity,
            "sqnr_db": quality.sqnr_db,
            "exact": quality.exact,
            "samples": quality.samples,
        }
        if quality
        else None,
        "speedup": {
            **speedup.speedup.to_json(),
            "against": baseline,
            "verdict": speedup.verdict,
            "reason": speedup.reason,
            "precise": speedup.speedup.is_precise,
        }
        if speedup
        else None,
        "operators": outcome.placement.counts or None,
        "placement": outcome.placement.told(artifact.precision if artifact else ""),
        "budget": [
            {
                "quantity": verdict.limit.quantity,
                "limit": verdict.limit.bound,
                "value": verdict.value if verdict.value is None or math.isfinite(verdict.value) else None,
                "passed": verdict.passed,
                "undecided": verdict.undecided,
                "samples_needed": verdict.needed if verdict.undecided else None,
                "told": str(verdict),
            }
            for verdict in judge(budget, values(outcome), intervals(outcome))
        ],
        "status": _status(outcome, choice),
        "reasons": list(choice.rejected.get(name, ())),
        "error": outcome.error.to_json() if outcome.error else None,
        "log": outcome.log,
    }


def _over_float(candidate: Candidate, result: RunResult) -> dict[str, Any] | None:
    """The speed-up of a quantized candidate over the one that differs from it in that alone."""
    steps = {stage: label for stage, label in candidate.labels.items() if stage.partition(" ")[0] != "quantize"}
    if steps == candidate.labels:
        return None
    alike = (c.id for c in result.plan.candidates if (dict(c.labels), c.backend) == (steps, candidate.backend))
    name = next(alike, None)
    found = result.compare(name, candidate.id) if name is not None else None
    return {**found.speedup.to_json(), "against": name, "verdict": found.verdict} if found else None


def _pruned(result: RunResult) -> Iterator[dict[str, Any]]:
    """What each pruning step did to each layer, and why it left others alone: what its stage tells."""
    told = ("channels", "blocks", "masked", "sparsity", "zeros", "zeros_of", "before", "after", "not_pruned", "note")
    for step in result.plan.steps:
        details = result.builds[step.id].artifact.details if step.id in result.builds else {}
        if "not_pruned" in details:
            way = "-".join(before.label for before in result.plan.lineage(step))
            yield {"id": way, "step": step.id, **{key: details[key] for key in told if key in details}}


def _skipped(name: str, reason: str) -> dict[str, Any]:
    return {"id": name, "status": "skipped", "reasons": [reason]}


def _status(outcome: Outcome, choice: Choice) -> str:
    if outcome.error:
        return "skipped" if isinstance(outcome.error, NOT_TRIED) else "failed"
    if outcome.candidate.id == choice.winner:
        return "chosen"
    return "outside" if outcome.candidate.id in choice.rejected else "inside"


def _told(error: EdgeoptError) -> str:
    told = f"{error.where}: {error.message}" if error.where else error.message
    return f"{told}. {error.remedy}" if error.remedy else told
