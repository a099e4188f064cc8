"""Builds a plan: every step is found in the store, or made in a worker and stored.

Steps are jobs of `schedule`, so that two run side by side on two cores. This module knows nothing of measuring time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgeopt import backends, formats, plan, stages, worker
from edgeopt.artifact import Artifact, MadeBy, TensorSpec, canonical_json, list_files, sha256_of_file
from edgeopt.clock import Clock, Work
from edgeopt.data import VERSION as DATA_VERSION
from edgeopt.errors import EdgeoptError, InputError, Interrupted, MissingDependency, NoTimeLeft, WorkerCrashed
from edgeopt.formats import canonical
from edgeopt.nearby import nearby
from edgeopt.plan import IMPORT, Plan, PlanStep
from edgeopt.recipe import DataSource, Recipe
from edgeopt.schedule import Done, Job, Observer
from edgeopt.stages import StageJob, import_model
from edgeopt.store import Entry, Made, Store, source_digests
from edgeopt.target import Target

PEAK = "peak_memory_bytes"  # of the worker that made a step
MEMORY_SHARE = 0.8  # of the machine's memory, what one worker may take before it is stopped


@dataclass(frozen=True)
class Built:
    """A step's artifact and the folder of its files."""

    artifact: Artifact
    folder: Path
    entry: Entry


@dataclass(frozen=True)
class Prepared:
    """Samples ready to be read: the digest of their content, and the folder."""

    digest: str
    folder: Path
    count: int
    has_labels: bool


@dataclass
class Workers:
    """Starts workers with the run's limits, and can stop all of them at once.

    `temporary` is the folder of their temporary files: one that is killed removes none. `clock` holds the limit on the
    run's time, None where there is none.
    """

    store: Store
    limits: worker.Limits
    observer: Observer
    temporary: Path
    clock: Clock | None = None
    _live: set[worker.Worker] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: bool = False

    def call(
        self,
        job: str,
        function: str,
        args: Mapping[str, Any],
        *,
        python: str | None = None,
        work: Work | None = None,
    ) -> dict[str, Any]:
        """Run "module:function" in a worker, its log under the store's logs, its progress to the observer.

        Where `work` is given, it is begun only while the run has time for it, and stopped when that has passed:
        NoTimeLeft.
        """
        allowed = self.clock.begin(work) if self.clock and work else None
        started = time.monotonic()
        try:
            found = self._call(job, function, args, python, allowed)
        except WorkerCrashed:
            if self.clock and work and allowed is not None and time.monotonic() - started >= allowed:
                raise self.clock.stopped(work) from None
            raise
        if self.clock and work:
            self.clock.ended(work, time.monotonic() - started)
        return found

    def _call(
        self, job: str, function: str, args: Mapping[str, Any], python: str | None, allowed: float | None
    ) -> dict[str, Any]:
        with self._lock:
            if self._stopped:
                raise Interrupted("stopped")
            process = self._start(function, args, self.log_of(job), python, allowed)
            self._live.add(process)
        try:
            with placed({worker.DISK: str(self.store.root)}), process:
                return process.result(lambda fraction, text: self.observer.progressed(job, fraction, text))
        except EdgeoptError:
            if self._stopped:
                raise Interrupted("stopped") from None
            raise
        finally:
            with self._lock:
                self._live.discard(process)

    def _start(
        self, function: str, args: Mapping[str, Any], log: Path, python: str | None, allowed: float | None
    ) -> worker.Worker:
        seconds = [most for most in (self.limits.seconds, allowed) if most is not None]
        limits = replace(self.limits, seconds=min(seconds, default=None))
        try:
            return worker.Worker(function, args, log=log, limits=limits, python=python, env=self.environment)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise  # the store tells of a full disk
            raise WorkerCrashed(f"the worker process could not be started: {error}") from error

    @property
    def environment(self) -> dict[str, str]:
        """What a worker on this machine has in its environment besides."""
        return {"TMPDIR": str(self.temporary.absolute())}

    def log_of(self, job: str) -> Path:
        name = "".join(c if c.isalnum() or c in "-.=" else "_" for c in job)
        return self.store.root / "logs" / f"{os.getpid()}-{name}.log"

    def stopping(self) -> bool:
        """Whether the run is being broken off."""
        return self._stopped

    def stop(self) -> None:
        """End every worker, and start none any more."""
        with self._lock:
            self._stopped = True
            live = list(self._live)
        for process in live:
            process.kill()


