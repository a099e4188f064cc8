"""Reads .tflite files and tells what they are. They are brought in as they are: nothing here converts them.

The flatbuffer's tables are read directly, so that a file with operators that this machine lacks is described too.
"""

from __future__ import annotations

import math
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeopt.artifact import Dimension, TensorSpec
from edgeopt.errors import InputError
from edgeopt.formats import Imported, ModelRef, Progress, Summary, canonical

IDENTIFIER = b"TFL3"
DTYPES = {
    "FLOAT32": "float32", "FLOAT16": "float16", "FLOAT64": "float64", "BFLOAT16": "bfloat16", "BOOL": "bool",
    "INT8": "int8", "UINT8": "uint8", "INT16": "int16", "UINT16": "uint16", "INT32": "int32", "UINT32": "uint32",
    "INT64": "int64", "UINT64": "uint64", "INT4": "int4", "INT2": "int2", "STRING": "str",
    "COMPLEX64": "complex64", "COMPLEX128": "complex128",
}  # fmt: skip
PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "int8": "int8", "uint8": "int8", "int4": "int4"}
SEALED = "edgetpu-custom-op"  # holds operators and weights that are for the Edge TPU's runtime alone
_UNCOUNTED = (
    "CUSTOM",
    SEALED,
    "WHILE",
    "IF",
    "CALL_ONCE",
    "LSTM",
    "RNN",
)  # their work is not in the shapes of one graph


RUNTIME = "tflite"
FILE = "model.tflite"


def tools() -> Sequence[str]:
    return ("ai-edge-litert",)


def as_it_is(ref: ModelRef, samples: Path | None, out: Path, progress: Progress) -> Imported:
    """The file, copied. Raises InputError where it is not a TFLite flatbuffer, or the samples do not fit its inputs."""
    progress(None, "reading the model")
    told = inspect(ref, None)
    shutil.copyfile(ref.model, out / FILE)
    return Imported(canonical.kept(told, FILE, samples), sources=())


def inspect(ref: ModelRef, example: Path | None) -> Summary:  # noqa: ARG001
    """Raises InputError where the file is not a TFLite flatbuffer. `example` is not needed."""
    path = Path(ref.model)
    model = read(path)
    graph = model.subgraphs[0]
    operators = Counter(operator_name(model, operator) for operator in graph.operators)
    weights = _weights(model)
    by_dtype: Counter[str] = Counter()
    for dtype, elements in weights:
        by_dtype[dtype] += elements
    return Summary(
        format="tflite",
        inputs=_specs(model, graph.inputs, "inputs"),
        outputs=_specs(model, graph.outputs, "outputs"),
        parameters=None if SEALED in operators else sum(by_dtype.values()),
        macs=_macs(model),
        operators=dict(operators.most_common()),
        precision=PRECISIONS.get(by_dtype.most_common(1)[0][0]) if by_dtype else None,
        size_bytes=path.stat().st_size,
        provenance=_provenance(model),
    )


def read(path: Path) -> Any:
    """The file as a `schema_py_generated.ModelT`. Raises InputError where it is not a TFLite flatbuffer."""
    from ai_edge_litert import schema_py_generated as schema

    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    if content[4:8] != IDENTIFIER:
        raise InputError(
            f"{path}: not a TFLite file: it lacks the identifier {IDENTIFIER.decode()}",
            remedy="Give a .tflite file as a converter wrote it.",
        )
    try:
        model = schema.ModelT.InitFromPackedBuf(content)
    except (struct.error, IndexError, ValueError, TypeError, OverflowError) as error:
        raise InputError(
            f"{path}: a damaged TFLite file: its tables point outside it",
            remedy="Copy it again, or convert it again.",
        ) from error
    if not model.subgraphs:
        raise InputError(f"{path}: a TFLite file without a graph")
    return model


def signed(path: Path, key: str) -> bytes:
    """The file with a signature called `key`, which the quantizer asks for: its own, else one of the tensors' names."""
    import flatbuffers
    import numpy as np
    from ai_edge_litert import schema_py_generated as schema

    model, content = read(path), path.read_bytes()
    own = [entry for entry in _list(model.signatureDefs) if entry.subgraphIndex == 0]
    if any(_text(entry.signatureKey) == key for entry in own):
        return content
    if own:
        own[0].signatureKey = key
    else:
        entry, graph = schema.SignatureDefT(), model.subgraphs[0]
        entry.signatureKey, entry.subgraphIndex = key, 0
        for side in ("inputs", "outputs"):
            maps = []
            for index in getattr(graph, side):
                named = schema.TensorMapT()
                named.name, named.tensorIndex = graph.tensors[index].name, int(index)
                maps.append(named)
            setattr(entry, side, maps)
        model.signatureDefs = [entry]
    for buffer in model.buffers:
        if (buffer.offset or 0) > 1:  # 0 and 1 are said of buffers inside the flatbuffer
            buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def operator_name(model: Any, operator: Any) -> str:
    """The type of an operator of `read`'s model: CONV_2D, or the custom operator's own name."""
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    code = model.operatorCodes[operator.opcodeIndex]
    number = max(code.builtinCode, code.deprecatedBuiltinCode)  # old files have only the second
    if number == BuiltinOperator.CUSTOM and code.customCode:
        return _text(code.customCode)
    return _names(BuiltinOperator).get(number, f"BUILTIN_{number}")


