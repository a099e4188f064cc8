"""LiteRT (TensorFlow Lite): runs .tflite files on the CPU, with XNNPACK.

It knows nothing of how a file was made, nor of channels first or last: its inputs are as the file has them.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from edgeopt.artifact import Dimension, TensorSpec
from edgeopt.backends import check_feeds
from edgeopt.errors import CorruptArtifact, InputError, MissingDependency, StageError, UnsupportedOperator
from edgeopt.placement import CPU, Placed
from edgeopt.text import first_line

if TYPE_CHECKING:
    import numpy as np

    Feeds = Mapping[str, "np.ndarray[Any, Any]"]

FORMAT = "tflite"
DISTRIBUTION = "ai-edge-litert"
IMPORTS = ("ai_edge_litert.interpreter",)

DEFAULT_SIGNATURE = "serving_default"
EDGE_TPU = "edgetpu-custom-op"
DELEGATE = "DELEGATE"
_CONVERSIONS = ("QUANTIZE", "DEQUANTIZE", "CAST")
_REAL = {"float32": "fp32", "float64": "fp64", "float16": "fp16"}
_UNRESOLVED = (
    re.compile(r"unresolved custom op: ?(\S+?)\.?(?:\s|$)"),
    re.compile(r"\((Flex\w+)\)"),
    re.compile(r"Didn't find op for builtin opcode '(\w+)'"),
)
_SMALLEST = (  # a file of one RELU of four floats
    "7ytkOR7OlQ000gE6aWwa3;+lK000C44gdfE5C8xG8~^|S&;S4c0{{R30RR912mk;81ONm81ONa40RR915C8xG3;+}W5C9AS2mk~C3;+NC5C8xG"
    "JOBUyKmY&$L;wH)0RR915C8xG000UA3;+NC2mk~C3IG5A2mk;83;+NC0RR910RR910RR91000000RR910RR910RR91000000ssI2FaQ7m1ONa4"
    "<p2Nw2mk;83;+NC0RR91c>n+a0RR911ONa43;+xO2mk;8000C43;+NC2mk;83;+NC0RR91cmMzZ0RR911ONa40RR915C8xG3;+xO3jhEB000C4"
    "3;+NC6951J0000J"
)


def load(main: Path, runtime: Mapping[str, Any], threads: int) -> LiteRTSession:
    """The session of the file `main` with `threads` threads. `runtime` may hold "xnnpack": False, for LiteRT's own
    kernels in place of XNNPACK's."""
    return _session({"model_path": str(main)}, main.name, runtime, threads)


def smallest(runtime: Mapping[str, Any], threads: int) -> LiteRTSession:
    """The session of one Relu of four floats, with the same settings."""
    return _session({"model_content": base64.b85decode(_SMALLEST)}, "one Relu", runtime, threads)


def placement(main: Path, runtime: Mapping[str, Any], threads: int, feeds: Feeds) -> Iterator[Placed]:
    """The operators of the file, and which of them the XNNPACK delegate took."""
    session = load(main, runtime, threads)
    session.run(feeds)
    return placed_in(session._interpreter)


def placed_in(interpreter: Any) -> Iterator[Placed]:
    """The operators of an interpreter. One whose weights are of 8 bits computes in them, whether its activations are of
    8 bits or are quantized as it runs."""
    tensors = {detail["index"]: detail for detail in interpreter.get_tensor_details()}
    operators = interpreter._get_ops_details()
    delegates = [operator for operator in operators if operator["op_name"] == DELEGATE]
    own = [operator for operator in operators if operator["op_name"] != DELEGATE]
    taken = _taken(own, delegates)
    for operator in own:
        known = [tensors[index] for index in (*operator["inputs"], *operator["outputs"]) if index in tensors]
        converts = operator["op_name"] in _CONVERSIONS
        yield Placed(
            operator["op_name"],
            CPU,
            precision=None if converts else _precision([detail["dtype"].__name__ for detail in known]),
            kernel="XNNPACK" if operator["index"] in taken else None,
            converts=converts,
            reason=None if operator["index"] in taken else "not taken by XNNPACK",
            names=tuple(_short(tensors[index]["name"]) for index in operator["outputs"][:1] if index in tensors),
        )


def _short(tensor: str) -> str:
    """The name of a tensor without the path to the module that it came of, and without what was fused into it."""
    return tensor.partition(";;")[0].rpartition("/")[2]


def _taken(operators: Sequence[Mapping[str, Any]], delegates: Sequence[Mapping[str, Any]]) -> Set[int]:
    """The operators that run inside delegates: on the ways from a delegate's inputs to its outputs.

    The interpreter goes on listing what it handed over, and appends an operator for each part that was.
    """
    maker = {index: operator for operator in operators for index in operator["outputs"]}
    taken: Set[int] = set()
    for delegate in delegates:
        given = set(delegate["inputs"])
        waiting: List[int] = list(delegate["outputs"])
        while waiting:
            index = waiting.pop()
            operator = maker.get(index)
            if operator is not None and index not in given and operator["index"] not in taken:
                taken.add(operator["index"])
                waiting.extend(operator["inputs"])
    return taken


def _precision(types: Sequence[str]) -> Optional[str]:
    if "int8" in types or "uint8" in types:
        return "int8"
    return next((_REAL[name] for name in types if name in _REAL), types[0] if types else None)


