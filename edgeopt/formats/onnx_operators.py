"""What each ONNX operator becomes in torch: `OPERATORS` maps its name to a function of the node.

A function returns what computes the node's output, or a list for several. Shapes are static and constants are folded
before it is called. The semantics are those of the ONNX operator specification, opset 11 and newer:
https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgeopt.formats.onnx_layers import (
    average_pool,
    batch_norm,
    convolution,
    einsum,
    gemm,
    global_pool,
    group_norm,
    instance_norm,
    layer_norm,
    local_response_norm,
    matmul,
    max_pool,
    padded,
    transposed_convolution,
)
from edgeopt.formats.onnx_node import as_tensor

if TYPE_CHECKING:
    from edgeopt.formats.onnx_node import Node

    Translate = Callable[[Node], Any]


# --- one input or two, element by element


def elementwise(function: str, **options: Any) -> Translate:
    return lambda n: n.call(function, n.tensor(0), **options)


def binary(function: str) -> Translate:
    """torch broadcasts as ONNX does. Functions that need a tensor first get one."""

    def translate(n: Node) -> Any:
        first = n.tensor(0) if n.is_constant(0) else n.operand(0)
        return n.call(function, first, n.operand(1))

    return translate


def many(function: str) -> Translate:
    return lambda n: functools.reduce(lambda a, b: n.call(function, a, b), [n.tensor(i) for i in range(len(n))])


def mean_of_all(n: Node) -> Any:
    return n.call("div", many("add")(n), len(n))


def divide(n: Node) -> Any:
    rounding = {"rounding_mode": "trunc"} if n.is_integer(0) else {}
    return n.call("div", n.tensor(0), n.operand(1), **rounding)


def modulo(n: Node) -> Any:
    return n.call("fmod" if n.attribute("fmod", 0) else "remainder", n.tensor(0), n.operand(1))


def where(n: Node) -> Any:
    return n.call("where", n.tensor(0), n.tensor(1), n.tensor(2))


def cast(n: Node) -> Any:
    return n.method("to", n.tensor(0), _torch_dtype(n.attribute("to")))


def _torch_dtype(number: int) -> Any:
    import onnx
    import torch

    return getattr(torch, onnx.helper.tensor_dtype_to_np_dtype(number).name)


# --- activations


def activation(layer: str, **defaults: Any) -> Translate:
    """A layer without weights. `defaults` maps its options to (ONNX attribute, ONNX default)."""

    def translate(n: Node) -> Any:
        options = {option: n.attribute(name, value) for option, (name, value) in defaults.items()}
        return n.layer(layer, n.tensor(0), **options)

    return translate


def clip(n: Node) -> Any:
    low, high = n.constant(1, "min"), n.constant(2, "max")
    low, high = (value[0] if isinstance(value, list) else value for value in (low, high))
    if (low, high) == (0, 6):
        return n.layer("ReLU6", n.tensor(0))
    if low == 0 and high is None:
        return n.layer("ReLU", n.tensor(0))
    return n.call("clamp", n.tensor(0), low, high)


def hard_sigmoid(n: Node) -> Any:
    """relu6(6 (a x + b)) / 6: the form that has an integer kernel in LiteRT."""
    a, b = n.attribute("alpha", 0.2), n.attribute("beta", 0.5)
    return _hard_sigmoid(n, n.tensor(0), a, b)


def _hard_sigmoid(n: Node, x: Any, a: float, b: float) -> Any:
    return n.call("mul", n.layer("ReLU6", n.call("add", n.call("mul", x, 6 * a), 6 * b)), 1 / 6)


def hard_swish(n: Node) -> Any:
    x = n.tensor(0)
    return n.call("mul", x, n.call("mul", n.layer("ReLU6", n.call("add", x, 3.0)), 1 / 6))


def gelu(n: Node) -> Any:
    return n.layer("GELU", n.tensor(0), approximate=n.attribute("approximate", "none"))


def prelu(n: Node) -> Any:
    slope = n.value(1)
    if n.is_constant(1) and slope.size in (1, n.shape(0)[1]) and slope.size == max(slope.shape, default=1):
        return n.layer("PReLU", n.tensor(0), slope.size, tensors={"weight": slope.reshape(-1)})
    x = n.tensor(0)
    return n.call("where", n.call("lt", x, 0), n.call("mul", x, n.tensor(1)), x)


def selu(n: Node) -> Any:
    """gamma (x where x > 0, else alpha (e^x - 1))."""
    alpha, gamma = n.attribute("alpha", 1.6732632423543772), n.attribute("gamma", 1.0507009873554805)
    return n.call("mul", n.layer("ELU", n.tensor(0), alpha=alpha), gamma)


def swish(n: Node) -> Any:
    x, alpha = n.tensor(0), n.attribute("alpha", 1.0)
    return n.call("mul", x, n.layer("Sigmoid", x if alpha == 1 else n.call("mul", x, alpha)))


def thresholded_relu(n: Node) -> Any:
    return n.call("threshold", n.tensor(0), n.attribute("alpha", 1.0), 0.0)


def shrink(n: Node) -> Any:
    """x + bias below -lambd, x - bias above lambd, 0 between."""
    x, bias, edge = n.tensor(0), n.attribute("bias", 0.0), n.attribute("lambd", 0.5)
    above = n.call("where", n.call("gt", x, edge), n.call("sub", x, bias), n.call("mul", x, 0.0))
    return n.call("where", n.call("lt", x, -edge), n.call("add", x, bias), above)


def softmax(layer: str) -> Translate:
    """Before opset 13 it works on all axes from `axis` on together."""

    def translate(n: Node) -> Any:
        rank = len(n.shape(0))
        axis = n.attribute("axis", -1 if n.opset >= 13 else 1) % rank
        if n.opset >= 13 or axis == rank - 1:
            return n.layer(layer, n.tensor(0), dim=axis)
        flat = n.call("flatten", n.tensor(0), axis)
        return n.call("reshape", n.layer(layer, flat, dim=-1), n.shape(0))

    return translate


# --- shapes


def reshape(n: Node) -> Any:
    given, wanted = n.shape(0), n.output_shape()
    if len(wanted) == 2 and len(given) > 1 and wanted[0] == given[0]:
        return n.layer("Flatten", n.tensor(0))
    shape = n.constant(1) if n.is_constant(1) else list(wanted)
    if not n.attribute("allowzero", 0):
        shape = [given[axis] if size == 0 else size for axis, size in enumerate(shape)]
    if -1 in shape[1:] and given[:1] == wanted[:1]:
        return n.call("reshape", n.tensor(0), [n.method("size", n.tensor(0), 0), *shape[1:]])
    return n.call("reshape", n.tensor(0), shape if -1 in shape else _for_any_batch(shape))


def flatten(n: Node) -> Any:
    return n.layer("Flatten", n.tensor(0)) if n.attribute("axis", 1) == 1 else to_output_shape(n)


def to_output_shape(n: Node) -> Any:
    return n.call("reshape", n.tensor(0), _for_any_batch(n.output_shape()))


def _for_any_batch(sizes: Sequence[int]) -> list[int]:
    """The shape for one sample, as one for any number of them: a first dimension of 1 is what the others leave.

    For one sample that is exact. Whether the first dimension is the batch is not known here.
    """
    return [-1, *sizes[1:]] if len(sizes) > 1 and sizes[0] == 1 and 0 not in sizes else list(sizes)


def transpose(n: Node) -> Any:
    return n.call("permute", n.tensor(0), n.attribute("perm", list(reversed(range(len(n.shape(0)))))))


def concat(n: Node) -> Any:
    """A constant of one sample (a class token) is there for every sample."""
    axis, parts = n.attribute("axis"), [n.tensor(i) for i in range(len(n))]
    constant = [i for i in range(len(n)) if n.is_constant(i)]
    computed = [part for i, part in enumerate(parts) if i not in constant]
    for i in constant if computed else ():
        rank = len(n.shape(i))
        if axis % rank and n.shape(i)[0] == 1:
            count = n.method("size", computed[0], 0)
            parts[i] = n.method("expand", parts[i], count, *[-1] * (rank - 1))
    return n.call("cat", parts, axis)


def split(n: Node) -> Any:
    axis, count = n.attribute("axis", 0), len(n.proto.output)
    size = n.shape(0)[axis]
    equal = math.ceil(size / count)  # the last one is smaller where it does not divide
    sizes = n.constant(1, "split") or [min(equal, size - start) for start in range(0, size, equal)]
    parts = n.call("split", n.tensor(0), sizes, axis)
    return [n.item(parts, i) for i in range(len(sizes))]


def slices(n: Node) -> Any:
    shape, starts, ends = n.shape(0), n.constant(1), n.constant(2)
    axes = n.constant(3) or list(range(len(starts)))
    steps = n.constant(4) or [1] * len(starts)
    x, key = n.tensor(0), [slice(None)] * len(shape)
    for axis, start, end, step in zip(axes, starts, ends, steps):
        axis, size = axis % len(shape), shape[axis]
        if step < 0:  # torch has no negative step: turn the axis round and count from its other end
            x, step = n.call("flip", x, [axis]), -step
            start, end = (size - 1 - min(max(edge + size if edge < 0 else edge, -1), size - 1) for edge in (start, end))
        key[axis] = slice(start, min(end, size), step)
    return n.item(x, tuple(key))


def gather(n: Node) -> Any:
    shape, axis = n.shape(0), n.attribute("axis", 0) % len(n.shape(0))
    size = shape[axis]
    if n.is_constant(1):
        indices = n.value(1) % size
        if indices.ndim == 0:
            return n.call("select", n.tensor(0), axis, int(indices))
        picked = n.call("index_select", n.tensor(0), axis, n.buffer(indices.reshape(-1)))
        return picked if indices.ndim == 1 else n.call("reshape", picked, n.output_shape())
    if n.is_constant(0) and axis == 0 and len(shape) == 2:
        return n.layer("Embedding", n.tensor(1), *shape, tensors={"weight": n.value(0)})
    flat = n.call("remainder", n.call("reshape", n.tensor(1), [-1]), size)
    return n.call("reshape", n.call("index_select", n.tensor(0), axis, flat), n.output_shape())


def gather_elements(n: Node) -> Any:
    axis = n.attribute("axis", 0)
    return n.call("gather", n.tensor(0), axis, n.call("remainder", n.tensor(1), n.shape(0)[axis]))


def gather_nd(n: Node) -> Any:
    """The last axis of the indices counts along the first axes of the data, after `batch_dims` that are passed by."""
    shape, indexed, skipped = n.shape(0), n.shape(1), n.attribute("batch_dims", 0)
    if skipped:
        raise n.unsupported("batch_dims")
    return n.item(n.tensor(0), _positions(n, shape[: indexed[-1]]))


def _positions(n: Node, sizes: Sequence[int]) -> tuple[Any, ...]:
    """An index for each axis, from the last axis of the second input; negative ones count from the end."""
    if n.is_constant(1):
        return tuple(
            as_tensor(n.value(1)[..., axis] % size, f"constant_{n.position}_axis_{axis}", n.root, n.graph)
            for axis, size in enumerate(sizes)
        )
    indices = n.tensor(1)
    return tuple(n.call("remainder", n.call("select", indices, -1, axis), size) for axis, size in enumerate(sizes))


def scatter_nd(n: Node) -> Any:
    adds = {"none": False, "add": True}.get(n.attribute("reduction", "none"))
    if adds is None:
        raise n.unsupported(f"reduction {n.attribute('reduction')}")
    where = _positions(n, n.shape(0)[: n.shape(1)[-1]])
    return n.call("index_put", n.tensor(0), where, n.tensor(2), accumulate=adds)


def scatter_elements(n: Node) -> Any:
    kind, axis = n.attribute("reduction", "none"), n.attribute("axis", 0) % len(n.shape(0))
    indices = n.call("remainder", n.tensor(1), n.shape(0)[axis])
    if kind == "none":
        return n.call("scatter", n.tensor(0), axis, indices, n.tensor(2))
    names = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
    return n.call("scatter_reduce", n.tensor(0), axis, indices, n.tensor(2), names[kind])


def one_hot(n: Node) -> Any:
    """Compared with a row of numbers: what is out of range is nowhere on, as ONNX wants it."""
    import numpy as np

    depth, (off, on) = n.constant(1), n.constant(2)
    depth = int(depth[0] if isinstance(depth, list) else depth)
    rank = len(n.shape(0)) + 1
    axis = n.attribute("axis", -1) % rank
    wide = [depth if position == axis else 1 for position in range(rank)]
    row = n.buffer(np.arange(depth).reshape(wide))
    indices = n.call("unsqueeze", n.tensor(0), axis)
    indices = n.call("where", n.call("lt", indices, 0), n.call("add", indices, depth), indices)
    hot = n.call("eq", indices, row)
    kind = _torch_dtype(n.dtypes.get(n.proto.output[0], 1))
    return n.method("to", n.call("where", hot, on, off), kind)


def pad(n: Node) -> Any:
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}.get(n.attribute("mode", "constant"))
    if mode is None:
        raise n.unsupported(f"mode {n.attribute('mode')}")
    rank, given, axes = len(n.shape(0)), n.constant(1, "pads"), n.constant(3)
    pads = [0] * 2 * rank
    chosen = [axis % rank for axis in axes] if axes is not None else range(rank)
    for position, axis in enumerate(chosen):
        pads[axis], pads[rank + axis] = given[position], given[len(given) // 2 + position]
    value = n.constant(2, "value", 0.0)
    return padded(n, n.tensor(0), pads, (value[0] if isinstance(value, list) else value) or 0, mode)


def expand(n: Node) -> Any:
    given, wanted = n.shape(0), list(n.output_shape())
    if len(given) == len(wanted) > 1 and given[0] == wanted[0] == 1:
        wanted[0] = -1  # as it is, for any number of samples
    return n.call("broadcast_to", n.tensor(0), wanted)


def tile(n: Node) -> Any:
    return n.call("tile", n.tensor(0), n.constant(1))


def shape(n: Node) -> Any:
    import numpy as np

    return np.array(n.shape(0)[n.attribute("start", 0) : n.attribute("end")], np.int64)


def depth_to_space(n: Node) -> Any:
    block = n.attribute("blocksize")
    if n.attribute("mode", "DCR") == "CRD":
        return n.layer("PixelShuffle", n.tensor(0), block)
    batch, channels, height, width = n.shape(0)
    parts = n.call("reshape", n.tensor(0), [batch, block, block, channels // block**2, height, width])
    return n.call("reshape", n.call("permute", parts, [0, 3, 4, 1, 5, 2]), n.output_shape())


def space_to_depth(n: Node) -> Any:
    block = n.attribute("blocksize")
    batch, channels, height, width = n.shape(0)
    parts = n.call("reshape", n.tensor(0), [batch, channels, height // block, block, width // block, block])
    return n.call("reshape", n.call("permute", parts, [0, 3, 5, 1, 2, 4]), n.output_shape())


def resize(n: Node) -> Any:
    """The combinations of mode, coordinates and rounding that torch's interpolation computes too."""
    given, wanted = n.shape(0), n.output_shape()
    mode, rank = n.attribute("mode", "nearest"), len(given)
    # Upsample, and Resize of opset 10, count from the corner
    coordinates = n.attribute("coordinate_transformation_mode", "half_pixel" if n.opset > 10 else "asymmetric")
    scales = n.constant(1 if n.proto.op_type == "Upsample" or n.opset < 11 else 2, "scales")
    if given[:2] != wanted[:2] or rank < 3 or n.attribute("antialias", 0) or n.attribute("axes"):
        raise n.unsupported("it resizes more than the spatial axes, or with antialias or axes")
    whole = all(out % size == 0 for size, out in zip(given[2:], wanted[2:]))
    rounding = n.attribute("nearest_mode", "round_prefer_floor" if n.opset > 10 else "floor")
    halves = coordinates in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric")
    if mode == "nearest" and (
        (coordinates == "asymmetric" and rounding == "floor") or (halves and whole and rounding.startswith("round"))
    ):
        return n.call("interpolate", n.tensor(0), **_size(given, wanted, scales), mode="nearest")
    kind = {("linear", 3): "linear", ("linear", 4): "bilinear", ("linear", 5): "trilinear", ("cubic", 4): "bicubic"}
    if (mode, rank) in kind and (halves or coordinates == "align_corners"):
        size = {"size": wanted[2:]} if coordinates == "align_corners" else _size(given, wanted, scales)
        if mode == "linear" or n.attribute("cubic_coeff_a", -0.75) == -0.75:
            options = {"mode": kind[mode, rank], "align_corners": coordinates == "align_corners"}
            return n.call("interpolate", n.tensor(0), **size, **options)
    raise n.unsupported(f"mode {mode}, {coordinates}, {rounding}")


