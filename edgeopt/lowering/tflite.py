"""Q/DQ ONNX back to the float graph that it stands for, with the ranges that it was calibrated to.

LiteRT has no reader of Q/DQ: a float model is converted, and quantized again over ranges that are given by tensor. So
that nothing is calibrated twice, the canonical model is taken apart here into weights on their grid, corrected biases,
and the range of each activation; and since names do not survive the conversion, tensors of both models are recognized
by their values on the same sample.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeopt.errors import StageError
from edgeopt.lowering.graph import Graph, attribute, dequantized, drop_unused, drop_value_info, zero_point_of

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

TOLERANCE = 1e-3  # of the largest value: what two runtimes may differ by in one tensor


@dataclass(frozen=True)
class Ranges:
    """What a quantized tensor covers, by its name in the float graph.

    `activations` are (lowest, highest), the real numbers that the ends of the integer type stand for. `weights` are the
    largest magnitude of each channel, 127 times its scale, in a shape that broadcasts against the weight. `group_size`
    is how many 4-bit weights share a scale, 0 where there are none.
    """

    activations: Mapping[str, tuple[float, float]]
    weights: Mapping[str, Array]
    group_size: int = 0


def to_float(model: Any) -> tuple[Any, Ranges]:
    """A copy of a Q/DQ model without its quantizers, and their ranges.

    Weights are what their integers stand for, so that they quantize to the same integers again; biases stay as they
    were corrected. Where a tensor has several quantizers, its range covers them all. Raises StageError where integers
    are an input or output of the network, or a scale is computed.
    """
    import numpy as np
    import onnx
    from onnx import helper

    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    drop_value_info(plain)
    activations: dict[str, tuple[float, float]] = {}
    weights: dict[str, Array] = {}
    graph, group_size = Graph(plain), 0
    given = {entry.name for entry in plain.graph.input}
    for node in graph.nodes("DequantizeLinear"):
        if node.input[0] in given:
            raise StageError(f"{node.output[0]} is quantized in a way that LiteRT has no form for")
        integers, scale = graph.constant(node.input[0]), graph.constant(node.input[1])
        if scale is None:
            raise StageError(f"the scale of {node.output[0]} is computed at run time")
        if integers is None:
            continue
        name = graph.add_constant(
            f"{node.output[0]}_float", dequantized(integers, scale, zero_point_of(graph, node), node)
        )
        group_size = max(group_size, attribute(node, "block_size", 0))
        if integers.dtype == np.int8 and not attribute(node, "block_size", 0):
            shape = [1] * integers.ndim
            if scale.size > 1:
                shape[attribute(node, "axis", 1)] = scale.size
            weights[name] = np.abs(scale).reshape(shape) * np.float32(127)
        graph.replace(node, name)
    for node in graph.nodes("QuantizeLinear"):
        scale, zero_point = graph.constant(node.input[1]), zero_point_of(graph, node)
        if scale is None or scale.size != 1 or graph.is_output(node.output[0]):
            raise StageError(f"{node.output[0]} is quantized in a way that LiteRT has no form for")
        name, ends = node.input[0], np.iinfo(zero_point.dtype)
        step, zero = float(scale.reshape(())), int(zero_point.reshape(()))
        low, high = activations.get(name, (0.0, 0.0))
        activations[name] = (min(low, step * (ends.min - zero)), max(high, step * (ends.max - zero)))
        graph.bypass(node)
    for node in graph.nodes("DequantizeLinear"):
        if graph.is_output(node.output[0]):  # keeps its name
            node.CopyFrom(helper.make_node("Identity", [node.input[0]], [node.output[0]], name=node.name))
        else:
            graph.bypass(node)
    drop_unused(plain)
    return plain, Ranges(activations, weights, group_size)


def recognized(
    unknown: Mapping[str, Array], known: Mapping[str, Array]
) -> dict[str, list[tuple[str, tuple[int, ...]]]]:
    """For each unknown tensor the known ones of the same values, each with the permutation of axes that makes it so.

    Dimensions of 1 are left out of a comparison where ranks differ; the permutation is then empty.
    """
    import numpy as np

    def digest(values: Array) -> tuple[float, float]:
        wide = values.astype(np.float64, copy=False)
        return float(wide.sum()), float(np.abs(wide).sum())

    digests = {name: digest(values) for name, values in known.items()}
    found: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for name, values in unknown.items():
        total, magnitude = digest(values)
        for other, candidate in known.items():
            close = TOLERANCE * max(magnitude, digests[other][1])
            if values.size != candidate.size or abs(digests[other][0] - total) > close:
                continue
            if abs(digests[other][1] - magnitude) > close:
                continue
            axes = _permutation(candidate, values)
            if axes is not None:
                found.setdefault(name, []).append((other, axes))
    return found


def _permutation(source: Array, wanted: Array) -> tuple[int, ...] | None:
    """The order of axes in which `source` has the values of `wanted`, None where there is none."""
    import numpy as np

    room = TOLERANCE * float(np.abs(wanted).max(initial=0))
    same_rank = source.ndim == wanted.ndim
    if not same_rank:
        source, wanted = np.squeeze(source), np.squeeze(wanted)
    for axes in itertools.permutations(range(source.ndim)):
        turned = source.transpose(axes)
        if turned.shape == wanted.shape and np.allclose(turned, wanted, rtol=0, atol=room):
            return axes if same_rank else ()
    return None
