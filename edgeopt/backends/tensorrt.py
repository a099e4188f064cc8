"""TensorRT: builds engines from ONNX and runs them on an NVIDIA GPU, over what TensorRT 10, 11 and TensorRT-RTX share.

The artifact's file is an engine (.plan), or the ONNX model that one is built from (.onnx) where the device is not the
machine that made it: an engine belongs to one GPU and one version of TensorRT. Building with TensorRT-RTX needs no GPU;
running does, with device memory, streams and events from cuda-python (https://nvidia.github.io/cuda-python/).

Networks are strongly typed: every layer computes in the types that the ONNX says, INT8 where it has Q/DQ. A timed call
copies its input from pinned memory to the GPU, computes, and copies the outputs back. This module knows nothing of how
the ONNX was made.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import tempfile
import warnings
import weakref
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from edgeopt.artifact import Dimension, TensorSpec, canonical_json, sha256_of_file
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

    Array = np.ndarray[Any, Any]
    Feeds = Mapping[str, "np.ndarray[Any, Any]"]

# The modules that bring the API, each with the distributions that may bring the module.
MODULES: Mapping[str, Tuple[str, ...]] = {
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt_rtx": ("tensorrt_rtx",),
    "tensorrt_rtx_bindings": ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings"),
    "tensorrt_bindings": ("tensorrt-cu13-bindings", "tensorrt-cu12-bindings"),
}
RTX = "tensorrt_rtx_bindings"
LIBRARIES: Mapping[str, str] = {  # what bindings need beside them, and do not ask for
    "tensorrt-rtx-cu13-bindings": "tensorrt-rtx-cu13-libs",
    "tensorrt-cu13-bindings": "tensorrt-cu13-libs",
}


def _installed() -> Tuple[str, str]:
    """The first of the modules that is here, with its distribution; else TensorRT-RTX's, which pip can bring."""
    for module, distributions in MODULES.items():
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            continue
        for distribution in distributions:
            try:
                importlib.metadata.version(distribution)
            except importlib.metadata.PackageNotFoundError:
                continue
            return module, distribution
    return RTX, MODULES[RTX][0]


FORMAT = "tensorrt"
MODULE, DISTRIBUTION = _installed()
IMPORTS = (MODULE,)
INSTALL = "pip install tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs cuda-bindings"
DRIVER = "They need an NVIDIA GPU with its driver: run the same command on such a machine."
CUDA = "cuda-bindings"  # the distribution of cuda.bindings.runtime

BUILD = "build"  # the runtime setting of an artifact that is built where it runs
SUFFIX_OF_SOURCES = ".onnx"
COMPATIBILITY: Mapping[str, str] = {"ampere+": "AMPERE_PLUS", "same": "SAME_COMPUTE_CAPABILITY"}
UNSIGNED = "Defaulting to INT8"  # the parser's warning that it takes UINT8 for INT8: another number
NO_PLUGIN = "Plugin not found"  # the parser's word for an operator that nobody brings
_LAYER = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), Inputs: (?P<inputs>.*?)(?:Constants: .*?)?"
                    r"Outputs: (?P<outputs>.*?)(?:TacticName|$)", re.M)  # fmt: skip
_DATATYPE = re.compile(r"Datatype: (\w+)")
WHERE = "GPU"
_CONVERSIONS = ("reformat", "cast", "quantize", "dequantize")
PRECISIONS = {"float": "fp32", "half": "fp16", "bfloat16": "bf16", "int8": "int8", "fp8": "fp8", "int4": "int4"}


