"""What each layer of a model costs in 8 bits, for `edgeopt sensitivity`: imports, quantizes, ranks the layers.

The model and its canonical INT8 form come from the store where `convert` left them, and the ranking is kept there too.
Nothing is compiled or timed. Weights and biases are as `quantize: int8` makes them, for the target's instruction set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeopt import backends, devices, pipeline, plan, stages
from edgeopt.errors import EdgeoptError, InputError, TargetUnreachable
from edgeopt.pipeline import Built, Prepared, Workers
from edgeopt.plan import IMPORT, Plan, PlanStep
from edgeopt.quantization import execution, layers, sensitivity
from edgeopt.recipe import Alternative, Recipe, RecipeStep
from edgeopt.report.live import Display
from edgeopt.samples import Samples
from edgeopt.schedule import Done, Job, run_all
from edgeopt.stages import quantize
from edgeopt.store import Made, Store, default_root
from edgeopt.worker import Channel

SCHEMA = 1
VERSION = 1
RANKING = "sensitivity"


def examine(recipe: Recipe, *, samples: int, display: Display) -> dict[str, Any]:
    """The ranking as plain JSON, see `ranking`, of the recipe's model in INT8 on `samples` of its calibration samples.

    Of the recipe's steps only the options of its first `quantize: int8` count. Raises InputError where the model is
    quantized already or data is missing, StageError where the model cannot be quantized, and KeyboardInterrupt.
    """
    wanted = _plan(recipe)
    step = wanted.steps[0]
    try:
        target = devices.as_found(recipe.target, devices.find(recipe.target))
    except TargetUnreachable:
        target = recipe.target  # nothing is run there; without its instruction set weights keep to 7 bits
    store = Store(default_root())
    with store.in_use() as temporary, display:
        workers = Workers(store, pipeline.limits_of(recipe), display, temporary)
        shown = replace(step, id=RANKING, parent=step.id, label=RANKING)
        display.planned(replace(wanted, steps=(step, shown)), recipe.name)
        jobs = pipeline.build_jobs(wanted, store, workers, target)
        jobs = [replace(job, run=_of_float(job, recipe)) if job.id == step.id else job for job in jobs]
        jobs.append(_job(step, recipe, samples, store, workers))
        results = run_all(jobs, at_once=1, observer=display, stop=workers.stop)
    found = results[RANKING]
    if isinstance(found, EdgeoptError):
        raise found
    return {"schema": SCHEMA, "model": recipe.model, "name": recipe.name, **found.value, "reused": found.reused}


def _plan(recipe: Recipe) -> Plan:
    """Import and quantize alone."""
    step = RecipeStep("quantize", (Alternative("int8", _options(recipe)),))
    data = {role: source for role, source in recipe.data.items() if role in ("train", "calibration")}
    onnxruntime = Alternative("onnxruntime", stages.find("compile").choices()["onnxruntime"]())
    reduced = replace(recipe, steps=(step, RecipeStep("compile", (onnxruntime,))), data=data)
    pipeline.check_inputs(reduced)
    made = plan.make(reduced)
    quantized = next(step for step in made.steps if step.stage == "quantize")
    made = replace(made, steps=(quantized,), candidates=(), data={"calibration": made.data["calibration"]}, left_out={})
    plan.without_missing_tools(made)
    return made


def _options(recipe: Recipe) -> quantize.Int8Options:
    """Of the recipe's first int8, without a goal, since every layer is ranked, and without what changes the float model
    that it is held against."""
    for step in recipe.steps:
        for alternative in step.alternatives:
            if step.stage == "quantize" and alternative.choice == "int8":
                assert isinstance(alternative.options, quantize.Int8Options)
                without = {"max_drop": None, "min_snr": None, "equalize": False, "smooth": None}
                return alternative.options.model_copy(update=without)
    return quantize.Int8Options()


def _of_float(job: Job, recipe: Recipe) -> Any:
    """The work of the quantizing job, for a source that is not quantized already."""

    def run(values: Mapping[str, Any]) -> Done:
        source: Built = values[IMPORT]
        if source.artifact.precision == "int8":
            raise InputError(
                f"{Path(recipe.model).name} is quantized already: its layers are ranked against the float model",
                remedy="Give the float model that it was made of.",
            )
        return job.run(values)

    return run


def _job(step: PlanStep, recipe: Recipe, samples: int, store: Store, workers: Workers) -> Job:
    def run(values: Mapping[str, Any]) -> Done:
        original: Built = values[IMPORT]
        quantized: Built = values[step.id]
        data: Prepared = values["data:calibration"]
        inputs = {
            "stage": RANKING,
            "choice": "",
            "version": VERSION,
            "original": original.artifact.digest,
            "quantized": quantized.artifact.digest,
            "samples": data.digest,
            "count": min(samples, data.count),
            "tools": {tool: backends.version(tool) for tool in ("onnx", "onnxruntime")},
        }

        def make(_: Path) -> Made:
            args = {
                "original": str(original.folder / original.artifact.main),
                "quantized": str(quantized.folder / quantized.artifact.main),
                "samples": str(data.folder),
                "count": samples,
                "threads": recipe.target.threads,
            }
            return Made(workers.call(RANKING, "edgeopt.sensitivity:ranking", args))

        entry, reused = store.build(inputs, make, stopping=workers.stopping)
        return Done(dict(entry.meta), reused)

    return Job(RANKING, (IMPORT, step.id, "data:calibration"), run)


def ranking(args: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    """Worker's job: rank the layers of the ONNX file "quantized" against "original" on "count" of the "samples".

    Returns samples, outputs (names), layers (the costliest first, see `Layer`, with snr_db: alone in 8 bits), snr_db
    (all in 8 bits) and curve: [{float_layers, snr_db}]. Ratios are those of the worst output, None for no noise at all.
    """
    import onnx

    original, quantized = onnx.load(args["original"]), onnx.load(args["quantized"])
    model, threads = layers.QuantizedModel(quantized, original), args["threads"]
    feeds = execution.batches(original, Samples(Path(args["samples"])), args["count"])
    channel.progress(None, "running the float model")
    reference = execution.outputs(original, feeds, threads)
    ranked = sensitivity.rank(model, reference, feeds, threads, lambda done, text: channel.progress(done, text))
    curve = sensitivity.curve(model, ranked, reference, feeds, threads, channel.progress)
    return {
        "samples": feeds.count,
        "outputs": [given.name for given in original.graph.output],
        "snr_db": curve[0],
        "layers": [one.to_json() for one in ranked],
        "curve": [{"float_layers": count, "snr_db": ratio} for count, ratio in curve.items()],
    }
