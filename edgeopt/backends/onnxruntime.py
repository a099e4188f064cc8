"""onnxruntime: runs .onnx files on the CPU, with its own kernels (MLAS).

It knows nothing of how a file was made. Other execution providers are not used: they are other backends.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Tuple

from edgeopt.artifact import Dimension, TensorSpec
from edgeopt.errors import CorruptArtifact, InputError, MissingDependency, StageError, UnsupportedOperator
from edgeopt.text import first_line

if TYPE_CHECKING:
    import numpy as np

    Feeds = Mapping[str, "np.ndarray[Any, Any]"]

FORMAT = "onnx"
DISTRIBUTION = "onnxruntime"
IMPORTS = ("onnxruntime",)

ERRORS_ONLY = 3
FOLD_WEIGHTS = ("session.disable_quant_qdq", "1")  # each DequantizeLinear is an operator like any other, and folded
_MISSING_OPERATOR = (
    re.compile(r"Could not find an implementation for (\w+)\("),
    re.compile(r"No Op registered for (\w+) with domain_version"),
    re.compile(r"Fatal error: ([\w.]*:?\w+)\(-?\d+\) is not a registered function/op"),
)
_DTYPES = {"float": "float32", "double": "float64"}  # where onnxruntime's name of an element type is not numpy's


def load(main: Path, runtime: Mapping[str, Any], threads: int) -> OnnxRuntimeSession:
    """The session of the file `main` with `threads` intra-op threads.

    `runtime` may hold "fold_weights": True, for files whose weights alone are quantized: they are dequantized once, as
    the file is loaded. Left to itself onnxruntime would do so at every run, or quantize activations too.
    """
    try:
        import onnxruntime
    except ImportError as error:
        message = f"the backend onnxruntime cannot be loaded: {error}"
        raise MissingDependency(message, remedy=f"pip install {DISTRIBUTION}") from error
    unknown = sorted(set(runtime) - {"fold_weights"})
    if unknown:
        raise InputError(f"the backend onnxruntime has no runtime setting {', '.join(unknown)}")
    from onnxruntime.capi import onnxruntime_pybind11_state as ort

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = ERRORS_ONLY
    if runtime.get("fold_weights"):
        options.add_session_config_entry(*FOLD_WEIGHTS)
    try:
        session = onnxruntime.InferenceSession(str(main), options, providers=["CPUExecutionProvider"])
    except (ort.NoSuchFile, ort.InvalidProtobuf, ort.InvalidArgument) as error:
        raise CorruptArtifact(f"{main.name} is not an ONNX file: {first_line(error)}") from error
    except (ort.Fail, ort.InvalidGraph, ort.NotImplemented, ort.RuntimeException, RuntimeError) as error:
        raise _refusal(main.name, error) from error
    return OnnxRuntimeSession(session)


class OnnxRuntimeSession:
    """One onnxruntime session. Any batch size will do where the model's is free."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.inputs: Tuple[TensorSpec, ...] = tuple(_spec(given) for given in session.get_inputs())
        self.outputs: Tuple[TensorSpec, ...] = tuple(_spec(given) for given in session.get_outputs())
        self._output_names = [spec.name for spec in self.outputs]

    def run(self, feeds: Feeds) -> Dict[str, np.ndarray[Any, Any]]:
        return dict(zip(self._output_names, self._session.run(self._output_names, dict(feeds))))

    def bind(self, feeds: Feeds) -> Callable[[], object]:
        """I/O binding: inputs lie where the runtime reads them, outputs have memory where their shapes are known."""
        import numpy as np
        import onnxruntime

        binding = self._session.io_binding()
        kept: List[Any] = []  # the binding holds no reference
        for name, value in feeds.items():
            kept.append(onnxruntime.OrtValue.ortvalue_from_numpy(np.asarray(value, order="C")))
            binding.bind_ortvalue_input(name, kept[-1])
        free = self._free_dimensions(feeds)
        for spec in self.outputs:
            shape = [free.get(size) if isinstance(size, str) else size for size in spec.shape]
            if None in shape:
                binding.bind_output(spec.name, "cpu")
            else:
                kept.append(onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, np.dtype(spec.dtype), "cpu"))
                binding.bind_ortvalue_output(spec.name, kept[-1])
        run = self._session.run_with_iobinding

        def call(_kept: object = kept) -> None:
            run(binding)

        return call

    def _free_dimensions(self, feeds: Feeds) -> Dict[str, int]:
        """The names of the model's free dimensions to their sizes in `feeds`."""
        return {
            name: size
            for spec in self.inputs
            for name, size in zip(spec.shape, feeds[spec.name].shape)
            if isinstance(name, str)
        }


def _spec(given: Any) -> TensorSpec:
    element = re.sub(r"^tensor\((\w+)\)$", r"\1", given.type)
    shape: Tuple[Dimension, ...] = tuple(
        size if isinstance(size, (int, str)) and size != "" else ("batch" if axis == 0 else f"{given.name}_axis{axis}")
        for axis, size in enumerate(given.shape)
    )
    return TensorSpec(name=given.name, shape=shape, dtype=_DTYPES.get(element, element))


def _refusal(name: str, error: Exception) -> StageError:
    text = str(error)
    for pattern in _MISSING_OPERATOR:
        found = pattern.search(text)
        if found:
            return UnsupportedOperator(f"{name}: onnxruntime has no operator {found.group(1)}")
    return StageError(f"{name}: onnxruntime cannot load the model: {first_line(error)}")
