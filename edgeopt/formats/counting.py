"""What an ONNX graph holds: weights, multiply-accumulates, operators, precision.

Read from the graph alone, without running it. A number that the graph does not tell, such as the multiply-accumulates
of a layer whose shape is free, is None. This module knows nothing of files, and of no operators but ONNX's and the
quantized ones of onnxruntime.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgeopt.artifact import Dimension, TensorSpec

Shapes = Mapping[str, tuple[int | None, ...]]

# Inputs that are parameters of an operator rather than weights: scales, zero points, sizes.
_NOT_WEIGHTS: Mapping[str, tuple[int, ...]] = {
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "QLinearAdd": (1, 2, 4, 5, 6, 7),
    "QLinearMul": (1, 2, 4, 5, 6, 7),
    "QGemm": (1, 2, 4, 5, 7, 8),
    "ConvInteger": (2, 3),
    "MatMulInteger": (2, 3),
    "Resize": (1, 2, 3),
    "Upsample": (1,),
    "Clip": (1, 2),
    "Pad": (1, 2, 3),
}
_QUANTIZED = ("DequantizeLinear", "QLinearConv", "QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger")
_PRECISIONS = {
    "FLOAT": "fp32",
    "DOUBLE": "fp64",
    "FLOAT16": "fp16",
    "BFLOAT16": "bf16",
    "INT8": "int8",
    "UINT8": "int8",
    "INT4": "int4",
    "UINT4": "int4",
    "FLOAT8E4M3FN": "fp8",
    "FLOAT8E5M2": "fp8",
}
_LARGEST_KEPT = 1024
_INT = 2  # onnx.AttributeProto.INT
_RECURRENT = ("LSTM", "GRU", "RNN")
_UNCOUNTED = ("Einsum", "Attention", "MultiHeadAttention", "QAttention", "DeformConv")


def graphs(graph: Any) -> Iterator[Any]:
    """The graph and every subgraph in it (the branches of If, the bodies of Loop and Scan)."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from graphs(inner)


def weights(model: Any) -> list[Any]:
    """The tensors that are weights: floating point and quantized ones, of rank 1 and more, and no scales or sizes.

    Biases of quantized layers (int32) are weights, indices and shapes (int64) are not.
    """
    import onnx

    found = []
    for graph in graphs(model.graph):
        uses = _uses(graph)
        constants = {
            node.output[0]: attribute.t
            for node in graph.node
            if node.op_type == "Constant"
            for attribute in node.attribute
            if attribute.name == "value"
        }
        for name, tensor in {**{item.name: item for item in graph.initializer}, **constants}.items():
            kind = onnx.TensorProto.DataType.Name(tensor.data_type)
            places = uses.get(name, [])
            if not tensor.dims or (places and all(index in _NOT_WEIGHTS.get(op, ()) for op, index in places)):
                continue
            if kind in _PRECISIONS or (kind == "INT32" and any(op in _QUANTIZED for op, _ in places)):
                found.append(tensor)
    return found


def parameters(model: Any) -> int:
    """The number of elements of all weights."""
    return sum(math.prod(tensor.dims) for tensor in weights(model))


def operators(model: Any) -> dict[str, int]:
    """Operator types and their number, the most frequent first; "domain.Type" outside ONNX's own domain."""
    counts: Counter[str] = Counter()
    for graph in graphs(model.graph):
        for node in graph.node:
            own = node.domain in ("", "ai.onnx")
            counts[node.op_type if own else f"{node.domain}.{node.op_type}"] += 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def precision(model: Any) -> str | None:
    """The type of most weights: fp32, fp16, bf16 or int8; int8 too where activations are quantized (Q/DQ).

    None for a graph without weights.
    """
    import onnx

    types = Counter[str]()
    for tensor in weights(model):
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        types[_PRECISIONS.get(kind, "int8")] += math.prod(tensor.dims)
    if not types:
        return None
    own = {node.op_type for graph in graphs(model.graph) for node in graph.node}
    quantized = {"QuantizeLinear", "DequantizeLinear"} <= own or bool(own & {"QLinearConv", "ConvInteger"})
    return "int8" if quantized else types.most_common(1)[0][0]


