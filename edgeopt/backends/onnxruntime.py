"""onnxruntime: runs .onnx files on the CPU, with its own kernels (MLAS), or by another execution provider.

A provider that is asked for and is not there is an error: onnxruntime itself would quietly take the CPU. It knows
nothing of how a file was made, nor which operators a provider leaves to the CPU: `placement` tells.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

from edgeopt.artifact import Dimension, TensorSpec
from edgeopt.backends import SMALLEST_ONNX, check_feeds
from edgeopt.errors import (
    CorruptArtifact,
    InputError,
    MissingDependency,
    NoAccelerator,
    StageError,
    UnsupportedOperator,
)
from edgeopt.placement import Placed
from edgeopt.text import first_line

if TYPE_CHECKING:
    import numpy as np

    Feeds = Mapping[str, "np.ndarray[Any, Any]"]

FORMAT = "onnx"
DISTRIBUTION = "onnxruntime"
IMPORTS = ("onnxruntime",)

ERRORS_ONLY = 3
FOLD_WEIGHTS = ("session.disable_quant_qdq", "1")  # each DequantizeLinear is an operator like any other, and folded
PROVIDERS: Mapping[str, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "nnapi": "NNAPIExecutionProvider",
    "directml": "DmlExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
}
OTHERS = "Install a build of onnxruntime that brings it (onnxruntime-gpu, -qnn, -openvino, -directml), and its driver."
_MISSING_OPERATOR = (
    re.compile(r"Could not find an implementation for (\w+)\("),
    re.compile(r"No Op registered for (\w+) with domain_version"),
    re.compile(r"Fatal error: ([\w.]*:?\w+)\(-?\d+\) is not a registered function/op"),
)
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast", "ReorderInput", "ReorderOutput")
_PACKED = ("MatMulNBits", "MatMulBnb4", "GatherBlockQuantized")  # weights of 4 bits in bytes: no type tells the rest
_EIGHT_BITS = ("int8", "uint8")
_REAL = {"float": "fp32", "double": "fp64", "float16": "fp16", "bfloat16": "bf16"}
_DTYPES = {"float": "float32", "double": "float64"}  # where onnxruntime's name of an element type is not numpy's


def load(main: Path, runtime: Mapping[str, Any], threads: int) -> OnnxRuntimeSession:
    """The session of the file `main` with `threads` intra-op threads.

    `runtime` may hold "fold_weights": True, for files whose weights alone are quantized: they are dequantized once, as
    the file is loaded. Left to itself onnxruntime would do so at every run, or quantize activations too. "provider" is
    the execution provider, one of `PROVIDERS`, "cpu" where nothing is said, "provider_options" its own options
    ({"device_id": "0"}). "spinning": False lets idle threads sleep at once, for a slower answer from a freer processor.

    Raises NoAccelerator where onnxruntime has no such provider, or it cannot be started.
    """
    return _session(str(main), main.name, runtime, threads)


def smallest(runtime: Mapping[str, Any], threads: int) -> OnnxRuntimeSession:
    """The session of one Relu of four floats, with the same settings."""
    return _session(SMALLEST_ONNX, "one Relu", runtime, threads)


def placement(main: Path, runtime: Mapping[str, Any], threads: int, feeds: Feeds) -> Iterator[Placed]:
    """What onnxruntime's own profile tells of one inference: every kernel that ran, with the types of its inputs.

    An operator that touches 8-bit numbers is said to compute in int8, and another in the type of its first input of
    real numbers.
    """
    with tempfile.TemporaryDirectory(prefix="edgeopt-profile-") as folder:
        session = _session(str(main), main.name, runtime, threads, profile=f"{folder}/profile")
        session.run(feeds)
        events = json.loads(Path(session._session.end_profiling()).read_text())
    seen = set()
    for event in events:
        told = event.get("args", {})
        key = (event.get("name"), told.get("node_index"))
        if event.get("cat") == "Node" and "provider" in told and key not in seen:
            seen.add(key)  # the nodes of a loop's body run again and again
            operator = str(told["op_name"])
            types = [name for given in told.get("input_type_shape", ()) for name in given]
            yield Placed(
                operator,
                where=str(told["provider"]).replace("ExecutionProvider", ""),
                precision=None if operator in (*_CONVERSIONS, *_PACKED) else _precision(types),
                converts=operator in _CONVERSIONS,
                names=(str(event["name"]).replace("_kernel_time", ""),),
            )


def _precision(types: Sequence[str]) -> Optional[str]:
    if any(name in _EIGHT_BITS for name in types):
        return "int8"
    return next((_REAL[name] for name in types if name in _REAL), types[0] if types else None)


def _session(
    model: Union[str, bytes], name: str, runtime: Mapping[str, Any], threads: int, profile: Optional[str] = None
) -> OnnxRuntimeSession:
    """`profile` is how the name of the file starts that a profile is written to."""
    try:
        import onnxruntime
    except ImportError as error:
        message = f"the backend onnxruntime cannot be loaded: {error}"
        raise MissingDependency(message, remedy=f"pip install {DISTRIBUTION}") from error
    unknown = sorted(set(runtime) - {"fold_weights", "provider", "provider_options", "spinning"})
    provider = runtime.get("provider", "cpu")
    if unknown or provider not in PROVIDERS:
        raise InputError(f"the backend onnxruntime has no runtime setting {', '.join(unknown) or provider}")
    from onnxruntime.capi import onnxruntime_pybind11_state as ort

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = ERRORS_ONLY
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    if not runtime.get("spinning", True):
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if runtime.get("fold_weights"):
        options.add_session_config_entry(*FOLD_WEIGHTS)
    try:
        given = _providers(onnxruntime, provider, runtime)
        session = onnxruntime.InferenceSession(model, options, providers=given, enable_fallback=0)
    except (ort.NoSuchFile, ort.InvalidProtobuf, ort.InvalidArgument) as error:
        raise CorruptArtifact(f"{name} is not an ONNX file: {first_line(error)}") from error
    except (ort.Fail, ort.InvalidGraph, ort.NotImplemented, ort.RuntimeException, RuntimeError) as error:
        raise _refusal(name, error) from error
    if session.get_providers()[0] != PROVIDERS[provider]:
        raise NoAccelerator(f"onnxruntime's {PROVIDERS[provider]} cannot be started here: see the log", remedy=OTHERS)
    return OnnxRuntimeSession(session)


def _providers(onnxruntime: Any, provider: str, runtime: Mapping[str, Any]) -> List[Any]:
    """The provider, and the CPU for what it leaves. Raises NoAccelerator where this onnxruntime lacks it."""
    name, available = PROVIDERS[provider], onnxruntime.get_available_providers()
    if name not in available:
        have = ", ".join(known.replace("ExecutionProvider", "") for known in available)
        raise NoAccelerator(f"this onnxruntime has no {name}: it has {have}", remedy=OTHERS)
    asked = (name, dict(runtime.get("provider_options", {})))
    return [asked] if provider == "cpu" else [asked, "CPUExecutionProvider"]


class OnnxRuntimeSession:
    """One onnxruntime session. Any batch size will do where the model's is free."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.inputs: Tuple[TensorSpec, ...] = tuple(_spec(given) for given in session.get_inputs())
        self.outputs: Tuple[TensorSpec, ...] = tuple(_spec(given) for given in session.get_outputs())
        self._output_names = [spec.name for spec in self.outputs]

    def run(self, feeds: Feeds) -> Dict[str, np.ndarray[Any, Any]]:
        check_feeds(feeds, self.inputs)
        return dict(zip(self._output_names, self._session.run(self._output_names, dict(feeds))))

    def bind(self, feeds: Feeds) -> OnnxRuntimeCall:
        check_feeds(feeds, self.inputs)
        return OnnxRuntimeCall(self._session, self.inputs, self.outputs, feeds)


