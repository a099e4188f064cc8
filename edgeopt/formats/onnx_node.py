"""One operator of an ONNX graph on its way to torch: what its translation may ask, and what it may build.

Knows nothing of what any operator means.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from edgeopt.errors import UnsupportedOperator

if TYPE_CHECKING:
    import onnx
    from torch import fx, nn

Value: TypeAlias = Any  # a numpy array that is constant, the fx.Node that computes it, or None for an input left out

LARGEST_FOLDED = 1 << 24  # elements of a constant computed ahead


@dataclass(frozen=True)
class Node:
    """One operator of the graph, and what its translation needs to know and to build.

    `held` maps the names of parameters and buffers that translations made to the initializers that they hold unchanged.
    """

    proto: onnx.NodeProto
    opset: int
    values: dict[str, Value]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, int]
    root: nn.Module
    graph: fx.Graph
    position: int
    held: dict[str, str] = field(default_factory=dict)

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
        return as_tensor(self.value(index), f"constant_{self.position}_{index}", self.root, self.graph)

    def buffer(self, array: Any) -> Any:
        """A constant that the translation itself needs."""
        return as_tensor(array, f"constant_{self.position}_own", self.root, self.graph)

    def parameter(self, index: int, start: Any = None) -> Any:
        """A constant input as a parameter that can be trained, of the value `start` where it is not the input's own."""
        import torch

        if not self.is_constant(index):
            return self.value(index)
        for name, given in self.held.items():
            if given == self.proto.input[index] and name in self.root._parameters:
                return self.graph.get_attr(name)
        name = f"parameter_{self.position}_{index}"
        value = _to_torch(self.value(index) if start is None else start)
        self.root.register_parameter(name, torch.nn.Parameter(value))
        self.held[name] = self.proto.input[index]
        return self.graph.get_attr(name)

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
            data = _to_torch(array)
            if name in layer._buffers:
                layer.register_buffer(name, data)
            else:
                layer.register_parameter(name, torch.nn.Parameter(data, requires_grad=data.is_floating_point()))
        name = f"{kind.lower()}_{self.position}"
        self.root.add_module(name, layer)
        for key, array in (tensors or {}).items():
            self.held.update({f"{name}.{key}": given for given in self.proto.input if self.values.get(given) is array})
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


def as_tensor(value: Any, name: str, root: nn.Module, graph: fx.Graph) -> Any:
    """A value as something to call torch with: a constant becomes a buffer of `root` by that name."""
    if value is None or hasattr(value, "meta"):
        return value
    root.register_buffer(name, _to_torch(value))
    return graph.get_attr(name)


def _to_torch(array: Any) -> Any:
    import numpy as np
    import torch

    return torch.from_numpy(np.array(array))  # a copy of its own, writable
