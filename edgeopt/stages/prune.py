"""Structured pruning: a network with fewer channels, dense as before, for every runtime to be faster with.

    - prune: {channels: [0 %, 30 %, 50 %]}       the fraction of channels that leave
    - prune: {speedup: 2x, importance: taylor}    so many that multiply-accumulates fall to half

"0 %" passes the model through. Multiply-accumulates are not latency: what it gains is measured later, like all else.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from edgeopt import modules, units
from edgeopt.errors import InputError, StageError
from edgeopt.pruning import channels, recalibration
from edgeopt.samples import Samples
from edgeopt.stages import Options, Produced, StageJob

VERSION = 1
USES_MODULE = True

BATCHES = 10  # of samples, that recalibration reads
LARGEST_BATCH = 128
TRACED = 2  # samples in the call that is traced


class PruneOptions(Options):
    """What to remove. Exactly one of `channels` ("30 %") and `speedup` ("2x", by multiply-accumulates) is given.

    `importance`: "l2", the L2 norm of all weights of a channel; "bn", the scale of its batch norm; "taylor", the change
    of the loss to first order; "random", the control, by `seed`. `scope`: "local" removes the same fraction
    everywhere, "global" ranks the channels of all layers together. Channels that are left are a multiple of `round_to`.
    `ignore`: regular expressions; layers whose whole name matches one, and those inside them, keep their outputs.
    `steps`: in so many steps, each ranked anew. `recalibrate`: measure the batch norms again after each.
    """

    channels: str | None = None
    speedup: str | None = None
    importance: Literal["l2", "bn", "taylor", "random"] = "l2"
    scope: Literal["local", "global"] = "local"
    round_to: int = Field(default=8, ge=1, le=256)
    ignore: tuple[str, ...] = ()
    steps: int = Field(default=1, ge=1, le=20)
    seed: int = Field(default=0, ge=0)
    recalibrate: bool = True

    @field_validator("channels", mode="before")
    @classmethod
    def _share(cls, value: Any) -> str | None:
        if value is None:
            return None
        fraction = units.parse_fraction(value)
        if not 0 <= fraction < 1:
            raise ValueError("some of the channels have to stay: give less than 100 %")
        return f"{fraction * 100:.6g} %"

    @field_validator("speedup", mode="before")
    @classmethod
    def _factor(cls, value: Any) -> str | None:
        if value is None:
            return None
        factor = _factor(str(value))
        if not 1 < factor < math.inf:
            raise ValueError("a speed-up is above 1x: write it like '2x'")
        return f"{factor:.6g}x"

    @model_validator(mode="after")
    def _one_of_both(self) -> PruneOptions:
        if (self.channels is None) == (self.speedup is None):
            raise ValueError("prune takes one of `channels: 30 %` and `speedup: 2x`")
        return self

    @property
    def fraction(self) -> float | None:
        """Of the channels that leave, None where a speed-up decides."""
        return None if self.channels is None else units.parse_fraction(self.channels)

    def told(self) -> Mapping[str, str]:
        return {"channels": f"prune{str(self.channels).removesuffix(' %')}", "speedup": f"prune{self.speedup}"}


def choices() -> Mapping[str, type[Options]]:
    return {"": PruneOptions}


def tools(choice: str, options: Any) -> Sequence[str]:
    return (*modules.TOOLS, "torch-pruning")


def sample_roles(choice: str, options: Any, precision: str) -> Sequence[str]:
    return ("calibration",)


def is_identity(choice: str, options: Any) -> bool:
    return bool(options.fraction == 0)


def objection(choice: str, options: Any, precision: str) -> str | None:
    if precision == "int8":
        return "the model is quantized already: prune comes before quantize"
    return None


def precision(choice: str, options: Any, precision: str) -> str:
    return precision


def run(job: StageJob) -> Produced:
    """Requires calibration samples. Ensures a model of the same signature, and a module that can be trained on.

    The same model, samples and options give the same bytes.
    """
    import torch

    options: PruneOptions = job.options
    if job.threads:
        torch.set_num_threads(job.threads)
    samples = Samples(job.samples["calibration"])
    if len(samples) == 0:
        raise InputError("pruning needs calibration samples to see the model run, and there are none")
    job.progress(0.0, "making the torch module")
    module = modules.load(job)
    most = modules.largest_batch(job, module, samples) or LARGEST_BATCH
    batches = _batches(job, samples, most)
    normed = recalibration.has_batch_norm(module)

    call = channels.Call(*modules.arguments(job, module, samples.batch(0, min(TRACED, most, len(samples)))))
    sizes, counts = modules.attributes(module), _counts(module, call)
    ranking = channels.Ranking(
        options.importance, options.scope, options.round_to, options.seed, _gradients(job, samples, most)
    )
    with channels.constants_traced(module):
        job.progress(0.1, "tracing what depends on what")
        prunable = channels.Prunable(module, call, options.ignore, options.round_to)
        widths = prunable.widths()
        wanted = None
        if options.recalibrate and not normed:
            job.progress(0.2, "measuring the whole network")
            wanted = recalibration.moments(module, widths, batches)
        fraction = options.fraction
        if fraction is None:
            job.progress(0.3, f"searching the fraction that gives {options.speedup}")
            fraction = prunable.fraction_for(_factor(str(options.speedup)), ranking)
        done = channels.Pruned()
        told = "not asked for"
        for step in range(options.steps):
            job.progress(0.4 + 0.4 * step / options.steps, f"pruning: step {step + 1} of {options.steps}")
            prunable.prune(fraction * (step + 1) / options.steps, ranking, done)
            if options.recalibrate:
                job.progress(0.4 + 0.4 * (step + 0.5) / options.steps, "recalibrating what the layers see")
                told = _recalibrated(module, wanted, done, batches)
    if not done.removed:
        raise StageError(
            f"nothing was pruned: {fraction * 100:.3g} % of the channels is less than round_to {options.round_to} "
            "in every layer",
            remedy="Ask for more, or for a smaller round_to.",
        )

    entry = {
        "stage": "prune",
        "attributes": modules.changed(sizes, module),
        "removed": [[name, indices] for name, indices in done.removed],
    }
    now = prunable.widths()
    details = {
        "pruner": f"torch-pruning {importlib.metadata.version('torch-pruning')}",
        "fraction": round(fraction, 6),
        "before": counts,
        "after": _counts(module, call),
        "channels": {name: [width, now[name]] for name, width in widths.items()},
        "not_pruned": prunable.explain(widths),
        "recalibrated": told,
    }
    return modules.save(job, module, [*modules.history(job), entry], job.samples["calibration"], details)


def _recalibrated(module: Any, wanted: Any, done: channels.Pruned, batches: recalibration.Batches) -> str:
    if wanted is None:
        return f"{recalibration.batch_norms(module, batches)} batch norms"
    return f"{recalibration.restore(module, wanted, done.kept, batches)} layers, as there are no batch norms"


def _counts(module: Any, call: channels.Call) -> dict[str, Any]:
    """Elements of parameters, and multiply-accumulates for one sample."""
    samples = len(next(iter((*call.args, *call.kwargs.values()))))
    return {
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "macs": channels.macs(module, call) // samples,
    }


def _batches(job: StageJob, samples: Samples, most: int) -> recalibration.Batches:
    """Some samples in batches, each as a call."""

    def batches() -> Iterator[Callable[[Any], Any]]:
        for start, stop in _ranges(len(samples), most):
            batch = samples.batch(start, stop)

            def call(module: Any, batch: Any = batch) -> Any:
                args, kwargs = modules.arguments(job, module, batch)
                return module(*args, **kwargs)

            yield call

    return batches


def _gradients(job: StageJob, samples: Samples, most: int) -> Callable[[Any], None]:
    """The loss whose change Taylor's importance estimates: cross-entropy where there are labels and the outputs are
    class scores, else half the mean square of the outputs."""

    def gradients(module: Any) -> None:
        import numpy as np
        import torch

        labels = samples.labels()
        for parameter in module.parameters():
            parameter.grad = None
        for start, stop in _ranges(len(samples), most):
            args, kwargs = modules.arguments(job, module, samples.batch(start, stop))
            outputs = list(torch.utils._pytree.tree_leaves(module(*args, **kwargs)))
            if labels is not None and len(outputs) == 1 and outputs[0].dim() == 2:
                targets = torch.from_numpy(np.array(labels[start:stop], dtype=np.int64))
                loss = torch.nn.functional.cross_entropy(outputs[0], targets)
            else:
                loss = sum((output.float() ** 2).mean() / 2 for output in outputs)
            loss.backward()

    return gradients


def _ranges(count: int, most: int) -> Iterator[tuple[int, int]]:
    """Ten batches, or as many as hold `count` samples where a batch holds at most `most`; no more than 1280 samples."""
    count = min(count, BATCHES * LARGEST_BATCH)
    size = min(max(math.ceil(count / BATCHES), 1), most)
    for start in range(0, count - count % size, size):
        yield start, start + size


def _factor(text: str) -> float:
    """A factor from "2x". Raises ValueError for anything else."""
    number = text.strip().removesuffix("x").strip()
    try:
        if text.strip().endswith("x"):
            return float(number)
    except ValueError:
        pass
    raise ValueError(f"{text!r} is not a speed-up: write it like '2x'")