@dataclass(frozen=True)
class BuildSettings:
    """How an engine is built.

    `batch` are the least, the best and the largest first dimension where it is free; `shapes` maps inputs with other
    free dimensions to their least, best and largest shapes. `workspace_bytes` limits scratch memory of layers, None is
    the whole device. `tf32` lets fp32 layers round their inputs to 10 bits of mantissa. `level` is the optimization
    level, 0 to 5. `hardware` is None, "ampere+" or "same": the other GPUs that the engine runs on. `capabilities` are
    GPUs by compute capability, "sm86" (TensorRT-RTX alone); none is all that it knows.
    """

    batch: Tuple[int, int, int] = (1, 1, 16)
    shapes: Tuple[Tuple[str, Tuple[Tuple[int, ...], ...]], ...] = ()
    workspace_bytes: Optional[int] = None
    tf32: bool = False
    level: Optional[int] = None
    version_compatible: bool = False
    hardware: Optional[str] = None
    capabilities: Tuple[str, ...] = ()

    def to_json(self) -> Dict[str, Any]:
        found: Dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return found

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> BuildSettings:
        shapes = tuple((name, tuple(tuple(shape) for shape in three)) for name, three in value["shapes"])
        least, best, most = value["batch"]
        return BuildSettings(
            **{
                **value,
                "batch": (least, best, most),
                "shapes": shapes,
                "capabilities": tuple(value["capabilities"]),
            }
        )


@dataclass(frozen=True)
class Engine:
    """A built engine. `layers` are what TensorRT told of it, `notes` its parser's warnings."""

    plan: bytes
    layers: Tuple[Placed, ...]
    notes: Tuple[str, ...]


def runtime_module() -> Any:
    """The module of whichever TensorRT is here. Raises MissingDependency."""
    try:
        return importlib.import_module(MODULE)
    except (ImportError, OSError) as error:
        library = LIBRARIES.get(DISTRIBUTION, DISTRIBUTION)
        message = f"the backend tensorrt cannot be loaded: {first_line(error)}"
        raise MissingDependency(message, remedy=f"pip install {DISTRIBUTION} {library}") from error


def is_rtx(trt: Any) -> bool:
    """Whether this is TensorRT-RTX: its timing cache does nothing, and its engines are finished on the device."""
    return "rtx" in str(trt.__name__)


def cuda() -> Any:
    """cuda.bindings.runtime, where a GPU can be used.

    Raises MissingDependency without cuda-python, NoAccelerator without a driver or a GPU.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise MissingDependency(
            f"running a TensorRT engine needs cuda.bindings: {first_line(error)}", remedy=f"pip install {CUDA}"
        ) from error
    try:
        status, count = runtime.cudaGetDeviceCount()
    except RuntimeError as error:  # its loader, where libcuda.so.1 is not there
        raise NoAccelerator(
            f"TensorRT engines cannot run here: no CUDA driver ({first_line(error)})", remedy=DRIVER
        ) from error
    error_t = runtime.cudaError_t
    if status == error_t.cudaErrorInsufficientDriver:
        _, driver = runtime.cudaDriverGetVersion()
        _, needed = runtime.cudaRuntimeGetVersion()
        what = f"older than CUDA {needed // 1000}.{needed % 1000 // 10}" if driver else "not installed"
        raise NoAccelerator(f"TensorRT engines cannot run here: the CUDA driver is {what}", remedy=DRIVER)
    if status == error_t.cudaErrorNoDevice or (status == error_t.cudaSuccess and not count):
        raise NoAccelerator("TensorRT engines cannot run here: there is no NVIDIA GPU", remedy=DRIVER)
    _check(runtime, status)
    return runtime


def devices() -> Dict[str, List[str]]:
    """The GPUs by name, with their compute capability. Raises what `cuda` raises."""
    runtime = cuda()
    found: Dict[str, List[str]] = {}
    for index in range(_checked(runtime, runtime.cudaGetDeviceCount())):
        properties = _checked(runtime, runtime.cudaGetDeviceProperties(index))
        found[f"{properties.name.decode()} ({index})"] = [f"sm{properties.major}{properties.minor}"]
    return found


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """TensorRT holds a lock while it calls its logger back: a garbage collection just then, which ends another of its
    objects, waits for that lock for ever (seen in TensorRT-RTX 1.7 after a build that had failed)."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_no_collection()
