"""Weights alone in 8 or 4 bits: round to nearest, symmetric, with standard ONNX DequantizeLinear before each use.

8 bits have one scale an output channel, 127 steps to the largest weight of the channel. 4 bits have one scale for each
group of weights that lie one after the other along what a matrix product sums over, 7 steps to the largest (ONNX opset
21, blocked quantization); they are for matrix products, convolutions keep 8. No calibration: nothing is known of
activations. NNCF's weight compression does the same, but on ONNX it (3.4) gives the scales of convolutions a shape that
ONNX refuses and takes the wrong axis for groups of a transposed Gemm.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from edgeopt.errors import InputError, StageError
from edgeopt.stages import Options, Produced, StageJob

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

MODEL = "model.onnx"
GroupSize = Literal[32, 64, 128, 256]  # those that every runtime has kernels for
DEFAULT_GROUP: GroupSize = 64
OPSETS = {8: 13, 4: 21}  # the first with a scale for each channel, and for each group
STEPS = {8: 127, 7: 63, 4: 7}
IR_WITH_INT4 = 10
_PRODUCTS = ("Gemm", "MatMul")


IGNORE = "Regular expressions of whole node names: these stay in float."
OVERFLOW_FIX = "Weights keep to 7 bits, for x86 without VNNI; auto decides by the target's instruction sets."


class WeightOptions(Options):
    """Weights alone in 8-bit integers, activations as they were."""

    ignore: tuple[str, ...] = Field(default=(), description=IGNORE, examples=[["fc"]])


class Int4Options(WeightOptions):
    """The weights of matrix products in 4-bit integers, those of convolutions in 8 bits."""

    group_size: GroupSize = Field(
        default=DEFAULT_GROUP, description="How many 4-bit weights of a matrix product share a scale."
    )

    def told(self) -> Mapping[str, str]:
        return {"group_size": f"g{self.group_size}"}


class DynamicOptions(Int4Options):
    """Weights in integers, and activations at run time, each by the range that it then has."""

    bits: Literal[8, 4] = Field(default=8, description="Of the weights; 4 is for matrix products that wait for memory.")
    overflow_fix: Literal["auto", "enable", "disable"] = Field(default="auto", description=OVERFLOW_FIX)

    @model_validator(mode="after")
    def _groups_are_of_4_bits(self) -> DynamicOptions:
        if self.bits == 8 and "group_size" in self.model_fields_set and self.group_size != DEFAULT_GROUP:
            raise ValueError("group_size is for weights of 4 bits: say bits: 4 too")
        return self

    def told(self) -> Mapping[str, str]:
        return {**super().told(), "bits": f"int{self.bits}"}


CHOICES: dict[str, type[WeightOptions]] = {
    "int8-weights": WeightOptions,
    "int4-weights": Int4Options,
    "dynamic": DynamicOptions,
}


def precision(choice: str, options: Any) -> str:
    """What a model of one of `CHOICES` computes in: "int8-weights", "int4-weights", "int8-dynamic", "int4-dynamic"."""
    return f"int{options.bits}-dynamic" if choice == "dynamic" else choice


def run(job: StageJob, overflow_fix: bool) -> Produced:
    """Requires a float ONNX model in one file. Ensures one of the same signature whose weights are dequantized.

    The same model and options give the same bytes. Compilers make of it what their runtime is fast on, and settle
    whether activations are quantized at run time: the ONNX model itself leaves them in float.
    """
    import onnx

    options, made = job.options, precision(job.choice, job.options)
    bits = 4 if made.startswith("int4") else 8
    model = onnx.load(str(job.parent_folder / job.parent.main))
    job.progress(None, "quantizing weights")
    quantized, kinds = quantize_weights(model, bits, getattr(options, "group_size", 0), options.ignore, overflow_fix)
    if job.choice == "dynamic":  # the file says so too: compilers make something else of it than of weights alone
        onnx.helper.set_model_props(quantized, {"activations": "dynamic"})
    onnx.checker.check_model(quantized)
    onnx.save(quantized, str(job.out / MODEL))
    return Produced(
        format="onnx",
        main=MODEL,
        inputs=job.parent.inputs,
        outputs=job.parent.outputs,
        precision=made,
        details={"quantized_weights": kinds, "overflow_fix": overflow_fix},
    )


def quantize_weights(
    model: Any, bits: int, group_size: int, ignore: Sequence[str] = (), overflow_fix: bool = False
) -> tuple[Any, dict[str, int]]:
    """A copy of a float model with quantized weights, and how many layers have weights of each kind ("int8", "int4").

    `overflow_fix` keeps 8-bit weights to 7 bits. `group_size` counts weights, for 4 bits. A product whose sum has no
    whole number of groups keeps 8 bits. `ignore` are regular expressions for whole names of nodes that stay in float.
    Raises InputError for a pattern that no node has, StageError where there is no weight to quantize.
    """
    import onnx

    made = _of_opset(model, OPSETS[bits])
    graph = made.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    patterns = [re.compile(pattern) for pattern in ignore]
    for pattern in patterns:
        if not any(pattern.fullmatch(node.name) for node in graph.node):
            raise InputError(f"quantize: no node of the model has a name that matches {pattern.pattern!r}")
    nodes, kinds, done = [], Counter[str](), dict[tuple[str, int], str]()
    for node in graph.node:
        left = any(pattern.fullmatch(node.name) for pattern in patterns)
        tensor = None if left or len(node.input) < 2 else constants.get(node.input[1])
        axes = None if tensor is None else _axes(node, list(tensor.dims))
        if tensor is not None and axes is not None and tensor.data_type == onnx.TensorProto.FLOAT:
            channels, summed = axes
            key = (node.input[1], channels)
            if key not in done:
                grouped = bits == 4 and node.op_type in _PRODUCTS and tensor.dims[summed] % group_size == 0
                step, added = _quantized(tensor, channels, summed, group_size if grouped else 0, overflow_fix)
                graph.initializer.extend(added)
                nodes.append(step)
                kinds["int4" if grouped else "int8"] += 1
                done[key] = step.output[0]
            node.input[1] = done[key]
        nodes.append(node)
    if not kinds:
        raise StageError(
            "there is no convolution and no matrix product with constant weights to quantize in this model"
        )
    rewritten = onnx.GraphProto()
    rewritten.node.extend(nodes)
    del graph.node[:]
    graph.node.extend(rewritten.node)
    used = {name for node in graph.node for name in node.input} | {entry.name for entry in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used or not _is_weight(tensor, done)]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del graph.value_info[:]
    return made, dict(kinds)


def _of_opset(model: Any, oldest: int) -> Any:
    import onnx

    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset >= oldest:
        made = onnx.ModelProto()
        made.CopyFrom(model)
    else:
        try:
            made = onnx.version_converter.convert_version(model, oldest)
        except RuntimeError as error:
            raise StageError(
                f"the model has opset {opset} and cannot be brought to {oldest}: {str(error).splitlines()[0]}",
                remedy=f"Export it again with opset {oldest} or newer.",
            ) from error
    if oldest >= OPSETS[4]:
        made.ir_version = max(made.ir_version, IR_WITH_INT4)
    return made


def _axes(node: Any, shape: Sequence[int]) -> tuple[int, int] | None:
    """The axis of a weight that its output channels lie along, and that which is summed over; None for other inputs."""
    if node.op_type == "Conv" and len(shape) > 2:
        return 0, 1
    if node.op_type == "MatMul" and len(shape) == 2:
        return 1, 0
    if node.op_type == "Gemm" and len(shape) == 2:
        transposed = any(given.name == "transB" and given.i for given in node.attribute)
        return (0, 1) if transposed else (1, 0)
    return None


def _quantized(tensor: Any, channels: int, summed: int, group_size: int, overflow_fix: bool) -> tuple[Any, list[Any]]:
    """The DequantizeLinear of a weight and its constants: integers and scales. One scale a channel, or a group."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    values = numpy_helper.to_array(tensor)
    steps = np.float32(STEPS[4 if group_size else 7 if overflow_fix else 8])
    if group_size:
        groups = values.shape[summed] // group_size
        split = values.reshape([*values.shape[:summed], groups, group_size, *values.shape[summed + 1 :]])
        scale = _scale(np.abs(split).max(axis=summed + 1), steps)
        integers, axis = np.round(values / np.repeat(scale, group_size, axis=summed)), summed
    else:
        others = tuple(axis for axis in range(values.ndim) if axis != channels)
        wide = _scale(np.abs(values).max(axis=others, keepdims=True), steps)
        integers, axis, scale = np.round(values / wide), channels, wide.reshape(-1)
    name, dtype = tensor.name, helper.tensor_dtype_to_np_dtype(TensorProto.INT4 if group_size else TensorProto.INT8)
    stored = numpy_helper.from_array(integers.astype(np.int8).astype(dtype), f"{name}_quantized")
    node = helper.make_node(
        "DequantizeLinear",
        [f"{name}_quantized", f"{name}_scale"],
        [f"{name}_dequantized"],
        name=f"DequantizeLinear_{name}",
        axis=axis,
        **({"block_size": group_size} if group_size else {}),
    )
    return node, [stored, numpy_helper.from_array(scale, f"{name}_scale")]


def _scale(largest: Array, steps: Any) -> Array:
    """float32; 1 where there is no weight but 0."""
    import numpy as np

    scale: Array = np.where(largest > 0, largest / steps, 1).astype(np.float32)
    return scale


def _is_weight(tensor: Any, done: dict[tuple[str, int], str]) -> bool:
    return any(name == tensor.name for name, _ in done)
