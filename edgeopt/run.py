"""The whole way of `edgeopt convert`: recipe, probe, plan, build, measure, choose, and a run directory as evidence.

What can be checked is checked before the first expensive second. The run directory is made in one rename at the end:
it is whole, or it is not there.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeopt import catalog, devices, evaluation, pipeline, plan, rundir, yaml
from edgeopt.bench.session import SessionResult
from edgeopt.errors import BudgetError, EdgeoptError, InputError, StageError
from edgeopt.pipeline import Built, Prepared, Workers
from edgeopt.plan import IMPORT, Candidate, Plan
from edgeopt.recipe import Recipe, resolve
from edgeopt.report.live import Display
from edgeopt.results import CompareTwo, Outcome, decide, document
from edgeopt.schedule import Done, Job, run_all
from edgeopt.store import Entry, Store, default_root
from edgeopt.target import Target

DEFAULT_LEVEL = "full"


def read_recipe(
    what: str,
    *,
    level: str | None,
    target: str | None,
    data: str | None,
    weights: str | None,
    budget: Sequence[str],
    base: Path,
) -> Recipe:
    """A recipe file, or a model with a level; flags that are given go over what the file says."""
    if what.endswith((".yaml", ".yml")):
        for flag, value, key in (
            ("--level", level, "steps"),
            ("--data", data, "data"),
            ("--weights", weights, "weights"),
        ):
            if value is not None:
                raise InputError(
                    f"{flag} is for a model without a recipe",
                    remedy=f"Leave {flag} out, and change `{key}:` in {what}.",
                )
        document = _with_flags(yaml.load(Path(what)), target, _limits(budget))
        return resolve(document, base=Path(what).resolve().parent, name=Path(what).stem)
    shipped = catalog.level(level or DEFAULT_LEVEL)
    written: dict[str, Any] = {
        "model": what,
        "weights": weights,
        "data": {"calibration": {"from": data, "samples": 300}, "validation": data} if data else None,
        "steps": shipped["steps"],
        "target": target,
        "budget": {**shipped.get("budget", {}), **_limits(budget)} if data else _limits(budget),
    }
    written = {key: value for key, value in written.items() if value is not None}
    name = Path(what.rpartition(":")[0] or what).stem
    flags = {(key,): f"--{key}" for key in ("weights", "data", "target", "budget")}
    document = yaml.Document("command line", written, flags=flags)
    return resolve(document, base=base, name=name, backends_optional=True)


def _with_flags(document: yaml.Document, target: str | None, limits: Mapping[str, str]) -> yaml.Document:
    """A recipe's document in which options of the command line stand over what the file says."""
    if not isinstance(document.value, dict):
        return document
    value, flags = dict(document.value), dict(document.flags)
    if target is not None:
        value["target"] = target
        flags["target",] = "--target"
    written = value.get("budget") or {}
    if limits and isinstance(written, dict):
        value["budget"] = {**written, **limits}
        flags.update({("budget", name): "--budget" for name in limits})
    return replace(document, value=value, flags=flags)


def _limits(budget: Sequence[str]) -> dict[str, str]:
    limits = {}
    for text in budget:
        name, equals, bound = text.partition("=")
        if not equals:
            raise InputError(f"--budget {text!r}: write it like --budget 'latency p95=5 ms'")
        limits[name.strip()] = bound.strip()
    return limits


def convert(recipe: Recipe, *, output: Path | None, remeasure: bool, display: Display) -> dict[str, Any]:
    """Do everything a recipe says. Returns the document of `edgeopt.results`, which is also in the run directory.

    Raises InputError, MissingDependency, TargetUnreachable before anything is built, StageError when every candidate
    failed (the run directory is written), KeyboardInterrupt.
    """
    started = time.monotonic()
    pipeline.check_inputs(recipe)
    made = plan.make(recipe)
    plan.without_missing_tools(made)
    if not made.data:
        raise InputError(
            "there are no samples to measure with",
            remedy="Add data to the recipe (validation: samples.npz), or give --data samples.npz.",
        )
    device = devices.find(recipe.target)
    target = recipe.target if recipe.target.isa else replace(recipe.target, isa=device.isa())
    with rundir.reserved(output, recipe.name) as folder:
        store = Store(default_root())
        with store.in_use(), display:
            work = _Work(made, store, target, device, display, remeasure)
            result = work.run()
        times = {**result.seconds, "total": time.monotonic() - started}
        outcomes, compare = result.outcomes, result.compare
        choice = decide(outcomes, recipe.budget, compare)
        final = str(folder.final)
        found = document(result.plan, outcomes, choice, compare, final, times, result.reuse, result.warnings)
        rundir.write(folder, found, result, target)
    return found


def exit_code(found: Mapping[str, Any]) -> int:
    """0 with a winner, 3 when no candidate is inside the budgets, 4 when all failed."""
    if found["winner"]:
        return 0
    tried = [c for c in found["candidates"] if c["status"] != "skipped"]
    return StageError.exit_code if all(c["status"] == "failed" for c in tried) else BudgetError.exit_code


@dataclass(frozen=True)
class RunResult:
    """What was built and measured: the plan as it was run, an outcome for each candidate, and how to compare two."""

    plan: Plan
    outcomes: Mapping[str, Outcome]
    builds: Mapping[str, Built]
    qualities: Mapping[str, Entry]
    samples: Prepared | None
    session: SessionResult | None
    seconds: Mapping[str, float]
    reused: Mapping[str, bool]
    warnings: Sequence[str]
    logs: Mapping[str, Path]

    @property
    def reuse(self) -> dict[str, Any]:
        """How much was there already."""
        steps = [was for job, was in self.reused.items() if job != evaluation.MEASURE]
        return {"steps": sum(steps), "of": len(steps), "measurements": self.reused[evaluation.MEASURE]}

    @property
    def compare(self) -> CompareTwo:
        session = self.session
        return lambda a, b: session.compare(a, b) if session else None


