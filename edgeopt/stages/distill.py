"""Recovery of what pruning cost: the network is trained to do what a teacher does, the original model by default.

    - distill: {epochs: 5, temperature: 4, alpha: 0.7, augment: flip_shift}
    - distill: {teacher: bigger.onnx, labels: required}
    - distill: {epochs: 3, features: ['stages\\.[0-9]']}    what is inside made alike too
    - distill: {finetune: my_training.py:train}       a training loop of the user's own

Without labels the teacher alone is followed. The validation data is never read here. Weights that `prune` has masked
stay zero.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator

from edgeopt import modules
from edgeopt.pruning import masks
from edgeopt.stages import Location, Options, Produced, StageJob
from edgeopt.training import distillation, finetuning, loop, teacher
from edgeopt.training.distillation import ORIGINAL, DistillationOptions
from edgeopt.training.features import Features
from edgeopt.training.loop import TrainingData

VERSION = 1
USES_MODULE = True
REPEATS = True
RECOVERS = True


class DistillOptions(DistillationOptions):
    """How the pruned network is trained after a teacher."""

    always_named: ClassVar[tuple[str, ...]] = ("epochs",)

    features: tuple[str, ...] = Field(
        default=(),
        description="Regular expressions of whole layer names: what these give is made like what the original's give, "
        "by attention maps. The original then runs in torch in every step.",
        examples=[["stages\\.[0-9]"]],
    )
    beta: float = Field(default=10.0, gt=0, description="Weight of the features.")
    finetune: Location | None = Field(
        default=None,
        description="A training loop of your own: called with model, teacher and data, it returns the trained model.",
        examples=["my_training.py:train"],
    )
    always: bool = Field(default=False, description="Train also where nothing was pruned.")

    @model_validator(mode="after")
    def _features_alone(self) -> DistillOptions:
        if self.features and self.finetune:
            raise ValueError("features are of edgeopt's own training: they do not go with finetune")
        if self.features and self.teacher != ORIGINAL:
            raise ValueError("features are matched with the original's by layer names: leave teacher out")
        return self

    def told(self) -> Mapping[str, str]:
        return {**super().told(), "epochs": f"distill{self.epochs}"}


def choices() -> Mapping[str, type[Options]]:
    return {"": DistillOptions}


def tools(choice: str, options: Any) -> Sequence[str]:
    """torch's, and the backend that runs the teacher, where one is installed."""
    return (*modules.TOOLS, *distillation.tools())


def files(choice: str, options: Any) -> Sequence[str]:
    return [*([options.finetune] if options.finetune else []), *distillation.files(options)]


def sample_roles(choice: str, options: Any, precision: str) -> Sequence[str]:
    return ("train",)


def objection(choice: str, options: Any, precision: str) -> str | None:
    if precision.startswith("int"):
        return "the model is quantized already: distill comes before quantize"
    return None


def precision(choice: str, options: Any, precision: str) -> str:
    return precision


def run(job: StageJob) -> Produced:
    """Requires training samples. Ensures a model of the same signature and structure, with other weights.

    The same model, samples and options give the same bytes on the same machine, also when the worker was killed on the
    way and the step is done again.
    """
    options: DistillOptions = job.options
    job.progress(0.0, "making the torch module")
    distillation.share_the_cores(job.threads)
    student = modules.load(job)
    data, notes = distillation.training_data(job, student, "distill")
    sources: tuple[Path, ...] = ()
    masked = masks.Masks.of(student, masks.of_history(modules.history(job)))
    with tempfile.TemporaryDirectory() as scratch, masked.held(student):
        guide = distillation.load_teacher(job, Path(scratch))
        if options.finetune:
            student, details, sources = finetuning.run(
                options.finetune,
                student,
                guide,
                data,
                distillation.training_options(job, student, data),
                job.progress,
                job.scratch / "finetune" if job.scratch else None,
                masked.apply,
            )
        else:
            details = _trained(job, student, guide, data)
        runs = "torch, for its features" if options.features else guide.backend
        details["teacher"] = {"model": Path(options.teacher).name, "backend": runs}
    told = [*notes, *details.pop("notes", ())]
    history = [*modules.history(job), {"stage": "distill"}]
    if told:
        details["training_notes"] = told
    return replace(modules.save(job, student, history, job.samples["train"], details), sources=sources)


def _trained(job: StageJob, student: Any, guide: teacher.Teacher, data: TrainingData) -> dict[str, Any]:
    options: DistillOptions = job.options
    chosen = distillation.training_options(job, student, data)
    features = None
    if options.features:
        features = Features(
            modules.source(job), options.features, options.beta, rough=distillation.rough(options, job.parent.outputs)
        )
    result = loop.train(student, guide, data, chosen, job.scratch, job.progress, features)
    return {
        **({"features": list(features.names)} if features else {}),
        **distillation.details(result, chosen),
    }