def dtype_name(tensor: Any) -> str:
    """numpy's name of a tensor's type; int4, int2 and bfloat16 where numpy has none."""
    from ai_edge_litert.schema_py_generated import TensorType

    name = _names(TensorType).get(tensor.type, "unknown")
    return DTYPES.get(name, name.lower())


def _names(enumeration: type) -> dict[int, str]:
    return {number: name for name, number in vars(enumeration).items() if isinstance(number, int)}


def _text(value: bytes | str | None) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""


def _list(value: Any) -> list[Any]:
    """Numbers as Python's own: numpy's int32 overflows in products and is no JSON."""
    if value is None:
        return []
    plain: list[Any] = value.tolist() if hasattr(value, "tolist") else list(value)
    return plain


def _specs(model: Any, indices: Sequence[int], side: str) -> tuple[TensorSpec, ...]:
    signed = [d for d in _list(model.signatureDefs) if d.subgraphIndex == 0]
    names = {entry.tensorIndex: _text(entry.name) for entry in _list(getattr(signed[0], side))} if signed else {}
    specs = []
    for index in indices:
        tensor = model.subgraphs[0].tensors[index]
        scales = _list(tensor.quantization.scale) if tensor.quantization else []
        zeros = _list(tensor.quantization.zeroPoint) if tensor.quantization else []
        quantized = len(scales) == 1
        specs.append(
            TensorSpec(
                names.get(index, _text(tensor.name)),
                _shape(tensor),
                dtype_name(tensor),
                scale=float(scales[0]) if quantized else None,
                zero_point=int(zeros[0]) if quantized and zeros else 0 if quantized else None,
            )
        )
    return tuple(specs)


def _shape(tensor: Any) -> tuple[Dimension, ...]:
    sizes = _list(tensor.shapeSignature) or _list(tensor.shape)
    return tuple(
        int(size) if size >= 0 else ("batch" if axis == 0 else f"axis{axis}") for axis, size in enumerate(sizes)
    )


def _weights(model: Any) -> list[tuple[str, int]]:
    """(dtype, elements) of each constant that stands for real numbers, a shared buffer once."""
    seen: set[int] = set()
    found = []
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            buffer = model.buffers[tensor.buffer]
            constant = (buffer.data is not None and len(buffer.data) > 0) or (buffer.size or 0) > 0
            dtype = dtype_name(tensor)
            real = "float" in dtype or (tensor.quantization is not None and bool(_list(tensor.quantization.scale)))
            if constant and real and tensor.buffer not in seen:
                seen.add(tensor.buffer)
                found.append((dtype, math.prod(_list(tensor.shape))))
    return found


def _macs(model: Any) -> int | None:
    """Multiply-accumulates of convolutions and matrix products for one sample; None where shapes do not tell."""
    graph = model.subgraphs[0]
    total = 0
    for operator in graph.operators:
        name = operator_name(model, operator)
        if any(word in name for word in _UNCOUNTED):
            return None
        if name in _MACS:
            tensors = [graph.tensors[index] for index in (*operator.inputs, *operator.outputs[:1])]
            if any(isinstance(size, str) for tensor in tensors for size in _shape(tensor)[1:]):
                return None
            shapes = [_list(graph.tensors[i].shape) if i >= 0 else [] for i in operator.inputs]
            total += _MACS[name](shapes, _list(graph.tensors[operator.outputs[0]].shape), operator.builtinOptions)
    first = _list(graph.tensors[graph.inputs[0]].shape) if len(graph.inputs) else []
    return total // max(1, first[0] if first else 1)


Shapes = Sequence[Sequence[int]]
_MACS: Mapping[str, Callable[[Shapes, Sequence[int], Any], int]] = {
    "CONV_2D": lambda inputs, output, _: math.prod(output) * math.prod(inputs[1][1:]),
    "CONV_3D": lambda inputs, output, _: math.prod(output) * math.prod(inputs[1][:4]),
    "DEPTHWISE_CONV_2D": lambda inputs, output, _: math.prod(output) * math.prod(inputs[1][1:3]),
    "TRANSPOSE_CONV": lambda inputs, _output, _: math.prod(inputs[2]) * math.prod(inputs[1][:3]),
    "FULLY_CONNECTED": lambda inputs, output, _: math.prod(output) * inputs[1][-1],
    "BATCH_MATMUL": lambda inputs, output, options: math.prod(output) * inputs[0][-2 if options.adjX else -1],
}


def _provenance(model: Any) -> dict[str, Any]:
    told: dict[str, Any] = {"schema_version": model.version}
    if model.description:
        told["description"] = _text(model.description)
    for entry in _list(model.metadata):
        data = model.buffers[entry.buffer].data
        if _text(entry.name) == "min_runtime_version" and data is not None:
            told["min_runtime_version"] = bytes(data).rstrip(b"\0").decode("ascii", "replace")
    signatures = [_text(entry.signatureKey) for entry in _list(model.signatureDefs)]
    if signatures:
        told["signatures"] = signatures
    return told
