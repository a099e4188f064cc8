"""Readers of model files: one file a format, each able to import (make the canonical ONNX) or to inspect, or both.

A format is a module with the names of the protocol `Format`. Its functions run in a worker, because a stranger's file
may crash a vendor's parser. What several formats share is in `counting`, then `canonical`, then `exporting`: each of
these knows those before it and none of the formats.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from edgeopt.artifact import TensorSpec
from edgeopt.errors import InputError, MissingDependency
from edgeopt.stages import Produced
from edgeopt.text import named_line

_OF_PARSERS = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, RuntimeError, SyntaxError, TypeError,
    ValueError, struct.error, zlib.error, zipfile.BadZipFile,
)  # fmt: skip
FORMATS: dict[str, str] = {
    "onnx": "edgeopt.formats.onnx",
    "torch": "edgeopt.formats.torch",
    "pt2": "edgeopt.formats.pt2",
    "openvino": "edgeopt.formats.openvino",
    "tflite": "edgeopt.formats.tflite",
    "torchscript": "edgeopt.formats.torchscript",
    "keras": "edgeopt.formats.keras",
    "savedmodel": "edgeopt.formats.savedmodel",
}
SUFFIXES: dict[str, str] = {
    ".onnx": "onnx",
    ".pt2": "pt2",
    ".pt": "torchscript",
    ".pth": "torchscript",
    ".ts": "torchscript",
    ".torchscript": "torchscript",
    ".keras": "keras",
    ".h5": "keras",
    ".hdf5": "keras",
    ".xml": "openvino",
    ".tflite": "tflite",
}


@dataclass(frozen=True)
class ModelRef:
    """A model as the user names it: a file, or a factory "file.py:function" with the weights that it loads."""

    model: str
    weights: str | None = None


@dataclass(frozen=True)
class Summary:
    """What `inspect` tells of a model. None is unknown, never zero.

    `parameters` counts elements of weights, `macs` multiply-accumulates for one sample, `operators` maps operator types
    to their number, `precision` is that of most weights, `provenance` what the file says of its own making.
    """

    format: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: int | None
    macs: int | None
    operators: dict[str, int]
    precision: str | None
    size_bytes: int | None
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": self.format,
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
            "parameters": self.parameters,
            "macs": self.macs,
            "operators": self.operators,
            "precision": self.precision,
            "size_bytes": self.size_bytes,
            "provenance": self.provenance,
        }


Progress = Callable[[float | None, str], None]


@dataclass(frozen=True)
class Imported:
    """What `to_onnx` wrote, and the files beside the model that it was made of, such as the Python files that a factory
    loads and the external weights of an ONNX model: an edit there makes another model."""

    produced: Produced
    sources: tuple[Path, ...]


class Importer(Protocol):
    """The module of a format that can be brought in."""

    def to_onnx(self, ref: ModelRef, samples: Path | None, out: Path, progress: Progress) -> Imported:
        """Write `out`/model.onnx, and `out`/model.pt2 too where the source is torch.

        `samples` is a folder that `edgeopt.samples.Samples` reads. Equal inputs give equal bytes, wherever they lie.
        Raises InputError where model, weights or samples are wrong, StageError where the export or its check fails.
        """
        ...


class Kept(Protocol):
    """The module of a format that one runtime runs and that has no way back to ONNX: it is measured as it is."""

    RUNTIME: str  # the backend that runs it

    def as_it_is(self, ref: ModelRef, samples: Path | None, out: Path, progress: Progress) -> Imported:
        """Copy the model to `out`. Raises InputError where it is not what its name says, or the samples do not fit."""
        ...


class Format(Protocol):
    """The module of a format. `to_onnx` (`Importer`) is missing from those that are measured as they are (`Kept`)."""

    def tools(self) -> Sequence[str]:
        """The distributions whose versions change what `to_onnx` makes."""
        ...

    def inspect(self, ref: ModelRef, example: Path | None) -> Summary:
        """Read the model and tell what it is. Raises InputError where the file is not what its name says."""
        ...


def format_of(model: str) -> str:
    """The format that a model's name says: by suffix, or "torch" for "file.py:function" and "package.module:function".

    A folder is a SavedModel. Raises InputError for any other name.
    """
    if Path(model).is_dir():
        return "savedmodel"
    suffix = Path(model).suffix.lower()
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    left, colon, function = model.rpartition(":")
    if colon and left and function.isidentifier():
        return "torch"
    raise InputError(
        f"{model}: not a model that edgeopt reads",
        remedy=f"Give a file ending in {', '.join(SUFFIXES)}, or a torch factory such as model.py:build.",
    )


def find(name: str) -> Format:
    """The module of a format."""
    return cast(Format, importlib.import_module(FORMATS[name]))


def runtime_of(model: str) -> str | None:
    """The one backend that runs a file of this name as it is; None where it becomes ONNX."""
    name = SUFFIXES.get(Path(model).suffix.lower())
    return None if name is None else getattr(find(name), "RUNTIME", None)


def bring_in(ref: ModelRef, samples: Path | None, out: Path, progress: Progress) -> Imported:
    """The source model in canonical form, or as it is where its format has no way to ONNX."""
    module: Any = find(format_of(ref.model))
    bring = module.to_onnx if hasattr(module, "to_onnx") else module.as_it_is
    return cast(Imported, bring(ref, samples, out, progress))


@contextlib.contextmanager
def reading(model: str) -> Iterator[None]:
    """What parsers, ours and vendors', raise of a damaged file, whatever it is, becomes an InputError."""
    try:
        yield
    except _OF_PARSERS as error:
        raise InputError(
            f"{Path(model).name}: cannot be read: {named_line(error)}",
            remedy="It may be damaged: copy it here again, or write it again.",
        ) from error


def importer(model: str) -> Importer:
    """The module that brings this model in. Raises InputError for formats that are measured as they are."""
    name = format_of(model)
    module = find(name)
    if not hasattr(module, "to_onnx"):
        raise InputError(
            f"{model}: a model in the format {name} can be inspected and measured, not optimized further",
            remedy="Give the source model: a torch factory such as model.py:build, .pt2, .onnx or .keras.",
        )
    return cast(Importer, module)


def require(*modules: str, extra: str, purpose: str) -> None:
    """Raises MissingDependency where a module is not installed; `extra` is the one of edgeopt that brings it."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise MissingDependency(
                f"{purpose} needs {module}, which is not installed",
                remedy=f"Install it: pip install 'edgeopt[{extra}]'",
            )
