"""The canonical ONNX: what every source becomes before anything is optimized.

One file with the weights inside, functions inlined, shapes inferred, an opset that onnxruntime, OpenVINO and NNCF take
well, a free batch dimension called "batch", and nothing that tells where or when it was made: no paths, stack traces,
doc strings or producers. Equal models give equal bytes.

This module knows nothing of where a model comes from.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.artifact import TensorSpec
from edgeopt.errors import InputError, StageError
from edgeopt.formats import Summary, counting
from edgeopt.samples import Samples, adapt
from edgeopt.stages import Produced
from edgeopt.text import first_line

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    Feeds = Mapping[str, Array]

FILE = "model.onnx"
BATCH = "batch"
OLDEST_OPSET = 17
OLDEST_OPSET_KEPT = 13
NEWEST_OPSET = 21
LARGEST_FILE_BYTES = 1_800_000_000
PAGE_BYTES = 4096  # weights begin at a page's start, so that runtimes can map them
PIECE_BYTES = 1 << 24
TOLERANCE = 1e-3
SAMPLES_CHECKED = 8
SAMPLES = "samples"  # the `where` of errors in the samples: workers do not know which file they come from


def canonical(model: Any, feeds: Feeds | None) -> tuple[Any, list[str]]:
    """A ModelProto in canonical form, and what has to be told about the way there.

    `feeds` holds a few samples by input name, batch first: free dimensions other than the batch become those of the
    samples. Raises StageError where the result is not valid ONNX.
    """
    import onnx

    notes: list[str] = []
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    _without_traces(model)
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model, note = _in_a_common_opset(model)
    notes += [note] if note else []
    _name_nodes(model.graph)
    notes += _free_the_batch_alone(model, feeds)
    del model.graph.value_info[:]
    try:
        inferred = onnx.shape_inference.infer_shapes(counting.without_large_data(model), data_prop=True)
        for field in ("value_info", "output"):
            del getattr(model.graph, field)[:]
            getattr(model.graph, field).extend(getattr(inferred.graph, field))
        if not counting.has_external(model) and model.ByteSize() < LARGEST_FILE_BYTES:
            onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise StageError(f"the model is not valid ONNX: {first_line(error)}") from error
    _settle_outputs(model)
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True)
    return model, notes


def write(model: Any, notes: Sequence[str], check: float | None, out: Path, weights: Path | None = None) -> Produced:
    """Save a canonical model as `out`/model.onnx, with weights beside it where the file would pass 1.8 GB.

    Larger models are checked here, as files, and are not compared with their source. `weights` is the folder of the
    external weights of a model whose weights are not loaded; they are copied, a piece at a time.

    `check` is the greatest absolute difference to the source's own outputs, None where none was computed.
    """
    import onnx

    path = out / FILE
    if weights is not None:
        _gather(model, weights, out / f"{FILE}.data")
        path.write_bytes(model.SerializeToString(deterministic=True))
        onnx.checker.check_model(str(path))
    elif model.ByteSize() < LARGEST_FILE_BYTES:
        path.write_bytes(model.SerializeToString(deterministic=True))
    else:
        onnx.save_model(model, str(path), save_as_external_data=True, location=f"{FILE}.data", size_threshold=256)
        onnx.checker.check_model(str(path))
    inputs = counting.signature(model.graph.input)
    details: dict[str, Any] = {
        "parameters": counting.parameters(model),
        "macs": counting.macs(model),
        "opset": opset_of(model),
        "batch": "free" if inputs and all(spec.shape[:1] == (BATCH,) for spec in inputs) else "static",
        "check": check,
    }
    if notes:
        details["notes"] = list(notes)
    return Produced(
        format="onnx",
        main=FILE,
        inputs=inputs,
        outputs=counting.signature(model.graph.output),
        precision=counting.precision(model) or "fp32",
        details=details,
    )


def _gather(model: Any, folder: Path, out: Path) -> None:
    """Copy the external weights of a model into one file, in the model's order, and point the model to it."""
    with open(out, "wb") as file:
        for tensor in counting.external(model):
            given = {entry.key: entry.value for entry in tensor.external_data}
            offset = -file.tell() % PAGE_BYTES + file.tell()
            file.seek(offset)
            with open(folder / given["location"], "rb") as source:
                source.seek(int(given.get("offset", 0)))
                left = int(given["length"]) if "length" in given else os.fstat(source.fileno()).st_size - source.tell()
                while piece := source.read(min(left, PIECE_BYTES)):
                    file.write(piece)
                    left -= len(piece)
            if left:
                raise InputError(f"its weights in {given['location']!r} end too early", where=FILE)
            del tensor.external_data[:]
            for key, value in (("location", out.name), ("offset", offset), ("length", file.tell() - offset)):
                tensor.external_data.add(key=key, value=str(value))


