"""ONNX files, run by onnxruntime with every tensor as an output. Q/DQ models keep to their Q/DQ."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.backends import onnxruntime as backend
from edgeopt.lowering.graph import reads
from edgeopt.quantization.layers import TRANSPARENT
from edgeopt.tracing import Operation, of_inputs, real

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

PASSING = (TRANSPARENT - {"Concat"}) | {"QuantizeLinear", "DequantizeLinear", "Cast", "LeakyRelu", "PRelu"}
_WEIGHT = ".weight"


class OnnxTrace:
    """One onnxruntime session of the model with more outputs."""

    def __init__(self, model: Any, threads: int) -> None:
        import onnx
        import onnxruntime

        stored = {tensor.name for tensor in model.graph.initializer}
        nodes = [node for node in model.graph.node if node.output and node.output[0]]
        given = {value.name for value in model.graph.input} - stored
        self.operations = of_inputs([_operation(node, stored) for node in nodes], given)
        shown = {value.name for value in model.graph.output}
        added = [one.tensor for one in self.operations if one.tensor not in shown]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in added)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = backend.ERRORS_ONLY
        # Its further fusions lose outputs in their middle.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.add_session_config_entry(*backend.FOLD_WEIGHTS)
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self.inputs = backend.OnnxRuntimeSession(self._session).inputs
        self._names = [one.tensor for one in self.operations]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        import numpy as np

        found = dict(zip(self._names, self._session.run(self._names, dict(feeds)), strict=True))
        return {
            name: value.astype(np.float32)
            for name, value in found.items()
            if isinstance(value, np.ndarray) and real(value)
        }


def trace(main: Path, runtime: Mapping[str, Any], threads: int) -> OnnxTrace:  # noqa: ARG001
    import onnx

    return OnnxTrace(onnx.load(str(main)), threads)


def _operation(node: Any, stored: set[str]) -> Operation:
    """Titled by its weights where they have a name of their own ("stem.conv.weight")."""
    weights = [name.removesuffix(_WEIGHT) for name in node.input if name in stored and name.endswith(_WEIGHT)]
    title = weights[0] if weights else node.name or node.output[0]
    given = dict.fromkeys([*filter(None, node.input), *sorted(reads(node))])  # those of subgraphs last
    return Operation(node.output[0], node.op_type, title, tuple(given), node.op_type in PASSING)
