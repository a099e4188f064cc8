"""What stages have in common that train a network after a teacher: their options, the data, the teacher, the report.

    student, a torch module  +  the job's training samples  +  the original model  ->  `loop.train`

It knows jobs of stages, and not what a student is or how it is stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from edgeopt import backends, formats, modules
from edgeopt.artifact import TensorSpec
from edgeopt.errors import InputError
from edgeopt.formats import ModelRef, canonical
from edgeopt.samples import Samples
from edgeopt.stages import Location, Options, StageJob
from edgeopt.training import loop, teacher
from edgeopt.training.loop import TrainingData, TrainingOptions, TrainingResult
from edgeopt.training.objective import LossOptions

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

ORIGINAL = "original"
TEACHERS_BACKENDS = ("openvino", "onnxruntime")


class DistillationOptions(Options):
    """How to train after a teacher."""

    epochs: int = Field(default=5, ge=1, le=10_000, description="Times that the training samples are gone through.")
    temperature: float = Field(default=4.0, gt=0, le=100, description="How soft the teacher's classes are made.")
    alpha: float = Field(
        default=0.7, ge=0, le=1, description="Weight of the teacher; the labels, where there are any, have the rest."
    )
    loss: Literal["auto", "kl", "mse", "cosine"] = Field(
        default="auto", description="How far from the teacher: auto takes kl for class scores, mse for other outputs."
    )
    learning_rate: float = Field(default=2e-3, gt=0, description="The peak of its one cycle.")
    batch: int = Field(
        default=128, ge=1, description="Samples in a step of training; fewer where the model's batch is."
    )
    augment: Literal["none", "flip", "shift", "crop", "flip_shift"] = Field(
        default="none", description="Training images are flipped, shifted by up to a 14th or cropped at random."
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="The share of a label that is spread over all classes."
    )
    ema: float = Field(default=0.99, ge=0, lt=1, description="Decay of the averaged weights, 0 for no averaging.")
    patience: int = Field(
        default=5, ge=0, description="It stops after so many epochs without a better held-out loss; 0 for never."
    )
    samples: int | None = Field(
        default=None, ge=2, description="So many of the training samples, drawn by the seed; all where it is left out."
    )
    labels: Literal["optional", "required"] = Field(
        default="optional", description="Required refuses training data without labels."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="What is computed in while training; auto takes bf16 where the processor has it."
    )
    teacher: Location = Field(
        default=ORIGINAL, description="What is followed: the original, or a model file.", examples=["bigger.onnx"]
    )
    seed: int = Field(default=0, ge=0, description="Of the order of samples, augmentation and what is held out.")

    def told(self) -> Mapping[str, str]:
        return {"augment": self.augment.replace("_", "-")}


def tools() -> list[str]:
    """The backend that runs the teacher, where one is installed."""
    names = [backends.find(name).DISTRIBUTION for name in TEACHERS_BACKENDS]
    return [name for name in names if backends.version(name)][:1]


def files(options: DistillationOptions) -> list[str]:
    """The locations that the options name."""
    return [options.teacher] if options.teacher != ORIGINAL else []


def share_the_cores(threads: int | None) -> None:
    """Compute with so many threads, the teacher too."""
    import torch

    if threads:
        torch.set_num_threads(threads)


def training_options(job: StageJob, student: Any, data: TrainingData) -> TrainingOptions:
    options: DistillationOptions = job.options
    return TrainingOptions(
        epochs=options.epochs,
        batch=_batch(job, student, data),
        rate=options.learning_rate,
        loss=LossOptions(options.loss, options.temperature, options.alpha, options.label_smoothing),
        augment=options.augment,
        ema=options.ema,
        patience=options.patience,
        seed=options.seed,
        bf16=None if options.precision == "auto" else options.precision == "bf16",
    )


def details(result: TrainingResult, chosen: TrainingOptions) -> dict[str, Any]:
    """What an artifact tells of a training."""
    return {
        "epochs": len(result.epochs),
        "best_epoch": result.best_epoch,
        "held_out": {
            "metric": result.metric,
            "samples": result.held_out,
            "before": result.score_before,
            "after": result.score_after,
            "loss_before": result.loss_before,
            "loss_after": result.loss_after,
        },
        "history": [[e.number, e.loss, e.held_out_loss, e.score] for e in result.epochs],
        "losses": list(result.losses),
        "training_samples": result.samples,
        "training_seconds": round(result.seconds, 1),
        "images_per_s": None if result.images_per_s is None else round(result.images_per_s, 1),
        "resumed_after_epoch": result.resumed_after,
        "computed": {**result.settings, "batch": chosen.batch, "threads": loop.threads()},
        "notes": result.notes,
    }


def training_data(job: StageJob, student: Any, stage: str) -> tuple[TrainingData, list[str]]:
    """The training samples in the order of the model's inputs, and what has to be told of them."""
    import numpy as np

    options: DistillationOptions = job.options
    samples = Samples(job.samples["train"])
    labels = samples.labels()
    if labels is None and options.labels == "required":
        raise InputError(
            f"{stage}: the recipe says `labels: required`, and the training data has none",
            remedy="Add an array `labels` of class indices to the training data, or leave that option out.",
        )
    raw = {name: samples.raw(name) for name in samples.inputs}
    count = len(samples)
    chosen = np.arange(count)
    if options.samples is not None and options.samples < count:
        chosen = np.sort(np.random.default_rng(options.seed).permutation(count)[: options.samples])

    def bound(indices: Array) -> tuple[list[Any], dict[str, Any]]:
        batch = {name: samples.preprocess.apply(values[chosen[indices]]) for name, values in raw.items()}
        return modules.arguments(job, student, batch)

    def inputs(indices: Array) -> list[Array]:
        args, kwargs = bound(indices)
        return [value.numpy() for value in (*args, *kwargs.values())]

    keywords = tuple(bound(np.arange(1))[1])
    notes = []
    if labels is None and options.alpha < 1:
        notes.append("the training data has no labels: the teacher alone is followed")
    return TrainingData(len(chosen), inputs, None if labels is None else labels[chosen], keywords), notes