def _size(given: Sequence[int], wanted: Sequence[int], scales: Sequence[float] | None) -> dict[str, Any]:
    """The output's size; where rounding made it unlike the scales, the scales, because positions follow from them."""
    if scales and any(abs(size * scale - out) > 1e-3 for size, scale, out in zip(given, scales, wanted)):
        return {"scale_factor": tuple(scales[2:])}
    return {"size": tuple(wanted[2:])}


# --- reductions and searches


def reduction(function: str, before: str | None = None, after: str | None = None, **options: Any) -> Translate:
    def translate(n: Node) -> Any:
        axes = n.constant(1, "axes")
        if not axes and n.attribute("noop_with_empty_axes", 0):
            return n.tensor(0)
        axes = [axis % len(n.shape(0)) for axis in axes or range(len(n.shape(0)))]
        x = n.call(before, n.tensor(0)) if before else n.tensor(0)
        y = n.call(function, x, dim=axes, keepdim=bool(n.attribute("keepdims", 1)), **options)
        return n.call(after, y) if after else y

    return translate


def reduce_mean(n: Node) -> Any:
    """Over all of an image it is a global pool, which stays channels last in LiteRT; a mean would be transposed to."""
    rank, axes = len(n.shape(0)), n.constant(1, "axes")
    if rank < 4 or not axes or sorted(axis % rank for axis in axes) != list(range(2, rank)):
        return reduction("mean")(n)
    y = global_pool("Avg")(n)
    return y if n.attribute("keepdims", 1) else n.call("flatten", y, 1)


