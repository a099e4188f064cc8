"""From a TensorFlow function to the canonical ONNX: the variables frozen, the graph converted by tf2onnx.

tf2onnx folds batch norms and takes out the transposes that channels last would cost: a convolutional network keeps one
at its input. The result is compared with what TensorFlow computes on the samples.

This module knows nothing of how a function was loaded.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt import backends
from edgeopt.artifact import TensorSpec
from edgeopt.errors import InputError, StageError, UnsupportedOperator
from edgeopt.formats import Progress, canonical, counting, exporting, require
from edgeopt.samples import Samples
from edgeopt.stages import Produced
from edgeopt.text import named_line

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    Function = Callable[..., Sequence[Any]]

DISTRIBUTIONS = ("tensorflow", "tensorflow-cpu", "tensorflow-intel")  # any one of them brings the library
OPSET = 17
_COUNTER = re.compile(r"__\d+")


def tools() -> Sequence[str]:
    """The distributions whose versions change the result, the TensorFlow that is installed among them."""
    installed = [name for name in DISTRIBUTIONS if backends.version(name) is not None]
    return (*(installed[:1] or DISTRIBUTIONS[:1]), "tf2onnx", "onnx")


def load() -> Any:
    """TensorFlow, without the lines that it prints when it is imported."""
    require("tensorflow", "tf2onnx", "onnx", extra="tensorflow", purpose="reading a TensorFlow or Keras model")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with quiet():
        import tensorflow
    return tensorflow


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the deprecation warnings of TensorFlow, Keras and tf2onnx about code of their own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def produce(
    function: Function,
    specs: Sequence[TensorSpec],
    outputs: Sequence[str],
    samples: Path | None,
    name: str,
    out: Path,
    progress: Progress,
) -> Produced:
    """Write `out`/model.onnx of a function from tensors, in the order of `specs`, to a sequence of tensors.

    `name` is the source's, for errors. Raises UnsupportedOperator naming what ONNX lacks, StageError where the
    conversion fails or computes something else.
    """
    feeds = None
    if samples is not None:
        data = Samples(samples)
        feeds = canonical.fit(data.batch(0, min(len(data), canonical.SAMPLES_CHECKED)), specs, name)
        specs = [_settled(spec, feeds[spec.name].shape) for spec in specs]
    notes: list[str] = []
    expected = None
    progress(0.3, "converting to ONNX")
    model = to_model(function, specs, outputs)
    if feeds is not None:  # run only now: every operator has proved to be one that ONNX has, so none touches a file
        progress(0.6, "running the source model")
        count = min(len(value) for value in feeds.values())
        expected = run(function, specs, list(feeds.values()), count)
        if count > 1 and all(spec.shape[:1] == (canonical.BATCH,) for spec in specs) and _mixes(expected, count):
            notes.append("the batch is fixed at 1: an output has another first dimension")
            specs = [TensorSpec(spec.name, (1, *spec.shape[1:]), spec.dtype) for spec in specs]
            model = to_model(function, specs, outputs)
            expected = run(function, specs, list(feeds.values()), count)
    model, told = canonical.canonical(model, feeds)
    check = None
    if expected is not None and feeds is not None:
        progress(0.8, "comparing with the source")
        found = canonical.run(model, feeds)
        check = canonical.difference(expected, list(found.values())) if found is not None else None
    return canonical.write(model, [*notes, *told], check, out)


def to_model(function: Function, specs: Sequence[TensorSpec], outputs: Sequence[str]) -> Any:
    """The ModelProto, its inputs and outputs named as told. Raises UnsupportedOperator or StageError."""
    import onnx
    import tensorflow
    import tf2onnx

    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)
    _teach_erfc()
    wanted = [
        tensorflow.TensorSpec(
            [size if isinstance(size, int) else None for size in spec.shape], spec.dtype, f"input_{i}"
        )
        for i, spec in enumerate(specs)
    ]
    traced = tensorflow.function(lambda *tensors: list(function(*tensors)), autograph=False)
    try:
        with quiet():
            model = tf2onnx.convert.from_function(traced, input_signature=wanted, opset=OPSET)[0]
    except Exception as error:  # a converter runs hundreds of translations: they may raise anything
        raise StageError(f"tf2onnx cannot convert the model: {named_line(error)}") from error
    missing = Counter(
        node.op_type
        for graph in counting.graphs(model.graph)
        for node in graph.node
        if not onnx.defs.has(node.op_type, node.domain)
    )
    if missing:
        listed = ", ".join(f"{kind} ({count})" for kind, count in missing.most_common())
        raise UnsupportedOperator(
            f"ONNX lacks operators of this TensorFlow model: {listed}",
            remedy="Export the part of the model before them, and compute the rest where its outputs are read.",
        )
    if len(model.graph.input) != len(specs):
        used = {value.name for value in model.graph.input}
        unused = [spec.name for i, spec in enumerate(specs) if f"input_{i}" not in {u.partition(":")[0] for u in used}]
        raise StageError(f"the model does not use its input {', '.join(unused)}")
    order = {f"input_{i}": i for i in range(len(specs))}
    given = [_copy(v) for v in sorted(model.graph.input, key=lambda value: order[value.name.partition(":")[0]])]
    del model.graph.input[:]
    model.graph.input.extend(given)
    _settle_names(model)
    exporting.rename(model, [spec.name for spec in specs], outputs)
    free = all(spec.shape[:1] == (canonical.BATCH,) for spec in specs)
    for value in (*model.graph.input, *model.graph.output):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_param:
                dim.dim_param = canonical.BATCH if axis == 0 and free else ""
    return model


@functools.cache
def _teach_erfc() -> None:
    """erfc(x) = 1 - erf(x), which Keras's gelu is made of and tf2onnx 1.17 lacks."""
    import numpy as np
    from tf2onnx.handler import tf_op

    class Erfc:
        @classmethod
        def version_9(cls, ctx: Any, node: Any, **_: Any) -> None:
            dtypes, shapes, output, given = node.output_dtypes, node.output_shapes, node.output[0], node.input[0]
            ctx.remove_node(node.name)
            erf = ctx.make_node("Erf", [given], dtypes=dtypes, shapes=shapes, op_name_scope=node.name)
            one = ctx.make_const(f"{node.name}/one", np.ones((), ctx_dtype(ctx, given)))
            ctx.make_node(
                "Sub", [one.output[0], erf.output[0]], outputs=[output], dtypes=dtypes, shapes=shapes, name=node.name
            )

    def ctx_dtype(ctx: Any, name: str) -> Any:
        import onnx

        return onnx.helper.tensor_dtype_to_np_dtype(ctx.get_dtype(name))

    tf_op("Erfc")(Erfc)