def build(source: Path, settings: BuildSettings, timing_cache: Optional[Path] = None) -> Engine:
    """An engine of an ONNX model.

    The same model, settings and version give the same layers with TensorRT-RTX; the bytes may differ by numbers in the
    names of its inner tensors (seen in one build of six).

    `timing_cache` is a file, there or not, that keeps how fast kernels were, for the next build (not TensorRT-RTX).
    Raises UnsupportedOperator naming node and operator, StageError with what TensorRT says, InputError for settings
    that do not fit the model, CorruptArtifact where the file holds no network.
    """
    trt = runtime_module()
    log = _logger(trt)
    builder = _made(trt, "Builder", log)
    network = builder.create_network(_strongly_typed(trt))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(source)):
        raise _refusal(parser, source.name)
    if not network.num_outputs:
        raise CorruptArtifact(f"{source.name} is not an ONNX model: it has no network")
    notes = tuple(dict.fromkeys(text for severity, text in log.said if severity == "WARNING"))
    if any(UNSIGNED in note for note in notes):
        raise StageError(
            "the model has unsigned quantizers, which TensorRT would take for signed ones: other numbers",
            remedy="Give a model whose quantizers are INT8 with zero point 0.",
        )
    log.said.clear()
    config = _configured(trt, builder, network, settings, log)
    _use_timing_cache(config, timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise StageError(f"TensorRT cannot build an engine of {source.name}: {log.last_error()}")
    _keep_timing_cache(config, timing_cache)
    layers = layers_in(log.layers) or _layers_of_plan(trt, plan, log)
    return Engine(bytes(plan), layers, notes)


def placement(main: Path, runtime: Mapping[str, Any], threads: int, feeds: Feeds) -> Tuple[Placed, ...]:
    """The layers of the engine, from TensorRT's own inspector. Names alone of one that was built to tell no more."""
    return load(main, runtime, threads).layers()


@_no_collection()
def load(main: Path, runtime: Mapping[str, Any], threads: int) -> TensorRtSession:
    """The session of an engine, or of an ONNX model, of which an engine is built first and kept for the next time.

    `runtime` holds "build" for an ONNX model: `BuildSettings` as JSON. `threads` does nothing: the GPU computes.
    """
    unknown = sorted(set(runtime) - {BUILD})
    if unknown:
        raise InputError(f"the backend tensorrt has no runtime setting {', '.join(unknown)}")
    if not main.is_file():
        raise CorruptArtifact(f"{main.name} is not there")
    trt = runtime_module()
    log = _logger(trt)
    if main.suffix == SUFFIX_OF_SOURCES:
        plan = _built_here(main, BuildSettings.from_json(runtime[BUILD])).read_bytes()
    else:
        plan = main.read_bytes()
    runner = _made(trt, "Runtime", log)
    _check_validity(trt, runner, plan, main.name)
    gpu = cuda()
    engine = runner.deserialize_cuda_engine(plan)
    if engine is None:
        raise CorruptArtifact(f"{main.name} is not an engine for this GPU and TensorRT: {log.last_error()}")
    return TensorRtSession(trt, gpu, runner, engine, log)


def smallest(runtime: Mapping[str, Any], threads: int) -> TensorRtSession:
    """The session of one Relu of four floats, its engine built for this GPU."""
    with tempfile.TemporaryDirectory() as folder:
        source, plan = Path(folder) / "relu.onnx", Path(folder) / "relu.plan"
        source.write_bytes(SMALLEST_ONNX)
        plan.write_bytes(build(source, BuildSettings()).plan)
        return load(plan, {}, threads)


class TensorRtSession:
    """One engine. Buffers are made for each set of shapes; the least and largest shapes are those it was built for."""

    def __init__(self, trt: Any, gpu: Any, runner: Any, engine: Any, log: Any) -> None:
        self._trt, self._cuda, self._engine, self._log = trt, gpu, engine, log
        self._runner = runner  # an engine needs its runtime for as long as it lives
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        given = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.inputs: Tuple[TensorSpec, ...] = tuple(self._spec(name) for name in given)
        self.outputs: Tuple[TensorSpec, ...] = tuple(self._spec(name) for name in names if name not in given)
        self._stream = _Stream(gpu)
        self._placed: Dict[Tuple[Tuple[int, ...], ...], _Placed] = {}
        self._bound: Dict[Tuple[Tuple[int, ...], ...], _Bound] = {}

    def run(self, feeds: Feeds) -> Dict[str, Array]:
        """A batch above the largest of the engine is run in pieces."""
        import numpy as np

        check_feeds(feeds, self.inputs)
        pieces = [self._run_piece(piece) for piece in self._pieces(feeds)]
        if len(pieces) == 1:
            return pieces[0]
        return {spec.name: np.concatenate([piece[spec.name] for piece in pieces]) for spec in self.outputs}

    def bind(self, feeds: Feeds) -> _Bound:
        """Inputs in pinned memory. A call copies them to the GPU, computes, copies the outputs back, and waits."""
        check_feeds(feeds, self.inputs)
        return _Bound(self._place(feeds), feeds)

    def stages_ns(self, feeds: Feeds) -> Tuple[int, int, int]:
        """One inference, timed by CUDA events on the GPU: ns to copy the inputs in, to compute, to copy outputs out."""
        return _Bound(self._place(feeds), feeds).timed()

    def layers(self) -> Tuple[Placed, ...]:
        """The layers of the engine, from TensorRT's own inspector. Names alone without detailed profiling verbosity."""
        return _layers_of(self._trt, self._engine)

    def _run_piece(self, feeds: Feeds) -> Dict[str, Array]:
        shapes = _shapes(self.inputs, feeds)
        if shapes not in self._bound:
            self._bound[shapes] = _Bound(self._place(feeds), feeds)
        bound = self._bound[shapes]
        bound.fill(feeds)
        bound()
        return bound.outputs()

    def _pieces(self, feeds: Feeds) -> Iterator[Feeds]:
        free = [spec for spec in self.inputs if spec.shape and not isinstance(spec.shape[0], int)]
        if not free:
            yield feeds
            return
        most = min(self._engine.get_tensor_profile_shape(spec.name, 0)[2][0] for spec in free)
        count = len(feeds[free[0].name])
        names = {spec.name for spec in free}
        for start in range(0, count, most):
            yield {name: value[start : start + most] if name in names else value for name, value in feeds.items()}

    def _place(self, feeds: Feeds) -> _Placed:
        shapes = _shapes(self.inputs, feeds)
        if shapes not in self._placed:
            self._placed[shapes] = _Placed(
                self._cuda, self._engine, self._stream, self.inputs, self.outputs, shapes, self._log
            )
        return self._placed[shapes]

    def _spec(self, name: str) -> TensorSpec:
        engine = self._engine
        if engine.get_tensor_location(name) != self._trt.TensorLocation.DEVICE:
            raise StageError(f"{name} is a shape that the engine reads on the host, which edgeopt does not bind")
        shape: Tuple[Dimension, ...] = tuple(
            size if size >= 0 else "batch" if axis == 0 else f"{name}_axis{axis}"
            for axis, size in enumerate(tuple(engine.get_tensor_shape(name)))
        )
        kind = engine.get_tensor_dtype(name)
        try:
            return TensorSpec(name, shape, _numpy_name(self._trt, kind))
        except TypeError as error:
            raise StageError(f"{name} is {kind.name}, which numpy has no type for") from error


class _Stream:
    """A CUDA stream, for as long as something runs on it."""

    def __init__(self, gpu: Any) -> None:
        self.handle = _checked(gpu, gpu.cudaStreamCreate())
        weakref.finalize(self, gpu.cudaStreamDestroy, self.handle)


class _Placed:
    """Device memory and a context for one set of shapes. All calls of a session wait for their end: they may share."""

    def __init__(
        self,
        gpu: Any,
        engine: Any,
        stream: _Stream,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        shapes: Tuple[Tuple[int, ...], ...],
        log: Any,
    ) -> None:
        import numpy as np

        self.cuda, self.stream, self.engine, self.log = gpu, stream, engine, log
        self.context = engine.create_execution_context()
        if self.context is None:
            raise StageError(f"TensorRT cannot make room for the engine: {log.last_error()}")
        for spec, shape in zip(inputs, shapes):
            if not self.context.set_input_shape(spec.name, shape):
                raise StageError(
                    f"the engine does not take {spec.name} as {list(shape)}: {log.last_error()}",
                    remedy="Build it for that shape: max_batch, or min_shapes, opt_shapes and max_shapes.",
                )
        self.inputs = {spec.name: (shape, np.dtype(spec.dtype)) for spec, shape in zip(inputs, shapes)}
        self.outputs = {
            spec.name: (tuple(self.context.get_tensor_shape(spec.name)), np.dtype(spec.dtype)) for spec in outputs
        }
        self.addresses: Dict[str, int] = {}
        for name, (shape, dtype) in {**self.inputs, **self.outputs}.items():
            if any(size < 0 for size in shape):
                raise StageError(f"the size of output {name} depends on the data, which edgeopt does not bind")
            self.addresses[name] = _checked(gpu, gpu.cudaMalloc(max(1, _bytes(shape, dtype))))
            weakref.finalize(self, gpu.cudaFree, self.addresses[name])
            self.context.set_tensor_address(name, self.addresses[name])


class _Bound:
    """One inference on inputs in pinned memory, its outputs in pinned memory too. Calling it runs it."""

    def __init__(self, placed: _Placed, feeds: Feeds) -> None:
        self._placed = placed
        self.inputs = {name: self._pinned(*what) for name, what in placed.inputs.items()}
        self._outputs = {name: self._pinned(*what) for name, what in placed.outputs.items()}
        kinds, stream = placed.cuda.cudaMemcpyKind, placed.stream.handle
        self._copy, self._stream = placed.cuda.cudaMemcpyAsync, int(stream)
        self._in = [
            (placed.addresses[name], value.ctypes.data, value.nbytes, kinds.cudaMemcpyHostToDevice, stream)
            for name, value in self.inputs.items()
        ]
        self._out = [
            (value.ctypes.data, placed.addresses[name], value.nbytes, kinds.cudaMemcpyDeviceToHost, stream)
            for name, value in self._outputs.items()
        ]
        self.fill(feeds)

    def fill(self, feeds: Feeds) -> None:
        """Put other inputs of the same shapes in place."""
        for name, value in self.inputs.items():
            value[...] = feeds[name]

    def __call__(self) -> None:
        self._copy_in()
        self._compute()
        self._copy_out()
        self._wait()

    def outputs(self) -> Dict[str, Array]:
        return {name: value.copy() for name, value in self._outputs.items()}

    def timed(self) -> Tuple[int, int, int]:
        """One inference, as ns of its three parts. CUDA events have a resolution of about 500 ns."""
        gpu, stream = self._placed.cuda, self._placed.stream.handle
        events = [_checked(gpu, gpu.cudaEventCreate()) for _ in range(4)]
        try:
            for event, part in zip(events, (self._copy_in, self._compute, self._copy_out)):
                _check(gpu, *gpu.cudaEventRecord(event, stream))
                part()
            _check(gpu, *gpu.cudaEventRecord(events[3], stream))
            self._wait()
            milliseconds = [_checked(gpu, gpu.cudaEventElapsedTime(events[i], events[i + 1])) for i in range(3)]
        finally:
            for event in events:
                gpu.cudaEventDestroy(event)
        copy_in, compute, copy_out = (round(value * 1e6) for value in milliseconds)
        return copy_in, compute, copy_out

    def _copy_in(self) -> None:
        for copied in self._in:
            _check(self._placed.cuda, *self._copy(*copied))

    def _compute(self) -> None:
        if not self._placed.context.execute_async_v3(self._stream):
            raise StageError(f"TensorRT cannot run the engine: {self._placed.log.last_error()}")

    def _copy_out(self) -> None:
        for copied in self._out:
            _check(self._placed.cuda, *self._copy(*copied))

    def _wait(self) -> None:
        _check(self._placed.cuda, *self._placed.cuda.cudaStreamSynchronize(self._placed.stream.handle))

    def _pinned(self, shape: Tuple[int, ...], dtype: Any) -> Array:
        """An array in page-locked memory, which the GPU copies without the processor; freed with this object."""
        import numpy as np

        gpu, size = self._placed.cuda, max(1, _bytes(shape, dtype))
        address = _checked(gpu, gpu.cudaMallocHost(size))
        weakref.finalize(self, gpu.cudaFreeHost, address)
        memory = (ctypes.c_byte * size).from_address(int(address))
        array: Array = np.frombuffer(
            memoryview(memory), dtype=dtype, count=size // dtype.itemsize if 0 not in shape else 0
        )
        return array.reshape(shape)


def layers_in(text: str) -> Tuple[Placed, ...]:
    """The layers in the text that a builder logs of the engine it made (verbosity VERBOSE, profiling DETAILED)."""
    found = []
    for match in _LAYER.finditer(text):
        types = _DATATYPE.findall(match["inputs"]) or _DATATYPE.findall(match["outputs"])
        found.append(_layer(match["name"], match["kind"], types[0] if types else ""))
    return tuple(found)


def _layers_of_plan(trt: Any, plan: Any, log: Any) -> Tuple[Placed, ...]:
    """From the inspector, where the builder logs no layers: full TensorRT, which builds only where a GPU is."""
    engine = _made(trt, "Runtime", log).deserialize_cuda_engine(plan)
    return () if engine is None else _layers_of(trt, engine)


def _layers_of(trt: Any, engine: Any) -> Tuple[Placed, ...]:
    told = json.loads(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))
    return tuple(inspected(layer) for layer in told.get("Layers", ()))


