"""TFLite files, run by LiteRT's own kernels without XNNPACK, which keeps no tensor that another follows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.backends import tflite as backend
from edgeopt.formats import tflite as format
from edgeopt.tracing import Operation, of_inputs, real

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

PASSING = frozenset({
    "CAST", "DEQUANTIZE", "EXPAND_DIMS", "GATHER", "MAX_POOL_2D", "PAD", "PADV2", "PRELU", "QUANTIZE", "RELU", "RELU6",
    "RELU_N1_TO_1", "RESHAPE", "SLICE", "SPLIT", "SQUEEZE", "STRIDED_SLICE", "TRANSPOSE",
})  # fmt: skip


class LiteRTTrace:
    """One interpreter that keeps every tensor."""

    def __init__(self, main: Path, threads: int) -> None:
        from ai_edge_litert import interpreter as litert

        model = format.read(main)
        graph = model.subgraphs[0]
        names = [tensor.name.decode(errors="replace") for tensor in graph.tensors]
        often = Counter(names)
        names = [name if often[name] == 1 else f"{name}#{index}" for index, name in enumerate(names)]
        kinds = [format.operator_name(model, operator) for operator in graph.operators]
        operations = [
            Operation(
                tensor=names[operator.outputs[0]],
                operator=kind,
                title=f"{kind} {place}",  # names of tensors in a file are long and say little
                reads=tuple(names[index] for index in operator.inputs if index >= 0),
                passes=kind in PASSING,
            )
            for place, (kind, operator) in enumerate(zip(kinds, graph.operators))
        ]
        self.operations = of_inputs(operations, {names[index] for index in graph.inputs})
        indices = {name: index for index, name in enumerate(names)}
        self._interpreter = litert.Interpreter(
            model_path=str(main),
            num_threads=threads,
            experimental_preserve_all_tensors=True,
            experimental_op_resolver_type=litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
        self._interpreter.allocate_tensors()
        self._session = backend.LiteRTSession(self._interpreter)
        self.inputs = self._session.inputs
        details = {detail["index"]: detail for detail in self._interpreter.get_tensor_details()}
        self._details = {one.tensor: details[indices[one.tensor]] for one in self.operations}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self._session.run(feeds)
        found = {name: self._real(detail) for name, detail in self._details.items()}
        return {name: value for name, value in found.items() if value is not None and real(value)}

    def _real(self, detail: Mapping[str, Any]) -> Array | None:
        """A tensor in real numbers, channels first; None for integers that stand for themselves."""
        import numpy as np

        value: Array = self._interpreter.get_tensor(detail["index"])
        scale, zero_point = detail["quantization"]
        if value.dtype.kind in "iu" and scale:
            value = (value.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)
        elif value.dtype.kind != "f":
            return None
        return np.ascontiguousarray(np.moveaxis(value, -1, 1) if value.ndim == 4 else value, np.float32)


def trace(main: Path, runtime: Mapping[str, Any], threads: int) -> LiteRTTrace:  # noqa: ARG001
    return LiteRTTrace(main, threads)
