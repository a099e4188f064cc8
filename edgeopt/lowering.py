"""Rewrites of Q/DQ ONNX into the form that is fast in one runtime, exact but for the rounding of biases to int32.

Each pass is a function that changes a model in place and says what it requires and ensures. A quantizer maps a real x
to saturate(round_half_even(x / scale) + zero_point), as ONNX's QuantizeLinear does. This module knows nothing of
calibration, of files or of speed.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

UNSIGNED_OFFSET = 128
LARGEST_BIAS = 1 << 30  # half of int32: room for the products that are added to it
_WITH_BIAS = ("Conv", "ConvTranspose", "Gemm")


def for_onnxruntime(model: Any) -> Any:
    """A copy of a canonical Q/DQ model (int8 weights, float biases) which onnxruntime fuses on the CPU."""
    import onnx

    lowered = onnx.ModelProto()
    lowered.CopyFrom(model)
    for lower in (drop_value_info, make_activations_unsigned, fold_activations, quantize_biases, drop_unused):
        lower(lowered)
    return lowered


def drop_value_info(model: Any) -> None:
    """Ensures that no inferred types are left over from before a rewrite: runtimes believe them."""
    del model.graph.value_info[:]


def make_activations_unsigned(model: Any) -> None:
    """Recodes int8 activations to uint8 with a zero point 128 higher: every integer stands for the same real number.

    Requires quantizers whose outputs go to DequantizeLinear alone; others, and weights, are left. Ensures that
    activations have one type, the one that onnxruntime's kernels (and VNNI) want. Exact.
    """
    import numpy as np

    graph = _Graph(model)
    for quantizer in graph.nodes("QuantizeLinear"):
        readers = graph.readers(quantizer.output[0])
        zero_point = graph.constant(quantizer.input[2]) if len(quantizer.input) > 2 else None
        if zero_point is None or zero_point.dtype != np.int8 or graph.is_output(quantizer.output[0]):
            continue
        if any(reader.op_type != "DequantizeLinear" or len(reader.input) < 3 for reader in readers):
            continue
        unsigned = (zero_point.astype(np.int16) + UNSIGNED_OFFSET).astype(np.uint8)
        name = graph.add_constant(f"{quantizer.output[0]}_zero_point", unsigned)
        for node in (quantizer, *readers):
            node.input[2] = name


def fold_activations(model: Any) -> None:
    """Removes each Relu and Clip whose effect the quantizers after it have already.

    Requires that its output goes to per-tensor quantizers alone. It is removed where both its bounds quantize to the
    ends of the integer type: quantizing is monotone, so what it would cut saturates to the same integer. Exact.
    """
    graph = _Graph(model)
    for node in [*graph.nodes("Relu"), *graph.nodes("Clip")]:
        bounds, readers = _bounds(graph, node), graph.readers(node.output[0])
        if bounds is None or not readers or graph.is_output(node.output[0]):
            continue
        if all(reader.op_type == "QuantizeLinear" and _saturates(graph, reader, *bounds) for reader in readers):
            graph.bypass(node)


def quantize_biases(model: Any) -> None:
    """Biases to int32 with scale (input scale x weight scale), in a DequantizeLinear, as integer kernels add them.

    Requires an operator whose input and weight come from DequantizeLinear, the input's per tensor, and a constant bias
    with one number a channel. Ensures that a bias moves by at most half of that scale. Where a bias would not fit into
    int32 and its channel has no weight but zero, the channel takes another scale; an operator with any other such
    channel is left as it is.
    """
    import numpy as np
    from onnx import helper

    graph = _Graph(model)
    for node in [node for op_type in _WITH_BIAS for node in graph.nodes(op_type)]:
        if len(node.input) < 3 or not node.input[2] or _attribute(node, "beta", 1.0) != 1.0:
            continue
        bias, given, weight = graph.constant(node.input[2]), graph.writer(node.input[0]), graph.writer(node.input[1])
        if bias is None or bias.ndim != 1 or not _is_dequantizer(given) or not _is_dequantizer(weight):
            continue
        input_scale, weight_scale = graph.constant(given.input[1]), graph.constant(weight.input[1])
        integers = graph.constant(weight.input[0])
        if input_scale is None or input_scale.size != 1 or weight_scale is None or integers is None:
            continue
        if weight_scale.size not in (1, bias.size):
            continue
        too_large = np.abs(_in_steps(bias, weight_scale, input_scale)) > LARGEST_BIAS
        if too_large.any():
            axis = _attribute(weight, "axis", 1)
            dead = ~integers.any(axis=tuple(i for i in range(integers.ndim) if i != axis % integers.ndim))
            if weight_scale.size == 1 or (too_large & ~dead).any() or len(graph.readers(weight.output[0])) > 1:
                continue
            weight_scale = np.where(too_large, np.abs(bias) / input_scale / LARGEST_BIAS, weight_scale)
            weight_scale = weight_scale.astype(np.float32)
            weight.input[1] = graph.add_constant(f"{weight.input[1]}_of_bias", weight_scale)
        name = node.input[2]
        scale = np.broadcast_to(weight_scale.reshape(-1) * input_scale.reshape(()), bias.shape)
        steps = np.round(_in_steps(bias, weight_scale, input_scale))
        dequantizer = helper.make_node(
            "DequantizeLinear",
            [graph.add_constant(f"{name}_int32", steps.astype(np.int32)), graph.add_constant(f"{name}_scale", scale)],
            [graph.unused(f"{name}_dequantized")],
            name=graph.unused(f"DequantizeLinear_{name}"),
            axis=0,
        )
        model.graph.node.insert(0, dequantizer)
        node.input[2] = dequantizer.output[0]


def drop_unused(model: Any) -> None:
    """Ensures that every initializer is read by a node or is an output."""
    used = {name for node in model.graph.node for name in _reads(node)} | {given.name for given in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


class _Graph:
    """Who writes and who reads each tensor of a graph, and its constants as arrays."""

    def __init__(self, model: Any) -> None:
        self._graph = model.graph
        self._outputs = {given.name for given in model.graph.output}
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self._writers: dict[str, Any] = {}
        self._readers: dict[str, list[Any]] = {}
        for node in model.graph.node:
            self._writers.update(dict.fromkeys(node.output, node))
            for name in _reads(node):
                self._readers.setdefault(name, []).append(node)
        self._names = {*self._initializers, *self._writers, *(given.name for given in model.graph.input)}
        self._names.update(node.name for node in model.graph.node)

    def nodes(self, op_type: str) -> list[Any]:
        return [node for node in self._graph.node if node.op_type == op_type]

    def readers(self, name: str) -> list[Any]:
        return self._readers.get(name, [])

    def writer(self, name: str) -> Any:
        """The node that computes a tensor, None for inputs and initializers."""
        return self._writers.get(name)

    def is_output(self, name: str) -> bool:
        return name in self._outputs

    def constant(self, name: str) -> Any:
        """A constant as an array, None where the tensor is computed, given or absent."""
        from onnx import numpy_helper

        if name in self._initializers:
            return numpy_helper.to_array(self._initializers[name])
        node = self._writers.get(name)
        if node is None or node.op_type != "Constant" or node.attribute[0].name != "value":
            return None
        return numpy_helper.to_array(node.attribute[0].t)

    def unused(self, name: str) -> str:
        """`name`, or `name` and a number where a tensor or node has it already. It is then taken."""
        candidates = itertools.chain([name], (f"{name}_{index}" for index in itertools.count(1)))
        free = next(candidate for candidate in candidates if candidate not in self._names)
        self._names.add(free)
        return free

    def add_constant(self, name: str, value: Any) -> str:
        """Adds an initializer and returns the name that it got."""
        from onnx import numpy_helper

        tensor = numpy_helper.from_array(value, self.unused(name))
        self._graph.initializer.append(tensor)
        self._initializers[tensor.name] = self._graph.initializer[-1]
        return str(tensor.name)

    def bypass(self, node: Any) -> None:
        """Connects the readers of a node's only output to its first input, and removes it."""
        source, name = node.input[0], node.output[0]
        readers = self._readers.pop(name)
        for reader in readers:
            for index, given in enumerate(reader.input):
                if given == name:
                    reader.input[index] = source
        self._readers[source] = [reader for reader in self._readers[source] if reader is not node] + readers
        self._graph.node.remove(node)