def inspected(layer: Any) -> Placed:
    """A layer of the inspector's JSON: a name alone, or an object whose tensors say "Datatype" or "Format/Datatype"."""
    if isinstance(layer, str):
        return _layer(layer, "", "")
    tensors = [*layer.get("Inputs", ()), *layer.get("Outputs", ())]
    told = next((str(t.get("Datatype") or t.get("Format/Datatype", "")) for t in tensors), "")
    return _layer(str(layer.get("Name", "")), str(layer.get("LayerType", "")), told)


def _layer(name: str, kind: str, told: str) -> Placed:
    """A layer after fusion. `told` is the type of its first input, "" where it has none (signals, shapes)."""
    converts = kind.lower() in _CONVERSIONS
    return Placed(kind, WHERE, _precision(told) if told and not converts else None, converts=converts, names=(name,))


def _precision(told: str) -> str:
    """ "Half" and "Row major linear FP16 format" as "fp16"."""
    text = told.lower()
    found = re.search(r"\b(fp32|fp16|bf16|int8|fp8|int4)\b", text)
    return found.group(1) if found else PRECISIONS.get(text, text)


def _logger(trt: Any) -> Any:
    """A logger that keeps warnings, errors and what a builder tells of an engine's layers, and prints nothing."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.said: List[Tuple[str, str]] = []
            self.layers = ""

        def log(self, severity: Any, message: str) -> None:
            if severity.name in ("WARNING", "ERROR", "INTERNAL_ERROR"):
                self.said.append((severity.name, message.strip()))
            elif "LayerType: " in message and message.startswith(("Layers:", "Engine Layer Information")):
                self.layers += message

        def last_error(self) -> str:
            errors = [text for severity, text in self.said if severity != "WARNING"]
            return first_line(errors[-1]) if errors else "it does not say why"

    return Log()


def _made(trt: Any, name: str, *arguments: Any) -> Any:
    """An object of the API; where its constructor gives none, TensorRT found no GPU."""
    try:
        return getattr(trt, name)(*arguments)
    except TypeError as error:
        cuda()
        raise StageError(f"TensorRT cannot make a {name}: {first_line(error)}") from error


def _strongly_typed(trt: Any) -> int:
    """The flag of strongly typed networks; none where the API has no other kind."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _refusal(parser: Any, name: str) -> StageError:
    """The parser's errors as one: the operators that it lacks where that is what they say."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    lacking = [error for error in errors if _is_lacking(error)]
    told = [f"{_place(error)}{first_line(error.desc())}" for error in errors]
    if lacking:
        named = dict.fromkeys(error.node_operator() for error in lacking)
        places = "; ".join(f"{_place(error)}{_reason(error)}" for error in lacking[:3])
        return UnsupportedOperator(f"{name}: TensorRT has no operator {', '.join(named)}: {places}")
    return StageError(f"{name}: TensorRT's parser refuses the model: {'; '.join(told[:3]) or 'it does not say why'}")


def _is_lacking(error: Any) -> bool:
    """Whether TensorRT has no such operator. One of another domain than ONNX's it takes for a plugin's."""
    unsupported = str(error.code()).rpartition(".")[2].startswith("UNSUPPORTED_NODE")
    return unsupported or NO_PLUGIN in str(error.desc())


def _place(error: Any) -> str:
    return f"node {error.node_name() or error.node()} ({error.node_operator()}): " if error.node() >= 0 else ""


def _reason(error: Any) -> str:
    told = first_line(error.desc())
    return "not supported" if told == "false" or NO_PLUGIN in told else told  # the text of the condition that failed


def _configured(trt: Any, builder: Any, network: Any, settings: BuildSettings, log: Any) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if settings.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    if not settings.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if settings.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if settings.level is not None:
        config.builder_optimization_level = settings.level
    if settings.hardware is not None:
        level = getattr(trt.HardwareCompatibilityLevel, COMPATIBILITY[settings.hardware], None)
        if level is None:
            raise StageError(f"this TensorRT ({trt.__version__}) knows no hardware compatibility {settings.hardware}")
        config.hardware_compatibility_level = level
    if settings.capabilities:
        _set_capabilities(trt, config, settings.capabilities)
    _set_profile(builder, config, network, settings)
    refused = [text for severity, text in log.said if severity != "WARNING" or "unsupported" in text.lower()]
    if refused:
        raise StageError(f"TensorRT does not take an option: {first_line(refused[-1])}")
    return config


def _set_capabilities(trt: Any, config: Any, names: Sequence[str]) -> None:
    known = getattr(trt, "ComputeCapability", None)
    if known is None:
        raise StageError("only TensorRT-RTX builds for GPUs by their compute capability: leave out `capabilities`")
    have = [name for name in dir(known) if name.startswith("SM")]
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        if name.upper() not in have:
            raise StageError(
                f"TensorRT-RTX {trt.__version__} builds no engines for {name}: it knows {', '.join(have).lower()}"
            )
        config.set_compute_capability(getattr(known, name.upper()), index)


def _set_profile(builder: Any, config: Any, network: Any, settings: BuildSettings) -> None:
    """One optimization profile: the least, best and largest shape of each input with a free dimension."""
    profile, given, free = builder.create_optimization_profile(), dict(settings.shapes), False
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)
        asked = given.pop(tensor.name, None)
        if -1 not in shape:
            if asked is not None:
                raise InputError(f"{tensor.name} is {list(shape)}: it has no free dimension to give shapes for")
            continue
        free = True
        if asked is None:
            if -1 in shape[1:]:
                raise InputError(
                    f"{tensor.name} has free dimensions besides the batch: {_written(shape)}",
                    remedy=f"Give min_shapes, opt_shapes and max_shapes, such as '{tensor.name}:{_example(shape)}'.",
                )
            asked = tuple((size, *shape[1:]) for size in settings.batch)
        for one in asked:
            if len(one) != len(shape) or any(size not in (-1, wanted) for size, wanted in zip(shape, one)):
                raise InputError(f"{tensor.name} is {_written(shape)}; {_written(one)} does not fit it")
        profile.set_shape(tensor.name, *asked)
    if given:
        raise InputError(f"shapes are given for {', '.join(given)}, which is no input of the model")
    if free and config.add_optimization_profile(profile) < 0:
        raise InputError("TensorRT does not take these least, best and largest shapes")


def _use_timing_cache(config: Any, path: Optional[Path]) -> None:
    if path is None:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TensorRT-RTX has it, and does nothing with it
        cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
        if cache is None or not config.set_timing_cache(cache, False):  # of another version or GPU
            config.set_timing_cache(config.create_timing_cache(b""), False)


def _keep_timing_cache(config: Any, path: Optional[Path]) -> None:
    if path is None:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        cache = config.get_timing_cache()
        if cache is not None:
            _write(path, bytes(cache.serialize()))


def _built_here(main: Path, settings: BuildSettings) -> Path:
    """The engine of an ONNX model for this GPU, from this user's cache folder where it was built before."""
    trt = runtime_module()
    device = json.dumps(sorted(devices()))
    content = canonical_json([sha256_of_file(main), settings.to_json(), str(trt.__version__), device])
    folder = cache_folder()
    path = folder / f"{hashlib.sha256(content.encode()).hexdigest()}.plan"
    if not path.is_file():
        _write(path, build(main, settings, folder / f"timing-{trt.__version__}.cache").plan)
    return path


