"""SmoothQuant: outlier channels of what a linear layer reads are moved into its weights, before quantizing.

Channel j of the input is divided by s_j = max|x_j| ** alpha / max|w_j| ** (1 - alpha), and row j of the weights is
multiplied by it: the same function, with activations that one scale fits better. NNCF finds the scales and puts a
multiplication before the layers. After a LayerNormalization that nothing else reads it is folded into its scale and
bias, and costs nothing. Elsewhere, where it would have to be computed each time, it is taken back, as in the paper.

Source: Xiao et al. 2022, https://arxiv.org/abs/2211.10438. It knows nothing of which alpha is good.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from edgeopt.lowering.graph import Graph, attribute, drop_unused

ADDED = "/nncf_smooth_quant"  # the end of the names that NNCF gives to its multiplications


@dataclass(frozen=True)
class Smoothed:
    """How many inputs of layers were smoothed, and before how many a multiplication had to stay."""

    folded: int
    multiplied: int


def smooth(model: Any, feeds: Iterable[Any], count: int, alpha: float) -> tuple[Any, Smoothed]:
    """A smoothed float model from one whose nodes have names; `feeds` gives `count` samples, each as {input: array}.

    Raises what NNCF and onnxruntime raise.
    """
    import nncf
    from nncf.onnx.graph.passes import apply_preprocess_passes
    from nncf.quantization.algorithms.pipeline import Pipeline
    from nncf.quantization.algorithms.smooth_quant.algorithm import SmoothQuant

    algorithm = SmoothQuant(count, inplace_statistics=False, alpha_map={"convolution": -1, "matmul": alpha})
    smoothed = Pipeline([[algorithm]]).run(apply_preprocess_passes(model), nncf.Dataset(feeds))
    return smoothed, fold(smoothed)


def fold(model: Any) -> Smoothed:
    """Fold NNCF's multiplications into the normalizations before them, in place, or take them back."""
    graph = Graph(model)
    added = [node for node in graph.nodes("Mul") if node.name.endswith(ADDED)]
    done = [_fold(graph, node) or (None if _take_back(graph, node) else False) for node in added]
    drop_unused(model)
    return Smoothed(done.count(True), done.count(False))


def _fold(graph: Graph, node: Any) -> bool:
    norm, factor = graph.writer(node.input[0]), graph.constant(node.input[1]).reshape(-1)
    if norm is None or norm.op_type != "LayerNormalization" or len(graph.readers(node.input[0])) != 1:
        return False
    constants = [_constant(graph, name) for name in norm.input[1:]]
    if graph.is_output(node.input[0]) or any(c is None or c.shape != factor.shape for c in constants):
        return False
    for index, constant in enumerate(constants, start=1):
        norm.input[index] = graph.add_constant(f"{norm.input[index]}_smoothed", constant * factor)
    graph.bypass(node)
    return True


def _constant(graph: Graph, name: str) -> Any:
    """A constant, through the Identity nodes by which exporters let equal constants share one."""
    while (writer := graph.writer(name)) is not None and writer.op_type == "Identity":
        name = writer.input[0]
    return graph.constant(name)


def _take_back(graph: Graph, node: Any) -> bool:
    """Multiply the weights of the layers that read a multiplication instead, where they are (inputs, outputs)."""
    factor = graph.constant(node.input[1]).reshape(-1)
    layers = graph.readers(node.output[0])
    weights = [graph.constant(layer.input[1]) for layer in layers]
    for layer, weight in zip(layers, weights):
        plain = layer.op_type == "MatMul" or (
            layer.op_type == "Gemm" and not attribute(layer, "transA", 0) and not attribute(layer, "transB", 0)
        )
        if not plain or weight is None or weight.ndim != 2 or weight.shape[0] != len(factor):
            return False
    for layer, weight in zip(layers, weights):
        layer.input[1] = graph.add_constant(f"{layer.input[1]}_restored", weight * factor[:, None])
    graph.bypass(node)
    return True