def macs(model: Any, shapes: Mapping[str, Sequence[int]] | None = None) -> int | None:
    """Multiply-accumulates of one sample in convolutions, matrix products and recurrent layers, biases left out.

    A free first dimension is taken as 1, and a fixed first dimension N divides the sum. `shapes` are input shapes to
    take instead of the model's, for models with more free dimensions. None where a shape stays unknown, where a
    subgraph multiplies, or where an operator multiplies in a way that is not counted here (Einsum, attention in one).
    """
    known, batch = _infer_shapes(model, shapes or {})
    total = 0
    for graph in graphs(model.graph):
        for node in graph.node:
            if graph is not model.graph and node.op_type in (*_COUNTED, *_RECURRENT):
                return None
            if node.op_type in _UNCOUNTED:
                return None
            count = _macs_of(node, known)
            if count is None:
                return None
            total += count
    return total // batch


def macs_by_node(model: Any) -> dict[str, int | None]:
    """Multiply-accumulates of one sample by node name, as in `macs`, of the nodes that multiply outside of subgraphs.

    None where a shape is unknown.
    """
    known, batch = _infer_shapes(model, {})
    counts = {node.name: _macs_of(node, known) for node in model.graph.node if node.op_type in (*_COUNTED, *_RECURRENT)}
    return {name: None if count is None else count // batch for name, count in counts.items()}


def external(model: Any) -> Iterator[Any]:
    """The tensors whose values are in files beside the model, wherever they are in it."""
    import onnx

    for graph in graphs(model.graph):
        attributes = [attribute for node in graph.node for attribute in node.attribute]
        inner = [tensor for attribute in attributes for tensor in (attribute.t, *attribute.tensors)]
        for tensor in (*graph.initializer, *inner):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                yield tensor


def external_files(model: Any) -> list[str]:
    """The files beside the model that hold its tensors, as the model names them."""
    entries = (entry for tensor in external(model) for entry in tensor.external_data)
    return sorted({str(entry.value) for entry in entries if entry.key == "location"})


def has_external(model: Any) -> bool:
    """Whether a tensor's values are in a file beside the model, not loaded."""
    return next(external(model), None) is not None


def without_large_data(model: Any) -> Any:
    """A copy without the contents of large tensors: their shapes are enough to infer all others from."""
    import onnx

    copy = onnx.ModelProto()
    kept = list(model.graph.initializer)
    for name in [field.name for field, _ in model.ListFields() if field.name != "graph"]:
        _copy_field(copy, model, name)
    for field, _ in model.graph.ListFields():
        if field.name != "initializer":
            _copy_field(copy.graph, model.graph, field.name)
    for tensor in kept:
        if math.prod(tensor.dims) <= _LARGEST_KEPT:
            copy.graph.initializer.add().CopyFrom(tensor)
        else:
            new = copy.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            new.data_location = onnx.TensorProto.EXTERNAL
            new.external_data.add(key="location", value="left out")
    return copy


def _copy_field(copy: Any, source: Any, name: str) -> None:
    value = getattr(source, name)
    if isinstance(value, (str, bytes, int)):
        setattr(copy, name, value)
    else:
        getattr(copy, name).MergeFrom(value)


def signature(values: Sequence[Any]) -> tuple[TensorSpec, ...]:
    """TensorSpecs of a graph's inputs or outputs; free dimensions without a name become "dim_<axis>"."""
    return tuple(TensorSpec(value.name, shape_of(value), dtype_of(value)) for value in values)


def shape_of(value: Any) -> tuple[Dimension, ...]:
    """The shape of a ValueInfoProto: integers, and names where a dimension is free (some exporters say so with -1)."""
    return tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else dim.dim_param or f"dim_{axis}"
        for axis, dim in enumerate(value.type.tensor_type.shape.dim)
    )


def dtype_of(value: Any) -> str:
    """numpy's name of a ValueInfoProto's element type; "object" for strings, "unknown" for what is no tensor."""
    import onnx

    kind = value.type.tensor_type.elem_type
    return str(onnx.helper.tensor_dtype_to_np_dtype(kind).name) if kind else "unknown"