def _session(model: Mapping[str, Any], name: str, runtime: Mapping[str, Any], threads: int) -> LiteRTSession:
    """`model` is the interpreter's argument that says where the model is."""
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError as error:
        raise MissingDependency(f"the backend tflite: {error}", remedy=f"pip install {DISTRIBUTION}") from error
    unknown = sorted(set(runtime) - {"xnnpack"})
    if unknown:
        raise InputError(f"the backend tflite has no runtime setting {', '.join(unknown)}")
    kernels = OpResolverType.AUTO if runtime.get("xnnpack", True) else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        interpreter = Interpreter(**model, num_threads=threads, experimental_op_resolver_type=kernels)
    except ValueError as error:  # the flatbuffer verifier, or a file that cannot be opened
        raise CorruptArtifact(f"{name} is not a TFLite file: {first_line(error)}") from error
    try:
        interpreter.allocate_tensors()
    except RuntimeError as error:
        raise _refusal(name, error) from error
    return LiteRTSession(interpreter)


class LiteRTSession:
    """One interpreter. Inputs of free shape are resized to what is fed."""

    def __init__(self, interpreter: Any) -> None:
        self._interpreter = interpreter
        inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
        input_names, output_names = _signature_names(interpreter)
        self.inputs: Tuple[TensorSpec, ...] = tuple(_spec(detail, input_names) for detail in inputs)
        self.outputs: Tuple[TensorSpec, ...] = tuple(_spec(detail, output_names) for detail in outputs)
        self._input_indices = {spec.name: detail["index"] for spec, detail in zip(self.inputs, inputs)}
        self._output_indices = {spec.name: detail["index"] for spec, detail in zip(self.outputs, outputs)}
        self._shapes = {spec.name: tuple(detail["shape"]) for spec, detail in zip(self.inputs, inputs)}

    def run(self, feeds: Feeds) -> Dict[str, np.ndarray[Any, Any]]:
        check_feeds(feeds, self.inputs)
        self._resize(feeds)
        self._fill(feeds)
        self._interpreter.invoke()
        return self._read()

    def bind(self, feeds: Feeds) -> LiteRTCall:
        """A call on the interpreter's own input tensors, sized for these feeds."""
        check_feeds(feeds, self.inputs)
        self._resize(feeds)
        self._fill(feeds)
        return LiteRTCall(self._interpreter.invoke, self._fill, self._read)

    def _resize(self, feeds: Feeds) -> None:
        resized = False
        for name, index in self._input_indices.items():
            if feeds[name].shape != self._shapes[name]:
                self._interpreter.resize_tensor_input(index, feeds[name].shape, strict=True)
                self._shapes[name] = feeds[name].shape
                resized = True
        if resized:
            self._interpreter.allocate_tensors()

    def _fill(self, feeds: Feeds) -> None:
        for name, index in self._input_indices.items():
            self._interpreter.set_tensor(index, feeds[name])

    def _read(self) -> Dict[str, np.ndarray[Any, Any]]:
        return {name: self._interpreter.get_tensor(index) for name, index in self._output_indices.items()}


class LiteRTCall:
    """One inference. The runtime never reuses the memory of a graph's inputs: what was filled in stays.

    LiteRT's newer CompiledModel runs the same kernels, and its call takes longer: 1.4 us against 0.4 us.
    """

    def __init__(
        self,
        invoke: Callable[[], None],
        fill: Callable[[Feeds], None],
        outputs: Callable[[], Dict[str, np.ndarray[Any, Any]]],
    ) -> None:
        self._invoke, self.fill, self.outputs = invoke, fill, outputs

    def __call__(self) -> None:
        self._invoke()


def _signature_names(interpreter: Any) -> Tuple[Dict[int, str], Dict[int, str]]:
    """Tensor indices of inputs and of outputs to their names in the signature, empty where the file has none."""
    signatures = interpreter.get_signature_list()
    if not signatures:
        return {}, {}
    key = DEFAULT_SIGNATURE if DEFAULT_SIGNATURE in signatures else next(iter(signatures))
    runner = interpreter.get_signature_runner(key)
    inputs, outputs = runner.get_input_details(), runner.get_output_details()
    return (
        {detail["index"]: name for name, detail in inputs.items()},
        {detail["index"]: name for name, detail in outputs.items()},
    )


def _spec(detail: Mapping[str, Any], names: Mapping[int, str]) -> TensorSpec:
    import numpy as np

    dtype = np.dtype(detail["dtype"])
    scale, zero_point = detail["quantization"]
    quantized = dtype.kind in "iu" and scale != 0
    given = detail.get("shape_signature")
    signature = detail["shape"] if given is None or len(given) == 0 else given
    shape: Tuple[Dimension, ...] = tuple(
        int(size) if size >= 0 else ("batch" if axis == 0 else f"axis{axis}") for axis, size in enumerate(signature)
    )
    return TensorSpec(
        name=names.get(detail["index"], detail["name"]),
        shape=shape,
        dtype=dtype.name,
        scale=float(scale) if quantized else None,
        zero_point=int(zero_point) if quantized else None,
    )


def _refusal(name: str, error: RuntimeError) -> StageError:
    text = str(error)
    for pattern in _UNRESOLVED:
        found = pattern.search(text)
        if found and found.group(1) == EDGE_TPU:
            return UnsupportedOperator(
                f"{name} is compiled for the Edge TPU ({EDGE_TPU}), and LiteRT alone does not run it",
                remedy="Run it with the backend edgetpu, where there is one, or give the .tflite file it was made of.",
            )
        if found:
            return UnsupportedOperator(f"{name}: LiteRT has no operator {found.group(1)}")
    return StageError(f"{name}: LiteRT cannot prepare the model: {first_line(error)}")
