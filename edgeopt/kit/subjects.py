"""What a path given to `bench` is: a bundle, a run with its bundle, or a bare model file.

Files are read and checked, nothing is loaded. A bare file tells neither its signature nor its precision here: the
runtime tells the one, nobody the other.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence

from edgeopt import backends
from edgeopt.artifact import Artifact, FileEntry, MadeBy, TensorSpec, sha256_of_file
from edgeopt.bundle import MANIFEST, Bundle, read_bundle
from edgeopt.errors import InputError
from edgeopt.nearby import nearby
from edgeopt.samples import Preprocess

BEST = "best"
RUN_FILES = ("run.json", "choice.json")
SUFFIXES: Mapping[str, str] = {".onnx": "onnxruntime", ".tflite": "tflite", ".xml": "openvino"}
EDGE_TPU = "_edgetpu.tflite"  # the name that its compiler gives
UNKNOWN = "unknown"
WHAT_MAY_BE_GIVEN = "Give a bundle (best/), a run directory, or a model file: .onnx, .tflite, or OpenVINO's .xml."


@dataclass(frozen=True)
class Subject:
    """Something to measure. `name` is the path as it was given, made unique; `bundle` is None for a bare model.

    A bare model's artifact has no inputs and outputs until `with_signature`, and its precision is "unknown".
    """

    name: str
    folder: Path
    backend: str
    artifact: Artifact
    preprocess: Preprocess
    bundle: Optional[Bundle] = None

    @property
    def main(self) -> Path:
        return self.folder / self.artifact.main

    @property
    def precision(self) -> Optional[str]:
        return None if self.artifact.precision == UNKNOWN else self.artifact.precision

    def with_signature(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Subject:
        return replace(self, artifact=replace(self.artifact, inputs=tuple(inputs), outputs=tuple(outputs)))


def read(paths: Sequence[str], preprocess: Preprocess, *, to_run: bool = True) -> List[Subject]:
    """What the paths are, in their order; `preprocess` is for bare models.

    Raises InputError, CorruptArtifact for a damaged bundle, and where they are `to_run` here MissingDependency where a
    runtime is not installed.
    """
    if not paths:
        raise InputError("there is nothing to measure", remedy=WHAT_MAY_BE_GIVEN)
    found: Dict[str, Subject] = {}
    for path in paths:
        name = _unique(path.rstrip("/") or path, found)
        found[name] = _read(name, Path(path), preprocess)
    for backend in {subject.backend for subject in found.values()} if to_run else ():
        backends.require(backend)
    return list(found.values())


def _read(name: str, path: Path, preprocess: Preprocess) -> Subject:
    if not path.exists():
        raise InputError("no such file or folder", where=str(path), remedy=nearby(path, WHAT_MAY_BE_GIVEN))
    if path.name == MANIFEST:
        path = path.parent
    if path.is_dir():
        bundle = read_bundle(_bundle_folder(path))
        return Subject(name, bundle.folder, bundle.backend, bundle.artifact, bundle.preprocess, bundle)
    backend = "edgetpu" if path.name.endswith(EDGE_TPU) else SUFFIXES.get(path.suffix.lower())
    if backend is None:
        raise InputError("neither a bundle nor a model file", where=str(path), remedy=WHAT_MAY_BE_GIVEN)
    return Subject(name, path.parent, backend, _bare(path, backends.find(backend).FORMAT), preprocess)


def _bundle_folder(path: Path) -> Path:
    """The folder that is a bundle: `path`, or best/ below it."""
    for folder in (path, path / BEST):
        if (folder / MANIFEST).is_file():
            return folder
    if any((path / name).is_file() for name in RUN_FILES):
        raise InputError(
            "this run has no best/: no candidate was inside its budgets",
            where=str(path),
            remedy="Give it a wider budget, or measure a model file.",
        )
    raise InputError(f"neither a bundle (no {MANIFEST}) nor a run", where=str(path), remedy=WHAT_MAY_BE_GIVEN)


def _bare(main: Path, format: str) -> Artifact:
    """The file with those that belong to it: OpenVINO's weights, the usual names of ONNX's external data."""
    beside = (main.with_suffix(".bin"),) if main.suffix == ".xml" else tuple(_external(main))
    if main.suffix == ".xml" and not beside[0].is_file():
        raise InputError(f"its weights {beside[0].name} are not beside it", where=str(main), remedy="Copy both files.")
    files = tuple(_entry(file) for file in (main, *beside))
    made_by = MadeBy(UNKNOWN, 0, {}, {})
    return Artifact(format, main.name, files, (), (), UNKNOWN, made_by)


def _external(main: Path) -> List[Path]:
    names = [f"{main.name}.data", f"{main.name}_data"]
    return [main.with_name(name) for name in names if main.suffix == ".onnx" and main.with_name(name).is_file()]


def _entry(file: Path) -> FileEntry:
    try:
        return FileEntry(file.name, sha256_of_file(file), file.stat().st_size)
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}", where=str(file), remedy="Check its permissions."
        ) from None


def _unique(name: str, taken: Mapping[str, object]) -> str:
    number, unique = 1, name
    while unique in taken:
        number += 1
        unique = f"{name} ({number})"
    return unique


def check_new(path: Path) -> None:
    """That a file of results may be written. Raises InputError where it is there already or its folder is not."""
    if path.exists():
        raise InputError(
            "is there already, and results are never written over", where=str(path), remedy="Give --output a new name."
        )
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError("its folder cannot be written", where=str(path), remedy="Give --output another folder.")
