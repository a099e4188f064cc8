"""Q/DQ ONNX into the form that TensorRT's parser takes as a strongly typed network.

TensorRT wants explicit quantization to be symmetric and signed: INT8 with every zero point 0, per tensor for
activations, per channel for weights, and biases in float
(https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html). An activation whose
canonical range is not symmetric takes a coarser scale here: some of the signal is lost, unlike in the other lowerings.
This module knows nothing of engines.
"""

from __future__ import annotations

from typing import Any

from edgeopt.errors import StageError
from edgeopt.lowering.graph import (
    Graph,
    attribute,
    dequantized,
    drop_unused,
    drop_value_info,
    is_dequantizer,
    zero_point_of,
)

LARGEST = 127  # of int8 both ways: -128 stands for nothing more
_MOVING = ("Flatten", "Gather", "Identity", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")


def for_tensorrt(model: Any) -> Any:
    """A copy of a canonical Q/DQ model in which every quantizer is symmetric int8 and every bias is float.

    Raises StageError where integers go to an operator that computes with them (QLinearConv and its like).
    """
    import onnx

    lowered = onnx.ModelProto()
    lowered.CopyFrom(model)
    for lower in (drop_value_info, float_biases, make_weights_symmetric, make_activations_symmetric, drop_unused):
        lower(lowered)
    return lowered


def float_biases(model: Any) -> None:
    """Ensures that no int32 constant is dequantized: it becomes the float constant that it stands for. Exact."""
    import numpy as np

    graph = Graph(model)
    for node in graph.nodes("DequantizeLinear"):
        integers, scale = graph.constant(node.input[0]), graph.constant(node.input[1])
        if integers is None or integers.dtype != np.int32 or scale is None:
            continue
        name = graph.add_constant(
            f"{node.output[0]}_float", dequantized(integers, scale, zero_point_of(graph, node), node)
        )
        graph.replace(node, name)


def make_weights_symmetric(model: Any) -> None:
    """Recodes constant 8-bit weights with zero points other than 0: rounded anew, over the same channels.

    Requires constant integers. Ensures int8 and zero points of 0. Weights that are so already are left as they are.
    """
    import numpy as np

    graph = Graph(model)
    for node in graph.nodes("DequantizeLinear"):
        integers, scale, zero_point = graph.constant(node.input[0]), graph.constant(node.input[1]), None
        if integers is None or scale is None or integers.dtype not in (np.int8, np.uint8):
            continue
        zero_point = zero_point_of(graph, node)
        if integers.dtype == np.int8 and not zero_point.any():
            continue
        values = dequantized(integers, scale, zero_point, node)
        axes = tuple(i for i in range(values.ndim) if scale.ndim == 0 or i != attribute(node, "axis", 1) % values.ndim)
        largest = np.abs(values).max(axis=axes, keepdims=True)
        wide = np.where(largest > 0, largest / np.float32(LARGEST), np.float32(1)).astype(np.float32)
        name = node.output[0]
        node.input[0] = graph.add_constant(f"{name}_int8", np.round(values / wide).astype(np.int8))
        node.input[1] = graph.add_constant(f"{name}_scale", wide.reshape(scale.shape))
        if len(node.input) > 2:
            node.input[2] = graph.add_constant(f"{name}_zero_point", np.zeros(scale.shape, np.int8))


def make_activations_symmetric(model: Any) -> None:
    """Recodes activations to int8 with zero point 0 over the larger side of their range: [-max, max], scale max / 127.

    An unsigned activation with zero point 0 so gets its scale x 255 / 127. Those that are int8 with zero point 0 are
    left as they are, and so are integers that the network itself takes or gives. Requires that integers are moved
    (reshaped, sliced, pooled by their maximum) at most before they are dequantized.
    """
    import numpy as np

    graph = Graph(model)
    outside = {given.name for given in (*model.graph.input, *model.graph.output)}
    for quantizer in graph.nodes("QuantizeLinear"):
        integers, dequantizers = _followed(graph, quantizer)
        if integers & outside:
            continue
        zero_point, scale = zero_point_of(graph, quantizer), graph.constant(quantizer.input[1])
        if scale is None:
            raise StageError(f"the scale of {quantizer.output[0]} is computed at run time, which TensorRT refuses")
        if zero_point.dtype == np.int8 and not zero_point.any():
            continue
        ends = np.iinfo(zero_point.dtype)
        steps = np.maximum(zero_point.astype(np.int64) - ends.min, ends.max - zero_point.astype(np.int64))
        name = quantizer.output[0]
        wide = graph.add_constant(f"{name}_symmetric_scale", (scale * steps / LARGEST).astype(np.float32))
        zero = graph.add_constant(f"{name}_symmetric_zero_point", np.zeros(zero_point.shape, np.int8))
        for node in (quantizer, *dequantizers):
            node.input[:] = [node.input[0], wide, zero]


def _followed(graph: Graph, quantizer: Any) -> tuple[set[str], list[Any]]:
    """The integer tensors that come of a quantizer's, and the nodes that turn them into floats again."""
    tensors, dequantizers, open_ones = set[str](), [], [quantizer.output[0]]
    while open_ones:
        name = open_ones.pop()
        tensors.add(name)
        for reader in graph.readers(name):
            if is_dequantizer(reader):
                dequantizers.append(reader)
            elif reader.op_type in _MOVING:
                open_ones.append(reader.output[0])
            else:
                raise StageError(
                    f"{reader.op_type} {reader.name} computes with integers, which TensorRT refuses in ONNX"
                )
    return tensors, dequantizers
