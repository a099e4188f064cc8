"""OpenVINO: runs Intermediate Representation (.xml with .bin), or a compiled model (.blob), on the CPU.

It knows nothing of how a file was made. What the runtime computes in is told by the artifact ({"precision": "bf16"}),
never left to the runtime, whose own default is bf16 on a CPU that has it.
"""

from __future__ import annotations

import functools
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from edgeopt.artifact import Dimension, TensorSpec
from edgeopt.backends import check_feeds
from edgeopt.errors import CorruptArtifact, InputError, MissingDependency, StageError, UnsupportedOperator
from edgeopt.placement import CPU, Placed

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
_TOLD = ("layerType", "runtimePrecision", "primitiveType")  # of an operator of a compiled model
_STARTS, _ENDS = ("Input", "MemoryInput"), ("Output", "MemoryOutput")
_CONVERSIONS = ("Reorder", "Convert", "FakeQuantize")
_COMPUTES = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8", "i32": "int32", "i64": "int64"}
HINTS = {"latency": "LATENCY", "throughput": "THROUGHPUT"}
COMPILED = ".blob"
Shapes = Tuple[Tuple[int, Tuple[int, ...]], ...]  # the index of an input and its shape
_MISSING_OPERATOR = (
    re.compile(r"doesn't contain the operation with type: (\w+)"),
    re.compile(r"Cannot create (\w+) layer"),
    re.compile(r"Unsupported operation of type: (\w+)"),
    re.compile(r"No conversion rule found for operations: ([\w.:, ]+)"),
)
_SMALLEST_IR = b"""<net name="relu" version="11"><layers>
<layer id="0" name="x" type="Parameter" version="opset1"><data shape="4" element_type="f32"/>
<output><port id="0" precision="FP32" names="x"><dim>4</dim></port></output></layer>
<layer id="1" name="y" type="ReLU" version="opset1"><input><port id="0"><dim>4</dim></port></input>
<output><port id="1" precision="FP32" names="y"><dim>4</dim></port></output></layer>
<layer id="2" name="y/out" type="Result" version="opset1"><input><port id="0"><dim>4</dim></port></input></layer>
</layers><edges><edge from-layer="0" from-port="0" to-layer="1" to-port="0"/>
<edge from-layer="1" from-port="1" to-layer="2" to-port="0"/></edges></net>"""


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
    """The session of the file `main` (.xml, its .bin beside it; or .blob) with `threads` threads.

    `runtime` may hold "precision": "f32" (which it is where nothing is said), "bf16" or "f16". Raises StageError where
    the CPU lacks that precision: OpenVINO would quietly compute in another. "dynamic_quantization_group_size" is for
    files whose weights alone are quantized: how many activations share a scale that is found at run time, 0 where
    activations stay as they are (OpenVINO's own default quantizes them). "sparse_weights" is the share of zeros from
    which int8 weights of a matrix product are kept packed in memory (x86 with AMX). "hint" is "latency" (where nothing
    is said) or "throughput", "streams" how many inferences may run side by side and share the threads: one where the
    hint is latency, else as many as OpenVINO chooses.
    """
    _check(runtime)
    if not main.is_file():
        raise CorruptArtifact(f"{main.name} is not there")
    if main.suffix == COMPILED:
        return _imported(main, runtime, threads)
    return _session((str(main),), main.name, runtime, threads)


def smallest(runtime: Mapping[str, Any], threads: int) -> OpenVinoSession:
    """The session of one Relu of four floats, with the same settings."""
    return _session((_SMALLEST_IR, b""), "one Relu", runtime, threads)


def placement(main: Path, runtime: Mapping[str, Any], threads: int, feeds: Feeds) -> Iterator[Placed]:
    """The graph as it was compiled for the shapes of `feeds`, without what hangs on constants alone: that runs once."""
    session = load(main, runtime, threads)
    varying: Set[str] = set()
    for node in session._model(session._shapes(feeds)).get_runtime_model().get_ordered_ops():
        told = {key: str(node.get_rt_info()[key].value) for key in _TOLD if key in node.get_rt_info()}
        kind, name = told.get("layerType", ""), node.get_friendly_name()
        before = [value.get_node().get_friendly_name() for value in node.input_values()]
        if kind in _STARTS or varying.intersection(before):
            varying.add(name)
            if kind not in (*_STARTS, *_ENDS):
                converts = kind in _CONVERSIONS or name.startswith("FakeQuantize")
                yield Placed(
                    kind,
                    CPU,
                    precision=None if converts else _COMPUTES.get(told.get("runtimePrecision", "")),
                    kernel=told.get("primitiveType"),
                    converts=converts,
                    names=(name,),
                )


