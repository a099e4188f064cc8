"""Quantization-aware training: a Q/DQ ONNX model as a torch module that can be trained, and back into the same file.

    model.onnx (float)   ->  post-training quantization  ->  model.onnx (Q/DQ)
                                                              |  `trainable`: fake quantizers, float weights
    training after a teacher  <-------------------------------+
                              |  `write`: new integers for weights, new biases; graph and scales as they were
                              v
                          model.onnx (Q/DQ)

Before the first step the module computes what the quantized model does, with the float weights behind its integers
where the float model has them. Every forward pass quantizes weights and activations (Jacob et al. 2018,
https://arxiv.org/abs/1712.05877); backwards quantizers are passed straight (`edgeopt.formats.onnx_quantizers`). Weights
that are zero stay zero. Batch norms keep their statistics.

It knows nothing of stages, teachers or optimizers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.errors import StageError
from edgeopt.formats import onnx_quantizers, onnx_to_torch
from edgeopt.formats.exporting import flatten
from edgeopt.quantization import execution

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

LEAST_SQNR = 30.0  # dB; 62 on the Fashion-MNIST sample, where sums differ in the last bit alone


@dataclass(frozen=True)
class Trainable:
    """A quantized model on its way through a training.

    `module` takes and gives what the model does. `initializers` maps each tensor of it that is trained to the
    initializer of the file that it stands for, `quantizers` those that are quantized weights to their scale, zero point
    and range. `from_float` counts the weights that the float model had; the others start from their integers.
    """

    module: Any
    initializers: Mapping[str, str]
    quantizers: Mapping[str, tuple[Any, ...]]
    from_float: int


def trainable(quantized: Any, path: Path, source: Any) -> Trainable:
    """The module of the Q/DQ model `quantized`, which is stored at `path`, made from the float model `source`.

    Raises UnsupportedOperator for an operator that has no counterpart in torch, StageError where no weight is
    quantized.
    """
    module, held = onnx_to_torch.import_quantized(path)
    uses = Counter(held.values())
    alone = {name: given for name, given in held.items() if uses[given] == 1}
    parameters = {name: p for name, p in module.named_parameters() if p.is_floating_point()}
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in alone)
    initializers = {name: given for name, given in alone.items() if name in parameters}
    quantizers = _quantizers(module, initializers)
    if not quantizers:
        raise StageError("no weight of this model is quantized: there is nothing to train")
    floats = _float_weights(quantized.graph, source.graph)
    found = sum(_start_from(parameters[name], quantizers[name], floats.get(initializers[name])) for name in quantizers)
    for name in quantizers:
        hold_zeros(parameters[name])
    return Trainable(module, initializers, quantizers, found)


def write(trained: Trainable, quantized: Any) -> None:
    """Put what was trained into the Q/DQ model that it was made from, in place: the same graph with other numbers."""
    import torch
    from onnx import numpy_helper

    parameters = dict(trained.module.named_parameters())
    stored = {tensor.name: tensor for tensor in quantized.graph.initializer}
    for name, given in trained.initializers.items():
        tensor = stored[given]
        value = parameters[name].detach()
        if name in trained.quantizers:
            with torch.no_grad():
                value = onnx_quantizers.quantize(value, *trained.quantizers[name])
        kind = numpy_helper.to_array(tensor).dtype
        array = value.reshape(tuple(tensor.dims)).contiguous().numpy().astype(kind)
        tensor.CopyFrom(numpy_helper.from_array(array, given))


def check(quantized: Any, module: Any, feeds: execution.Batches) -> float | None:
    """Signal to noise of the model's float outputs against what the module computes from the same, in dB; the worst.

    None where nothing differs. Both compute in float32: where their sums differ in the last bit, a value half way
    between two steps may go to the other one. Raises StageError where it is below 30 dB.
    """
    import numpy as np
    import torch

    stored = {tensor.name for tensor in quantized.graph.initializer}
    names = [value.name for value in quantized.graph.input if value.name not in stored]
    with torch.no_grad():
        rows = [flatten(module.eval()(*(torch.tensor(feed[name]) for name in names)))[0] for feed in feeds]
    wanted = [np.concatenate([value.numpy() for value in values]) for values in zip(*rows)]
    found = execution.outputs(quantized, feeds, None)
    pairs = [(left, right) for left, right in zip(wanted, found) if left.dtype.kind == "f"]
    ratio = execution.lowest(execution.snr_db(*zip(*pairs))) if pairs else None
    if ratio is not None and ratio < LEAST_SQNR:
        raise StageError(f"the model written computes something else than the one trained: {ratio:.1f} dB")
    return ratio


def _quantizers(module: Any, names: Mapping[str, str]) -> dict[str, tuple[Any, ...]]:
    """{parameter: (scale, zero point, low, high)} of those that go into a quantizer."""
    found = {}
    for node in module.graph.nodes:
        if node.target is onnx_quantizers.fake_quantize and node.args[0].target in names:
            found[str(node.args[0].target)] = tuple(
                getattr(module, str(value.target)) if hasattr(value, "target") else value for value in node.args[1:]
            )
    return found


def _float_weights(quantized: Any, source: Any) -> dict[str, Array]:
    """{initializer of integers: the float weight that it was}, by the names of the operators that read them."""
    from onnx import numpy_helper

    stored = {tensor.name: tensor for tensor in source.initializer}
    operators = {node.name: node for node in source.node if node.name}
    integers = {node.output[0]: node.input[0] for node in quantized.node if node.op_type == "DequantizeLinear"}
    found = {}
    for node in quantized.node:
        original = operators.get(node.name)
        if original is None or original.op_type != node.op_type:
            continue
        for own, before in zip(node.input, original.input):
            if own in integers and before in stored:
                found[integers[own]] = numpy_helper.to_array(stored[before])
    return found


def _start_from(parameter: Any, quantizer: tuple[Any, ...], value: Array | None) -> bool:
    """Give a weight its float value, where that quantizes to the integers that it has. Returns whether it does."""
    import torch

    if value is None or tuple(value.shape) != tuple(parameter.shape) or value.dtype != "float32":
        return False
    start = torch.from_numpy(value.copy())
    with torch.no_grad():
        steps = onnx_quantizers.quantize(start, *quantizer) - onnx_quantizers.quantize(parameter, *quantizer)
        if bool((steps.abs() > 1).any()):  # a value half way between two may have gone to the other
            return False
        parameter.copy_(start)
    return True


def hold_zeros(parameter: Any) -> None:
    """Weights that are exactly zero were masked: they get no gradient, and decay leaves them where they are."""
    kept = parameter.detach() != 0
    if not bool(kept.all()):
        parameter.register_hook(lambda gradient: gradient * kept)