def limits_of(recipe: Recipe) -> worker.Limits:
    """What one worker may take: seconds and memory as the recipe says, else four fifths of the machine's memory."""
    memory = recipe.step_memory_bytes or int(total_memory_bytes() * MEMORY_SHARE)
    return worker.Limits(recipe.step_seconds, memory)


def build_jobs(
    made: Plan, store: Store, workers: Workers, target: Target, ranks: Mapping[str, int] | None = None
) -> list[Job]:
    """The jobs that build a plan. Their ids: "data:<role>", "import", and the ids of the plan's steps.

    `ranks` are those of `plan.ranks`, where time is short: steps of a lower rank are begun first.
    """
    jobs = [_data_job(role, source, made.recipe, store, workers) for role, source in made.data.items()]
    example = example_role(made)
    jobs.append(
        Job(
            IMPORT,
            (f"data:{example}",) if example else (),
            lambda values: _import(made, values.get(f"data:{example}"), store, workers),
            fatal=True,
        )
    )
    jobs += [_step_job(step, made, store, workers, target, ranks or {}) for step in made.steps]
    return jobs


def example_role(made: Plan) -> str | None:
    """The data that shows the model's input shapes."""
    return next((role for role in ("calibration", "validation", "train") if role in made.data), None)


def find_data(source: DataSource, recipe: Recipe, store: Store) -> Entry | None:
    """Prepared samples that are in the store already."""
    return store.find_recalled(data_inputs(source, recipe), place_of(source.location))


def find_import(recipe: Recipe, sample_digest: str | None, store: Store) -> Entry | None:
    """The imported model that is in the store already."""
    return store.find_recalled(import_inputs(recipe, sample_digest), place_of(recipe.model))


def find_step(
    step: PlanStep,
    parent: Artifact,
    digests: Mapping[str, str],
    target: Target,
    store: Store,
    source: Mapping[str, Any],
) -> Entry | None:
    """A built step that is in the store already. `source` is that of `source_of`."""
    inputs = plan.step_inputs(step, parent, {role: digests[role] for role in step.roles}, target, source)
    return store.find_recalled(inputs, place_of(code_of(step)))


def source_of(imported: Entry) -> dict[str, Any]:
    """What an imported model was made of, the samples that showed its shapes left out: code and weights."""
    return {key: imported.inputs.get(key) for key in ("choice", "model", "function", "weights", "sources")}


def data_inputs(source: DataSource, recipe: Recipe) -> dict[str, Any]:
    """What decides prepared samples. Raises InputError where the file is missing."""
    place = next((recipe.places.get(role) for role, s in recipe.data.items() if s.location == source.location), None)
    location, function = _split_function(source.location)
    return {
        "stage": "data",
        "choice": "",
        "version": DATA_VERSION,
        "location": _content(location, "data file", place),
        "function": function,
        "samples": source.samples,
        "seed": source.seed,
        "preprocess": recipe.preprocess.to_json(),
        **({"part": list(source.part)} if source.part else {}),
    }


