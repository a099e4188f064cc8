"""Pruning: a network with fewer channels, dense as before, for every runtime to be faster with; or with masked weights.

    - prune: {channels: [0 %, 30 %, 50 %]}        the fraction of channels that leave
    - prune: {speedup: 2x, importance: taylor}    so many that multiply-accumulates fall to half
    - prune: {latency: 0.1 ms}                    the fewest with which the fastest artifact is so fast on the target
    - prune: {size: 300 KB}                       the fewest with which the smallest artifact is so small
    - prune: {channels: auto, rungs: 3}           those fractions that pay, as measured before anything is trained
    - prune: {blocks: 2}                          so many residual blocks leave, those that cost the outputs least
    - prune: {sparsity: 80 %}                     so many weights are zero, the network keeps its shape
    - prune: {pattern: "2:4"}                     two of every four weights along the input channels are

"0 %" passes the model through. Channels and speed-up are those of the original: where the recipe prunes again after a
training, `channels: 50 %` goes on from 30 % to 50 %. Multiply-accumulates are not latency, and zeros are not either:
what it gains is measured later.
"""

from __future__ import annotations

import importlib.metadata
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from edgeopt import modules, units
from edgeopt.errors import InputError, StageError
from edgeopt.pruning import blocks, channels, masks, recalibration
from edgeopt.samples import Samples
from edgeopt.stages import Options, Produced, Search, StageJob

VERSION = 1
USES_MODULE = True
REPEATS = True

BATCHES = 10  # of samples, that recalibration reads
LARGEST_BATCH = 128
TRACED = 2  # samples in the call that is traced
LARGEST_PATTERN = 32  # weights in a group of a pattern
TARGETS = {  # with an example of each
    "channels": "30 %",
    "speedup": "2x",
    "latency": "5 ms",
    "size": "300 KB",
    "blocks": "2",
    "sparsity": "80 %",
    "pattern": "2:4",
}
AUTO = "auto"
OF_CHANNELS_ALONE = ("importance", "round_to", "steps", "seed")  # and no mask's
NOT_OF_BLOCKS = (*OF_CHANNELS_ALONE, "scope")