def cache_folder() -> Path:
    chosen = os.environ.get("EDGEOPT_CACHE")
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeopt"
    return (Path(chosen).expanduser() if chosen else root) / "engines"


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=str(path.parent))
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    Path(partial).replace(path)


def _check_validity(trt: Any, runner: Any, plan: bytes, name: str) -> None:
    """What TensorRT-RTX can tell of an engine without loading it, and without a GPU."""
    if not hasattr(runner, "get_engine_validity"):
        return
    _, found = runner.get_engine_validity(plan)
    reasons = trt.EngineInvalidityDiagnostics
    if found & int(reasons.MALFORMED_ENGINE):
        raise CorruptArtifact(f"{name} is not a TensorRT engine")
    if found & int(reasons.VERSION_MISMATCH):
        raise StageError(f"{name} was built by another version than TensorRT-RTX {trt.__version__}: build it again")
    if found & int(reasons.UNSUPPORTED_CC):
        raise StageError(f"{name} was built for other GPUs than this one: build it again")


def _numpy_name(trt: Any, kind: Any) -> str:
    import numpy as np

    return str(np.dtype(trt.nptype(kind)))


def _shapes(specs: Sequence[TensorSpec], feeds: Feeds) -> Tuple[Tuple[int, ...], ...]:
    return tuple(tuple(feeds[spec.name].shape) for spec in specs)


def _bytes(shape: Sequence[int], dtype: Any) -> int:
    count = int(dtype.itemsize)
    for size in shape:
        count *= size
    return count


def _checked(runtime: Any, result: Tuple[Any, ...]) -> Any:
    """The value of a CUDA call's (status, value). Raises StageError with CUDA's own words."""
    _check(runtime, result[0])
    return result[1]


def _check(runtime: Any, status: Any) -> None:
    if status != runtime.cudaError_t.cudaSuccess:
        _, text = runtime.cudaGetErrorString(status)
        raise StageError(f"CUDA: {text.decode()}")


def _written(shape: Sequence[int]) -> str:
    return "x".join("?" if size < 0 else str(size) for size in shape)


def _example(shape: Sequence[int]) -> str:
    return "x".join("1" if size < 0 else str(size) for size in shape)