class OnnxRuntimeCall:
    """One inference by I/O binding: the runtime reads the inputs where they lie, and outputs of known shape have memory
    of their own."""

    def __init__(self, session: Any, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], feeds: Feeds) -> None:
        import numpy as np
        import onnxruntime

        self._run, self._binding = session.run_with_iobinding, session.io_binding()
        self._inputs = {spec.name: np.array(feeds[spec.name], order="C") for spec in inputs}
        values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in self._inputs.items()}
        for name, value in values.items():
            self._binding.bind_ortvalue_input(name, value)
        sizes = _free_dimensions(inputs, feeds)
        self._kept = list(values.values())  # the binding holds no reference
        self._output_names = [spec.name for spec in outputs]
        for spec in outputs:
            shape = [sizes.get(size) if isinstance(size, str) else size for size in spec.shape]
            if None in shape:
                self._binding.bind_output(spec.name, "cpu")
            else:
                value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, np.dtype(spec.dtype), "cpu")
                self._kept.append(value)
                self._binding.bind_ortvalue_output(spec.name, value)

    def fill(self, feeds: Feeds) -> None:
        for name, array in self._inputs.items():
            array[...] = feeds[name]

    def __call__(self) -> None:
        self._run(self._binding)

    def outputs(self) -> Dict[str, np.ndarray[Any, Any]]:
        return dict(zip(self._output_names, self._binding.copy_outputs_to_cpu()))


def _free_dimensions(inputs: Sequence[TensorSpec], feeds: Feeds) -> Dict[str, int]:
    """The names of the model's free dimensions to their sizes in `feeds`."""
    return {
        name: size for spec in inputs for name, size in zip(spec.shape, feeds[spec.name].shape) if isinstance(name, str)
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
