"""Samples as a worker and a device read them: a folder of .npy files, mapped into memory rather than loaded.

    <input name>.npy    one array for each input of the model, samples along the first axis; names as in URLs ("a%2Fb")
    labels.npy          optional: one class index for each sample
    samples.json        {"inputs": [...], "count": n, "labels": bool, "preprocess": {...}}

Preprocessing is data, so that a bundle can carry it: float32 (x - mean) / std, per tensor or per channel, and a change
of layout. This module knows nothing of where samples come from.
"""

from __future__ import annotations

import json
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence, Tuple
from urllib.parse import quote

from edgeopt.artifact import TensorSpec
from edgeopt.errors import InputError
from edgeopt.fields import checked

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

MANIFEST = "samples.json"
LABELS = "labels"
LABELS_FILE = f"{LABELS}.npy"
# What zipfile and numpy raise, but for OSError, where a .npz or .npy is damaged.
DAMAGE = (
    ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, SyntaxError, OverflowError,
    tokenize.TokenError,
)  # fmt: skip


@dataclass(frozen=True)
class Preprocess:
    """(x - mean) / std in float32. `mean` and `std` hold one number, or one for each channel of an (N, C, ...) input.

    `transpose` is a permutation of a sample's own axes (the batch axis left out), done first: (2, 0, 1) turns HWC
    images into CHW.
    """

    mean: Tuple[float, ...] = ()
    std: Tuple[float, ...] = ()
    transpose: Tuple[int, ...] = ()

    def apply(self, raw: Array) -> Array:
        """An array of raw samples, batch first, to what the model takes."""
        import numpy as np

        if self.transpose:
            raw = raw.transpose(0, *(axis + 1 for axis in self.transpose))
        if not self.mean and not self.std:
            return np.ascontiguousarray(raw)
        value = raw.astype(np.float32)
        for numbers, operate in ((self.mean, np.subtract), (self.std, np.divide)):
            if numbers:
                shape = (1, -1) + (1,) * (value.ndim - 2) if len(numbers) > 1 else ()
                operate(value, np.asarray(numbers, np.float32).reshape(shape), out=value)
        return np.ascontiguousarray(value)

    def to_json(self) -> Dict[str, Any]:
        return {"mean": list(self.mean), "std": list(self.std), "transpose": list(self.transpose)}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Preprocess:
        return checked(Preprocess(tuple(value["mean"]), tuple(value["std"]), tuple(value["transpose"])))


class Samples:
    """The samples in a folder. Arrays are read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._manifest = json.loads((folder / MANIFEST).read_text())
        self.preprocess = Preprocess.from_json(self._manifest["preprocess"])
        self.inputs: Tuple[str, ...] = tuple(self._manifest["inputs"])
        self.has_labels: bool = self._manifest["labels"]

    def __len__(self) -> int:
        return int(self._manifest["count"])

    def raw(self, name: str) -> Array:
        """One array as it was stored, mapped into memory."""
        import numpy as np

        array: Array = np.load(self.folder / file_name(name), mmap_mode="r", allow_pickle=False)
        return array

    def labels(self) -> Optional[Array]:
        """Class indices of shape (count,), None where there are none."""
        import numpy as np

        return np.load(self.folder / LABELS_FILE, mmap_mode="r", allow_pickle=False) if self.has_labels else None

    def batch(self, start: int, stop: int) -> Dict[str, Array]:
        """Samples `start` to `stop`, preprocessed, by input name."""
        return {name: self.preprocess.apply(self.raw(name)[start:stop]) for name in self.inputs}


def file_name(name: str) -> str:
    """The file of an input. A name may hold slashes, or be that of the labels."""
    quoted = quote(name, safe="")
    return f"%{quoted}.npy" if quoted == LABELS else f"{quoted}.npy"


def write_samples(folder: Path, arrays: Mapping[str, Array], labels: Optional[Array], preprocess: Preprocess) -> None:
    """Write arrays (samples along the first axis, of equal count) as a folder that `Samples` reads."""
    import numpy as np

    for name, array in arrays.items():
        np.save(folder / file_name(name), np.ascontiguousarray(array), allow_pickle=False)
    if labels is not None:
        np.save(folder / LABELS_FILE, np.ascontiguousarray(labels), allow_pickle=False)
    manifest = {
        "inputs": list(arrays),
        "count": len(next(iter(arrays.values()))),
        "labels": labels is not None,
        "preprocess": preprocess.to_json(),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


def adapt(feeds: Mapping[str, Array], specs: Sequence[TensorSpec]) -> Dict[str, Array]:
    """Feeds of the source model to those of an artifact: by position where names differ, channels last and quantized
    where the artifact's inputs say so. Raises InputError where shapes do not fit."""
    import numpy as np

    if len(feeds) != len(specs):
        raise InputError(f"the model takes {len(specs)} inputs, the samples have {len(feeds)}")
    by_name = all(spec.name in feeds for spec in specs)
    adapted = {}
    for position, spec in enumerate(specs):
        value = feeds[spec.name] if by_name else list(feeds.values())[position]
        if spec.layout == "NHWC":
            value = np.moveaxis(value, 1, -1)
        if spec.scale is not None and value.dtype.kind == "f":
            limits = np.iinfo(spec.dtype)
            value = np.clip(np.round(value / spec.scale) + (spec.zero_point or 0), limits.min, limits.max)
            value = value.astype(spec.dtype)
        if value.ndim != len(spec.shape) or any(
            isinstance(wanted, int) and index and wanted != given
            for index, (wanted, given) in enumerate(zip(spec.shape, value.shape))
        ):
            raise InputError(f"the model's input {spec} does not take samples of shape {list(value.shape)}")
        if value.dtype.kind == "f" and np.dtype(spec.dtype).kind in "iub":
            raise InputError(f"the model's input {spec} does not take samples of {value.dtype}")
        adapted[spec.name] = np.ascontiguousarray(value.astype(spec.dtype, copy=False))
    return adapted


def restore(outputs: Mapping[str, Array], specs: Sequence[TensorSpec]) -> List[Array]:
    """The reverse of `adapt` for outputs: float32 arrays in the order of `specs`, dequantized, channels first. Integers
    beyond 2 ** 24 lose digits. Raises InputError where the number of outputs is another."""
    import numpy as np

    if len(outputs) != len(specs):
        raise InputError(f"the model should give {len(specs)} outputs, it gives {len(outputs)}")
    by_name = all(spec.name in outputs for spec in specs)
    restored = []
    for position, spec in enumerate(specs):
        value = (outputs[spec.name] if by_name else list(outputs.values())[position]).astype(np.float32)
        if spec.scale is not None:
            value = (value - np.float32(spec.zero_point or 0)) * np.float32(spec.scale)
        restored.append(np.moveaxis(value, -1, 1) if spec.layout == "NHWC" else value)
    return restored