def _reads(node: Any) -> set[str]:
    """The tensors that a node reads, those of its subgraphs too."""
    names = set(filter(None, node.input))
    for attribute in node.attribute:
        for subgraph in [attribute.g, *attribute.graphs]:
            names.update(*(_reads(inner) for inner in subgraph.node))
    return names


def _attribute(node: Any, name: str, default: Any) -> Any:
    from onnx import helper

    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _is_dequantizer(node: Any) -> bool:
    return node is not None and node.op_type == "DequantizeLinear"


def _in_steps(bias: Any, weight_scale: Any, input_scale: Any) -> Any:
    """A bias in units of (input scale x weight scale), float64."""
    import numpy as np

    return bias.astype(np.float64) / (weight_scale.reshape(-1).astype(np.float32) * input_scale.reshape(()))


def _bounds(graph: _Graph, node: Any) -> tuple[float, float] | None:
    """What a Relu or Clip limits its input to, None where that is not constant."""
    limits = [-math.inf, math.inf]
    if node.op_type == "Relu":
        limits[0] = 0.0
    else:
        for index, name in enumerate(node.input[1:3]):
            if name:
                value = graph.constant(name)
                if value is None:
                    return None
                limits[index] = float(value)
    return limits[0], limits[1]


def _saturates(graph: _Graph, quantizer: Any, low: float, high: float) -> bool:
    """Whether `low` and `high` quantize to the ends of the integer type."""
    import numpy as np

    scale = graph.constant(quantizer.input[1])
    zero_point = graph.constant(quantizer.input[2]) if len(quantizer.input) > 2 else np.uint8(0)
    if scale is None or zero_point is None or scale.size != 1 or zero_point.dtype.kind not in "iu":
        return False
    ends = np.iinfo(zero_point.dtype)
    at_low, at_high = (np.round(np.float32(bound) / scale.reshape(())) + int(zero_point) for bound in (low, high))
    return bool(at_low <= ends.min and at_high >= ends.max)
