"""Measures candidates on their device: how right they are, and then all of them against each other for time and memory.

Both are kept in the store: the quality of an artifact until artifact, data or machine change, the session of all
candidates until any of them does. A session in which something failed is not kept.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeopt.artifact import Artifact
from edgeopt.clock import Work
from edgeopt.conditions import Disturbance, Machine
from edgeopt.devices import Device
from edgeopt.errors import EdgeoptError, InputError, Interrupted
from edgeopt.kit import alone
from edgeopt.measurement import Block, Measurement, compare
from edgeopt.measuring import quality, session
from edgeopt.pipeline import Built, Prepared, Workers, placed, quality_kind
from edgeopt.placement import Placed, Placement
from edgeopt.plan import Candidate, Plan
from edgeopt.profile import BATCHES, BatchCurve
from edgeopt.recipe import MeasureOptions
from edgeopt.results import Quality
from edgeopt.schedule import Done, Job, Observer
from edgeopt.statistics import Drop, Ratio, paired_drop
from edgeopt.store import Entry, Made, Store
from edgeopt.target import Target

QUALITY_VERSION = 2
SESSION_VERSION = 2
CURVE_VERSION = 1
MEASURE, CURVE = "measure", "batch sizes"
SESSION_FILE, CURVE_FILE = "session.json", "batch_curve.json"


def metric_of(plan: Plan, has_labels: bool) -> str:
    """The recipe's metric; without one top1 where there are labels, else agreement with the original. Inputs that are
    for timing alone may have outputs of any shape: sqnr takes them all, and is not shown."""
    if not plan.judges:
        return "sqnr"
    return plan.recipe.metric or ("top1" if has_labels else "agreement")


def quality_job_id(candidate_id: str) -> str:
    return f"quality:{candidate_id}"


def quality_jobs(
    plan: Plan,
    store: Store,
    workers: Workers,
    device: Device,
    target: Target,
    ranks: Mapping[str, int] | None = None,
) -> list[Job]:
    """A job for each candidate, that of the baseline first: its outputs are what the others are compared with.

    `ranks` are those of `edgeopt.plan.ranks`, where time is short: candidates of a lower rank are begun first.
    A job's value is the store's entry, with what `edgeopt.measuring.quality:run` returned as meta and its files.
    """
    if "validation" not in plan.data:
        return []
    machine = device.machine().to_json()
    baseline = quality_job_id(plan.baseline)
    return [
        _quality_job(c, plan, store, workers, device, target, machine, baseline, ranks or {}) for c in plan.candidates
    ]


def _quality_job(
    candidate: Candidate,
    plan: Plan,
    store: Store,
    workers: Workers,
    device: Device,
    target: Target,
    machine: Mapping[str, Any],
    baseline: str,
    ranks: Mapping[str, int],
) -> Job:
    job_id = quality_job_id(candidate.id)
    work = None
    if ranks and job_id != baseline:
        measured = sum(ranks[c.id] <= ranks[candidate.id] for c in plan.candidates)
        work = Work(quality_kind(candidate.backend), candidates=measured)

    python = target.python if target.is_local else None  # elsewhere it is the device's

    def run(values: Mapping[str, Any]) -> Done:
        built: Built = values[candidate.step]
        samples: Prepared = values["data:validation"]
        reference: Entry | None = values.get(baseline) if job_id != baseline else None
        metric = metric_of(plan, samples.has_labels)
        inputs = {
            "stage": "quality",
            "choice": candidate.backend,
            "version": QUALITY_VERSION,
            "artifact": built.artifact.digest,
            "runtime": device.runtime_version(candidate.backend),
            "samples": samples.digest,
            "metric": metric,
            "reference": reference.key if reference else None,
            "threads": target.threads,
            "machine": machine,
        }

        def make(out: Path) -> Made:
            args = {
                "backend": candidate.backend,
                "main": str(built.folder / built.artifact.main),
                "runtime": dict(built.artifact.runtime),
                "threads": target.threads,
                "inputs": [spec.to_json() for spec in built.artifact.inputs],
                "outputs": [spec.to_json() for spec in built.artifact.outputs],
                "samples": str(samples.folder),
                "metric": metric,
                "out": str(out),
                "reference": str(reference.files) if reference else None,
                "placement": True,
            }
            with placed({None: plan.data["validation"].location}):
                return Made(device.quality(args, lambda job, a: workers.call(job_id, job, a, python=python, work=work)))

        entry, reused = store.build(inputs, make, stopping=workers.stopping)
        return Done(entry, reused)

    hopes = (baseline,) if job_id != baseline else ()
    return Job(job_id, (candidate.step, "data:validation"), run, hopes=hopes, rank=ranks.get(candidate.id, 0))


def qualities(entries: Mapping[str, Entry], baseline: str) -> dict[str, Quality]:
    """Qualities by candidate id, drops paired with the baseline over the same samples."""
    base = entries.get(baseline)
    return {name: _quality(entry, base, is_baseline=name == baseline) for name, entry in entries.items()}


def _quality(entry: Entry, base: Entry | None, *, is_baseline: bool) -> Quality:
    found = entry.meta
    fidelity = found["fidelity"] or {}
    metric, value = found["metric"], found["value"]
    drop: Drop | None = None
    if is_baseline:
        # The original is the standard: it agrees with itself, and drops by nothing.
        value = 1.0 if metric == "agreement" else value
        agreement = 1.0 if _has_classes(entry) else None
        return Quality(metric, value, Drop(0.0, 0.0, 0.0), agreement, None, True, found["samples"])
    if metric == "agreement" and found["hits"] is not None:
        drop = paired_drop(found["hits"], found["samples"] - found["hits"], 0, 0)
    elif base is not None and found["hits"] is not None and base.meta["hits"] is not None:
        drop = paired_drop(*quality.paired_counts(base.files / quality.HITS, entry.files / quality.HITS))
    return Quality(
        metric,
        value,
        drop,
        fidelity.get("agreement"),
        fidelity.get("sqnr_db"),
        bool(fidelity.get("exact")),
        found["samples"],
    )


def placement(entry: Entry | None, artifact: Artifact | None) -> Placement:
    """Where the operators of a candidate run: as its runtime tells it on the target, else as its compiler told it."""
    on_target = Placement.from_json(entry.meta["placement"]) if entry else Placement()
    if on_target.operators or artifact is None or "placement" not in artifact.details:
        return on_target
    return Placement(tuple(Placed.from_json(one) for one in artifact.details["placement"]))


def _has_classes(entry: Entry) -> bool:
    import numpy as np

    first = np.load(entry.files / "outputs-0.npy", mmap_mode="r", allow_pickle=False)
    return bool(first.ndim == 2 and first.shape[1] >= 2)


def measure(
    plan: Plan,
    ready: Mapping[str, Built],
    samples: Prepared,
    options: MeasureOptions,
    store: Store,
    workers: Workers,
    device: Device,
    target: Target,
    observer: Observer,
    *,
    again: bool,
) -> tuple[session.SessionResult, bool]:
    """One session of all candidates in `ready`, from the store where nothing has changed and not `again`.

    Runs that want the same session take it one after the other, so that they do not disturb each other's measurements.
    Returns the result and whether it was there already.
    """
    baseline = plan.baseline if plan.baseline in ready else next(iter(ready))
    inputs = {
        "stage": "measure",
        "choice": "",
        "version": SESSION_VERSION,
        "candidates": {
            name: [built.artifact.digest, _backend(plan, name), device.runtime_version(_backend(plan, name))]
            for name, built in ready.items()
        },
        "baseline": baseline,
        "samples": samples.digest,
        "options": {"rounds": options.rounds, "block_ns": options.block_ns},
        "threads": target.threads,
        "python": target.python,
        "machine": device.machine().to_json(),
        **({} if target.is_local else {"reach": dict(target.reach)}),
    }
    candidates = [
        session.Candidate(
            id=name,
            artifact=built.artifact.digest,
            backend=_backend(plan, name),
            folder=built.folder,
            main=built.artifact.main,
            inputs=built.artifact.inputs,
            runtime=built.artifact.runtime,
            threads=target.threads,
            size_bytes=built.artifact.size_bytes,
            python=target.python,
            limits=workers.limits,
            env=workers.environment if target.is_local else {},
        )
        for name, built in ready.items()
    ]
    total = len(candidates)
    loaded: list[str] = []

    def on_event(kind: str, name: str, fraction: float | None) -> None:
        if kind == "load":
            loaded.append(name)
            observer.progressed(MEASURE, None, f"loading {name} ({len(set(loaded))} of {total})")
        elif kind == "round":
            observer.progressed(MEASURE, fraction, f"{total} candidates in turn")

    measured: list[session.SessionResult] = []

    def make(out: Path) -> Made:
        result = device.session(
            candidates,
            session.SessionOptions(
                samples=samples.folder,
                baseline=baseline,
                rounds=options.rounds,
                most_rounds=options.rounds if plan.recipe.seconds else 2 * options.rounds,
                block_ns=options.block_ns,
            ),
            workers.log_of(MEASURE).with_suffix(""),
            on_event,
            workers.stopping,
        )
        measured.append(result)
        if any(outcome.error for outcome in result.outcomes.values()):
            raise _NotKept
        (out / SESSION_FILE).write_text(json.dumps(session_to_json(result), separators=(",", ":")))
        return Made({})

    observer.started(MEASURE)
    if again:
        store.remove(inputs)
    with contextlib.suppress(_NotKept):
        entry, _ = store.build(inputs, make, stopping=workers.stopping)
    observer.finished(MEASURE, reused=not measured, seconds=0.0)
    if measured:
        return measured[0], False
    return session_from_json(json.loads((entry.files / SESSION_FILE).read_text()), workers), True


class _NotKept(Exception):
    """Something failed in the session: it is told, and not stored."""


def batch_curve(
    plan: Plan,
    name: str,
    built: Built,
    samples: Prepared,
    store: Store,
    workers: Workers,
    device: Device,
    target: Target,
    *,
    again: bool,
) -> BatchCurve:
    """Latency by batch size of one candidate, from the store where nothing has changed and not `again`.

    What goes wrong is the curve's own affair: it has no points then, and says why.
    """
    backend, options = _backend(plan, name), plan.recipe.measure
    sizes = (target.batches or BATCHES) if options.batches is None else options.batches
    inputs = {
        "stage": "batches",
        "choice": backend,
        "version": CURVE_VERSION,
        "artifact": built.artifact.digest,
        "runtime": device.runtime_version(backend),
        "samples": samples.digest,
        "batches": list(sizes),
        "block_ns": options.block_ns,
        "threads": target.threads,
        "python": target.python,
        "machine": device.machine().to_json(),
    }
    args = {
        "backend": backend,
        "main": str(built.folder / built.artifact.main),
        "runtime": dict(built.artifact.runtime),
        "threads": target.threads,
        "inputs": [spec.to_json() for spec in built.artifact.inputs],
        "samples": str(samples.folder),
        "block_ns": options.block_ns,
    }
    python = target.python if target.is_local else None

    def call(function: str, job: Mapping[str, Any]) -> dict[str, Any]:
        return device.alone(function, job, lambda f, a: workers.call(CURVE, f, a, python=python, work=Work(CURVE)))

    def make(out: Path) -> Made:
        found = alone.batch_curve(args, sizes, call)
        (out / CURVE_FILE).write_text(json.dumps(found.to_json(), separators=(",", ":")))
        return Made({})

    if again:
        store.remove(inputs)
    try:
        entry, _ = store.build(inputs, make, stopping=workers.stopping)
    except Interrupted:
        raise
    except EdgeoptError as error:
        return BatchCurve((), error.message)
    return BatchCurve.from_json(json.loads((entry.files / CURVE_FILE).read_text()))


def _backend(plan: Plan, name: str) -> str:
    return next(candidate.backend for candidate in plan.candidates if candidate.id == name)


def session_to_json(result: session.SessionResult) -> dict[str, Any]:
    """A session in which nothing failed, with every raw sample."""
    measurements = {name: outcome.measurement for name, outcome in result.outcomes.items()}
    return {
        "schema": 1,
        "baseline": result.baseline,
        "machine": result.machine.to_json(),
        "measurements": {name: m.to_json() for name, m in measurements.items() if m},
        "groups": [
            {
                "candidates": [name for name in group.rounds if name != result.baseline],
                "baseline_rounds": [block.to_json() for block in group.rounds.get(result.baseline, ())],
                "reference": group.reference,
                "twin": group.twin.to_json() if group.twin else None,
                "disturbance": group.disturbance.to_json(),
            }
            for group in result.groups
        ],
    }


def session_from_json(value: Mapping[str, Any], workers: Workers) -> session.SessionResult:
    """What `session_to_json` wrote; percentiles and ratios are computed again from the samples."""
    if value.get("schema") != 1:
        raise InputError(f"a session of schema {value.get('schema')!r}: this edgeopt reads schema 1")
    measurements = {name: Measurement.from_json(m) for name, m in value["measurements"].items()}
    baseline = value["baseline"]
    groups = []
    for group in value["groups"]:
        rounds = {name: measurements[name].rounds for name in group["candidates"]}
        if group["baseline_rounds"]:
            rounds[baseline] = tuple(Block.from_json(block) for block in group["baseline_rounds"])
        twin = Ratio.from_json(group["twin"]) if group["twin"] else None
        groups.append(session.Group(rounds, group["reference"], twin, Disturbance.from_json(group["disturbance"])))
    outcomes = {}
    for name, measurement in measurements.items():
        group = next(g for g in groups if name in g.rounds)
        against = group.rounds.get(baseline) if name != baseline else None
        speedup = compare(against, measurement.rounds, group.twin) if against else None
        outcomes[name] = session.Outcome(measurement, None, speedup, workers.log_of(MEASURE))
    return session.SessionResult(outcomes, baseline, tuple(groups), Machine.from_json(value["machine"]))


def failures(result: session.SessionResult) -> dict[str, EdgeoptError]:
    """The candidates that failed while they were measured."""
    return {name: outcome.error for name, outcome in result.outcomes.items() if outcome.error}