def _uses(graph: Any) -> dict[str, list[tuple[str, int]]]:
    uses: dict[str, list[tuple[str, int]]] = {}
    for inner in graphs(graph):
        for node in inner.node:
            for index, name in enumerate(node.input):
                uses.setdefault(name, []).append((node.op_type, index))
    return uses


def _infer_shapes(model: Any, given: Mapping[str, Sequence[int]]) -> tuple[Shapes, int]:
    """Shapes of all values at batch 1 (or the fixed batch), and that batch. Weights are read by shape alone."""
    import onnx

    copy = without_large_data(model)
    stored = {tensor.name for tensor in copy.graph.initializer}
    inputs = [value for value in copy.graph.input if value.name not in stored]
    batch = 1
    for value in inputs:
        dims = value.type.tensor_type.shape.dim
        for axis, dim in enumerate(dims):
            if value.name in given and len(given[value.name]) == len(dims):
                dim.dim_value = 1 if axis == 0 and not dim.HasField("dim_value") else given[value.name][axis]
            elif axis == 0 and not dim.HasField("dim_value"):
                dim.dim_value = 1
    leading = {dims[0].dim_value for value in inputs if (dims := value.type.tensor_type.shape.dim)}
    if len(leading) == 1:
        batch = leading.pop() or 1
    del copy.graph.value_info[:]
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    copy = onnx.shape_inference.infer_shapes(copy, data_prop=True)
    found: dict[str, tuple[int | None, ...]] = {
        value.name: tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in type_.shape.dim)
        for value in (*copy.graph.value_info, *copy.graph.input, *copy.graph.output)
        if (type_ := value.type.tensor_type).HasField("shape")
    }
    found.update({tensor.name: tuple(tensor.dims) for tensor in copy.graph.initializer})
    for node in copy.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            found[node.output[0]] = tuple(node.attribute[0].t.dims)
    return found, batch


def _product(shape: Sequence[int | None] | None) -> int | None:
    if shape is None or any(size is None for size in shape):
        return None
    return math.prod(size for size in shape if size is not None)


def _times(*counts: int | None) -> int | None:
    """The product, None where a factor is unknown."""
    return None if any(count is None for count in counts) else math.prod(count for count in counts if count is not None)


# Operator type to (position of the data, position of the weights).
_COUNTED: Mapping[str, tuple[int, int]] = {
    "Conv": (0, 1),
    "FusedConv": (0, 1),
    "ConvInteger": (0, 1),
    "QLinearConv": (0, 3),
    "ConvTranspose": (0, 1),
    "Gemm": (0, 1),
    "FusedGemm": (0, 1),
    "QGemm": (0, 3),
    "MatMul": (0, 1),
    "FusedMatMul": (0, 1),
    "MatMulInteger": (0, 1),
    "QLinearMatMul": (0, 3),
}


def _macs_of(node: Any, known: Shapes) -> int | None:
    """Of one node: 0 for an operator that does not multiply, None where a shape is unknown."""
    if node.op_type in _RECURRENT:
        data, weight, recurrence = (known.get(name) for name in node.input[:3])
        inner, outer = _product(weight), _product(recurrence)
        steps = _product(data[:2]) if data else None
        return None if inner is None or outer is None else _times(steps, inner + outer)
    if node.op_type not in _COUNTED:
        return 0
    left, right = (known.get(node.input[position]) for position in _COUNTED[node.op_type])
    outputs = _product(known.get(node.output[0]))
    if node.op_type == "ConvTranspose":
        return _times(_product(left), _product(right and right[1:]))
    if "Conv" in node.op_type:
        return _times(outputs, _product(right and right[1:]))
    flags = {attribute.name for attribute in node.attribute if attribute.type == _INT and attribute.i}
    depth = _depth(left, -2 if "transA" in flags else -1)
    return _times(outputs, depth if depth is not None else _depth(right, -1 if "transB" in flags else -2))


def _depth(shape: tuple[int | None, ...] | None, axis: int) -> int | None:
    """How many products are summed: the size of a matrix along the axis that vanishes, of a vector its size."""
    return shape[axis if len(shape) > 1 else 0] if shape else None