def kept(told: Summary, main: str, samples: Path | None) -> Produced:
    """What is told of a model that is brought in as it is: the file `main`, in a format of its own runtime.

    Raises InputError where the samples do not fit its inputs.
    """
    if samples is not None:
        try:
            adapt(Samples(samples).batch(0, 1), told.inputs)
        except InputError as error:
            error.where = error.where or SAMPLES
            raise
    details = {"parameters": told.parameters, "macs": told.macs}
    return Produced(told.format, main, told.inputs, told.outputs, told.precision or "fp32", details=details)


def opset_of(model: Any) -> int | None:
    """The version of ONNX's own operator set, None where the model uses others alone."""
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    return int(versions[0]) if versions else None


def run(model: Any, feeds: Feeds) -> dict[str, Array] | None:
    """Outputs of onnxruntime by name, None where it is not installed and for models too large to be handed over.

    A fixed batch is fed piece by piece. Raises StageError where onnxruntime
    does not load or run the model.
    """
    import importlib.util

    if importlib.util.find_spec("onnxruntime") is None or counting.has_external(model):
        return None
    if model.ByteSize() >= LARGEST_FILE_BYTES:
        return None
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        first = session.get_inputs()[0].shape[:1]
        count = min(len(value) for value in feeds.values())
        step = first[0] if first and isinstance(first[0], int) else count
        pieces = [
            session.run(None, {name: value[start : start + step] for name, value in feeds.items()})
            for start in range(0, count - step + 1, step)
        ]
    except Exception as error:  # onnxruntime's errors have no class in common
        raise StageError(f"onnxruntime does not run the model: {first_line(error)}") from error
    names = [value.name for value in session.get_outputs()]
    if not pieces:
        raise StageError(f"the model takes batches of {step}, the samples are {count}")
    return {
        name: np.concatenate([piece[position] for piece in pieces])
        if np.ndim(pieces[0][position])
        else np.asarray(pieces[0][position])
        for position, name in enumerate(names)
    }


def difference(expected: Sequence[Array], found: Sequence[Array]) -> float:
    """The greatest absolute difference between outputs, position by position.

    Raises StageError where it is above 1e-3 of the greatest magnitude of that output, where more than 1e-3 of an
    integer output's elements differ, or where shapes differ.
    """
    import numpy as np

    if len(expected) != len(found):
        raise StageError(f"the export has {len(found)} outputs, the model {len(expected)}")
    greatest = 0.0
    for position, (left, right) in enumerate(zip(expected, found)):
        if left.shape != right.shape:
            raise StageError(
                f"output {position} of the export has the shape {list(right.shape)}, the model's has {list(left.shape)}"
            )
        if not left.size:
            continue
        if left.dtype.kind not in "fc":
            share = float(np.mean(left != right))
            absolute, relative = float(np.max(left != right)), share
        else:
            gap = np.abs(left.astype(np.float64) - right.astype(np.float64))
            same = (left == right) | (np.isnan(left) & np.isnan(right))
            gap = np.where(same, 0.0, gap)
            finite = np.abs(left[np.isfinite(left)])
            absolute = float(np.max(gap))
            relative = absolute / max(float(np.max(finite)) if finite.size else 0.0, 1e-6)
        if not relative <= TOLERANCE:
            raise StageError(
                f"the ONNX export computes something else: output {position} differs by {absolute:.3g}"
                f" ({relative * 100:.2g} % of its range)",
                remedy="A model that is random in eval mode, or that branches on values, cannot be exported.",
            )
        greatest = max(greatest, absolute)
    return greatest