def reduce_product(n: Node) -> Any:
    axes = n.constant(1, "axes") or range(len(n.shape(0)))
    x = n.tensor(0)
    for axis in sorted((axis % len(n.shape(0)) for axis in axes), reverse=True):
        x = n.call("prod", x, axis, keepdim=bool(n.attribute("keepdims", 1)))
    return x


def extreme_index(function: str) -> Translate:
    def translate(n: Node) -> Any:
        if n.attribute("select_last_index", 0):
            raise n.unsupported("select_last_index")
        return n.call(function, n.tensor(0), n.attribute("axis", 0), bool(n.attribute("keepdims", 1)))

    return translate


def top_k(n: Node) -> Any:
    largest, ordered = bool(n.attribute("largest", 1)), bool(n.attribute("sorted", 1))
    (count,) = n.constant(1)
    found = n.call("topk", n.tensor(0), count, n.attribute("axis", -1), largest, ordered)
    return [n.item(found, 0), n.item(found, 1)]


def cumulative_sum(n: Node) -> Any:
    if n.attribute("exclusive", 0) or n.attribute("reverse", 0):
        raise n.unsupported("exclusive or reverse")
    axis = n.constant(1)
    return n.call("cumsum", n.tensor(0), axis[0] if isinstance(axis, list) else axis)