def import_inputs(recipe: Recipe, sample_digest: str | None) -> dict[str, Any]:
    """What decides the imported model. Raises InputError where a file is missing."""
    location, function = _split_function(recipe.model)
    return {
        "stage": IMPORT,
        "choice": formats.format_of(recipe.model),
        "version": import_model.VERSION,
        "model": _content(location, "model", recipe.places.get("model")),
        "function": function,
        "weights": _content(recipe.weights, "weights file", recipe.places.get("weights")) if recipe.weights else None,
        "samples": sample_digest,
        "tools": {tool: backends.version(tool) for tool in import_model.tools(recipe.model)},
    }


def check_inputs(recipe: Recipe) -> None:
    """Everything about files that can be known without opening them: they are there, and the tools to read them."""
    import_inputs(recipe, None)
    for source in recipe.data.values():
        data_inputs(source, recipe)
    for stage, alternative in ((step.stage, a) for step in recipe.steps for a in step.alternatives):
        for location in stages.files(stage, alternative.choice, alternative.options):
            stages.digest(location)
    for tool in import_model.tools(recipe.model):
        if backends.version(tool) is None:
            raise MissingDependency(
                f"{Path(recipe.model).name} is read with {tool}, which is not installed",
                remedy=f"Install it with: pip install {tool}",
            )


def digest_of_files(folder: Path) -> str:
    """One sha256 over the names and contents of a folder's files."""
    import hashlib

    content = [(entry.path, entry.sha256) for entry in list_files(folder)]
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


@contextlib.contextmanager
def placed(places: Mapping[str | None, str | None]) -> Iterator[None]:
    """Gives an InputError the place that the user knows, instead of the word that a worker has for it.

    Workers see folders of samples, not the files that these were read from.
    """
    try:
        yield
    except InputError as error:
        error.where = places.get(error.where) or error.where
        raise


def built(entry: Entry) -> Built:
    return Built(Artifact.from_json(entry.meta["artifact"]), entry.files, entry)


def prepared(entry: Entry) -> Prepared:
    return Prepared(entry.meta["digest"], entry.files, entry.meta["count"], entry.meta["labels"])


def total_memory_bytes() -> int:
    """The machine's memory."""
    import psutil

    return int(psutil.virtual_memory().total)


def _data_job(role: str, source: DataSource, recipe: Recipe, store: Store, workers: Workers) -> Job:
    job = f"data:{role}"

    def run(_: Mapping[str, Any]) -> Done:
        inputs = data_inputs(source, recipe)

        def make(out: Path) -> Made:
            args = {
                "location": source.location,
                "samples": source.samples,
                "seed": source.seed,
                "part": source.part,
                "preprocess": recipe.preprocess.to_json(),
                "out": str(out),
            }
            with placed({"preprocess": recipe.places.get("preprocess")}):
                result = workers.call(job, "edgeopt.data:prepare", args)
            if data_inputs(source, recipe) != inputs:
                raise _changed(source.location)
            late = _remember(store, inputs, result.pop("sources"), source.location)
            return Made({**result, "digest": digest_of_files(out)}, late)

        entry, reused = store.build(inputs, make, place=place_of(source.location), stopping=workers.stopping)
        return Done(prepared(entry), reused)

    return Job(job, (), run, fatal=True)


def _import(made_plan: Plan, example: Prepared | None, store: Store, workers: Workers) -> Done:
    recipe, role = made_plan.recipe, example_role(made_plan)
    shown = made_plan.data[role].location if role else None
    inputs = import_inputs(recipe, example.digest if example else None)

    def make(out: Path) -> Made:
        args = {
            "model": recipe.model,
            "weights": recipe.weights,
            "samples": str(example.folder) if example else None,
            "out": str(out),
        }
        with placed({canonical.SAMPLES: shown}):
            result = workers.call(IMPORT, "edgeopt.stages.import_model:run", args)
        if import_inputs(recipe, inputs["samples"]) != inputs:
            raise _changed(recipe.model)
        made_by = MadeBy(IMPORT, import_model.VERSION, {"model": recipe.model.rpartition("/")[2]}, inputs["tools"])
        artifact = _artifact(result["produced"], out, None, made_by, None)
        late = _remember(store, inputs, result["sources"], recipe.model)
        return Made({"artifact": artifact.to_json(), PEAK: result[PEAK]}, late)

    entry, reused = store.build(inputs, make, place=place_of(recipe.model), stopping=workers.stopping)
    return Done(built(entry), reused)