def fit(feeds: Feeds, specs: Sequence[TensorSpec], model: str) -> dict[str, Array]:
    """The samples as the inputs of `model` (a file's name): by name, or by position where no name is the same; cast
    between like kinds.

    Raises InputError with both signatures where number, names, shapes or kinds of types do not fit.
    """
    import numpy as np

    def objection(what: str, remedy: str) -> InputError:
        given = ", ".join(
            f"{name}: {value.dtype}[N, {', '.join(map(str, value.shape[1:]))}]" for name, value in feeds.items()
        )
        message = f"{what}\nsamples: {given}\n{model}: {', '.join(map(str, specs))}"
        return InputError(message, where=SAMPLES, remedy=remedy)

    if len(feeds) != len(specs):
        raise objection(
            f"the samples have {len(feeds)} arrays, the model takes {len(specs)}",
            "Save one array for each input, under its name; class indices are named labels.",
        )
    names = {spec.name for spec in specs}
    if names & set(feeds) and names != set(feeds):
        raise objection(
            f"the samples have no array {sorted(names - set(feeds))[0]!r}", "Name the arrays as the model's inputs."
        )
    fitted = {}
    for position, spec in enumerate(specs):
        value = feeds[spec.name] if spec.name in feeds else list(feeds.values())[position]
        shape = (value.shape[0], *spec.shape[1:])
        if len(value.shape) != len(spec.shape) or any(
            isinstance(wanted, int) and wanted != given for wanted, given in zip(shape, value.shape)
        ):
            raise objection(f"the samples' shape does not fit the input {spec.name!r}", _shape_remedy(value, spec))
        try:
            kind = np.dtype(spec.dtype)
        except TypeError:
            raise objection(
                f"the input {spec.name!r} has the type {spec.dtype}, which samples cannot have",
                "Export the model with inputs of float32 or of whole numbers.",
            ) from None
        if not _alike(kind.kind, value.dtype.kind):
            raise objection(
                f"the samples' type {value.dtype} does not fit the input {spec.name!r}",
                type_remedy(str(value.dtype), spec.dtype),
            )
        fitted[spec.name] = np.ascontiguousarray(value.astype(kind, copy=False))
    return fitted


def type_remedy(given: str, wanted: str) -> str:
    """What to do about samples of the dtype `given` for an input of the dtype `wanted`."""
    if wanted.startswith("float") and "int" in given:
        return (
            "Add `preprocess: {mean: ..., std: ...}` to the recipe, with the numbers that the model was trained with, "
            f"or save the samples as {wanted}."
        )
    return f"Save the samples as {wanted}."


def _shape_remedy(value: Array, spec: TensorSpec) -> str:
    if not spec.shape:
        return "One number for all samples is no input here: make it a constant, or give it the shape [batch, 1]."
    sample, wanted = value.shape[1:], spec.shape[1:]
    if len(sample) == 3 and wanted == (sample[2], *sample[:2]):
        return "Add `preprocess: {transpose: [2, 0, 1]}` to the recipe: the samples have their channels last."
    return f"Save the samples as [N, {', '.join(map(str, wanted))}], the samples along the first axis."


def _alike(left: str, right: str) -> bool:
    """Whether numpy's kinds of two types are the same, signed and unsigned integers taken as one."""
    return left == right or (left in "iu" and right in "iu")


