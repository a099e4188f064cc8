"""ONNX files: read with care, brought into canonical form, inspected.

External weights must lie in the model's own folder: a file from a stranger may name any path. Opset 11 and newer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from edgeopt.errors import InputError, StageError
from edgeopt.formats import Imported, ModelRef, Progress, Summary, canonical, counting, require
from edgeopt.samples import Samples

SMALL = 256  # elements of a tensor that is loaded even where a model's weights are not


def tools() -> Sequence[str]:
    return ("onnx",)


def to_onnx(ref: ModelRef, samples: Path | None, out: Path, progress: Progress) -> Imported:
    """The canonical form of an ONNX file, compared in onnxruntime with the file itself where there are samples."""
    path = Path(ref.model)
    progress(0.0, "reading the ONNX file")
    model = read(path)
    inputs = counting.signature(_inputs(model))
    external = tuple(sorted({(path.parent / _location(tensor)).resolve() for tensor in counting.external(model)}))
    feeds = None
    if samples is not None:
        data = Samples(samples)
        feeds = canonical.fit(data.batch(0, min(len(data), canonical.SAMPLES_CHECKED)), inputs, path.name)
    size = sum(file.stat().st_size for file in (path, *external))
    large = bool(external) and size >= canonical.LARGEST_FILE_BYTES
    if large:
        _load_weights(model, path, most=SMALL)
    else:
        _load_weights(model, path)
    expected, notes = None, ["too large to be compared with its source"] if large else []
    if feeds is not None and not large:
        progress(0.3, "running the source model")
        try:
            expected = canonical.run(model, feeds)
            if expected is not None and _mixes_samples(model, feeds, expected):
                notes.append("the batch is fixed at 1: an output has another first dimension")
                _fix_batch(model)
                expected = canonical.run(model, feeds)
        except StageError as error:
            notes.append(error.message)
    progress(0.6, "bringing it into canonical form")
    model, told = canonical.canonical(model, feeds)
    check = None
    if expected is not None and feeds is not None:
        found = canonical.run(model, feeds) or {}
        check = canonical.difference(list(expected.values()), list(found.values()))
    weights = path.parent if large else None
    return Imported(canonical.write(model, [*notes, *told], check, out, weights), sources=external)


def inspect(ref: ModelRef, example: Path | None) -> Summary:
    """What the file says, without running it. `example` gives the sizes of free dimensions, for counting."""
    path = Path(ref.model)
    model = read(path)
    external = {path.parent / _location(tensor) for tensor in counting.external(model)}
    shapes = {}
    if example is not None:
        data = Samples(example)
        inputs = counting.signature(_inputs(model))
        shapes = {name: value.shape for name, value in canonical.fit(data.batch(0, 1), inputs, path.name).items()}
    return Summary(
        format="onnx",
        inputs=counting.signature(_inputs(model)),
        outputs=counting.signature(model.graph.output),
        parameters=counting.parameters(model),
        macs=counting.macs(model, shapes),
        operators=counting.operators(model),
        precision=counting.precision(model),
        size_bytes=path.stat().st_size + sum(file.stat().st_size for file in external),
        provenance=_provenance(model),
    )


def read(path: Path) -> Any:
    """The ModelProto, external weights found but not loaded. Raises InputError where the file is not an ONNX model."""
    require("onnx", extra="onnx", purpose="reading an ONNX model")
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model(str(path), format="protobuf", load_external_data=False)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except DecodeError:
        model = onnx.ModelProto()
    if not model.ir_version or not model.opset_import or not model.graph.output:
        raise InputError(f"{path.name}: not an ONNX model", remedy="Give a file written by an ONNX exporter.")
    for tensor in counting.external(model):
        _check_location(path, _location(tensor))
    return model


def _load_weights(model: Any, path: Path, most: int | None = None) -> None:
    """Load external tensors, those of at most `most` elements where that is given: axes and shapes decide the graph."""
    import onnx

    chosen = [tensor for tensor in counting.external(model) if most is None or math.prod(tensor.dims) <= most]
    try:
        for tensor in chosen:
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise InputError(f"its external weights cannot be read: {error}", where=path.name) from error


def _location(tensor: Any) -> str:
    return next((str(entry.value) for entry in tensor.external_data if entry.key == "location"), "")


def _check_location(path: Path, location: str) -> None:
    folder = path.parent.resolve()
    relative = PurePosixPath(location.replace("\\", "/"))
    if (
        not location
        or relative.is_absolute()
        or ".." in relative.parts
        or not (folder / relative).resolve().is_relative_to(folder)
    ):
        raise InputError(
            f"its weights are said to be in {location!r}, outside the model's folder",
            where=path.name,
            remedy="Save the model with its weights inside, or beside it.",
        )
    if not (folder / relative).is_file():
        raise InputError(
            f"its weights are in {location!r}, which is missing",
            where=path.name,
            remedy="Put the file beside the model.",
        )


def _inputs(model: Any) -> list[Any]:
    stored = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in stored]


def _mixes_samples(model: Any, feeds: canonical.Feeds, outputs: Mapping[str, Any]) -> bool:
    """Whether the batch is free and outputs of several samples are not as many."""
    free = not any(isinstance(size, int) for spec in counting.signature(_inputs(model)) for size in spec.shape[:1])
    count = min(len(value) for value in feeds.values())
    return free and count > 1 and any(value.shape[:1] != (count,) for value in outputs.values())


def _fix_batch(model: Any) -> None:
    for value in _inputs(model):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]


def _provenance(model: Any) -> dict[str, Any]:
    said = {
        "producer": " ".join(filter(None, (model.producer_name, model.producer_version))),
        "ir_version": model.ir_version,
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "doc": model.doc_string,
        "metadata": {entry.key: entry.value for entry in model.metadata_props},
    }
    return {key: value for key, value in said.items() if value}
