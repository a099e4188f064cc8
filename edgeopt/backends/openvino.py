"""OpenVINO: runs Intermediate Representation (.xml with .bin) on the CPU.

It knows nothing of how a file was made. What the runtime computes in is told by the artifact ({"precision": "bf16"}),
never left to the runtime, whose own default is bf16 on a CPU that has it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from edgeopt.artifact import Dimension, TensorSpec
from edgeopt.errors import CorruptArtifact, InputError, MissingDependency, StageError, UnsupportedOperator

if TYPE_CHECKING:
    import numpy as np

    Feeds = Mapping[str, "np.ndarray[Any, Any]"]

FORMAT = "openvino"
DISTRIBUTION = "openvino"
IMPORTS = ("openvino",)

DEVICE = "CPU"
DYNAMIC = "dynamic_quantization_group_size"
SPARSE = "sparse_weights"
PRECISIONS = {"f32": None, "bf16": "BF16", "f16": "FP16"}  # to the capability that the device must have
Shapes = Tuple[Tuple[int, Tuple[int, ...]], ...]  # the index of an input and its shape
_MISSING_OPERATOR = (
    re.compile(r"doesn't contain the operation with type: (\w+)"),
    re.compile(r"Cannot create (\w+) layer"),
    re.compile(r"Unsupported operation of type: (\w+)"),
    re.compile(r"No conversion rule found for operations: ([\w.:, ]+)"),
)


def runtime_module() -> Any:
    """The module openvino, without its telemetry, which starts processes. Raises MissingDependency."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # its import fails: they allow that
    try:
        import openvino
    except ImportError as error:
        message = f"the backend openvino cannot be loaded: {error}"
        raise MissingDependency(message, remedy=f"pip install {DISTRIBUTION}") from error
    return openvino


def load(main: Path, runtime: Mapping[str, Any], threads: int) -> OpenVinoSession:
    """The session of the file `main` (.xml, its .bin beside it) with `threads` threads in one stream.

    `runtime` may hold "precision": "f32" (which it is where nothing is said), "bf16" or "f16". Raises StageError where
    the CPU lacks that precision: OpenVINO would quietly compute in another. "dynamic_quantization_group_size" is for
    files whose weights alone are quantized: how many activations share a scale that is found at run time, 0 where
    activations stay as they are (OpenVINO's own default quantizes them). "sparse_weights" is the share of zeros from
    which int8 weights of a matrix product are kept packed in memory (x86 with AMX).
    """
    openvino = runtime_module()
    unknown = sorted(set(runtime) - {"precision", DYNAMIC, SPARSE})
    precision = runtime.get("precision", "f32")
    if unknown or precision not in PRECISIONS:
        raise InputError(f"the backend openvino has no runtime setting {', '.join(unknown) or precision}")
    if not main.is_file():
        raise CorruptArtifact(f"{main.name} is not there")
    core = openvino.Core()
    needed = PRECISIONS[precision]
    if needed and needed not in core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"):
        raise _lacks(precision)
    try:
        model = core.read_model(str(main))
    except RuntimeError as error:
        corrupt = CorruptArtifact(f"{main.name} is not an OpenVINO model: {reason(error)}")
        raise refusal(main.name, error) or corrupt from error
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
        **({DYNAMIC.upper(): runtime[DYNAMIC]} if DYNAMIC in runtime else {}),
        **({"CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE": runtime[SPARSE]} if SPARSE in runtime else {}),
    }

    def compile_for(shapes: Optional[Shapes]) -> Any:
        try:
            fixed = model.clone() if shapes else model
            if shapes:
                fixed.reshape({index: list(shape) for index, shape in shapes})
            compiled = core.compile_model(fixed, DEVICE, settings)
        except RuntimeError as error:
            failure = StageError(f"{main.name}: OpenVINO cannot compile the model: {reason(error)}")
            raise refusal(main.name, error) or failure from error
        if needed and compiled.get_property("INFERENCE_PRECISION_HINT") != getattr(openvino.Type, precision):
            raise _lacks(precision)
        return compiled

    return OpenVinoSession(model, compile_for)


