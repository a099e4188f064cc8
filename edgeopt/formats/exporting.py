"""From torch to the canonical ONNX: trace once with torch.export, and give that one program to the ONNX exporter.

The program itself is kept as model.pt2, with a batch that is free where the model allows it, because some compilers
start from torch. What it carries of its making (stack traces, paths, the example inputs) is taken out.

This module knows nothing of how a module was loaded.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.errors import StageError
from edgeopt.formats import Progress, canonical, counting
from edgeopt.stages import Produced
from edgeopt.text import named_line

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

PROGRAM = "model.pt2"
TOOLS = ("torch", "onnx", "onnxscript")
PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float64": "fp64", "int8": "int8"}


def trace(module: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, str | None]:
    """Trace a module in eval mode: an ExportedProgram, and why its batch is not free (None where it is).

    The arguments hold samples along their first dimension, which is free and the same for all; where the model does not
    allow that, the batch is fixed at 1.
    Raises StageError where torch.export cannot trace the model at all.
    """
    import torch

    batch = torch.export.Dim("batch")
    free = {
        name: torch.utils._pytree.tree_map(lambda _: {0: batch}, value)
        for name, value in _arguments(module, args, kwargs).items()
    }
    two = tuple(_twice(value) for value in args)
    try:
        with quiet():
            named = {name: _twice(value) for name, value in kwargs.items()}
            program = torch.export.export(module, two, named, dynamic_shapes=free)
        if _keeps_the_batch(program):
            return program, None
        reason = "an output has another first dimension"
    except Exception as error:  # a tracer runs the user's code: it may raise anything
        reason = named_line(error)
    one = tuple(value[:1] for value in args)
    named = {name: value[:1] for name, value in kwargs.items()}
    try:
        with quiet():
            return torch.export.export(module, one, named), reason
    except Exception as error:
        raise StageError(
            f"torch.export cannot trace the model: {named_line(error)}",
            remedy="Branches on the values of tensors, and calls into other libraries, cannot be exported.",
        ) from error


def produce(
    program: Any,
    eager: Callable[[int, int], list[Array]] | None,
    names: Sequence[str],
    output_names: Sequence[str] | None,
    feeds: Mapping[str, Array] | None,
    notes: Sequence[str],
    out: Path,
    progress: Progress,
) -> Produced:
    """Write a traced program as `out`/model.onnx and `out`/model.pt2.

    `names` are those of the program's inputs, in order. `eager(start, stop)` runs the source model on some of `feeds`;
    its outputs are compared with the export's. Raises StageError where the exporter fails or the outputs differ.
    """
    import onnx
    import torch

    progress(0.5, "exporting to ONNX")
    strip(program)
    try:
        with quiet():
            exported = torch.onnx.export(program, dynamo=True, external_data=False, optimize=True, verbose=False)
    except Exception as error:  # the exporter runs hundreds of translations: they may raise anything
        raise StageError(f"torch.onnx cannot export the model: {_root_cause(error)}") from error
    model = onnx.ModelProto()
    model.CopyFrom(exported.model_proto)
    rename(model, names, output_names)
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{index}"
    model, told = canonical.canonical(model, feeds)
    check = None
    if eager is not None and feeds is not None:
        progress(0.8, "comparing with the source")
        check = _check(model, eager, feeds)
    produced = canonical.write(model, [*notes, *told], check, out)
    torch.export.save(program, str(out / PROGRAM))
    return produced


def strip(program: Any) -> None:
    """Take out of a program what tells where it was traced and with which samples: only values and shapes stay."""
    import torch

    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node"):
                    node.meta.pop(key, None)
    if program.example_inputs is not None:
        program.example_inputs = torch.utils._pytree.tree_map_only(
            torch.Tensor, torch.zeros_like, program.example_inputs
        )


def flatten(outputs: Any) -> tuple[list[Any], list[str] | None]:
    """The tensors among a model's outputs, in order, and their names where the model gives them (a dict of tensors)."""
    import torch

    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
    if isinstance(outputs, Mapping) and len(outputs) == len(leaves) and all(isinstance(key, str) for key in outputs):
        return leaves, list(outputs)
    return leaves, None


def _check(model: Any, eager: Callable[[int, int], list[Array]], feeds: Mapping[str, Array]) -> float | None:
    import numpy as np

    found = canonical.run(model, feeds)
    if found is None:
        return None
    count = min(len(value) for value in feeds.values())
    fixed = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value if model.graph.input else 0
    step = fixed or count
    pieces = [eager(start, start + step) for start in range(0, count - step + 1, step)]
    expected = [
        np.concatenate([piece[position] for piece in pieces]) if pieces[0][position].ndim else pieces[0][position]
        for position in range(len(pieces[0]))
    ]
    return canonical.difference(expected, list(found.values()))


def rename(model: Any, inputs: Sequence[str], outputs: Sequence[str] | None) -> None:
    """Give the graph's inputs and outputs their names, everywhere."""
    if outputs is None or len(outputs) != len(model.graph.output):
        count = len(model.graph.output)
        outputs = ["output"] if count == 1 else [f"output_{index}" for index in range(count)]
    wanted = {value.name: name for value, name in zip(model.graph.input, inputs)}
    for value, name in zip(model.graph.output, outputs):
        wanted[value.name] = name if name not in inputs else f"{name}_out"
    taken = set(wanted.values())
    values = {name for node in model.graph.node for name in (*node.input, *node.output)}
    values |= {tensor.name for tensor in model.graph.initializer}
    for name in sorted((values & taken) - set(wanted)):
        wanted[name] = f"{name}_inner"

    for graph in counting.graphs(model.graph):
        for node in graph.node:
            node.input[:] = [wanted.get(name, name) for name in node.input]
            node.output[:] = [wanted.get(name, name) for name in node.output]
        for item in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
            item.name = wanted.get(item.name, item.name)


def _twice(samples: Any) -> Any:
    """Two samples: torch.export takes a dimension of 1 for a fixed one."""
    import torch

    return torch.cat([samples, samples])[:2]


def _keeps_the_batch(program: Any) -> bool:
    """Whether every output has the free first dimension of the inputs: then a batch is so many independent samples."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    signature = program.graph_signature
    first = {str(values[name].shape[:1]) for name in signature.user_inputs}
    last = {str(values[name].shape[:1]) for name in signature.user_outputs if hasattr(values.get(name), "shape")}
    return last <= first


def _arguments(module: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    import inspect

    return dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """torch's own deprecation warnings about torch's own code are not the user's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return named_line(error)
