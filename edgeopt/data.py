"""Bringing samples in: a .npz, .npy or Python function to the folder of arrays that workers and devices read.

Runs in a worker. What is wrong with data is found here, before anything is built on it: shapes, dtypes, NaN, labels
that are no class indices, nothing at all. It knows nothing of models; whether samples fit one is checked where it is
imported.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from edgeopt.errors import InputError
from edgeopt.samples import DAMAGE, LABELS, Preprocess, write_samples
from edgeopt.source import load_function
from edgeopt.units import format_size
from edgeopt.worker import Channel

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

VERSION = 1
MEMORY_SHARE = 0.5  # of this machine's memory, what the arrays of one file may take
PREPROCESS = "preprocess"  # the `where` of errors in it: workers do not know where the recipe says it
_LABEL_NAMES = (LABELS, "label", "y")


def prepare(args: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    """Worker's job: read `args["location"]`, draw `args["samples"]` by `args["seed"]`, check, write to `args["out"]`.

    `args["part"]`, where there is one, is what they are drawn from: see `edgeopt.recipe.DataSource`.

    Returns {"sources": the Python files that made the data, "count", "inputs": {name: [shape, dtype]}, "labels"}.
    """
    location = str(args["location"])
    channel.progress(None, "reading")
    arrays, sources = _read(location)
    labels = next((arrays.pop(name) for name in _LABEL_NAMES if name in arrays and len(arrays) > 1), None)
    count = _check_counts(arrays, labels, location)
    chosen = _part(count, args["part"], location) if args.get("part") else None
    count = count if chosen is None else len(chosen)
    if args["samples"] is not None and args["samples"] < count:
        drawn = _draw(count, args["samples"], args["seed"])
        chosen = drawn if chosen is None else chosen[drawn]
    if chosen is not None:
        arrays = {name: array[chosen] for name, array in arrays.items()}
        labels = labels[chosen] if labels is not None else None
    for name, array in arrays.items():
        _check_numbers(name, array, chosen, location)
    if labels is not None:
        labels = _check_labels(labels, location)
    preprocess = Preprocess.from_json(args["preprocess"])
    _check_preprocess(preprocess, arrays, location)
    write_samples(Path(args["out"]), arrays, labels, preprocess)
    return {
        "sources": [str(path) for path in sources],
        "count": len(next(iter(arrays.values()))),
        "inputs": {name: [list(array.shape[1:]), str(array.dtype)] for name, array in arrays.items()},
        "labels": labels is not None,
    }


def _read(location: str) -> tuple[dict[str, Array], list[Path]]:
    import numpy as np

    _, colon, function = location.rpartition(":")
    if colon and function.isidentifier() and not Path(location).exists():
        made, sources = load_function(location, what="data function").call()
        wrong = "" if isinstance(made, dict) else type(made).__name__
        for name, value in made.items() if isinstance(made, dict) else ():
            if not isinstance(name, str) or not name or not isinstance(value, np.ndarray):
                wrong = f"a dict with {type(value).__name__} under {name!r}"
        if wrong:
            raise InputError(
                f"{location} returned {wrong}, not a dict of numpy arrays by name",
                remedy='Return {"<input name>": array, ...}, samples along the first axis; "labels" if there are any.',
            )
        return made, sources
    path = Path(location)
    try:
        with open(path, "rb") as stream:
            start = stream.read(8)
            if start.startswith(b"PK"):
                stream.seek(0)
                with np.load(stream, allow_pickle=False) as archive:
                    _check_size(archive.zip, location)
                    arrays = {name: archive[name] for name in archive.files}
                for name, value in arrays.items():
                    if not isinstance(value, np.ndarray):
                        raise InputError(f"{location}: {name} in it is no array", remedy="Save it with numpy.savez.")
                return arrays, []
        if start.startswith(b"\x93NUMPY"):
            return {"input": np.load(path, allow_pickle=False, mmap_mode="r")}, []
    except OSError as error:
        raise InputError(f"{location}: {error.strerror or error}") from None
    except MemoryError:
        raise InputError(
            f"{location}: its arrays are larger than the memory", remedy="Save fewer samples, or copy the file again."
        ) from None
    except DAMAGE as error:
        told = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{location}: {'holds Python objects, which could run anything' if 'pickle' in told else told}",
            remedy="Save plain arrays of numbers with numpy.savez.",
        ) from None
    raise InputError(f"{location}: neither a .npz nor a .npy file", remedy="Save the samples with numpy.savez.")


def _check_size(archive: zipfile.ZipFile, location: str) -> None:
    """Few compressed bytes may become many: no more are unpacked than this machine holds."""
    size = sum(member.file_size for member in archive.infolist())
    most = int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * MEMORY_SHARE)
    if size > most:
        raise InputError(
            f"{location}: its arrays take {format_size(size)} unpacked: there is room for {format_size(most)}",
            remedy="Save fewer samples; 300 are a good number to calibrate on.",
        )


def _check_counts(arrays: Mapping[str, Array], labels: Array | None, location: str) -> int:
    if not arrays:
        raise InputError(
            f"{location} holds no arrays of inputs",
            remedy="Save one array for each input: numpy.savez(file, image=..., labels=...).",
        )
    for name, array in arrays.items():
        if array.ndim == 0:
            raise InputError(
                f"{location}: {name} is a single number, samples go along the first axis",
                remedy="Save arrays of samples alone in this file.",
            )
    counts = {name: len(array) for name, array in arrays.items()}
    if labels is not None:
        counts[LABELS] = len(labels) if labels.ndim else 1
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InputError(
            f"{location}: arrays of unlike numbers of samples: {told}",
            remedy="Save as many of each, the samples along the first axis.",
        )
    count = next(iter(counts.values()))
    if count == 0:
        raise InputError(
            f"{location}: there are no samples in it", remedy="Save at least one sample; 300 are a good number."
        )
    return count


def _check_numbers(name: str, array: Array, chosen: Array | None, location: str) -> None:
    import numpy as np

    if array.dtype.kind not in "iufb":
        raise InputError(
            f"{location}: {name} is of dtype {array.dtype}, not numbers",
            remedy="Save the model's inputs alone, as float32 or whole numbers.",
        )
    if array.dtype.kind == "f":
        for start in range(0, len(array), 256):
            good = np.isfinite(array[start : start + 256])
            if not good.all():
                sample = start + int(np.argwhere(~good)[0][0])
                sample = sample if chosen is None else int(chosen[sample])
                raise InputError(
                    f"{location}: {name} has NaN or infinity in sample {sample}",
                    remedy="Correct that sample, or leave it out: ranges calibrated on it would be meaningless.",
                )


def _check_labels(labels: Array, location: str) -> Array:
    import numpy as np

    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(
            f"{location}: labels are {labels.dtype} of shape {list(labels.shape)}, not one whole number a sample",
            remedy="Give class indices: labels.argmax(1) for one-hot rows.",
        )
    if labels.min() < 0:
        raise InputError(
            f"{location}: a label is {labels.min()}, class indices start at 0",
            remedy="Leave out the samples without a class, or count the classes from 0.",
        )
    return labels.astype(np.int64)


def _check_preprocess(preprocess: Preprocess, arrays: Mapping[str, Array], location: str) -> None:
    for name, array in arrays.items():
        if preprocess.transpose and len(preprocess.transpose) != array.ndim - 1:
            raise InputError(
                f"transpose has {len(preprocess.transpose)} axes, a sample of {name} has {array.ndim - 1}: {location}",
                where=PREPROCESS,
                remedy=f"Name each of its axes once: {list(range(array.ndim - 1))} in another order.",
            )
        shape = [array.shape[1:][axis] for axis in preprocess.transpose] or list(array.shape[1:])
        for key, numbers in (("mean", preprocess.mean), ("std", preprocess.std)):
            if len(numbers) > 1 and (not shape or shape[0] != len(numbers)):
                raise InputError(
                    f"{key} has {len(numbers)} numbers, a sample of {name} is of shape {shape}: {location}",
                    where=PREPROCESS,
                    remedy="Give one number, or one for each channel: a sample's first axis, after any transpose.",
                )


def _draw(count: int, samples: int, seed: int) -> Array:
    import numpy as np

    chosen: Array = np.random.default_rng(seed).permutation(count)[:samples]
    return np.sort(chosen)


def _part(count: int, part: Sequence[float], location: str) -> Array:
    """The positions of the samples in one part, by an order that is the same for all parts of so many samples."""
    import numpy as np

    start, stop = (round(share * count) for share in part)
    if start >= stop:
        raise InputError(
            f"{location}: {count} samples are too few to be split into parts",
            remedy="Save more samples; 300 are a good number.",
        )
    chosen: Array = np.random.default_rng(0).permutation(count)[start:stop]
    return np.sort(chosen)


def peek(location: str) -> dict[str, tuple[list[int], str]] | None:
    """Shapes (of one sample) and dtypes of a file's inputs, from headers alone; None where that takes running code."""
    from numpy.lib import format as npy

    path = Path(location)
    if path.suffix not in (".npz", ".npy") or not path.is_file():
        return None

    def header(stream: IO[bytes]) -> tuple[list[int], str]:
        read = npy.read_array_header_1_0 if npy.read_magic(stream) == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(stream)
        return list(shape[1:]), str(dtype)

    try:
        if not zipfile.is_zipfile(path):
            with open(path, "rb") as file:
                return {"input": header(file)}
        found = {}
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                if member.removesuffix(".npy") not in _LABEL_NAMES:
                    with archive.open(member) as stream:
                        found[member.removesuffix(".npy")] = header(stream)
        return found
    except (OSError, MemoryError, *DAMAGE):  # MemoryError: of brackets nested deeply
        return None
