"""ONNX to torch: a graph of static shapes as a `torch.fx.GraphModule` of real layers, that can be pruned and exported.

onnxslim folds and simplifies the graph first, so that the operators that are left are few and their shapes are known;
`onnx_operators` says what each becomes. Control flow, recurrent networks and shapes that depend on data are refused.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from edgeopt.errors import InputError, StageError, UnsupportedOperator
from edgeopt.formats.onnx_operators import OPERATORS

if TYPE_CHECKING:
    import onnx
    from torch import fx, nn

Value: TypeAlias = Any  # a numpy array that is constant, the fx.Node that computes it, or None for an input left out

KEPT_APART = ["FusionConvBN", "FusionConvTransposeBN"]  # a batch norm is what pruning recalibrates
LARGEST_FOLDED = 1 << 24  # elements of a constant computed ahead


def import_onnx(path: Path, batch: int = 1) -> nn.Module:
    """The model in evaluation mode; it takes the graph's inputs in order and returns a tensor, or a tuple of several.

    `batch` stands for a free first dimension. Raises InputError for a file that is not ONNX, StageError for other free
    dimensions, UnsupportedOperator that lists every operator which is missing, with its number.
    """
    import torch
    from torch import fx

    model = _simplified(path, batch)
    graph, opset = model.graph, next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    missing = Counter(_qualified(node) for node in graph.node if _qualified(node) not in OPERATORS)
    if missing:
        listed = ", ".join(f"{name} ({count})" for name, count in missing.most_common())
        raise UnsupportedOperator(f"ONNX import lacks operators of this model: {listed}", where=path.name)
    values: dict[str, Value] = {"": None, **_initializers(model, path)}
    shapes, dtypes = _types(graph)
    root, out = torch.nn.Module(), fx.Graph()
    for entry in graph.input:
        if entry.name not in values:
            values[entry.name] = out.placeholder(_identifier(entry.name))
    for position, onnx_node in enumerate(graph.node):
        node = Node(onnx_node, opset, values, shapes, dtypes, root, out, position)
        made = node.folded() or OPERATORS[onnx_node.op_type](node)
        values.update(zip(onnx_node.output, made if isinstance(made, (list, tuple)) else [made]))
    results = tuple(_tensor(values[entry.name], f"output_{i}", root, out) for i, entry in enumerate(graph.output))
    out.output(results[0] if len(results) == 1 else results)
    return fx.GraphModule(root, out, class_name="ImportedModel").eval()


@dataclass(frozen=True)
class Node:
    """One operator of the graph, and what its translation needs to know and to build."""

    proto: onnx.NodeProto
    opset: int
    values: dict[str, Value]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, int]
    root: nn.Module
    graph: fx.Graph
    position: int

    def attribute(self, name: str, default: Any = None) -> Any:
        import onnx

        for entry in self.proto.attribute:
            if entry.name == name:
                value = onnx.helper.get_attribute_value(entry)
                return value.decode() if isinstance(value, bytes) else value
        return default

    def __len__(self) -> int:
        return len(self.proto.input)

    def value(self, index: int) -> Any:
        """An input: a numpy array where it is constant, an fx.Node where it is computed, None where it is left out."""
        return self.values[self.proto.input[index]] if index < len(self.proto.input) else None

    def tensor(self, index: int) -> Any:
        """An input as something to call torch with: a constant becomes a buffer."""
        return _tensor(self.value(index), f"constant_{self.position}_{index}", self.root, self.graph)

    def buffer(self, array: Any) -> Any:
        """A constant that the translation itself needs."""
        return _tensor(array, f"constant_{self.position}_own", self.root, self.graph)

    def operand(self, index: int) -> Any:
        """As `tensor`, but a constant of one element becomes a number where that changes neither shape nor dtype."""
        value = self.value(index)
        others = [len(self.shape(i)) for i in range(len(self)) if i != index and not self.is_constant(i)]
        if self.is_constant(index) and value.size == 1 and others and value.ndim <= max(others):
            return value.item()
        return self.tensor(index)

    def is_constant(self, index: int) -> bool:
        value = self.value(index)
        return value is not None and not hasattr(value, "meta")

    def constant(self, index: int, attribute: str | None = None, default: Any = None) -> Any:
        """An input that has to be constant, as a list or a number; in old opsets the attribute that it was."""
        value = self.value(index)
        if value is None:
            return self.attribute(attribute, default) if attribute else default
        if not self.is_constant(index):
            raise self.unsupported(f"input {index} is computed at run time")
        return value.tolist()

    def shape(self, index: int) -> tuple[int, ...]:
        """Of an input."""
        if self.is_constant(index):
            return tuple(self.value(index).shape)
        return self._known(self.proto.input[index])

    def output_shape(self, index: int = 0) -> tuple[int, ...]:
        return self._known(self.proto.output[index])

    def _known(self, name: str) -> tuple[int, ...]:
        if name not in self.shapes:
            raise self.unsupported(f"the shape of {name} depends on data")
        return self.shapes[name]

    def is_integer(self, index: int) -> bool:
        value = self.value(index)
        if self.is_constant(index):
            return bool(value.dtype.kind in "iu")
        import onnx

        kind = onnx.helper.tensor_dtype_to_np_dtype(self.dtypes.get(self.proto.input[index], 1)).kind
        return bool(kind in "iu")

    def call(self, function: str, *arguments: Any, **options: Any) -> Any:
        """A function of torch or of torch.nn.functional, by name."""
        import torch

        found = getattr(torch, function, None) or getattr(torch.nn.functional, function)
        return self.graph.call_function(found, arguments, options)

    def method(self, name: str, *arguments: Any) -> Any:
        return self.graph.call_method(name, arguments)

    def item(self, value: Any, key: Any) -> Any:
        import operator

        return self.graph.call_function(operator.getitem, (value, key))

    def layer(
        self, kind: str, value: Any, *arguments: Any, tensors: dict[str, Any] | None = None, **options: Any
    ) -> Any:
        """A layer of torch.nn, by name, with its parameters and buffers set from numpy arrays."""
        import torch

        with torch.device("meta"):  # no time and no random numbers spent on weights that are replaced
            layer = getattr(torch.nn, kind)(*arguments, **options)
        for name, array in (tensors or {}).items():
            data = _as_torch(array)
            if name in layer._buffers:
                layer.register_buffer(name, data)
            else:
                layer.register_parameter(name, torch.nn.Parameter(data, requires_grad=data.is_floating_point()))
        name = f"{kind.lower()}_{self.position}"
        self.root.add_module(name, layer)
        return self.graph.call_module(name, (value,))

    def unsupported(self, why: str) -> UnsupportedOperator:
        return UnsupportedOperator(f"ONNX import cannot translate {self.proto.op_type} {self.proto.name}: {why}")

    def folded(self) -> Any:
        """The node's values where all of its inputs are constants, else None."""
        if not all(value is None or self.is_constant(i) for i, value in enumerate(map(self.value, range(len(self))))):
            return None
        if any(math.prod(self.shapes.get(name, ())) > LARGEST_FOLDED for name in self.proto.output):
            return None
        import onnx
        from onnx.reference import ReferenceEvaluator

        names = [name for name in self.proto.input if name]
        model = onnx.helper.make_model(
            onnx.helper.make_graph(
                [self.proto],
                "constant",
                [onnx.helper.make_empty_tensor_value_info(name) for name in names],
                [onnx.helper.make_empty_tensor_value_info(name) for name in self.proto.output],
            ),
            opset_imports=[onnx.helper.make_opsetid("", self.opset)],
        )
        return list(ReferenceEvaluator(model).run(None, {name: self.values[name] for name in names}))