class _Work:
    """One run: builds and qualities as one graph of jobs, then the session."""

    def __init__(
        self, made: Plan, store: Store, target: Target, device: devices.Device, display: Display, remeasure: bool
    ) -> None:
        self.plan = made
        self.store = store
        self.target = target
        self.device = device
        self.display = display
        self.remeasure = remeasure
        self.workers = Workers(store, pipeline.limits_of(made.recipe), display)

    def run(self) -> RunResult:
        self.display.planned(self.plan)
        started = time.monotonic()
        results = self._build()
        built_at = time.monotonic()
        done = {key: value for key, value in results.items() if isinstance(value, Done)}
        errors = {key: value for key, value in results.items() if isinstance(value, EdgeoptError)}
        builds = {s.id: done[s.id].value for s in self.plan.steps if s.id in done}
        entries = {
            c.id: done[job].value for c in self.plan.candidates if (job := evaluation.quality_job_id(c.id)) in done
        }
        quality = evaluation.qualities(entries, self.plan.baseline)
        samples: Prepared | None = done["data:validation"].value if "data:validation" in done else None
        ready = {c.id: builds[c.step] for c in self.plan.candidates if c.id in quality and c.step in builds}
        session: SessionResult | None = None
        session_reused = False
        if ready and samples:
            session, session_reused = evaluation.measure(
                self.plan,
                ready,
                samples,
                self.plan.recipe.measure,
                self.store,
                self.workers,
                self.device,
                self.target,
                self.display,
                again=self.remeasure,
            )
        failed_later = evaluation.failures(session) if session else {}
        outcomes, logs = {}, {}
        for candidate in self.plan.candidates:
            name, job = candidate.id, evaluation.quality_job_id(candidate.id)
            error = failed_later.get(name) or errors.get(job) or errors.get(candidate.step)
            built = builds.get(candidate.step)
            log = self._log(candidate, session if name in failed_later else None) if error else None
            if log:
                logs[name] = log
            outcomes[name] = Outcome(
                candidate,
                built.artifact if built else None,
                session.outcomes[name].measurement if session and name in session.outcomes and not error else None,
                quality.get(name),
                error,
                f"log/{log.name}" if log else None,
                self._counts(candidate, done),
            )
        return RunResult(
            self.plan,
            outcomes,
            builds,
            entries,
            samples,
            session,
            {"build": built_at - started, "measure": time.monotonic() - built_at},
            {**{key: value.reused for key, value in done.items()}, evaluation.MEASURE: session_reused},
            self._warnings(session, done),
            logs,
        )

    def _build(self) -> dict[str, Done | EdgeoptError]:
        """All jobs. Where the baseline fails, the next untouched model is the baseline, and what is done is reused."""
        untouched = [c.id for c in self.plan.candidates if c.untouched and c.id != self.plan.baseline]
        results: dict[str, Done | EdgeoptError] = {}
        while True:
            jobs = pipeline.build_jobs(self.plan, self.store, self.workers, self.target)
            jobs += evaluation.quality_jobs(self.plan, self.store, self.workers, self.device, self.target)
            jobs = [_failing(job, e) if isinstance(e := results.get(job.id), EdgeoptError) else job for job in jobs]
            at_once = max(1, (self.device.machine().cores or 1))
            results = run_all(jobs, at_once=at_once, observer=self.display, stop=self.workers.stop)
            failed = isinstance(results.get(evaluation.quality_job_id(self.plan.baseline)), EdgeoptError)
            if not failed or not untouched:
                return results
            self.plan = replace(self.plan, baseline=untouched.pop(0))

    def _counts(self, candidate: Candidate, done: Mapping[str, Done]) -> dict[str, int | None]:
        """Parameters and multiply-accumulates, from the last step on the candidate's way that counted them."""
        way = [IMPORT, *(step.id for step in self.plan.lineage(self.plan.step(candidate.step)))]
        told = [done[step].value.artifact.details for step in way if step in done]
        return {what: next((d[what] for d in reversed(told) if what in d), None) for what in ("parameters", "macs")}

    def _log(self, candidate: Candidate, session: SessionResult | None) -> Path | None:
        """What was printed by the worker that a candidate failed in: the session's, or the last one that ran."""
        if session:
            return session.outcomes[candidate.id].log
        steps = self.plan.lineage(self.plan.step(candidate.step))
        jobs = [*(step.id for step in steps), evaluation.quality_job_id(candidate.id)]
        return next((log for job in reversed(jobs) if (log := self.workers.log_of(job)).exists()), None)

    def _warnings(self, session: SessionResult | None, done: Mapping[str, Done]) -> list[str]:
        told: dict[str, None] = {}
        for role, source in self.plan.data.items():
            count = done[f"data:{role}"].value.count
            if source.samples and count < source.samples:
                told[f"{role} has {count} samples, {source.samples} were asked for"] = None
        if "validation" not in self.plan.recipe.data:
            told["there is no validation data: quality is taken on the data that calibrated"] = None
        for outcome in session.outcomes.values() if session else ():
            for warning in outcome.measurement.warnings if outcome.measurement else ():
                told[warning] = None
        if keys := self.store.corrupt:
            what = "a cache entry was" if len(keys) == 1 else f"{len(keys)} cache entries were"
            told[f"{what} damaged, and built again: {', '.join(key[:12] for key in keys[:3])}"] = None
        return list(told)


def _failing(job: Job, error: EdgeoptError) -> Job:
    """A job that failed before, and is not worth its time limit again."""

    def run(_: Mapping[str, Any]) -> Done:
        raise error

    return replace(job, run=run)
