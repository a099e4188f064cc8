"""LiteRT (TensorFlow Lite): runs .tflite files on the CPU, with XNNPACK.

It knows nothing of how a file was made, nor of channels first or last: its inputs are as the file has them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Mapping, Optional, Tuple

from edgeopt.artifact import Dimension, TensorSpec
from edgeopt.errors import CorruptArtifact, InputError, MissingDependency, StageError, UnsupportedOperator
from edgeopt.text import first_line

if TYPE_CHECKING:
    import numpy as np

    Feeds = Mapping[str, "np.ndarray[Any, Any]"]

FORMAT = "tflite"
DISTRIBUTION = "ai-edge-litert"
IMPORTS = ("ai_edge_litert.interpreter",)

DEFAULT_SIGNATURE = "serving_default"
EDGE_TPU = "edgetpu-custom-op"
_UNRESOLVED = (
    re.compile(r"unresolved custom op: ?(\S+?)\.?(?:\s|$)"),
    re.compile(r"\((Flex\w+)\)"),
    re.compile(r"Didn't find op for builtin opcode '(\w+)'"),
)


def load(main: Path, runtime: Mapping[str, Any], threads: int) -> LiteRTSession:
    """The session of the file `main` with `threads` XNNPACK threads. `runtime` must be empty: it has no settings."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise MissingDependency(f"the backend tflite: {error}", remedy=f"pip install {DISTRIBUTION}") from error
    if runtime:
        raise InputError(f"the backend tflite has no runtime setting {', '.join(sorted(runtime))}")
    try:
        interpreter = Interpreter(model_path=str(main), num_threads=threads)
    except ValueError as error:  # the flatbuffer verifier, or a file that cannot be opened
        raise CorruptArtifact(f"{main.name} is not a TFLite file: {first_line(error)}") from error
    try:
        interpreter.allocate_tensors()
    except RuntimeError as error:
        raise _refusal(main.name, error) from error
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
        self._held: Optional[Feeds] = None  # what the interpreter's input tensors hold now

    def run(self, feeds: Feeds) -> Dict[str, np.ndarray[Any, Any]]:
        self._set(feeds)
        self._held = None
        self._interpreter.invoke()
        return {name: self._interpreter.get_tensor(index) for name, index in self._output_indices.items()}

    def bind(self, feeds: Feeds) -> Callable[[], object]:
        """The runtime never reuses the memory of a graph's inputs: they are copied in once, and again only when another
        call has replaced them."""
        kept = {name: value.copy() for name, value in feeds.items()}
        invoke = self._interpreter.invoke
        self._set(kept)

        def call() -> None:
            if self._held is not kept:
                self._set(kept)
            invoke()

        return call

    def _set(self, feeds: Feeds) -> None:
        resized = False
        for name, index in self._input_indices.items():
            if feeds[name].shape != self._shapes[name]:
                self._interpreter.resize_tensor_input(index, feeds[name].shape, strict=True)
                self._shapes[name] = feeds[name].shape
                resized = True
        if resized:
            self._interpreter.allocate_tensors()
        for name, index in self._input_indices.items():
            self._interpreter.set_tensor(index, feeds[name])
        self._held = feeds


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
