"""What is inside a model while it runs: the tensors that its operators write, one file a format.

Operators are run one by one as the file has them, where the runtime would fuse several into one: fused, what lies
between them is never computed. Integers are told as the real numbers that they stand for, images channels first.

This module knows nothing of what is done with the tensors.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from edgeopt.artifact import TensorSpec

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

TRACERS: dict[str, str] = {
    "onnx": "edgeopt.tracing.onnx",
    "openvino": "edgeopt.tracing.openvino",
    "tflite": "edgeopt.tracing.tflite",
}


@dataclass(frozen=True)
class Operation:
    """An operator, by the tensor that it writes: of several the first.

    `title` is what a person knows it by, `reads` are tensors by name. `passes` says that it has no arithmetic of its
    own: it moves, bounds or rounds what it reads first.
    """

    tensor: str
    operator: str
    title: str
    reads: tuple[str, ...]
    passes: bool


class Trace(Protocol):
    """A model whose inner tensors can be seen. `operations` are in graph order, but for those on constants."""

    inputs: tuple[TensorSpec, ...]
    operations: tuple[Operation, ...]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """What each operation wrote on these inputs, float32, by the tensor's name; only tensors of real numbers."""
        ...


class Tracer(Protocol):
    """The module of a format."""

    def trace(self, main: Path, runtime: Mapping[str, Any], threads: int) -> Trace:
        """The model in the file `main`. Raises what the format's backend raises for a file that it cannot run."""
        ...


def find(format: str) -> Tracer:
    return cast(Tracer, importlib.import_module(TRACERS[format]))


def of_inputs(operations: Iterable[Operation], inputs: Collection[str]) -> tuple[Operation, ...]:
    """Those that depend on an input of the model: the others compute constants."""
    known, kept = set(inputs), []
    for operation in operations:
        if known.intersection(operation.reads):
            known.add(operation.tensor)
            kept.append(operation)
    return tuple(kept)


def real(value: Array) -> bool:
    """Whether an array holds real numbers."""
    return value.dtype.kind == "f" and value.size > 0