def work_of(made: Plan, step_id: str, ranks: Mapping[str, int]) -> Work | None:
    """What a step is to the run's clock; None for those of the baseline, which is there however short the time is."""
    below = made.below(step_id)
    if any(candidate.id == made.baseline for candidate in below):
        return None
    ways = []
    for candidate in below:
        way = made.lineage(made.step(candidate.step))
        after = way[1 + next(place for place, step in enumerate(way) if step.id == step_id) :]
        ways.append((*(_kind(step) for step in after), quality_kind(candidate.backend)))
    rank = ranks.get(step_id, 0)
    return Work(_kind(made.step(step_id)), tuple(ways), sum(ranks.get(c.id, 0) <= rank for c in made.candidates))


def quality_kind(backend: str) -> str:
    """The kind of `Work` that finding the quality of an artifact is."""
    return f"quality {backend}"


def _kind(step: PlanStep) -> str:
    return f"{step.stage} {step.choice}".strip()


def _step_job(
    step: PlanStep, made: Plan, store: Store, workers: Workers, target: Target, ranks: Mapping[str, int]
) -> Job:
    work = work_of(made, step.id, ranks) if ranks else None
    way = made.lineage(step)[:-1]
    ancestors = tuple(before.id for before in way)
    latest = {before.stage: before.id for before in way}  # of a stage that comes again
    lineage = [(before.stage, before.id) for before in way if latest[before.stage] == before.id]
    needs = tuple(dict.fromkeys((IMPORT, *ancestors, *(f"data:{role}" for role in step.roles))))

    def run(values: Mapping[str, Any]) -> Done:
        parent: Built = values[step.parent]
        samples: dict[str, Prepared] = {role: values[f"data:{role}"] for role in step.roles}
        source = source_of(values[IMPORT].entry)
        inputs = plan.step_inputs(step, parent.artifact, {r: p.digest for r, p in samples.items()}, target, source)

        def make(out: Path) -> Made:
            args = {
                "stage": step.stage,
                "choice": step.choice,
                "options": step.options.model_dump(mode="json"),
                "parent": parent.artifact.to_json(),
                "parent_folder": str(parent.folder),
                "lineage": {
                    IMPORT: str(values[IMPORT].folder),
                    **{stage: str(values[step_id].folder) for stage, step_id in lineage},
                },
                "samples": {role: str(p.folder) for role, p in samples.items()},
                "target": target.to_json(),
                "out": str(out),
                "model": made.recipe.model,
                "weights": made.recipe.weights,
                "scratch": str(store.checkpoints(inputs)),
                "threads": _share_of_cores(step, made),
            }
            try:
                result = workers.call(step.id, "edgeopt.pipeline:run_stage", args, work=work)
            except NoTimeLeft as error:
                if store.checkpoints(inputs).is_dir():
                    error.remedy = "How far it came is kept: with more time, the same command goes on from there."
                raise
            made_by = MadeBy(step.stage, inputs["version"], {step.choice: inputs["options"]}, inputs["tools"])
            artifact = _artifact(result, out, parent.artifact, made_by, target)
            late = _remember(store, inputs, result["sources"], code_of(step))
            return Made({"artifact": artifact.to_json(), PEAK: result[PEAK]}, late)

        entry, reused = store.build(inputs, make, place=place_of(code_of(step)), stopping=workers.stopping)
        store.forget_checkpoints(inputs)
        return Done(built(entry), reused)

    return Job(step.id, needs, run, rank=ranks.get(step.id, 0))


