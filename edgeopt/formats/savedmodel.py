"""TensorFlow SavedModels: the folder that holds saved_model.pb and the variables.

A SavedModel is a program of TensorFlow operators, not of Python, and loading it runs some of them (it restores the
variables and fills the tables). So operators that read or write other files, open connections or call Python are looked
for in the whole file before TensorFlow loads it, and refused. What is then trusted is TensorFlow itself: its reader of
the protocol buffers and its kernels. Custom operators are unknown to it and fail.

One signature is brought in: "serving_default", or the only one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgeopt.errors import InputError
from edgeopt.formats import Imported, ModelRef, Progress, Summary, counting
from edgeopt.formats import tensorflow as common
from edgeopt.text import named_line

FILE = "saved_model.pb"
DEFAULT = "serving_default"
_HIDDEN = "__saved_model_"
_REFUSED = (
    "PyFunc", "PyFuncStateless", "EagerPyFunc", "ReadFile", "WriteFile", "MatchingFiles", "LoadLibrary",
    "DebugIdentity", "DebugIdentityV2", "PrintV2", "Save", "SaveSlices", "SaveDataset", "LoadDataset",
    "DatasetToTFRecord", "TFRecordDataset", "TextLineDataset", "FixedLengthRecordDataset", "ReaderReadV2",
    "ReaderRead", "WholeFileReaderV2", "TextLineReaderV2", "TFRecordReaderV2", "GeneratorDataset", "RpcCall",
    "RpcClient", "RpcServer", "CreateSummaryFileWriter", "CreateSummaryDbWriter", "DataServiceDataset",
    "BigQueryReader", "ImmutableConst",
)  # fmt: skip


def tools() -> Sequence[str]:
    return common.tools()


def to_onnx(ref: ModelRef, samples: Path | None, out: Path, progress: Progress) -> Imported:
    """The canonical form of a SavedModel's signature, its inputs as they are there: images channels last."""
    path = Path(ref.model)
    progress(0.0, "reading the SavedModel")
    function, specs, outputs = _function(path)
    produced = common.produce(function, specs, outputs, samples, path.name, out, progress)
    return Imported(produced, sources=())


def inspect(ref: ModelRef, example: Path | None) -> Summary:  # noqa: ARG001
    """What the signature says. Parameters and multiply-accumulates are counted in the ONNX model that it becomes."""
    path = Path(ref.model)
    function, specs, outputs = _function(path)
    converted = common.to_model(function, specs, outputs)
    operators = Counter(node.op_type for graph in counting.graphs(converted.graph) for node in graph.node)
    program = _program(path)
    return Summary(
        format="savedmodel",
        inputs=specs,
        outputs=counting.signature(converted.graph.output),
        parameters=counting.parameters(converted),
        macs=counting.macs(converted),
        operators=dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
        precision=counting.precision(converted),
        size_bytes=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        provenance={"tensorflow": program.meta_graphs[0].meta_info_def.tensorflow_version},
    )


def _function(path: Path) -> tuple[Any, Any, list[str]]:
    tensorflow = common.load()
    program = _program(path)
    if unsafe := sorted({kind for kind in _operators(program) if kind in _REFUSED}):
        raise InputError(
            f"refused, because loading it could read or write files, or run Python: it has {', '.join(unsafe)}",
            where=path.name,
            remedy="Export the part of the model that computes, without its input pipeline.",
        )
    try:
        with common.quiet():
            loaded = tensorflow.saved_model.load(str(path))
    except (tensorflow.errors.OpError, OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"TensorFlow cannot read it: {named_line(error)}", where=path.name) from error
    own = [name for name in loaded.signatures if not name.startswith(_HIDDEN)]
    chosen = DEFAULT if DEFAULT in own else own[0] if len(own) == 1 else None
    if chosen is None:
        has = f"the signatures {', '.join(sorted(own))}" if own else "no signature"
        raise InputError(
            f"it has {has}, and none is {DEFAULT!r}",
            where=path.name,
            remedy=f"Save it with signatures={{{DEFAULT!r}: ...}}, or export it with Keras's model.export('folder').",
        )
    signature = loaded.signatures[chosen]
    given = dict(signature.structured_input_signature[1])
    specs = common.specs_of(list(given), list(given.values()), path.name)
    outputs = list(signature.structured_outputs)

    def function(*tensors: Any) -> list[Any]:
        made = signature(**dict(zip(given, tensors)))
        return [made[name] for name in outputs]

    function.loaded = loaded  # type: ignore[attr-defined]  # its variables live as long as it does
    return function, specs, outputs


def _program(path: Path) -> Any:
    """The SavedModel as a protocol buffer. Raises InputError where it is not one."""
    common.load()
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    program = saved_model_pb2.SavedModel()
    try:
        program.ParseFromString((path / FILE).read_bytes())
    except OSError as error:
        raise InputError(f"{path / FILE}: {error.strerror}") from error
    except DecodeError as error:
        raise InputError(f"{path.name}: {FILE} is damaged", remedy="Copy it again, or export it again.") from error
    if not program.meta_graphs:
        raise InputError(f"{path.name}: a SavedModel without a graph")
    return program


def _operators(program: Any) -> Iterator[str]:
    for meta in program.meta_graphs:
        yield from (node.op for node in meta.graph_def.node)
        for function in meta.graph_def.library.function:
            yield from (node.op for node in function.node_def)
