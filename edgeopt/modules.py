"""Trainable torch modules that travel between the stages that change weights: prune, distill and their like.

What such a stage writes is canonical ONNX, so that quantizing and compiling go on as from any other model, and beside
it what makes the torch module again without a pickle:

    model.onnx             the canonical model
    weights.safetensors    every parameter and buffer of the module
    module.json            {"schema": 1, "history": [{"stage": "prune", "attributes": {...}, ...}, ...]}

The module is the source's own: the factory is run again, or the imported ONNX is brought into torch. Then each entry of
the history takes out its residual blocks and sets attributes of its layers ("out_channels" of "stages.0.conv1" is 16),
and the weights are loaded, name for name, with the shapes that they have.

This module knows nothing of how a network is pruned or trained.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt import formats
from edgeopt.errors import CorruptArtifact, StageError
from edgeopt.formats import ModelRef, canonical, exporting, onnx_to_torch
from edgeopt.formats import torch as torch_format
from edgeopt.pruning import blocks
from edgeopt.samples import Samples
from edgeopt.stages import Produced, StageJob

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

WEIGHTS = "weights.safetensors"
STRUCTURE = "module.json"
TOOLS = ("torch", "onnx", "onnxscript", "safetensors")
History = list[dict[str, Any]]


def load(job: StageJob) -> Any:
    """The job's parent as a torch.nn.Module in float32 on the CPU, in evaluation mode.

    Raises StageError where the parent was made by a stage that keeps no module, InputError where the user's factory
    fails.
    """
    module = source(job)
    if (job.parent_folder / STRUCTURE).is_file():
        _restore(module, history(job), job.parent_folder / WEIGHTS)
    elif job.parent_folder.resolve() != job.lineage["import"].resolve():
        raise StageError(
            f"{job.parent.made_by.stage} keeps no torch module to go on from",
            remedy=f"In the recipe, put {job.parent.made_by.stage} after the stages that prune and train.",
        )
    return module


def source(job: StageJob) -> Any:
    """The source model as a module: what the user's factory makes, or the imported ONNX brought into torch."""
    if formats.format_of(job.model) == "torch":
        return torch_format.load(ModelRef(job.model, job.weights)).float()
    return onnx_to_torch.import_onnx(job.lineage["import"] / canonical.FILE)


def history(job: StageJob) -> History:
    """What earlier stages did to the source's module, oldest first: {"stage", "attributes", ...}; empty at first."""
    path = job.parent_folder / STRUCTURE
    return list(json.loads(path.read_text())["history"]) if path.is_file() else []


def changed(before: Mapping[str, Mapping[str, Any]], module: Any) -> dict[str, dict[str, Any]]:
    """The attributes that differ from those of `attributes`, taken earlier: {layer: {attribute: value}}."""
    return {
        layer: different
        for layer, now in attributes(module).items()
        if (different := {key: value for key, value in now.items() if before.get(layer, {}).get(key) != value})
    }


def attributes(module: Any) -> dict[str, dict[str, Any]]:
    """The sizes that each layer keeps of itself: its attributes that are whole numbers, or tuples of them."""

    def is_size(value: Any) -> bool:
        return type(value) is int or (isinstance(value, tuple) and all(type(item) is int for item in value))

    return {
        name: {key: value for key, value in vars(layer).items() if is_size(value)}
        for name, layer in module.named_modules()
    }


def arguments(job: StageJob, module: Any, batch: Mapping[str, Array]) -> tuple[list[Any], dict[str, Any]]:
    """Samples by input name (`Samples.batch`) as what the module is called with: tensors, by position and by name."""
    inputs = _bound(job, module, batch)
    return list(inputs.positional.values()), dict(inputs.keyword)


