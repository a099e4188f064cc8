"""The quantized layers of a canonical Q/DQ model, and the same model with some of them in float.

A layer is a node that computes on integers, with what quantizes its inputs: its weights and its activations. Q/DQ pairs
stay in place through nodes that only move, pick or join values (Reshape, MaxPool, Concat), so a layer's quantizers may
stand behind those. A layer in float reads what the original model's node reads: its weights and bias, before bias
correction. An activation that other layers read too stays quantized for them.

This module knows nothing of samples or of accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from edgeopt.formats import counting
from edgeopt.lowering.graph import Graph, drop_unused, drop_value_info, reads, zero_point_of
from edgeopt.lowering.graph import dequantized as real_numbers

TRANSPARENT = frozenset({
    "Clip", "Concat", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Relu", "Reshape", "Resize", "Slice",
    "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
_WEIGHT = ".weight"


@dataclass(frozen=True)
class Layer:
    """A quantized node: its name, operator, elements of its constants, and multiply-accumulates of one sample.

    `title` is what a person knows it by, the name of its weights ("stem.conv") where they have one. `macs` is None
    where a shape is not known.
    """

    name: str
    title: str
    operator: str
    parameters: int
    macs: int | None


class QuantizedModel:
    """A canonical Q/DQ ONNX model beside the float ONNX model that it was made of, whose nodes have the same names."""

    def __init__(self, quantized: Any, original: Any) -> None:
        self._quantized = quantized
        self._original = {node.name: node for node in original.graph.node}
        self._stored = {tensor.name: tensor for tensor in original.graph.initializer}
        self._stored.update(
            (node.output[0], node.attribute[0].t)
            for node in original.graph.node
            if node.op_type == "Constant" and node.attribute[0].name == "value"
        )
        self._macs = counting.macs_by_node(original)
        graph = Graph(quantized)
        self.layers: tuple[Layer, ...] = tuple(
            self._layer(node.name, node.op_type) for node in quantized.graph.node if _is_layer(graph, node)
        )

    def with_float(self, names: Collection[str]) -> Any:
        """A copy in which the layers of these names compute in float."""
        import onnx

        model = onnx.ModelProto()
        model.CopyFrom(self._quantized)
        drop_value_info(model)
        graph = Graph(model)
        restored = _Restored(model, graph, self._original, self._stored)
        for node in list(model.graph.node):
            if node.name in names:
                restored.in_float(node)
        _drop_dead(model)
        drop_unused(model)
        return model

    def with_only(self, names: Collection[str]) -> Any:
        """A copy in which the layers of these names alone are quantized."""
        return self.with_float({layer.name for layer in self.layers if layer.name not in names})

    def _layer(self, name: str, operator: str) -> Layer:
        node = self._original.get(name)
        weights = [] if node is None else [tensor for tensor in node.input if tensor in self._stored]
        title = next((tensor.removesuffix(_WEIGHT) for tensor in weights if tensor.endswith(_WEIGHT)), name)
        parameters = sum(math.prod(self._stored[tensor].dims) for tensor in weights)
        return Layer(name, title, operator, parameters, self._macs.get(name, 0))


class _Restored:
    """A model while layers are put back into float. What they read in float is made once for all of them."""

    def __init__(self, model: Any, graph: Graph, original: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
        self._model = model
        self._graph = graph
        self._original = original
        self._stored = stored
        self._tensors: dict[str, str] = {}

    def in_float(self, node: Any) -> None:
        source = self._original.get(node.name)
        for index, name in enumerate(list(node.input)):
            node.input[index] = self._tensor(name, node, index)
        if source is not None and len(node.input) > len(source.input):
            del node.input[len(source.input) :]  # a bias that correction added

    def _tensor(self, name: str, node: Any, index: int) -> str:
        """The float tensor that `node` reads as its input `index` instead of `name`."""
        source = self._original.get(node.name)
        wanted = source.input[index] if source is not None and index < len(source.input) else name
        if wanted in self._stored:
            return self._constant(wanted)
        writer = self._graph.writer(name)
        if writer is None:
            return name
        if writer.op_type == "DequantizeLinear":
            quantizer = self._graph.writer(writer.input[0])
            return name if quantizer is None else str(quantizer.input[0])
        if writer.op_type in TRANSPARENT and _is_quantized(self._graph, name):
            return self._moved(writer, name)
        return name

    def _moved(self, node: Any, name: str) -> str:
        """The output `name` of a node that moves values, of a copy of that node that reads them in float."""
        if name not in self._tensors:
            import onnx

            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = self._graph.unused(f"{node.name}_float")
            for index, given in enumerate(node.input):
                copy.input[index] = self._tensor(given, node, index) if given else given
            for index, made in enumerate(node.output):
                if made:
                    copy.output[index] = self._tensors[made] = self._graph.unused(f"{made}_float")
            place = next(i for i, other in enumerate(self._model.graph.node) if other.name == node.name)
            self._model.graph.node.insert(place, copy)
        return self._tensors[name]

    def _constant(self, name: str) -> str:
        """An initializer of the original model, under a name of its own where the model has another under that name."""
        import numpy as np
        from onnx import numpy_helper

        if name not in self._tensors:
            value = numpy_helper.to_array(self._stored[name])
            there = self._graph.constant(name)
            same = there is not None and there.dtype == value.dtype and np.array_equal(there, value)
            self._tensors[name] = name if same else self._graph.add_constant(name, value)
        return self._tensors[name]


def dequantized(model: Any) -> Any:
    """A copy whose quantized constants are float numbers again, those that the integers stand for: the same function.

    Activations are still rounded as before. Where integer kernels are not exact, this is.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = Graph(copy)
    kept = []
    for node in copy.graph.node:
        integers = graph.constant(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if integers is None:
            kept.append(node)
            continue
        scale = graph.constant(node.input[1])
        value = real_numbers(integers, scale, zero_point_of(graph, node), node)
        copy.graph.initializer.append(onnx.numpy_helper.from_array(value, node.output[0]))
    _keep(copy, kept)
    drop_unused(copy)
    return copy


def _is_layer(graph: Graph, node: Any) -> bool:
    """Whether a node computes on quantized inputs; of those that only move values, whether an output of the model
    comes from it, since no other layer answers for its quantizers then."""
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return False
    if node.op_type not in TRANSPARENT:
        return any(_is_quantized(graph, name) for name in node.input)
    return any(graph.is_output(name) and _is_quantized(graph, name) for name in node.output)


def _is_quantized(graph: Graph, name: str) -> bool:
    """Whether a tensor is dequantized, or moved from one that is."""
    writer = graph.writer(name) if name else None
    if writer is None:
        return False
    if writer.op_type == "DequantizeLinear":
        return True
    return writer.op_type in TRANSPARENT and any(_is_quantized(graph, given) for given in writer.input)


def _drop_dead(model: Any) -> None:
    """Ensures that what every node computes is read, or is an output."""
    wanted = {given.name for given in model.graph.output}
    kept = []
    for node in reversed(model.graph.node):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted |= reads(node)
    _keep(model, kept[::-1])


def _keep(model: Any, nodes: Any) -> None:
    import onnx

    graph = onnx.GraphProto()
    graph.node.extend(nodes)
    del model.graph.node[:]
    model.graph.node.extend(graph.node)