def _batch(job: StageJob, student: Any, data: TrainingData) -> int:
    """Samples in a step: as the recipe says, or as many as the model takes where that is fixed.

    A module imported from ONNX may reshape to one sample though the file's batch is free.
    """
    fixed = job.parent.inputs[0].shape[0] if job.parent.inputs else None
    if isinstance(fixed, int):
        return fixed
    return int(job.options.batch) if loop.takes_batches(student, data) else 1


def load_teacher(job: StageJob, scratch: Path) -> teacher.Teacher:
    """The teacher, checked to take the model's inputs. Its outputs are compared with the student's by the training.

    One that is not the original is imported into the folder `scratch`.
    """
    options: DistillationOptions = job.options
    path, outputs = job.lineage["import"] / canonical.FILE, job.parent.outputs
    inputs = job.parent.inputs
    if options.teacher != ORIGINAL:
        job.progress(None, "importing the teacher")
        imported = formats.importer(options.teacher).to_onnx(
            ModelRef(options.teacher), job.samples["train"], scratch, lambda _, text: job.progress(None, text)
        )
        path, inputs, outputs = scratch / imported.produced.main, imported.produced.inputs, imported.produced.outputs
        _same(job.parent.outputs, outputs, "outputs")
        _same(job.parent.inputs, inputs, "inputs")
    return teacher.load(path, inputs, outputs, loop.threads(), rough=rough(options, outputs))


def rough(options: DistillationOptions, outputs: Sequence[TensorSpec]) -> bool:
    """Whether only the ranking of classes matters, so that a teacher may compute in bfloat16."""
    return options.loss == "kl" or (options.loss == "auto" and all(len(spec.shape) == 2 for spec in outputs))


def _same(student: Sequence[TensorSpec], found: Sequence[TensorSpec], what: str) -> None:
    if [spec.shape[1:] for spec in student] != [spec.shape[1:] for spec in found]:
        sides = [", ".join(map(str, specs)) for specs in (student, found)]
        raise InputError(
            f"the teacher has other {what} than the model\nmodel: {sides[0]}\nteacher: {sides[1]}",
            remedy=f"Take a teacher with the same {what}, in the same order.",
        )
