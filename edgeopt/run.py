"""The whole way of `edgeopt convert`: recipe, probe, plan, build, measure, choose, and a run directory as evidence.

What can be checked is checked before the first expensive second. The run directory is made in one rename at the end:
it is whole, or it is not there.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgeopt import devices, evaluation, pipeline, plan, rundir, search
from edgeopt.clock import Clock
from edgeopt.errors import BudgetError, EdgeoptError, InputError, NoTimeLeft, StageError
from edgeopt.errors import from_json as error_from_json
from edgeopt.measuring import machine
from edgeopt.measuring.session import SessionResult
from edgeopt.pipeline import Built, Prepared, Workers
from edgeopt.plan import IMPORT, Candidate, Plan
from edgeopt.recipe import Recipe
from edgeopt.report.live import Display
from edgeopt.results import Outcome, RunResult, decide, document
from edgeopt.schedule import Done, Job, run_all
from edgeopt.store import Entry, Store, default_root
from edgeopt.target import Target


def convert(recipe: Recipe, *, output: Path | None, remeasure: bool, display: Display) -> dict[str, Any]:
    """Do everything a recipe says. Returns the document of `edgeopt.results`, which is also in the run directory.

    Raises InputError, MissingDependency, TargetUnreachable before anything is built, and KeyboardInterrupt. That every
    candidate failed, or that none is inside, is in the document: see `exit_code`.
    """
    started = time.monotonic()
    clock = Clock(recipe.seconds, recipe.time or "", recipe.measure.seconds)
    pipeline.check_inputs(recipe)
    made = plan.make(recipe)
    plan.without_missing_tools(made)
    if not made.data:
        raise InputError(
            "there are no samples to measure with",
            remedy="Add data to the recipe (validation: samples.npz), or give --data samples.npz. Without samples, "
            "`edgeopt init MODEL` writes a recipe for times alone.",
        )
    device = devices.find(recipe.target)
    device.check(candidate.backend for candidate in made.candidates)
    target = devices.as_found(recipe.target, device)
    with rundir.reserved(output, recipe.name) as folder:
        store = Store(default_root())
        with store.in_use() as temporary, display:
            workers = Workers(store, pipeline.limits_of(recipe), display, temporary, clock)
            seconds, searched = {}, search.Resolved(recipe)
            if made.searches():
                with clock.part(search.TIME_SHARE):
                    searched = search.resolve(made, store, workers, device, target, display, display.planned)
                made = plan.make(searched.recipe, searched.left_out)
                seconds = {"search": time.monotonic() - started}
            work = _Work(made, store, workers, target, device, display, remeasure, searched)
            result = work.run()
            choice = decide(result.outcomes, recipe.budget, result.compare)
            if choice.winner and recipe.measure.batches != ():
                result = work.with_batch_curve(result, choice.winner)
        times = {**seconds, **result.seconds, "total": time.monotonic() - started}
        found = document(result, choice, str(folder.final), times)
        rundir.write(folder, found, result, target)
    return found


def exit_code(found: Mapping[str, Any]) -> int:
    """0 with a winner, 3 when no candidate is inside the budgets, 4 when all failed; where none could be tried, the
    code of what is missing."""
    if found["winner"]:
        return 0
    tried = [c for c in found["candidates"] if c["status"] != "skipped"]
    missing = {error_from_json(c["error"]).exit_code for c in found["candidates"] if c.get("error")}
    if not tried and len(missing) == 1:
        return missing.pop()
    return StageError.exit_code if all(c["status"] == "failed" for c in tried) else BudgetError.exit_code


@dataclass
class _Work:
    """One run: builds and qualities as one graph of jobs, then the session."""

    plan: Plan
    store: Store
    workers: Workers
    target: Target
    device: devices.Device
    display: Display
    remeasure: bool
    searched: search.Resolved

    def run(self) -> RunResult:
        self.display.planned(self.plan, self.plan.recipe.name)
        started = time.monotonic()
        results = self._build()
        built_at = time.monotonic()
        done = {key: value for key, value in results.items() if isinstance(value, Done)}
        errors = {key: value for key, value in results.items() if isinstance(value, EdgeoptError)}
        builds: dict[str, Built] = {step.id: done[step.id].value for step in self.plan.steps if step.id in done}
        entries: dict[str, Entry] = {
            c.id: done[job].value for c in self.plan.candidates if (job := evaluation.quality_job_id(c.id)) in done
        }
        samples: Prepared = done["data:validation"].value
        ready = {c.id: builds[c.step] for c in self.plan.candidates if c.id in entries}
        session, session_reused = self._measure(ready, samples) if ready else (None, False)
        for name, error in (evaluation.failures(session) if session else {}).items():
            errors[name] = error
        logs = {c.id: log for c in self.plan.candidates if (log := self._log(c, errors, session))}
        quality = evaluation.qualities(entries, self.plan.baseline) if self.plan.judges else {}
        artifacts = {c.id: builds[c.step].artifact for c in self.plan.candidates if c.step in builds}
        outcomes = {
            c.id: Outcome(
                candidate=c,
                artifact=artifacts.get(c.id),
                measurement=session.outcomes[c.id].measurement if session and c.id in ready else None,
                quality=quality.get(c.id),
                error=self._error(c, errors),
                log=f"log/{logs[c.id].name}" if c.id in logs else None,
                counts=self._counts(c, done),
                placement=evaluation.placement(entries.get(c.id), artifacts.get(c.id)),
            )
            for c in self.plan.candidates
        }
        return RunResult(
            plan=self.plan,
            outcomes=outcomes,
            builds=builds,
            qualities=entries,
            samples=samples,
            session=session,
            seconds={"build": built_at - started, "measure": time.monotonic() - built_at},
            reused={key: value.reused for key, value in done.items()},
            session_reused=session_reused,
            warnings=self._warnings(session, done),
            logs=logs,
            found=[found.to_json() for found in self.searched.found],
            sources={
                IMPORT: done[IMPORT].value.entry.inputs,
                **{job: asdict(done[job].value) for job in done if job.startswith("data:")},
            },
        )

    def with_batch_curve(self, result: RunResult, name: str) -> RunResult:
        """The result, with how one candidate does at batches of several sizes."""
        outcome, samples = result.outcomes[name], result.samples
        assert samples is not None
        curve = evaluation.batch_curve(
            self.plan,
            name,
            result.builds[outcome.candidate.step],
            samples,
            self.store,
            self.workers,
            self.device,
            self.target,
            again=self.remeasure,
        )
        return replace(result, outcomes={**result.outcomes, name: replace(outcome, batch_curve=curve)})

    def _measure(self, ready: Mapping[str, Built], samples: Prepared) -> tuple[SessionResult, bool]:
        return evaluation.measure(
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

    def _error(self, candidate: Candidate, errors: Mapping[str, EdgeoptError]) -> EdgeoptError | None:
        """What went wrong last on a candidate's way: measuring, quality, or the step it needs."""
        jobs = (candidate.id, evaluation.quality_job_id(candidate.id), candidate.step)
        return next((errors[job] for job in jobs if job in errors), None)

    def _build(self) -> dict[str, Done | EdgeoptError]:
        """All jobs. Where the baseline fails, the next untouched model is the baseline, and what is done is reused."""
        untouched = [c.id for c in self.plan.candidates if c.untouched and c.id != self.plan.baseline]
        results: dict[str, Done | EdgeoptError] = {}
        while True:
            ranks = plan.ranks(self.plan, self.searched.promise) if self.plan.recipe.seconds else None
            jobs = pipeline.build_jobs(self.plan, self.store, self.workers, self.target, ranks)
            jobs += evaluation.quality_jobs(self.plan, self.store, self.workers, self.device, self.target, ranks)
            jobs = [_failing(job, e) if isinstance(e := results.get(job.id), EdgeoptError) else job for job in jobs]
            at_once = machine.usable_cores()
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

    def _log(
        self, candidate: Candidate, errors: Mapping[str, EdgeoptError], session: SessionResult | None
    ) -> Path | None:
        """What was printed by the worker that a candidate failed in: the session's, or the last one that ran."""
        error = self._error(candidate, errors)
        if error is None or isinstance(error, NoTimeLeft):
            return None
        if session and candidate.id in errors:
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
        if (source := self.plan.data["validation"]).part:
            count = done["data:validation"].value.count
            told[
                f"{Path(source.location).name} was split by chance: {count} of its samples are kept for validation"
            ] = None
        if not self.plan.judges:
            told["how right the candidates are is not known: the data is for timing alone"] = None
        elif "validation" not in self.plan.recipe.data:
            told["there is no validation data: quality is taken on the data that calibrated"] = None
        for warning in _alike(session):
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


def _alike(session: SessionResult | None) -> Iterator[str]:
    """The warnings of all measurements, those that differ in numbers alone told once."""
    kinds: dict[str, list[str]] = {}
    for outcome in session.outcomes.values() if session else ():
        for warning in outcome.measurement.warnings if outcome.measurement else ():
            kinds.setdefault(re.sub(r"\d+", "#", warning), []).append(warning)
    for same in kinds.values():
        yield same[0] if len(same) == 1 else f"{same[0]} (and so for {len(same) - 1} more candidates)"