def _share_of_cores(step: PlanStep, made: Plan) -> int:
    """Threads for a step that computes for long: its like may run beside it, and one core is left to all the others.

    Measured with two trainings at once on 2 cores: two threads each were 16 times slower than one each, because a
    thread spins while it waits for one that has no core.
    """
    cores = os.cpu_count() or 1
    return max(1, min(cores // sum(other.stage == step.stage for other in made.steps), cores - 1))


def run_stage(args: Mapping[str, Any], channel: worker.Channel) -> dict[str, Any]:
    """Worker's job: one stage."""
    stage = stages.find(args["stage"])
    job = StageJob(
        choice=args["choice"],
        options=stage.choices()[args["choice"]](**args["options"]),
        parent=Artifact.from_json(args["parent"]),
        parent_folder=Path(args["parent_folder"]),
        lineage={name: Path(folder) for name, folder in args["lineage"].items()},
        samples={role: Path(folder) for role, folder in args["samples"].items()},
        target=Target.from_json(args["target"]),
        out=Path(args["out"]),
        progress=channel.progress,
        model=args["model"],
        weights=args["weights"],
        scratch=Path(args["scratch"]),
        threads=args["threads"],
    )
    return {**stage.run(job).to_json(), PEAK: worker.peak_memory_bytes()}


def _artifact(
    produced: Mapping[str, Any], folder: Path, parent: Artifact | None, made_by: MadeBy, target: Target | None
) -> Artifact:
    tied = produced["for_this_target"] and target is not None
    return Artifact(
        format=produced["format"],
        main=produced["main"],
        files=list_files(folder),
        inputs=tuple(TensorSpec.from_json(spec) for spec in produced["inputs"]),
        outputs=tuple(TensorSpec.from_json(spec) for spec in produced["outputs"]),
        precision=produced["precision"],
        made_by=made_by,
        runtime=produced["runtime"],
        parent=parent.digest if parent else None,
        built_for=target.name if tied and target else None,
        details=produced["details"],
    )


def _remember(store: Store, inputs: Mapping[str, Any], sources: Sequence[str], location: str) -> dict[str, Any] | None:
    """Source files that the work was found to depend on, as late inputs of the store's entry."""
    if not sources:
        return None
    store.remember(inputs, {"sources": list(sources)}, place_of(location))
    return source_digests(sources)


def _changed(location: str) -> InputError:
    """What was made of a file must not be kept under the digest of another content."""
    return InputError(
        f"{location} or what belongs to it changed while it was read", remedy="Run the same command again."
    )


def code_of(step: PlanStep) -> str:
    """The first location that a step's options name, beside which its source files are; "" where they name none."""
    return next(iter(stages.files(step.stage, step.choice, step.options)), "")


def place_of(location: str) -> str:
    """Where source files are looked for: beside the file, on PYTHONPATH, and for a "package.module" here."""
    here = "" if Path(location).is_absolute() else str(Path.cwd())
    return os.pathsep.join([location, os.environ.get("PYTHONPATH", ""), here])


def _split_function(location: str) -> tuple[str, str | None]:
    """ "model.py:build" as ("model.py", "build"), a plain file as (file, None)."""
    file, colon, function = location.rpartition(":")
    if colon and function.isidentifier() and not Path(location).exists():
        return file, function
    return location, None


def _content(location: str, what: str, place: str | None) -> str:
    """What stands for a file in a key: its digest. A "package.module" stands for itself: its sources come later.

    `place` is where the recipe names it.
    """
    path = Path(location)
    if not path.suffix and not path.is_absolute():
        return location
    if not path.exists():
        hint = "Paths in a recipe are relative to its own folder." if place and ":" in place else None
        raise InputError(f"{location}: no such {what}", where=place, remedy=nearby(path, hint))
    if path.is_dir():
        return digest_of_files(path)
    try:
        return sha256_of_file(path)
    except OSError as error:
        raise InputError(f"{location}: {error.strerror}", where=place) from None