class PruneOptions(Options):
    """What to remove: exactly one of channels, speedup, latency, size, blocks, sparsity and pattern is given.

    Masks (sparsity, pattern) have no importance, round_to, steps and seed, and a pattern has no scope.
    """

    channels: str | None = Field(
        default=None,
        description="The share of the channels that leave; auto measures some shares, and keeps those that pay.",
        examples=[TARGETS["channels"], AUTO],
    )
    speedup: str | None = Field(
        default=None,
        description="As many channels leave as make the multiply-accumulates so many times fewer.",
        examples=[TARGETS["speedup"]],
    )
    sparsity: str | None = Field(
        default=None,
        description="The share of the weights that become zero, the smallest ones.",
        examples=[TARGETS["sparsity"]],
    )
    pattern: str | None = Field(
        default=None,
        description="So many of each so many weights along the input channels stay, the largest ones.",
        examples=[TARGETS["pattern"]],
    )
    # What is found out before anything is built is no part of a step's key.
    latency: str | None = Field(
        default=None,
        exclude=True,
        description="As few channels leave as make the fastest artifact so fast (p50), as measured on the target.",
        examples=[TARGETS["latency"]],
    )
    size: str | None = Field(
        default=None,
        exclude=True,
        description="As few channels leave as make the smallest artifact so small.",
        examples=[TARGETS["size"]],
    )
    blocks: int | None = Field(
        default=None,
        ge=0,
        description="So many residual blocks leave, those that cost the outputs least.",
        examples=[int(TARGETS["blocks"])],
    )
    rungs: int = Field(
        default=3,
        ge=1,
        le=8,
        exclude=True,
        description="With `channels: auto`: how many of the shares that pay are built.",
    )
    importance: Literal["l2", "bn", "taylor", "random"] = Field(
        default="l2",
        description="How channels are ranked: l2, the norm of all their weights; bn, the scale of their batch norm; "
        "taylor, the change of the loss to first order; random, the control.",
    )
    scope: Literal["local", "global"] = Field(
        default="local",
        description="local removes the same share in every layer, global ranks the channels of all layers together.",
    )
    round_to: int = Field(default=8, ge=1, le=256, description="Channels that are left are a multiple of it.")
    ignore: tuple[str, ...] = Field(
        default=(),
        description="Regular expressions of whole layer names: these, and the layers inside them, keep their outputs.",
        examples=[["fc", "head\\..*"]],
    )
    steps: int = Field(default=1, ge=1, le=20, description="Removed in so many steps, each ranked anew.")
    seed: int = Field(default=0, ge=0, description="Of the random importance.")
    recalibrate: bool = Field(default=True, description="Measure the batch norms again after each step.")

    @field_validator("channels", "sparsity", mode="before")
    @classmethod
    def _share(cls, value: Any, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        if value == AUTO and info.field_name == "channels":
            return AUTO
        fraction = units.parse_fraction(value)
        if not 0 <= fraction < 1:
            what = "weights" if info.field_name == "sparsity" else "channels"
            raise ValueError(f"some of the {what} have to stay: give less than 100 %")
        return f"{fraction * 100:.6g} %"

    @field_validator("pattern", mode="before")
    @classmethod
    def _n_of_m(cls, value: Any) -> str | None:
        if value is None:
            return None
        found = re.fullmatch(r"\s*(\d{1,2})\s*:\s*(\d{1,2})\s*", str(value))
        if not found or not 0 < int(found[1]) < int(found[2]) <= LARGEST_PATTERN:
            raise ValueError(f"write a pattern like '2:4': kept, of how many, at most {LARGEST_PATTERN}")
        return f"{int(found[1])}:{int(found[2])}"

    @field_validator("latency", "size", mode="before")
    @classmethod
    def _bound(cls, value: Any, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        if (units.parse_time if info.field_name == "latency" else units.parse_size)(value) == 0:
            raise ValueError("a limit is above zero")
        return "".join(str(value).split())

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
    def _one_target(self) -> PruneOptions:
        given = [name for name in TARGETS if getattr(self, name) is not None]
        if len(given) != 1:
            told = [f"`{name}: {example}`" for name, example in TARGETS.items()]
            raise ValueError(f"prune takes one of {', '.join(told[:-1])} and {told[-1]}")
        for name in OF_CHANNELS_ALONE if self.masks else ():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is for channels: it does not go with {given[0]}")
        for name in NOT_OF_BLOCKS if self.blocks is not None else ():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is for channels: it does not go with blocks")
        if self.rungs != type(self).model_fields["rungs"].default and self.channels != AUTO:
            raise ValueError("rungs is for `channels: auto`")
        if self.pattern and self.scope != "local":
            raise ValueError("scope is for sparsity and channels: a pattern is the same everywhere")
        return self

    @property
    def masks(self) -> bool:
        """Whether single weights become zero, instead of channels leaving."""
        return self.sparsity is not None or self.pattern is not None

    @property
    def fraction(self) -> float | None:
        """Of the channels that leave or the weights that become zero, None where something else decides."""
        share = self.channels or self.sparsity
        return None if share in (None, AUTO) else units.parse_fraction(share)

    def told(self) -> Mapping[str, str]:
        return {
            "channels": "prune-auto" if self.channels == AUTO else f"prune{str(self.channels).removesuffix(' %')}",
            "latency": f"prune-{self.latency}",
            "size": f"prune-{self.size}",
            "speedup": f"prune{self.speedup}",
            "blocks": f"minus{self.blocks}block{'s' if self.blocks != 1 else ''}",
            "sparsity": f"sparse{str(self.sparsity).removesuffix(' %')}",
            "pattern": f"sparse{str(self.pattern).replace(':', 'of')}",
        }


def choices() -> Mapping[str, type[Options]]:
    return {"": PruneOptions}


def tools(choice: str, options: Any) -> Sequence[str]:
    return (*modules.TOOLS, "torch-pruning")


def sample_roles(choice: str, options: Any, precision: str) -> Sequence[str]:
    return ("calibration",)


def is_identity(choice: str, options: Any) -> bool:
    return bool(options.fraction == 0 or options.blocks == 0)


def search(choice: str, options: Any) -> Search | None:
    if options.latency:
        return Search("latency p50", units.parse_time(options.latency))
    if options.size:
        return Search("size", units.parse_size(options.size))
    return Search(rungs=options.rungs) if options.channels == AUTO else None


def at(choice: str, options: Any, fraction: float) -> Options:
    return PruneOptions(**{**options.model_dump(), "channels": f"{fraction * 100:.6g} %"})


def probe(choice: str, options: Any) -> tuple[str, Options]:
    """Neither speed nor size depends on the statistics of batch norms."""
    return choice, options if choice == "none" else options.model_copy(update={"recalibrate": False})


def objection(choice: str, options: Any, precision: str) -> str | None:
    if precision.startswith("int"):
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
    way = _masked if options.masks else _shallower if options.blocks else _narrower
    entry, details = way(job, module, samples, most)
    history = [*modules.history(job), {"stage": "prune", **entry}]
    return modules.save(job, module, history, job.samples["calibration"], details)


def _narrower(job: StageJob, module: Any, samples: Samples, most: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Remove channels: (what the history is told, details). `most` samples go through the module at once."""
    options: PruneOptions = job.options
    batches = _batches(job, samples, most)
    call = channels.Call(*modules.arguments(job, module, samples.batch(0, min(TRACED, most, len(samples)))))
    sizes, counts = modules.attributes(module), _counts(module, call)
    original = modules.source(job) if modules.history(job) else module
    ranking = channels.Ranking(
        options.importance, options.scope, options.round_to, options.seed, _gradients(job, samples, most)
    )
    with channels.constants_traced(module):
        job.progress(0.1, "tracing what depends on what")
        prunable = channels.Prunable(module, call, options.ignore, options.round_to, channels.widths(original))
        widths = prunable.widths()
        wanted = _moments(job, module, widths, batches)
        fraction = options.fraction
        if fraction is None:
            job.progress(0.3, f"searching the fraction that gives {options.speedup}")
            macs = channels.macs(original, call)
            fraction = prunable.fraction_for(_factor(str(options.speedup)), ranking, macs)
        done = channels.Pruned()
        told = "not asked for"
        for step in range(options.steps):
            job.progress(0.4 + 0.4 * step / options.steps, f"pruning: step {step + 1} of {options.steps}")
            prunable.prune(fraction * (step + 1) / options.steps, ranking, done)
            if options.recalibrate:
                job.progress(0.4 + 0.4 * (step + 0.5) / options.steps, "recalibrating what the layers see")
                told = _recalibrated(module, wanted, done.kept, batches)
    if not done.removed:
        had = ", less what has left before," if original is not module else ""
        raise StageError(
            f"nothing was pruned: {fraction * 100:.3g} % of the channels{had} is less than round_to {options.round_to} "
            "in every layer",
            remedy="Ask for more, or for a smaller round_to.",
        )
    entry = {
        "attributes": modules.changed(sizes, module),
        "removed": [[name, indices] for name, indices in done.removed],
    }
    now = prunable.widths()
    return entry, {
        "pruner": f"torch-pruning {importlib.metadata.version('torch-pruning')}",
        "fraction": round(fraction, 6),
        "before": counts,
        "after": _counts(module, call),
        "channels": {name: [width, now[name]] for name, width in widths.items()},
        "not_pruned": prunable.explain(widths),
        "recalibrated": told,
    }


def _shallower(job: StageJob, module: Any, samples: Samples, most: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Remove residual blocks, one after the other: (what the history is told, details)."""
    options: PruneOptions = job.options
    batches = _batches(job, samples, most)
    call = channels.Call(*modules.arguments(job, module, samples.batch(0, min(TRACED, most, len(samples)))))
    counts = _counts(module, call)
    wanted = _moments(job, module, channels.widths(module), batches)

    def mend(trial: Any) -> str:
        return _recalibrated(trial, wanted, {}, batches) if options.recalibrate else "not asked for"

    present = blocks.find(module, call)
    left = {name: why for name in present if (why := _left_out(name, options.ignore))}
    free = [name for name in present if name not in left]
    count = int(options.blocks or 0)
    if len(free) < count:
        raise StageError(
            f"{count} residual blocks cannot leave: the model has {len(free)} that can ({', '.join(free) or 'none'})",
            remedy="A residual block adds something to what it gets, in the same shape. Ask for fewer.",
        )
    removed: list[list[Any]] = []
    for number in range(count):
        job.progress(0.2 + 0.6 * number / count, f"ranking {len(free)} residual blocks")
        weakest, costs = blocks.weakest(module, free, batches, mend)
        blocks.remove(module, weakest)
        free.remove(weakest)
        removed.append([weakest, round(costs[weakest], 6)])
    told = mend(module)
    return {"attributes": {}, "blocks": [name for name, _ in removed]}, {
        "pruner": "residual blocks, by the error at the outputs without each",
        "blocks": removed,
        "blocks_left": [*free, *left],
        "before": counts,
        "after": _counts(module, call),
        "not_pruned": left,
        "recalibrated": told,
    }


def _left_out(name: str, ignore: Sequence[str]) -> str | None:
    return next((f"left out by ignore: {pattern}" for pattern in ignore if re.fullmatch(pattern, name)), None)


def _masked(job: StageJob, module: Any, samples: Samples, most: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Set weights to zero: (what the history is told, details). The masked layers are those that a training holds."""
    options: PruneOptions = job.options
    batches = _batches(job, samples, most)
    chosen = masks.layers(module, options.ignore)
    wanted = _moments(job, module, chosen, batches)
    job.progress(0.4, "masking the smallest weights")
    left: dict[str, str] = {}
    if options.fraction is None:
        n, m = map(int, str(options.pattern).split(":"))
        left = masks.n_of_m(chosen, n, m)
    else:
        masks.unstructured(chosen, options.fraction, options.scope)
    names = [name for name in chosen if name not in left]
    found = masks.sparsity({name: chosen[name] for name in names})
    if not any(found.values()):
        raise StageError("\n".join(["nothing was masked", *(f"{name}: {why}" for name, why in left.items())]))
    told = "not asked for"
    if options.recalibrate:
        job.progress(0.6, "recalibrating what the layers see")
        told = _recalibrated(module, wanted, {}, batches)
    weights = sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, masks.kinds()))
    zeros = sum(round(share * chosen[name].weight.numel()) for name, share in found.items())
    return {"attributes": {}, "masked": names}, {
        "masked": options.pattern or options.sparsity,
        "sparsity": {name: round(share, 6) for name, share in found.items()},
        "zeros": zeros,
        "zeros_of": weights,
        "not_pruned": left,
        "recalibrated": told,
        "note": "the network keeps its shape: no runtime here is faster by zeros alone",
    }


def _moments(job: StageJob, module: Any, names: Iterable[str], batches: recalibration.Batches) -> Any:
    """What the layers give in the whole network, None where nothing will be brought back to it."""
    if not job.options.recalibrate or recalibration.has_batch_norm(module):
        return None
    job.progress(0.2, "measuring the whole network")
    return recalibration.moments(module, names, batches)


def _recalibrated(module: Any, wanted: Any, kept: Mapping[str, Sequence[int]], batches: recalibration.Batches) -> str:
    if wanted is None:
        return f"{recalibration.batch_norms(module, batches)} batch norms"
    return f"{recalibration.restore(module, wanted, kept, batches)} layers, as there are no batch norms"


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