def _tensor(value: Any, name: str, root: nn.Module, graph: fx.Graph) -> Any:
    if value is None or hasattr(value, "meta"):
        return value
    root.register_buffer(name, _as_torch(value))
    return graph.get_attr(name)


def _as_torch(array: Any) -> Any:
    import numpy as np
    import torch

    return torch.from_numpy(np.array(array))  # a copy of its own, writable


def _simplified(path: Path, batch: int) -> onnx.ModelProto:
    import onnx
    import onnxslim
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path)
    except (DecodeError, OSError) as error:
        raise InputError(f"{path}: not an ONNX file that can be read: {error}") from error
    _fix_shapes(model.graph, batch)
    slim = onnxslim.slim(model, skip_fusion_patterns=KEPT_APART)
    del slim.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(slim, data_prop=True)


def _fix_shapes(graph: onnx.GraphProto, batch: int) -> None:
    """Give each free first dimension of an input the size `batch`, and forget all that was said of other shapes."""
    constants = {entry.name for entry in graph.initializer}
    for entry in graph.input:
        if entry.name in constants:
            continue
        for axis, dimension in enumerate(entry.type.tensor_type.shape.dim):
            if dimension.HasField("dim_value") and dimension.dim_value > 0:
                continue
            if axis:
                raise StageError(
                    f"the input {entry.name} leaves dimension {axis} ({dimension.dim_param or '?'}) free",
                    remedy="Export the model with fixed dimensions; only the batch may be free.",
                )
            dimension.dim_value = batch
    del graph.value_info[:]
    for entry in graph.output:
        entry.type.tensor_type.ClearField("shape")


def _initializers(model: onnx.ModelProto, path: Path) -> dict[str, Value]:
    from onnx import numpy_helper

    return {entry.name: numpy_helper.to_array(entry, str(path.parent)) for entry in model.graph.initializer}


def _types(graph: onnx.GraphProto) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    shapes, dtypes = {}, {}
    for entry in (*graph.input, *graph.value_info, *graph.output):
        tensor = entry.type.tensor_type
        dtypes[entry.name] = tensor.elem_type
        dimensions = tensor.shape.dim
        if tensor.HasField("shape") and all(d.HasField("dim_value") for d in dimensions):
            shapes[entry.name] = tuple(d.dim_value for d in dimensions)
    return shapes, dtypes


def _qualified(node: onnx.NodeProto) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def _identifier(name: str) -> str:
    return "".join(c if c.isalnum() and c.isascii() else "_" for c in name)