def _settle_names(model: Any) -> None:
    """Name and order what tf2onnx names by counters of the process and merges in the order of hashes.

    Constants are called after the first node that reads them; counters in other names count anew in the graph's order.
    """
    numbers: dict[str, str] = {}

    def settled(name: str) -> str:
        return _COUNTER.sub(lambda found: numbers.setdefault(found.group(), f"__{len(numbers)}"), name)

    stored = {tensor.name for graph in counting.graphs(model.graph) for tensor in graph.initializer}
    named: dict[str, str] = {}
    for graph in counting.graphs(model.graph):
        for node in graph.node:
            node.name = settled(node.name)
            for position, name in enumerate(node.input):
                if name in stored:
                    named.setdefault(name, f"{node.name}/constant_{position}")
    order = {name: place for place, name in enumerate(named)}
    for graph in counting.graphs(model.graph):
        kept = list(map(_copy, sorted(graph.initializer, key=lambda tensor: order.get(tensor.name, -1))))
        del graph.initializer[:]
        graph.initializer.extend(kept)
        for node in graph.node:
            node.input[:] = [named.get(name) or settled(name) for name in node.input]
            node.output[:] = map(settled, node.output)
        for item in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
            item.name = named.get(item.name) or settled(item.name)


def _copy(message: Any) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def run(function: Function, specs: Sequence[TensorSpec], feeds: Sequence[Array], count: int) -> list[Array]:
    """The outputs of the source for `count` samples; a fixed batch is fed piece by piece."""
    import numpy as np
    import tensorflow

    first = specs[0].shape[:1] if specs else ()
    step = first[0] if first and isinstance(first[0], int) else count
    pieces = []
    try:
        with quiet():
            for start in range(0, count - step + 1, step):
                tensors = [tensorflow.constant(value[start : start + step]) for value in feeds]
                pieces.append([np.asarray(value) for value in function(*tensors)])
    except (tensorflow.errors.OpError, ValueError, TypeError) as error:
        raise StageError(f"TensorFlow does not run the model: {named_line(error)}") from error
    if not pieces:
        raise InputError(f"the model takes batches of {step}, the samples are {count}", where=canonical.SAMPLES)
    return [
        np.concatenate([piece[i] for piece in pieces]) if pieces[0][i].ndim else pieces[0][i]
        for i in range(len(pieces[0]))
    ]


def specs_of(names: Sequence[str], tensors: Sequence[Any], name: str) -> tuple[TensorSpec, ...]:
    """Signatures of symbolic tensors. Raises InputError for what is not a dense tensor of numbers."""
    specs = []
    for own, tensor in zip(names, tensors):
        dtype = getattr(tensor.dtype, "name", tensor.dtype)
        if tensor.shape is None or getattr(tensor.shape, "rank", 0) is None or dtype == "string":
            kind = "text" if dtype == "string" else "of free rank"
            raise InputError(
                f"the input {own!r} is {kind}: it must be numbers in a shape",
                where=name,
                remedy="Export the part of the model that takes tensors.",
            )
        sizes = list(tensor.shape)
        shape = tuple(
            int(size) if size is not None else canonical.BATCH if axis == 0 else f"dim_{axis}"
            for axis, size in enumerate(sizes)
        )
        specs.append(TensorSpec(own, shape, str(dtype)))
    return tuple(specs)


def _settled(spec: TensorSpec, sample: Sequence[int]) -> TensorSpec:
    """Free dimensions other than the batch as the samples have them."""
    shape = tuple(
        size if isinstance(size, int) or axis == 0 else int(sample[axis]) for axis, size in enumerate(spec.shape)
    )
    return TensorSpec(spec.name, shape, spec.dtype)


def _mixes(outputs: Sequence[Array], count: int) -> bool:
    return any(value.shape[:1] != (count,) for value in outputs)
