"""The operators of a .tflite file as the Edge TPU's rules look at them: types, shapes and options, and no weights.

Small enough to keep as JSON where the model itself is too large.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SMALL = 16  # elements of an integer constant that are kept: axes, paddings, shapes

# What the rules ask for, by the names of the flatbuffer's schema, with what it usually is.
OPTIONS = {"fusedActivationFunction": 0, "dilationHFactor": 1, "dilationWFactor": 1, "weightsFormat": 0, "axis": 0}


@dataclass(frozen=True)
class Tensor:
    """`constant`: known when the model is compiled. `value`: its numbers, of small integer constants alone."""

    dtype: str
    shape: tuple[int, ...]
    constant: bool = False
    value: tuple[int, ...] | None = None

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Operator:
    """One operator. `inputs` and `outputs` are indices of tensors; inputs that are left out are not among them.

    `options` are those of OPTIONS that are not as usual.
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """The main graph: its operators in the order in which they run, and the tensors that they use, by index."""

    operators: tuple[Operator, ...]
    tensors: Mapping[int, Tensor]

    def to_json(self) -> dict[str, Any]:
        return {
            "operators": [[o.name, list(o.inputs), list(o.outputs), dict(o.options)] for o in self.operators],
            "tensors": {
                str(index): [t.dtype, list(t.shape), t.constant, None if t.value is None else list(t.value)]
                for index, t in self.tensors.items()
            },
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Graph:
        return Graph(
            tuple(Operator(name, tuple(i), tuple(o), dict(more)) for name, i, o, more in value["operators"]),
            {
                int(index): Tensor(dtype, tuple(shape), constant, None if numbers is None else tuple(numbers))
                for index, (dtype, shape, constant, numbers) in value["tensors"].items()
            },
        )


def describe(path: Path) -> Graph:
    """The operators of a file. Raises InputError where it is not a TFLite flatbuffer."""
    from edgeopt.formats import tflite

    model = tflite.read(path)
    graph = model.subgraphs[0]
    operators = tuple(
        Operator(tflite.operator_name(model, o), _indices(o.inputs), _indices(o.outputs), _options(o.builtinOptions))
        for o in graph.operators
    )
    used = {index for operator in operators for index in (*operator.inputs, *operator.outputs)}
    return Graph(operators, {index: _tensor(model, graph.tensors[index]) for index in sorted(used)})


def _indices(given: Sequence[int] | None) -> tuple[int, ...]:
    return tuple(int(index) for index in ([] if given is None else given) if index >= 0)


def _options(given: Any) -> dict[str, int]:
    told = {name: getattr(given, name, usual) for name, usual in OPTIONS.items()}
    return {name: int(value) for name, value in told.items() if value != OPTIONS[name]}


def _tensor(model: Any, tensor: Any) -> Tensor:
    import numpy as np

    from edgeopt.formats import tflite

    dtype = tflite.dtype_name(tensor)
    shape = tuple(int(size) for size in ([] if tensor.shape is None else tensor.shape))
    signature = () if tensor.shapeSignature is None else tuple(int(size) for size in tensor.shapeSignature)
    if any(size < 0 for size in signature[1:]):  # a free batch is 1 to the compiler
        shape = signature
    buffer = model.buffers[tensor.buffer]
    data = buffer.data if buffer.data is not None and len(buffer.data) else None
    constant = data is not None or (buffer.size or 0) > 0
    value = None
    if data is not None and dtype in ("int32", "int64") and math.prod(shape) <= SMALL:
        value = tuple(int(number) for number in np.asarray(data, np.uint8).view(dtype))
    return Tensor(dtype, shape, constant, value)
