"""Outputs that mix numbers of unlike ranges, such as a detector's boxes in pixels beside its scores of 0 to 1.

Under one scale the small ones get few of the 256 steps or none: 1.3 dB was seen. So the last quantizers before such an
output are taken off, and what is behind them computes in float. Where heads are joined by a Concat, each head that is a
quantized layer gets a scale of its own before it, so that integer kernels still end in integers, and the Concat is in
float.

Looked at is what reaches an output as it is: through operators that move or join values, and through sums and products
with constants. This module knows nothing of how scales are calibrated elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeopt.lowering.graph import Graph, is_dequantizer
from edgeopt.quantization import execution
from edgeopt.quantization.layers import TRANSPARENT, QuantizedModel

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

UNLIKE = 8.0  # times: the largest range over the smallest
FEWEST_STEPS = 32  # 5 bits, that the smallest part is to have
_WITH_CONSTANT = ("Add", "Sub", "Mul", "Div")


@dataclass(frozen=True)
class Mixed:
    """An output with parts of unlike ranges. `ranges` are the largest and smallest, `concat` the node that joins them,
    None where one tensor has them in its channels. `in_float` are the nodes that were taken out of 8 bits for it."""

    output: str
    ranges: tuple[float, float]
    concat: str | None
    in_float: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "output": self.output,
            "ranges": list(self.ranges),
            "concat": self.concat,
            "in_float": list(self.in_float),
            "told": str(self),
        }

    def __str__(self) -> str:
        large, small = self.ranges
        what = f"output {self.output!r} mixes ranges {large:.4g} and {small:.4g}"
        if not self.in_float:
            return f"{what}: its parts have scales of their own"
        behind = "kept in float behind the concat" if self.concat else f"{', '.join(self.in_float)} kept in float"
        return f"{what}: {behind}"


@dataclass(frozen=True)
class _Way:
    """A tensor that reaches `output` as it is. `reader` is the node that would have to be in float for it to stay so,
    `step` the scale it is quantized with on the way, None where it is not."""

    output: str
    tensor: str
    reader: str
    step: float | None
    concat: Any


def separated(quantized: Any, original: Any, feeds: execution.Batches) -> tuple[Any, tuple[Mixed, ...]]:
    """The quantized model with its mixed outputs in float, itself where there are none, and what was found.

    `feeds` are the calibration samples as the float model `original` takes them.
    """
    ways = _ways(quantized)
    looked_at = {way.tensor for way in ways} | {part for way in ways if way.concat for part in way.concat.input}
    present = {name for node in original.graph.node for name in node.output}
    if not looked_at & present:
        return quantized, ()
    peaks = execution.ranges(original, sorted(looked_at & present), feeds)
    readers: dict[str, list[_Way]] = {}
    found: list[Mixed] = []
    for way in ways:
        if (mixed := _mixed(way, peaks)) is not None:
            found.append(mixed)
            if mixed.in_float:
                readers.setdefault(way.reader, []).append(way)
    if not readers:
        return quantized, tuple(_once(found))
    model = QuantizedModel(quantized, original).with_float(set(readers))
    for node in [node for node in model.graph.node if node.op_type == "Concat"]:
        _own_scales(model, node, peaks)
    return model, tuple(_once(found))


def _ways(model: Any) -> list[_Way]:
    """Everything that reaches an output as it is, and how it is quantized on its way."""
    graph = Graph(model)
    found: list[_Way] = []
    for output in model.graph.output:
        stack: list[tuple[str, str]] = [(output.name, "")]
        seen = set()
        while stack:
            name, reader = stack.pop()
            node = graph.writer(name)
            if node is None or (name, reader) in seen:
                continue
            seen.add((name, reader))
            reader = reader or str(node.name)
            if is_dequantizer(node):
                quantizer = graph.writer(node.input[0])
                scale = graph.constant(node.input[1])
                if quantizer is not None and scale is not None:
                    source = graph.writer(quantizer.input[0])
                    joined = source if source is not None and source.op_type == "Concat" else None
                    found.append(_Way(output.name, quantizer.input[0], reader, float(scale.max()), joined))
                    stack.append((quantizer.input[0], reader))
            elif node.op_type == "Concat":
                found.append(_Way(output.name, name, reader, None, _before_quantizers(graph, node)))
                stack += [(given, reader) for given in node.input]
            elif node.op_type in TRANSPARENT:
                stack.append((node.input[0], reader))
            elif node.op_type in _WITH_CONSTANT:
                computed = [given for given in node.input if not _is_constant(graph, given)]
                if len(computed) == 1:
                    stack.append((computed[0], str(node.name)))
    return found


def _before_quantizers(graph: Graph, node: Any) -> Any:
    """A copy of a Concat that reads what its inputs are before they are quantized."""
    import onnx

    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for index, name in enumerate(node.input):
        writer = graph.writer(name)
        quantizer = graph.writer(writer.input[0]) if is_dequantizer(writer) else None
        if quantizer is not None:
            copy.input[index] = quantizer.input[0]
    return copy


def _is_constant(graph: Graph, name: str) -> bool:
    writer = graph.writer(name)
    return graph.constant(name) is not None or (is_dequantizer(writer) and graph.constant(writer.input[0]) is not None)


def _mixed(way: _Way, peaks: Mapping[str, Array]) -> Mixed | None:
    """What is wrong with a tensor on its way, None where its ranges are alike or its steps fine enough."""
    concat = way.concat
    parts = [float(peaks[name].max()) for name in concat.input if name in peaks] if concat is not None else []
    joined = _unlike(parts)
    channels = _unlike([float(peak) for peak in peaks[way.tensor]]) if way.tensor in peaks else None
    ranges = joined or channels
    if ranges is None:
        return None
    name = str(concat.name) if concat is not None and joined else None
    if way.step is None:
        return Mixed(way.output, joined, name, ()) if joined else None
    few = ranges[1] / way.step < FEWEST_STEPS
    return Mixed(way.output, ranges, name, (way.reader,)) if few else None


def _unlike(ranges: Sequence[float]) -> tuple[float, float] | None:
    """The largest and the smallest range above zero, None where they are alike."""
    some = [peak for peak in ranges if peak > 0]
    return (max(some), min(some)) if some and max(some) > UNLIKE * min(some) else None


def _once(found: Sequence[Mixed]) -> list[Mixed]:
    """One for each output: that for which something was done, where there is one."""
    by_output: dict[str, Mixed] = {}
    for mixed in found:
        known = by_output.get(mixed.output)
        if known is None or (mixed.in_float and not known.in_float):
            by_output[mixed.output] = mixed
        elif known.in_float and mixed.in_float and known.in_float != mixed.in_float:
            both = tuple(dict.fromkeys((*known.in_float, *mixed.in_float)))
            by_output[mixed.output] = Mixed(known.output, known.ranges, known.concat or mixed.concat, both)
        elif known.in_float and known.concat is None and mixed.concat is not None:
            by_output[mixed.output] = Mixed(known.output, known.ranges, mixed.concat, known.in_float)
    return list(by_output.values())


def _own_scales(model: Any, concat: Any, peaks: Mapping[str, Array]) -> None:
    """Quantizers before a Concat in float, a scale for each part that a quantized layer computes."""
    import numpy as np
    from onnx import helper

    graph = Graph(model)
    parts = [float(peaks[name].max()) if name in peaks else 0.0 for name in concat.input]
    if _unlike(parts) is None:
        return
    for index, (name, peak) in enumerate(zip(list(concat.input), parts)):
        layer = graph.writer(name)
        while layer is not None and layer.op_type in TRANSPARENT and layer.op_type != "Concat":
            layer = graph.writer(layer.input[0])
        if layer is None or peak <= 0 or not any(is_dequantizer(graph.writer(given)) for given in layer.input):
            continue
        scale = graph.add_constant(f"{name}_scale", np.float32(peak / 127))
        zero_point = graph.add_constant(f"{name}_zero_point", np.int8(0))
        integers, real = graph.unused(f"{name}_quantized"), graph.unused(f"{name}_dequantized")
        nodes = [
            helper.make_node(
                "QuantizeLinear", [name, scale, zero_point], [integers], graph.unused(f"QuantizeLinear_{name}")
            ),
            helper.make_node(
                "DequantizeLinear", [integers, scale, zero_point], [real], graph.unused(f"DequantizeLinear_{name}")
            ),
        ]
        place = next(i for i, node in enumerate(model.graph.node) if node.name == concat.name)
        for node in reversed(nodes):
            model.graph.node.insert(place, node)
        concat.input[index] = real