def triangle(n: Node) -> Any:
    return n.call("triu" if n.attribute("upper", 1) else "tril", n.tensor(0), n.constant(1, default=0))


def lp_normalization(n: Node) -> Any:
    return n.call("div", n.tensor(0), n.call("norm", n.tensor(0), n.attribute("p", 2), n.attribute("axis", -1), True))


def cast_like(n: Node) -> Any:
    kind = n.value(1).dtype.name if n.is_constant(1) else None
    if kind is None:
        return n.method("to", n.tensor(0), _torch_dtype(n.dtypes[n.proto.input[1]]))
    import torch

    return n.method("to", n.tensor(0), getattr(torch, kind))


def same(n: Node) -> Any:
    return n.tensor(0)


def constant_only(n: Node) -> Any:
    raise n.unsupported("an input is computed at run time")


_TRIGONOMETRIC = ("Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cosh", "Sinh", "Tan")

OPERATORS: Mapping[str, Translate] = {
    # element by element
    "Abs": elementwise("abs"), "Ceil": elementwise("ceil"), "Cos": elementwise("cos"), "Erf": elementwise("erf"),
    "Exp": elementwise("exp"), "Floor": elementwise("floor"), "IsNaN": elementwise("isnan"),
    "Log": elementwise("log"), "Neg": elementwise("neg"), "Not": elementwise("logical_not"),
    "Reciprocal": elementwise("reciprocal"), "Round": elementwise("round"), "Sign": elementwise("sign"),
    **{name: elementwise(name.lower()) for name in _TRIGONOMETRIC}, "IsInf": elementwise("isinf"),
    "Sin": elementwise("sin"), "Sqrt": elementwise("sqrt"), "Add": binary("add"), "Sub": binary("sub"),
    "Mul": binary("mul"), "Pow": binary("pow"), "Equal": binary("eq"), "Greater": binary("gt"),
    "GreaterOrEqual": binary("ge"), "Less": binary("lt"), "LessOrEqual": binary("le"), "And": many("logical_and"),
    "Or": many("logical_or"), "Xor": many("logical_xor"), "Sum": many("add"), "Min": many("minimum"),
    "Max": many("maximum"), "Mean": mean_of_all, "Div": divide, "Mod": modulo, "Where": where, "Cast": cast,
    "Identity": same, "Dropout": same,
    # activations
    "Relu": activation("ReLU"), "Sigmoid": activation("Sigmoid"), "Tanh": activation("Tanh"),
    "Softplus": activation("Softplus"), "Softsign": activation("Softsign"), "Mish": activation("Mish"),
    "LeakyRelu": activation("LeakyReLU", negative_slope=("alpha", 0.01)),
    "Elu": activation("ELU", alpha=("alpha", 1.0)), "Celu": activation("CELU", alpha=("alpha", 1.0)), "Clip": clip,
    "HardSigmoid": hard_sigmoid,
    "Selu": selu, "Swish": swish, "ThresholdedRelu": thresholded_relu, "Shrink": shrink, "CastLike": cast_like,
    "HardSwish": hard_swish, "Gelu": gelu, "PRelu": prelu, "Softmax": softmax("Softmax"),
    "LogSoftmax": softmax("LogSoftmax"),
    # layers
    "Conv": convolution, "ConvTranspose": transposed_convolution, "MaxPool": max_pool, "AveragePool": average_pool,
    "GlobalAveragePool": global_pool("Avg"), "GlobalMaxPool": global_pool("Max"), "BatchNormalization": batch_norm,
    "LayerNormalization": layer_norm, "InstanceNormalization": instance_norm, "GroupNormalization": group_norm,
    "LRN": local_response_norm, "Gemm": gemm, "MatMul": matmul, "Einsum": einsum,
    # shapes
    "Reshape": reshape, "Flatten": flatten, "Squeeze": to_output_shape, "Unsqueeze": to_output_shape,
    "Transpose": transpose, "Concat": concat, "Split": split, "Slice": slices, "Gather": gather,
    "GatherElements": gather_elements, "GatherND": gather_nd, "ScatterND": scatter_nd,
    "ScatterElements": scatter_elements, "OneHot": one_hot, "Pad": pad, "Expand": expand, "Tile": tile, "Shape": shape,
    "DepthToSpace": depth_to_space, "SpaceToDepth": space_to_depth, "Resize": resize, "Upsample": resize,
    # reductions and searches
    "ReduceMean": reduce_mean, "ReduceSum": reduction("sum"), "ReduceMax": reduction("amax"),
    "ReduceMin": reduction("amin"), "ReduceL1": reduction("sum", before="abs"),
    "ReduceL2": reduction("sum", before="square", after="sqrt"), "ReduceSumSquare": reduction("sum", before="square"),
    "ReduceLogSumExp": reduction("logsumexp"), "ReduceLogSum": reduction("sum", after="log"),
    "LpNormalization": lp_normalization, "ReduceProd": reduce_product, "ArgMax": extreme_index("argmax"),
    "ArgMin": extreme_index("argmin"), "TopK": top_k, "CumSum": cumulative_sum, "Trilu": triangle,
    # made of constants alone, and so folded
    "Constant": constant_only, "ConstantOfShape": constant_only, "Range": constant_only, "Size": constant_only,
    "EyeLike": constant_only,
}  # fmt: skip