def largest_batch(job: StageJob, module: Any, samples: Samples) -> int | None:
    """How many samples the module takes at once, None where it takes any number.

    Graphs from ONNX may hold reshapes to fixed sizes, which fix the batch at 1, or mix the samples of a batch.
    """
    import torch

    first = [spec.shape[0] for spec in job.parent.inputs if spec.shape]
    if fixed := [size for size in first if isinstance(size, int)]:
        return fixed[0]
    args, kwargs = arguments(job, module, samples.batch(0, 2))
    with torch.no_grad(), redirect_stderr(io.StringIO()):  # torch.fx prints what it raises
        try:
            together = exporting.flatten(module(*args, **kwargs))[0]
        except RuntimeError:
            return 1
        alone = exporting.flatten(module(*(a[:1] for a in args), **{name: a[:1] for name, a in kwargs.items()}))[0]
    same = all(
        value.shape[1:] == one.shape[1:]
        and torch.allclose(value[:1].float(), one.float(), rtol=1e-3, atol=1e-3 * float(one.abs().max()))
        for value, one in zip(together, alone)
    )
    return None if same else 1


def save(
    job: StageJob, module: Any, history: History, samples_folder: Path, details: Mapping[str, Any] | None = None
) -> Produced:
    """Write the module to `job.out`. `history` is the parent's with what this stage adds; `details` join the export's.

    The ONNX model is compared with the module on samples. Raises StageError where it cannot be exported or differs.
    """
    import torch
    from safetensors.torch import save_file

    module = module.to("cpu").eval()
    samples = Samples(samples_folder)
    inputs = _bound(job, module, samples.batch(0, min(len(samples), canonical.SAMPLES_CHECKED)))
    job.progress(None, "exporting to ONNX")
    program, reason = exporting.trace(module, *inputs.slice(0, 2))

    def eager(start: int, stop: int) -> list[Array]:
        args, kwargs = inputs.slice(start, stop)
        with torch.no_grad():
            return [tensor.numpy() for tensor in exporting.flatten(module(*args, **kwargs))[0]]

    names = [spec.name for spec in job.parent.outputs]
    notes = [f"the batch is fixed at 1: {reason}"] if reason else []
    produced = exporting.produce(
        program, eager, inputs.names, names, inputs.arrays(), notes, job.out, lambda _, text: job.progress(None, text)
    )
    save_file({name: tensor.contiguous() for name, tensor in _tensors(module).items()}, job.out / WEIGHTS)
    (job.out / STRUCTURE).write_text(json.dumps({"schema": 1, "history": history}, indent=1, sort_keys=True) + "\n")
    return Produced(
        format=produced.format,
        main=produced.main,
        inputs=produced.inputs,
        outputs=produced.outputs,
        precision=produced.precision,
        details={**produced.details, **(details or {})},
    )


def _bound(job: StageJob, module: Any, batch: Mapping[str, Array]) -> torch_format.Inputs:
    return torch_format.bind(module, canonical.fit(batch, job.parent.inputs, job.parent.main))


def _tensors(module: Any) -> dict[str, Any]:
    """The state dict, with one name for each tensor that several names share."""
    seen: set[int] = set()
    kept = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            kept[name] = tensor.detach()
    return kept


def _restore(module: Any, history: Sequence[Mapping[str, Any]], weights: Path) -> None:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        stored = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise CorruptArtifact(f"{weights.name} cannot be read: {error}") from error
    for entry in history:
        for name in entry.get("blocks", ()):
            blocks.remove(module, name)
        layers = dict(module.named_modules())
        for name, values in entry.get("attributes", {}).items():
            for key, value in values.items():
                setattr(layers[name], key, tuple(value) if isinstance(value, list) else value)
    layers = dict(module.named_modules())
    own = _tensors(module)
    if own.keys() != stored.keys():
        different = sorted(own.keys() ^ stored.keys())
        raise CorruptArtifact(f"{weights.name} does not fit the model: {', '.join(different[:3])}")
    places: dict[int, list[tuple[Any, str]]] = {}
    for layer in layers.values():
        for key, tensor in (*layer._parameters.items(), *layer._buffers.items()):
            if tensor is not None:
                places.setdefault(id(tensor), []).append((layer, key))
    live = module.state_dict(keep_vars=True)
    for name, tensor in stored.items():
        old = live[name]
        if old.shape != tensor.shape and not history:
            raise CorruptArtifact(f"{weights.name} does not fit the model: {name} has the shape {list(tensor.shape)}")
        new = torch.nn.Parameter(tensor, old.requires_grad) if isinstance(old, torch.nn.Parameter) else tensor
        for layer, key in places[id(old)]:
            setattr(layer, key, new)
