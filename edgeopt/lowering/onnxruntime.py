"""Q/DQ ONNX into the form that onnxruntime fuses on the CPU, exact but for the rounding of biases to int32.

Each pass is a function that changes a model in place and says what it requires and ensures. A quantizer maps a real x
to saturate(round_half_even(x / scale) + zero_point), as ONNX's QuantizeLinear does.
"""

from __future__ import annotations

import math
from typing import Any

from edgeopt.lowering.graph import Graph, attribute, drop_dead, drop_unused, drop_value_info, is_dequantizer

UNSIGNED_OFFSET = 128
LARGEST_BIAS = 1 << 30  # half of int32: room for the products that are added to it
CONTRIBUTED = "com.microsoft"  # the domain of onnxruntime's own operators
_WITH_BIAS = ("Conv", "ConvTranspose", "Gemm")


def for_onnxruntime(model: Any) -> Any:
    """A copy of a canonical Q/DQ model (int8 weights, float biases) which onnxruntime fuses on the CPU."""
    import onnx

    lowered = onnx.ModelProto()
    lowered.CopyFrom(model)
    for lower in (drop_value_info, make_activations_unsigned, fold_activations, quantize_biases, drop_unused):
        lower(lowered)
    return lowered


def weights_for_onnxruntime(model: Any, *, dynamic: bool) -> Any:
    """A copy of a model with quantized weights alone, in the operators that onnxruntime is fast on.

    4-bit products become MatMulNBits. 8-bit products become DynamicQuantizeMatMul where `dynamic` allows that
    activations are quantized at run time; 4-bit products then compute in 8 bits too. All other weights keep their
    DequantizeLinear, which a session has to fold: left to itself, onnxruntime computes 8-bit products in integers (and
    dequantizes the weights of convolutions at every run). Convolutions are never dynamic: ConvInteger runs at a tenth
    of the speed of float32.
    """
    import onnx

    lowered = onnx.ModelProto()
    lowered.CopyFrom(model)
    drop_value_info(lowered)
    graph = Graph(lowered)
    for index, node in enumerate(lowered.graph.node):
        made = _product(graph, node, dynamic)
        if made is not None:
            lowered.graph.node[index].CopyFrom(made)
    if any(node.domain == CONTRIBUTED for node in lowered.graph.node):
        lowered.opset_import.append(onnx.helper.make_opsetid(CONTRIBUTED, 1))
    drop_dead(lowered)
    drop_unused(lowered)
    return lowered


def _product(graph: Graph, node: Any, dynamic: bool) -> Any:
    """The operator of onnxruntime's own that does what a product with a dequantized weight does; None for others."""
    import numpy as np
    from onnx import helper

    if node.op_type not in ("Gemm", "MatMul") or not is_dequantizer(graph.writer(node.input[1])):
        return None
    if attribute(node, "transA", 0) or attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0:
        return None
    weight = graph.writer(node.input[1])
    integers, scale = graph.constant(weight.input[0]), graph.constant(weight.input[1])
    bias = node.input[2] if len(node.input) > 2 else ""
    if integers is None or scale is None or (bias and (graph.constant(bias) is None or graph.constant(bias).ndim != 1)):
        return None
    if not attribute(node, "transB", 0):
        integers, scale = integers.T, scale.T
    name, block = weight.input[0], attribute(weight, "block_size", 0)
    rows, summed = integers.shape
    if block:
        unsigned = (integers.astype(np.int8) + 8).astype(np.uint8).reshape(rows, summed // block, block)
        packed = graph.add_constant(f"{name}_packed", unsigned[..., 0::2] | (unsigned[..., 1::2] << 4))
        inputs = [node.input[0], packed, graph.add_constant(f"{name}_scales", np.ascontiguousarray(scale))]
        options = {"K": summed, "N": rows, "bits": 4, "block_size": block, "accuracy_level": 4 if dynamic else 0}
        inputs += ["", "", bias] if bias else []
        return helper.make_node("MatMulNBits", inputs, node.output, name=node.name, domain=CONTRIBUTED, **options)
    if not dynamic:
        return None
    turned = graph.add_constant(f"{name}_turned", np.ascontiguousarray(integers.T))
    inputs = [node.input[0], turned, weight.input[1], *(["", bias] if bias else [])]
    return helper.make_node("DynamicQuantizeMatMul", inputs, node.output, name=node.name, domain=CONTRIBUTED)


def make_activations_unsigned(model: Any) -> None:
    """Recodes int8 activations to uint8 with a zero point 128 higher: every integer stands for the same real number.

    Requires quantizers whose outputs go to DequantizeLinear alone; others, and weights, are left. Ensures that
    activations have one type, the one that onnxruntime's kernels (and VNNI) want. Exact.
    """
    import numpy as np

    graph = Graph(model)
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
    graph = Graph(model)
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

    graph = Graph(model)
    for node in [node for op_type in _WITH_BIAS for node in graph.nodes(op_type)]:
        if len(node.input) < 3 or not node.input[2] or attribute(node, "beta", 1.0) != 1.0:
            continue
        bias, given, weight = graph.constant(node.input[2]), graph.writer(node.input[0]), graph.writer(node.input[1])
        if bias is None or bias.ndim != 1 or not is_dequantizer(given) or not is_dequantizer(weight):
            continue
        input_scale, weight_scale = graph.constant(given.input[1]), graph.constant(weight.input[1])
        integers = graph.constant(weight.input[0])
        if input_scale is None or input_scale.size != 1 or weight_scale is None or integers is None:
            continue
        if weight_scale.size not in (1, bias.size):
            continue
        too_large = np.abs(_in_steps(bias, weight_scale, input_scale)) > LARGEST_BIAS
        if too_large.any():
            axis = attribute(weight, "axis", 1)
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


def _in_steps(bias: Any, weight_scale: Any, input_scale: Any) -> Any:
    """A bias in units of (input scale x weight scale), float64."""
    import numpy as np

    return bias.astype(np.float64) / (weight_scale.reshape(-1).astype(np.float32) * input_scale.reshape(()))


def _bounds(graph: Graph, node: Any) -> tuple[float, float] | None:
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


def _saturates(graph: Graph, quantizer: Any, low: float, high: float) -> bool:
    """Whether `low` and `high` quantize to the ends of the integer type."""
    import numpy as np

    scale = graph.constant(quantizer.input[1])
    zero_point = graph.constant(quantizer.input[2]) if len(quantizer.input) > 2 else np.uint8(0)
    if scale is None or zero_point is None or scale.size != 1 or zero_point.dtype.kind not in "iu":
        return False
    ends = np.iinfo(zero_point.dtype)
    at_low, at_high = (np.round(np.float32(bound) / scale.reshape(())) + int(zero_point) for bound in (low, high))
    return bool(at_low <= ends.min and at_high >= ends.max)
