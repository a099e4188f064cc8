"""OpenVINO's Intermediate Representation, with every tensor as a result, in the precision that the artifact asks for.

Tensors have the names that they had in the ONNX file, where the IR was made of one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.backends import openvino as backend
from edgeopt.tracing import Operation, of_inputs, real

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

PASSING = frozenset({
    "Clamp", "Convert", "FakeQuantize", "Gather", "MaxPool", "PRelu", "Pad", "Relu", "Reshape", "Slice", "Split",
    "Squeeze", "StridedSlice", "Transpose", "Unsqueeze", "VariadicSplit",
})  # fmt: skip
_WITHOUT_BIASES = "/WithoutBiases"  # OpenVINO's name of what an ONNX Conv or Gemm does before its bias is added


class OpenVinoTrace:
    """The model with more results, loaded by the backend as any other."""

    def __init__(self, main: Path, runtime: Mapping[str, Any], threads: int) -> None:
        openvino = backend.runtime_module()
        model = openvino.Core().read_model(str(main))
        nodes = [node for node in model.get_ordered_ops() if node.get_type_name() not in ("Result", "Assign")]
        found = [(node, node.output(0)) for node in nodes]
        names = {node.get_friendly_name(): _name(port) for node, port in found}
        self.operations = of_inputs(_operations(found, names), {_name(port) for port in model.inputs})
        given = [_name(port.get_node().input_value(0)) for port in model.outputs]
        shown = {one.tensor: f"tensor-{index}" for index, one in enumerate(self.operations) if one.tensor not in given}
        for _, port in found:
            if (name := shown.get(_name(port))) is not None:
                port.get_tensor().set_names({name})
                model.add_outputs([port])
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.xml"
            openvino.serialize(model, str(file))
            self._session = backend.load(file, runtime, threads)
        own = {tensor: spec.name for tensor, spec in zip(given, self._session.outputs)}
        self._shown = {one.tensor: shown.get(one.tensor) or own[one.tensor] for one in self.operations}
        self.inputs = self._session.inputs

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        import numpy as np

        found = self._session.run(feeds)
        return {tensor: found[name].astype(np.float32) for tensor, name in self._shown.items() if real(found[name])}


def trace(main: Path, runtime: Mapping[str, Any], threads: int) -> OpenVinoTrace:
    return OpenVinoTrace(main, runtime, threads)


def _name(port: Any) -> str:
    """The shortest of a tensor's names; its operator's where it has none."""
    return str(min(port.get_names(), key=lambda name: (len(name), name), default=port.get_node().get_friendly_name()))


def _operations(found: Iterable[tuple[Any, Any]], names: Mapping[str, str]) -> Iterator[Operation]:
    """Nodes with their outputs as operations: a product without its bias is one with the addition of that."""
    products: dict[str, tuple[str, tuple[str, ...]]] = {}
    for node, port in found:
        title, kind, tensor = node.get_friendly_name(), node.get_type_name(), _name(port)
        reads = tuple(names[value.get_source_output().get_node().get_friendly_name()] for value in node.inputs())
        if title.endswith(_WITHOUT_BIASES):
            products[tensor] = kind, reads
            continue
        product = next((name for name in reads if name in products), None)
        if product is not None:
            title = product.removesuffix(_WITHOUT_BIASES)
            kind, reads = products[product]
        yield Operation(tensor, kind, title, reads, kind in PASSING)