def _without_traces(model: Any) -> None:
    """Take out what tells where and by whom it was made."""
    for name in ("doc_string", "producer_name", "producer_version", "domain", "model_version", "metadata_props"):
        model.ClearField(name)
    for graph in counting.graphs(model.graph):
        graph.name = "model" if graph is model.graph else graph.name
        attributes = [attribute for node in graph.node for attribute in node.attribute]
        tensors = [attribute.t for attribute in attributes if attribute.HasField("t")]
        for item in (graph, *graph.input, *graph.output, *graph.value_info, *graph.initializer, *graph.node, *tensors):
            item.ClearField("doc_string")
            item.ClearField("metadata_props")
        for attribute in attributes:
            attribute.ClearField("doc_string")
    own = [entry for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    used = {node.domain for graph in counting.graphs(model.graph) for node in graph.node}
    others = sorted(
        (entry for entry in model.opset_import if entry.domain in used and entry not in own),
        key=lambda entry: str(entry.domain),
    )
    ordered = [(entry.domain, entry.version) for entry in (*own, *others)]
    del model.opset_import[:]
    for domain, version in ordered:
        entry = model.opset_import.add()
        entry.domain, entry.version = ("" if domain == "ai.onnx" else domain), version


def _name_nodes(graph: Any) -> None:
    """Every node gets a name that no other has: tools that edit graphs find nodes by name."""
    taken: set[str] = set()
    for inner in counting.graphs(graph):
        for node in inner.node:
            name = wanted = node.name or f"{node.op_type}_{len(taken)}"
            copy = 1
            while name in taken:
                copy += 1
                name = f"{wanted}_{copy}"
            taken.add(name)
            node.name = name


def _in_a_common_opset(model: Any) -> tuple[Any, str | None]:
    import onnx

    opset = opset_of(model)
    if opset is None or OLDEST_OPSET <= opset <= NEWEST_OPSET:
        return model, None
    wanted = OLDEST_OPSET if opset < OLDEST_OPSET else NEWEST_OPSET
    try:
        return onnx.version_converter.convert_version(model, wanted), f"converted from opset {opset} to {wanted}"
    except (RuntimeError, ValueError, onnx.version_converter.ConvertError) as error:
        reason = first_line(error)
    if opset < OLDEST_OPSET_KEPT:
        raise StageError(
            f"the model is in opset {opset} and cannot be converted to {wanted}: {reason}",
            remedy=f"Export it again with opset {OLDEST_OPSET} or newer.",
        )
    return model, f"kept in opset {opset}: conversion to {wanted} failed ({reason})"


def _free_the_batch_alone(model: Any, feeds: Feeds | None) -> list[str]:
    """Call the free first dimension "batch"; give every other free dimension of the inputs the samples' size."""
    notes, renamed = [], {}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        for axis, dim in enumerate(dims):
            if dim.HasField("dim_value") and dim.dim_value > 0:
                continue
            if axis == 0:
                if dim.dim_param:
                    renamed[dim.dim_param] = BATCH
                dim.dim_param = BATCH
            elif feeds is not None:
                size = feeds[value.name].shape[axis]
                notes.append(
                    f"input {value.name!r}: the free dimension {dim.dim_param or axis} is {size}, as in the samples"
                )
                dim.dim_value = size
    fixed = any(
        dim.HasField("dim_value") for value in model.graph.input for dim in value.type.tensor_type.shape.dim[:1]
    )
    if fixed and any(
        dim.dim_param == BATCH for value in model.graph.input for dim in value.type.tensor_type.shape.dim[:1]
    ):
        notes.append("some inputs have a free first dimension, others a fixed one")
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                name = renamed.get(dim.dim_param)
                if name:
                    dim.dim_param = name
                else:
                    dim.ClearField("dim_param")
    return notes


def _settle_outputs(model: Any) -> None:
    """A free first dimension of an output is the batch where all inputs have a free one."""
    inputs = [value.type.tensor_type.shape.dim for value in model.graph.input]
    if not inputs or not all(dims and dims[0].dim_param == BATCH for dims in inputs):
        return
    for value in model.graph.output:
        dims = value.type.tensor_type.shape.dim
        if dims and dims[0].dim_value < 1:  # some exporters write -1
            dims[0].dim_param = BATCH
