"""Cross-layer equalization of a float ONNX model: channels of like weight ranges, and the same function.

Between two layers with nothing but positively homogeneous operators, output channel i of the first may be divided by
any s above zero where input channel i of the second is multiplied by it. With s = sqrt(r1 / r2), r the largest weights
of the channel on either side, both sides get the range sqrt(r1 * r2). A depthwise convolution is the second layer of
one pair and the first of the next, so pairs are gone through until nothing changes.

Source: Nagel et al. 2019, https://arxiv.org/abs/1906.04721, section 4.1. There ReLU6 is made a ReLU first, which
changes the function; here a Clip, and any other operator that is not homogeneous, parts the layers around it. NNCF's
channel alignment has no ONNX backend.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeopt.lowering.graph import Graph, attribute, drop_unused

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

LAYERS = ("Conv", "Gemm")
HOMOGENEOUS = ("Relu", "LeakyRelu", "PRelu", "Identity", "MaxPool", "AveragePool", "GlobalAveragePool", "Flatten")
ROUNDS = 50
CONVERGED = 1e-3  # the largest relative change of a channel in one round


@dataclass(frozen=True)
class Equalized:
    """The pairs that were equalized, by the names of their nodes, and the operators that parted others: {type: count}.

    Those of the latter that are not homogeneous, each between two layers and with no other reader.
    """

    pairs: tuple[tuple[str, str], ...]
    parted: dict[str, int]


def equalize(model: Any) -> Equalized:
    """Rescale the weights of a model in place. Exact but for rounding to float32."""
    import numpy as np

    graph = Graph(model)
    found, parted = [], dict[str, int]()
    for node in model.graph.node:
        if node.op_type in LAYERS and _Layer.fits(graph, node):
            second, between = _next_layer(graph, node)
            if second is not None and between is None:
                found.append((node, second))
            elif between is not None:
                parted[between] = parted.get(between, 0) + 1
    layers: dict[str, _Layer] = {}
    pairs = []
    for first, second in found:
        sides = [layers.get(node.output[0]) or _Layer(graph, node) for node in (first, second)]
        if sides[1].inputs % sides[0].outputs:
            continue
        layers |= {node.output[0]: side for node, side in zip((first, second), sides)}
        pairs.append((first, second))
    for _ in range(ROUNDS):
        largest = 0.0
        for first, second in pairs:
            left, right = layers[first.output[0]], layers[second.output[0]]
            out, into = left.output_ranges(), right.input_ranges(left.outputs)
            usable = (out > 0) & (into > 0)
            scale = np.sqrt(np.where(usable, out, 1.0) / np.where(usable, into, 1.0))
            left.divide_outputs(scale)
            right.multiply_inputs(scale)
            largest = max(largest, float(np.abs(np.log(scale)).max()))
        if largest < CONVERGED:
            break
    for layer in layers.values():
        layer.store(graph)
    drop_unused(model)
    return Equalized(tuple((first.name, second.name) for first, second in pairs), parted)


def _next_layer(graph: Graph, node: Any) -> tuple[Any, str | None]:
    """The layer that alone reads what a node gives, through homogeneous operators, None where there is none; and the
    type of the operator that parts the two where one is not homogeneous."""
    parting = None
    while True:
        readers = graph.readers(node.output[0])
        if len(readers) != 1 or graph.is_output(node.output[0]) or readers[0].input[0] != node.output[0]:
            return None, None
        node = readers[0]
        if node.op_type in LAYERS:
            return (node, parting) if _Layer.fits(graph, node) else (None, None)
        if len(node.output) != 1 or (node.op_type == "Flatten" and attribute(node, "axis", 1) != 1):
            return None, None
        if node.op_type not in HOMOGENEOUS:
            if parting is not None or node.op_type != "Clip":
                return None, None
            parting = node.op_type


class _Layer:
    """A convolution or linear layer, its weights in float64 as (groups, outputs a group, inputs a group, ...)."""

    @staticmethod
    def fits(graph: Graph, node: Any) -> bool:
        """Whether weights and bias are constants that no other node reads."""
        names = [name for name in node.input[1:] if name]
        if any(graph.constant(name) is None or len(graph.readers(name)) != 1 for name in names):
            return False
        return bool(names) and not (node.op_type == "Gemm" and attribute(node, "transA", 0))

    def __init__(self, graph: Graph, node: Any) -> None:
        import numpy as np

        self.node = node
        weight = graph.constant(node.input[1]).astype(np.float64)
        self._turned = node.op_type == "Gemm" and not attribute(node, "transB", 0)
        if self._turned:
            weight = weight.T
        self._shape = weight.shape
        groups = attribute(node, "group", 1) if node.op_type == "Conv" else 1
        self._weight: Array = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
        self.outputs, self.inputs = weight.shape[0], weight.shape[1] * groups
        self._bias: Array | None = None
        if len(node.input) > 2 and node.input[2]:
            bias = graph.constant(node.input[2]).astype(np.float64)
            self._bias = np.broadcast_to(bias, (*bias.shape[:-1], self.outputs)).copy()

    def output_ranges(self) -> Array:
        """The largest magnitude of each output channel's weights, shape (outputs,)."""
        import numpy as np

        ranges: Array = np.abs(self._weight).max(axis=tuple(range(2, self._weight.ndim))).reshape(-1)
        return ranges

    def input_ranges(self, channels: int) -> Array:
        """The largest magnitude of the weights that read each of `channels`, each as many inputs in a row."""
        import numpy as np

        over = (1, *range(3, self._weight.ndim))
        ranges: Array = np.abs(self._weight).max(axis=over).reshape(channels, -1).max(1)
        return ranges

    def divide_outputs(self, scale: Array) -> None:
        groups, outputs = self._weight.shape[:2]
        self._weight /= scale.reshape(groups, outputs, *(1,) * (self._weight.ndim - 2))
        if self._bias is not None:
            self._bias /= scale

    def multiply_inputs(self, scale: Array) -> None:
        groups, _, inputs = self._weight.shape[:3]
        each = scale.repeat(self.inputs // len(scale))
        self._weight *= each.reshape(groups, 1, inputs, *(1,) * (self._weight.ndim - 3))

    def store(self, graph: Graph) -> None:
        """Give the node new constants."""
        import numpy as np

        weight = self._weight.reshape(self._shape).astype(np.float32)
        weight = np.ascontiguousarray(weight.T) if self._turned else weight
        for index, value in ((1, weight), (2, self._bias)):
            if value is not None:
                name = f"{self.node.input[index]}_equalized"
                self.node.input[index] = graph.add_constant(name, value.astype(np.float32))
