"""OpenVINO IR (.xml with the weights in a .bin beside it): inspected, and brought in as it is.

Shapes are OpenVINO's own inference; the network is read, never compiled.
"""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from edgeopt.artifact import TensorSpec
from edgeopt.errors import InputError
from edgeopt.formats import Imported, ModelRef, Progress, Summary, canonical, require
from edgeopt.samples import Samples

_PRECISIONS: Mapping[str, str] = {
    "f32": "fp32", "f64": "fp64", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8", "i4": "int4", "u4": "int4",
    "nf4": "int4", "f8e4m3": "fp8", "f8e5m2": "fp8",
}  # fmt: skip
_CONVOLUTIONS = ("Convolution", "GroupConvolution")
_TRANSPOSED = ("ConvolutionBackpropData", "GroupConvolutionBackpropData")


RUNTIME = "openvino"
FILE = "model.xml"


def tools() -> Sequence[str]:
    return ("openvino",)


def as_it_is(ref: ModelRef, samples: Path | None, out: Path, progress: Progress) -> Imported:
    """The .xml and its .bin, copied. Raises InputError where OpenVINO cannot read them, or the samples do not fit."""
    progress(None, "reading the model")
    told, path = inspect(ref, None), Path(ref.model)
    shutil.copyfile(path, out / FILE)
    weights = path.with_suffix(".bin")
    if weights.is_file():
        shutil.copyfile(weights, (out / FILE).with_suffix(".bin"))
    return Imported(canonical.kept(told, FILE, samples), sources=(weights.resolve(),) if weights.is_file() else ())


def inspect(ref: ModelRef, example: Path | None) -> Summary:
    """What the .xml and OpenVINO's shape inference say. `example` gives the sizes of free dimensions, for counting."""
    path = Path(ref.model)
    net = _read_xml(path)
    weights = path.with_suffix(".bin")
    constants = [layer for layer in net.iter("layer") if layer.get("type") == "Const"]
    if constants and not weights.is_file():
        raise InputError(f"its weights {weights.name!r} are missing", where=path.name, remedy="Put the .bin beside it.")
    require("openvino", extra="openvino", purpose="reading an OpenVINO model")
    import openvino

    try:
        model = openvino.Core().read_model(path)
    except RuntimeError as error:
        raise InputError(f"OpenVINO cannot read it: {_last_line(error)}", where=path.name) from error
    inputs, outputs = _specs(model.inputs), _specs(model.outputs)
    operators = Counter(layer.get("type", "?") for layer in net.iter("layer"))
    kinds = Counter[str]()
    for kind, size in map(_elements, constants):
        if size > 1 and kind in _PRECISIONS:
            kinds[_PRECISIONS[kind]] += size
    precision = kinds.most_common(1)[0][0] if kinds else None
    return Summary(
        format="openvino",
        inputs=inputs,
        outputs=outputs,
        parameters=sum(kinds.values()),
        macs=_macs(model, example),
        operators=dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
        precision="int8" if operators["FakeQuantize"] else precision,
        size_bytes=path.stat().st_size + (weights.stat().st_size if weights.is_file() else 0),
        provenance=_provenance(net),
    )


def _read_xml(path: Path) -> Any:
    try:
        net = ElementTree.parse(path).getroot()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except ElementTree.ParseError:
        net = None
    if net is None or net.tag != "net" or net.find("layers") is None:
        raise InputError(
            f"{path.name}: not an OpenVINO model", remedy="Give the .xml that OpenVINO wrote, with its .bin beside it."
        )
    return net


def _elements(layer: Any) -> tuple[str, int]:
    data = layer.find("data")
    shape = [int(size) for size in (data.get("shape") or "").replace(",", " ").split()]
    return data.get("element_type", ""), math.prod(shape)


def _specs(ports: Sequence[Any]) -> tuple[TensorSpec, ...]:
    specs = []
    for position, port in enumerate(ports):
        shape = tuple(
            dim.get_length() if dim.is_static else "batch" if axis == 0 else f"dim_{axis}"
            for axis, dim in enumerate(port.get_partial_shape())
        )
        names = sorted(port.get_names())
        kind = port.get_element_type()
        dtype = "bfloat16" if kind.get_type_name() == "bf16" else kind.to_dtype().name
        specs.append(TensorSpec(names[0] if names else f"port_{position}", shape, dtype))
    return tuple(specs)


def _macs(model: Any, example: Path | None) -> int | None:
    """Multiply-accumulates of one sample in convolutions and matrix products, None where a shape stays free."""
    given = [value.shape for value in Samples(example).batch(0, 1).values()] if example is not None else []
    shapes, batches = {}, set()
    for position, port in enumerate(model.inputs):
        dims = list(port.get_partial_shape())
        sample = given[position] if len(given) == len(model.inputs) and len(given[position]) == len(dims) else None
        sizes = [
            dim.get_length() if dim.is_static else 1 if axis == 0 else int(sample[axis]) if sample else -1
            for axis, dim in enumerate(dims)
        ]
        shapes[port] = sizes
        batches.update(sizes[:1])
    if any(-1 in sizes for sizes in shapes.values()):
        return None
    if any(port.get_partial_shape().is_dynamic for port in model.inputs):
        model.reshape(shapes)
    total = 0
    for node in model.get_ops():
        kind = node.get_type_name()
        if kind not in (*_CONVOLUTIONS, *_TRANSPOSED, "MatMul"):
            continue
        ports = (node.input(0), node.input(1), node.output(0))
        if any(port.get_partial_shape().is_dynamic for port in ports):
            return None
        left, right = list(node.get_input_shape(0)), list(node.get_input_shape(1))
        outputs = math.prod(node.get_output_shape(0))
        if kind == "MatMul":
            total += outputs * left[-2 if node.get_attributes().get("transpose_a") and len(left) > 1 else -1]
        elif kind in _CONVOLUTIONS:
            total += outputs * math.prod(right[2 if kind.startswith("Group") else 1 :])
        else:
            total += math.prod(left) * math.prod(right[2 if kind.startswith("Group") else 1 :])
    return total // (batches.pop() if len(batches) == 1 else 1)


def _provenance(net: Any) -> dict[str, Any]:
    said: dict[str, Any] = {"name": net.get("name"), "ir_version": net.get("version")}
    info = net.find("rt_info")
    if info is not None:
        said["metadata"] = {
            "/".join(path): value for path, value in _leaves(info, ()) if len(value) <= 200 and "path" not in path[-1]
        }
    return {key: value for key, value in said.items() if value}


def _leaves(element: Any, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], str]]:
    found = [((*path, element.tag), element.get("value"))] if element.get("value") else []
    below = [
        leaf
        for child in element
        for leaf in _leaves(child, (*path, element.tag) if path or element.tag != "rt_info" else ())
    ]
    return found + below


def _last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1][:300] if str(error).strip() else type(error).__name__
