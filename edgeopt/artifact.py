"""What a stage makes: files with digests, a signature, and the story of how they were made.

The digest of an artifact covers its content and what a backend must set when it loads it, and nothing of where or when
it was made: the same inputs give the same digest. This module knows nothing of models or of storage.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Dict, Mapping, Optional, Tuple, Union

from edgeopt.fields import checked

Dimension = Union[int, str]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a model.

    `shape` holds integers, or names for dimensions that are free ("batch"). `dtype` is numpy's name. `layout` is "NHWC"
    where the artifact wants channels last though the source model has them first. `scale` and `zero_point` say how an
    integer tensor stands for real numbers: real = scale * (integer - zero_point).
    """

    name: str
    shape: Tuple[Dimension, ...]
    dtype: str
    layout: Optional[str] = None
    scale: Optional[float] = None
    zero_point: Optional[int] = None

    def to_json(self) -> Dict[str, Any]:
        optional = {"layout": self.layout, "scale": self.scale, "zero_point": self.zero_point}
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            **{key: value for key, value in optional.items() if value is not None},
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> TensorSpec:
        spec = TensorSpec(
            name=str(value["name"]),
            shape=tuple(value["shape"]),
            dtype=str(value["dtype"]),
            layout=value.get("layout"),
            scale=value.get("scale"),
            zero_point=value.get("zero_point"),
        )
        return checked(spec)

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class FileEntry:
    """A file of an artifact: its path relative to the artifact's folder, with forward slashes."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class MadeBy:
    """The step that made an artifact. `tools` maps the distributions used to their versions."""

    stage: str
    version: int
    options: Mapping[str, Any]
    tools: Mapping[str, str]


@dataclass(frozen=True)
class Artifact:
    """A model in one format, as files in one folder.

    `main` is the file that a backend opens. `precision` is what it computes in: fp32, fp16, bf16 or int8; int8-weights
    and int4-weights where weights alone are quantized, int8-dynamic and int4-dynamic where activations are too, at run
    time. `runtime` is what the backend must set when it loads the files, such as {"precision": "bf16"}. `built_for` is
    the fingerprint of the target that it is tied to, None where it is portable. `details` holds what the stage has to
    tell: parameters, multiply-accumulates, operators left in float.
    """

    format: str
    main: str
    files: Tuple[FileEntry, ...]
    inputs: Tuple[TensorSpec, ...]
    outputs: Tuple[TensorSpec, ...]
    precision: str
    made_by: MadeBy
    runtime: Mapping[str, Any] = field(default_factory=dict)
    parent: Optional[str] = None
    built_for: Optional[str] = None
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """sha256, in hexadecimal, over format, files, main file and runtime settings."""
        content = [self.format, self.main, sorted((f.path, f.sha256) for f in self.files), dict(self.runtime)]
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()

    @property
    def size_bytes(self) -> int:
        """What has to be sent to the device: all files together."""
        return sum(f.size_bytes for f in self.files)

    def to_json(self) -> Dict[str, Any]:
        return {
            "digest": self.digest,
            "format": self.format,
            "main": self.main,
            "files": [{"path": f.path, "sha256": f.sha256, "size_bytes": f.size_bytes} for f in self.files],
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
            "precision": self.precision,
            "runtime": dict(self.runtime),
            "parent": self.parent,
            "built_for": self.built_for,
            "made_by": {
                "stage": self.made_by.stage,
                "version": self.made_by.version,
                "options": dict(self.made_by.options),
                "tools": dict(self.made_by.tools),
            },
            "details": dict(self.details),
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Artifact:
        artifact = Artifact(
            format=str(value["format"]),
            main=str(value["main"]),
            files=tuple(checked(FileEntry(f["path"], f["sha256"], f["size_bytes"])) for f in value["files"]),
            inputs=tuple(TensorSpec.from_json(spec) for spec in value["inputs"]),
            outputs=tuple(TensorSpec.from_json(spec) for spec in value["outputs"]),
            precision=str(value["precision"]),
            runtime=dict(value["runtime"]),
            parent=value.get("parent"),
            built_for=value.get("built_for"),
            made_by=checked(MadeBy(**value["made_by"])),
            details=dict(value.get("details", {})),
        )
        return checked(artifact)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def sha256_of_file(path: Path) -> str:
    """The sha256 of a file in hexadecimal, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


def list_files(folder: Path) -> Tuple[FileEntry, ...]:
    """Every file below `folder`, sorted by path, with digest and size."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple(
        FileEntry(PurePosixPath(path.relative_to(folder)).as_posix(), sha256_of_file(path), path.stat().st_size)
        for path in paths
    )
