"""An ONNX graph as a rewrite sees it: who writes and who reads each tensor, and its constants as arrays.

Knows nothing of what a rewrite is for.
"""

from __future__ import annotations

import itertools
from typing import Any


class Graph:
    """Who writes and who reads each tensor of a graph, and its constants as arrays."""

    def __init__(self, model: Any) -> None:
        self._graph = model.graph
        self._outputs = {given.name for given in model.graph.output}
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self._writers: dict[str, Any] = {}
        self._readers: dict[str, list[Any]] = {}
        for node in model.graph.node:
            self._writers.update(dict.fromkeys(node.output, node))
            for name in reads(node):
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

    def replace(self, node: Any, name: str) -> None:
        """Connects the readers of a node's only output to the tensor `name`, which has no readers yet, and removes it.

        A graph output keeps its name, so that `node` must not write one.
        """
        node.input[0] = name
        self._readers.setdefault(name, [])
        self.bypass(node)


def reads(node: Any) -> set[str]:
    """The tensors that a node reads, those of its subgraphs too."""
    names = set(filter(None, node.input))
    for given in node.attribute:
        for subgraph in [given.g, *given.graphs]:
            names.update(*(reads(inner) for inner in subgraph.node))
    return names


def attribute(node: Any, name: str, default: Any) -> Any:
    from onnx import helper

    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def is_dequantizer(node: Any) -> bool:
    return node is not None and node.op_type == "DequantizeLinear"


def dequantized(integers: Any, scale: Any, zero_point: Any, node: Any) -> Any:
    """What a DequantizeLinear makes of constant integers, float32: one scale a tensor, a channel of its axis, or a
    block of block_size along it."""
    import numpy as np

    axis, block = attribute(node, "axis", 1), attribute(node, "block_size", 0)
    zero_point = np.broadcast_to(zero_point.reshape(zero_point.shape if zero_point.size > 1 else ()), scale.shape)
    if block:
        length = integers.shape[axis]
        scale, zero_point = (np.repeat(value, block, axis).take(range(length), axis) for value in (scale, zero_point))
    elif scale.size > 1:
        shape = [1] * integers.ndim
        shape[axis] = scale.size
        scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    else:
        scale, zero_point = scale.reshape(()), zero_point.reshape(())
    return (integers.astype(np.int64) - zero_point.astype(np.int64)).astype(np.float32) * scale.astype(np.float32)


def zero_point_of(graph: Graph, node: Any) -> Any:
    """Of a QuantizeLinear or DequantizeLinear; where none is given, a zero of the type that it then stands for."""
    import numpy as np

    found = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if found is not None:
        return found
    integers = graph.constant(node.input[0]) if is_dequantizer(node) else None
    return np.zeros((), np.uint8 if integers is None else integers.dtype)


def drop_value_info(model: Any) -> None:
    """Ensures that no inferred types are left over from before a rewrite: runtimes believe them."""
    del model.graph.value_info[:]


def drop_dead(model: Any) -> None:
    """Ensures that every DequantizeLinear is read by a node or is an output."""
    used = {name for node in model.graph.node for name in reads(node)} | {given.name for given in model.graph.output}
    for node in [node for node in model.graph.node if is_dequantizer(node) and node.output[0] not in used]:
        model.graph.node.remove(node)


def drop_unused(model: Any) -> None:
    """Ensures that every initializer is read by a node or is an output."""
    used = {name for node in model.graph.node for name in reads(node)} | {given.name for given in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