class OpenVinoSession:
    """One model, compiled for fixed shapes where it can be: batch 1 when it is loaded, others when they are bound.

    A model of free shape is slower (INT8 of a small network by 15 %), so what is timed is compiled for the very shapes
    of its feeds. `run` compiles once for all other shapes.
    """

    def __init__(self, model: Any, compile_for: Callable[[Optional[Shapes]], Any]) -> None:
        self.inputs: Tuple[TensorSpec, ...] = tuple(_spec(port, f"input{i}") for i, port in enumerate(model.inputs))
        self.outputs: Tuple[TensorSpec, ...] = tuple(_spec(port, f"output{i}") for i, port in enumerate(model.outputs))
        self._compile_for = compile_for
        self._compiled: Dict[Optional[Shapes], Any] = {}
        self._fixed = all(isinstance(size, int) for spec in self.inputs for size in spec.shape)
        self._model(None if self._fixed else _batch_of_one(self.inputs))

    def run(self, feeds: Feeds) -> Dict[str, np.ndarray[Any, Any]]:
        import numpy as np

        kept = {name: np.require(value, requirements=["C", "W"]) for name, value in feeds.items()}  # shared memory
        shapes = self._shapes(kept)
        request = self._request(shapes if shapes in self._compiled else None, kept)
        request.infer()
        return {spec.name: request.get_output_tensor(i).data.copy() for i, spec in enumerate(self.outputs)}

    def bind(self, feeds: Feeds) -> Callable[[], object]:
        """A request of its own on the feeds' memory, of a model compiled for their shapes."""
        kept = {name: value.copy() for name, value in feeds.items()}
        request = self._request(self._shapes(kept), kept)

        def call(_kept: object = kept) -> None:  # the tensors share memory with the arrays, which must live
            request.infer()

        return call

    def _shapes(self, feeds: Feeds) -> Optional[Shapes]:
        if self._fixed:
            return None
        return tuple((index, feeds[spec.name].shape) for index, spec in enumerate(self.inputs) if spec.shape)

    def _model(self, shapes: Optional[Shapes]) -> Any:
        if shapes not in self._compiled:
            self._compiled[shapes] = self._compile_for(shapes)
        return self._compiled[shapes]

    def _request(self, shapes: Optional[Shapes], feeds: Feeds) -> Any:
        tensor = runtime_module().Tensor
        request = self._model(shapes).create_infer_request()
        for index, spec in enumerate(self.inputs):
            request.set_input_tensor(index, tensor(feeds[spec.name], shared_memory=True))
        return request


def _batch_of_one(inputs: Sequence[TensorSpec]) -> Optional[Shapes]:
    """The inputs' shapes with 1 for the first dimension, None where another dimension is free too."""
    shapes: List[Tuple[int, Tuple[int, ...]]] = []
    for index, spec in enumerate(inputs):
        sizes = tuple(size for size in spec.shape[1:] if isinstance(size, int))
        if len(sizes) != len(spec.shape[1:]):
            return None
        if spec.shape:
            shapes.append((index, (1, *sizes)))
    return tuple(shapes)


def refusal(name: str, error: BaseException) -> Optional[UnsupportedOperator]:
    """The error that names an operator which OpenVINO lacks, None where the failure is another."""
    for pattern in _MISSING_OPERATOR:
        found = pattern.search(str(error))
        if found:
            return UnsupportedOperator(f"{name}: OpenVINO has no operator {found.group(1)}")
    return None


def _spec(port: Any, unnamed: str) -> TensorSpec:
    names = sorted(port.get_names(), key=lambda name: ("/sink_port_" in name, len(name), name))
    shape: Tuple[Dimension, ...] = tuple(
        size.get_length() if size.is_static else ("batch" if axis == 0 else f"axis{axis}")
        for axis, size in enumerate(port.get_partial_shape())
    )
    name = names[0] if names else unnamed
    return TensorSpec(name=name, shape=shape, dtype=port.get_element_type().to_dtype().name)


def _lacks(precision: str) -> StageError:
    return StageError(f"this CPU has no {precision} arithmetic", remedy="Leave this precision out for this target.")


def reason(error: BaseException) -> str:
    """The last line of OpenVINO's message that says something: those before it are places in its own source."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(("Exception from", "Check "))]
    return (told or lines or [type(error).__name__])[-1][:300]