def _session(model_of: Sequence[Any], name: str, runtime: Mapping[str, Any], threads: int) -> OpenVinoSession:
    """`model_of` is what OpenVINO reads: a path, or the bytes of an IR with those of its weights."""
    openvino = runtime_module()
    core, precision = openvino.Core(), runtime.get("precision", "f32")
    needed, settings = _needed(core, precision), _settings(runtime, threads)
    try:
        model = core.read_model(*model_of)
    except RuntimeError as error:
        corrupt = CorruptArtifact(f"{name} is not an OpenVINO model: {reason(error)}")
        raise refusal(name, error) or corrupt from error

    def compile_for(shapes: Optional[Shapes]) -> Any:
        try:
            fixed = model.clone() if shapes else model
            if shapes:
                fixed.reshape({index: list(shape) for index, shape in shapes})
            compiled = core.compile_model(fixed, DEVICE, settings)
        except RuntimeError as error:
            failure = StageError(f"{name}: OpenVINO cannot compile the model: {reason(error)}")
            raise refusal(name, error) or failure from error
        if needed and compiled.get_property("INFERENCE_PRECISION_HINT") != getattr(openvino.Type, precision):
            raise _lacks(precision)
        return compiled

    return OpenVinoSession(model, compile_for)


def _imported(main: Path, runtime: Mapping[str, Any], threads: int) -> OpenVinoSession:
    """The session of a compiled model, which belongs to one version of OpenVINO and processors like its maker's."""
    core = runtime_module().Core()
    _needed(core, runtime.get("precision", "f32"))
    try:
        compiled = core.import_model(main.read_bytes(), DEVICE, _settings(runtime, threads))
    except RuntimeError as error:
        raise StageError(
            f"{main.name} was compiled by another OpenVINO or is damaged: {reason(error)}",
            remedy="Compile it again on this machine, or leave out `compiled: true`.",
        ) from error
    return OpenVinoSession(compiled, lambda _: compiled)


def exported(ir: Path, runtime: Mapping[str, Any]) -> bytes:
    """What OpenVINO compiled of an IR of static shapes, to be loaded as a .blob."""
    session = load(ir, runtime, 1)
    found: bytes = session._model(None).export_model().getvalue()
    return found


def _check(runtime: Mapping[str, Any]) -> None:
    """Raises InputError for a setting, or a value of one, that there is not."""
    unknown = sorted(set(runtime) - {"precision", DYNAMIC, SPARSE, "hint", "streams"})
    for key, known in (("precision", PRECISIONS), ("hint", HINTS)):
        if runtime.get(key, next(iter(known))) not in known:
            unknown.append(f"{key} {runtime[key]}")
    if unknown:
        raise InputError(f"the backend openvino has no runtime setting {', '.join(unknown)}")


def _needed(core: Any, precision: str) -> Optional[str]:
    """The capability that a precision needs. Raises StageError where the CPU lacks it."""
    needed = PRECISIONS[precision]
    if needed and needed not in core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"):
        raise _lacks(precision)
    return needed


def _settings(runtime: Mapping[str, Any], threads: int) -> Dict[str, Any]:
    """The properties of OpenVINO that the settings stand for."""
    hint = runtime.get("hint", "latency")
    streams = runtime.get("streams") or (1 if hint == "latency" else "AUTO")
    return {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": streams,
        "PERFORMANCE_HINT": HINTS[hint],
        "INFERENCE_PRECISION_HINT": runtime.get("precision", "f32"),
        **({DYNAMIC.upper(): runtime[DYNAMIC]} if DYNAMIC in runtime else {}),
        **({"CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE": runtime[SPARSE]} if SPARSE in runtime else {}),
    }


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

        check_feeds(feeds, self.inputs)
        kept = {name: np.require(value, requirements=["C", "W"]) for name, value in feeds.items()}  # shared memory
        shapes = self._shapes(kept)
        call = OpenVinoCall(self._request(shapes if shapes in self._compiled else None, kept), kept, self.outputs)
        call()
        return call.outputs()

    def bind(self, feeds: Feeds) -> OpenVinoCall:
        """A request of a model compiled for the shapes of `feeds`."""
        check_feeds(feeds, self.inputs)
        kept = {name: value.copy() for name, value in feeds.items()}
        return OpenVinoCall(self._request(self._shapes(kept), kept), kept, self.outputs)

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


class OpenVinoCall:
    """One inference of a request of its own, on inputs that lie in the memory of `inputs`.

    It calls what `openvino.InferRequest.infer` calls, without the wrapper: outputs stay where the runtime puts them.
    """

    def __init__(self, request: Any, inputs: Feeds, outputs: Sequence[TensorSpec]) -> None:
        bound: Any = super(runtime_module().InferRequest, request)
        self._infer = functools.partial(bound.infer, {}, True, False)  # share_outputs, decode_strings
        self._request, self._inputs, self._outputs = request, inputs, outputs

    def fill(self, feeds: Feeds) -> None:
        for name, array in self._inputs.items():
            array[...] = feeds[name]

    def __call__(self) -> None:
        self._infer()

    def outputs(self) -> Dict[str, np.ndarray[Any, Any]]:
        return {spec.name: self._request.get_output_tensor(i).data.copy() for i, spec in enumerate(self._outputs)}


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
