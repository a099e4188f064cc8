"""A directory that travels to the device: an artifact's files, what is known of it, and the proof that it works.

    <the artifact's files>
    edgeopt.json    schema 1: the artifact (signature, files with sha256, provenance), backend, preprocessing,
                    measurements, golden samples with their tolerance, and the sha256 of every file
    golden.npz      a few real inputs, raw, and the outputs expected of them
    <documents>     what else is told of it, such as sbom.cdx.json (see `edgeopt.sbom`)

Digests show that nothing was lost or changed on the way; who made it is for `edgeopt.verify`. The same inputs give the
same bytes. This module knows nothing of how artifacts are made or chosen.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence, Tuple

from edgeopt import backends, jsontext
from edgeopt.artifact import Artifact, FileEntry, list_files, sha256_of_file
from edgeopt.backends import Session
from edgeopt.errors import CorruptArtifact, InputError
from edgeopt.fields import checked
from edgeopt.samples import DAMAGE, Preprocess, adapt, restore
from edgeopt.worker import Channel

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

MANIFEST = "edgeopt.json"
GOLDEN = "golden.npz"
SCHEMA = 1
AGAIN = "Copy the bundle here again, whole."
# How far an output may be from the expected one, as a fraction of the largest expected magnitude. Kernels of another
# instruction set round differently; one step of an 8-bit tensor is 1/255 of its range, and steps add up over layers.
TOLERANCES: Mapping[str, float] = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 5e-2, "int8": 1e-1}


@dataclass(frozen=True)
class Bundle:
    """A bundle as read. `tolerance` is a fraction of the largest magnitude of each expected output.

    `measurements` are as `edgeopt.measurement.Measurement.summary` gives them, `provenance` is what the maker tells.
    `listed` are all files but the manifest, those of the artifact and the golden samples checked on reading.
    """

    folder: Path
    artifact: Artifact
    backend: str
    preprocess: Preprocess
    tolerance: float
    golden_inputs: Tuple[str, ...]
    golden_outputs: Tuple[str, ...]
    measurements: Tuple[Mapping[str, Any], ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    listed: Tuple[FileEntry, ...] = ()

    @property
    def main(self) -> Path:
        """The file that the backend opens."""
        return self.folder / self.artifact.main

    def golden(self) -> Tuple[Dict[str, Array], Dict[str, Array]]:
        """Raw inputs and expected float32 outputs by name, samples along the first axis."""
        import numpy as np

        try:
            with np.load(self.folder / GOLDEN, allow_pickle=False) as arrays:
                inputs = {name: arrays[f"input-{index}"] for index, name in enumerate(self.golden_inputs)}
                outputs = {name: arrays[f"output-{index}"] for index, name in enumerate(self.golden_outputs)}
        except (OSError, KeyError, MemoryError, *DAMAGE) as error:
            raise CorruptArtifact(
                f"the golden samples cannot be read: {error}", where=str(self.folder / GOLDEN), remedy=AGAIN
            ) from error
        return inputs, outputs


@dataclass(frozen=True)
class Proof:
    """The golden samples were computed within tolerance. `worst` is the output that came nearest to it.

    `difference` is that output's largest difference, as a fraction of the largest expected magnitude.
    """

    samples: int
    worst: str
    difference: float
    tolerance: float

    def to_json(self) -> Dict[str, Any]:
        return {
            "samples": self.samples,
            "worst": self.worst,
            "difference": self.difference,
            "tolerance": self.tolerance,
        }


def write_bundle(
    folder: Path,
    artifact: Artifact,
    artifact_folder: Path,
    backend: str,
    golden_inputs: Mapping[str, Array],
    golden_outputs: Mapping[str, Array],
    preprocess: Preprocess,
    measurements: Sequence[Mapping[str, Any]] = (),
    provenance: Optional[Mapping[str, Any]] = None,
    tolerance: Optional[float] = None,
    documents: Mapping[str, str] = {},
) -> Bundle:
    """Write a bundle as `folder`, which must not exist or be empty. It appears whole or not at all.

    `golden_inputs` are raw samples by the source model's input names, before `preprocess`; `golden_outputs` what this
    artifact gave for them, float32, in the order of its outputs. `tolerance` is by default that of the precision.
    `documents` are texts by the names of their files, for people and for other tools.
    Raises InputError where the folder is taken or there are no golden samples, CorruptArtifact where a file of the
    artifact is not what its digest says.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not empty", remedy="Give a folder that does not exist yet.")
    counts = {len(array) for array in (*golden_inputs.values(), *golden_outputs.values())}
    if len(counts) != 1 or 0 in counts or not golden_inputs or not golden_outputs:
        raise InputError(f"golden samples need as many inputs as outputs, at least one; there are {sorted(counts)}")
    names = {entry.path for entry in artifact.files}
    if taken := names & {MANIFEST, GOLDEN, *documents}:
        raise InputError(f"the artifact has a file named {min(taken)}, which is the bundle's own")
    partial = folder.parent / f".{folder.name}.{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for entry in artifact.files:
            target = _inside(partial, entry.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(artifact_folder / entry.path, target)
            check_file(partial, entry)
        _write_golden(partial / GOLDEN, golden_inputs, golden_outputs)
        for name, text in documents.items():
            (partial / name).write_text(text, encoding="utf-8")
        manifest = {
            "schema": SCHEMA,
            "artifact": artifact.to_json(),
            "backend": backend,
            "preprocess": preprocess.to_json(),
            "golden": {
                "path": GOLDEN,
                "sha256": sha256_of_file(partial / GOLDEN),
                "size_bytes": (partial / GOLDEN).stat().st_size,
                "inputs": list(golden_inputs),
                "outputs": list(golden_outputs),
                "samples": counts.pop(),
            },
            "tolerance": TOLERANCES.get(artifact.precision, TOLERANCES["int8"]) if tolerance is None else tolerance,
            "measurements": [dict(measurement) for measurement in measurements],
            "provenance": dict(provenance or {}),
            "files": [asdict(entry) for entry in list_files(partial)],
        }
        text = json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False)
        (partial / MANIFEST).write_text(text + "\n", encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return read_bundle(folder)


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle and check every file in it against its digest.

    Raises InputError where `folder` is no bundle or of a later schema; CorruptArtifact, naming the file, where one is
    missing, changed, a link, or outside the folder.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(f"{folder} is not a bundle: it has no {MANIFEST}", remedy="Give the folder best/ of a run.")
    try:
        manifest = jsontext.parse(path.read_text(encoding="utf-8"))
        schema = manifest["schema"]
        if schema != SCHEMA:
            raise InputError(
                f"{path} has schema {schema!r}, this edgeopt reads schema {SCHEMA}", remedy="Update edgeopt here."
            )
        artifact = Artifact.from_json(manifest["artifact"])
        golden = manifest["golden"]
        bundle = Bundle(
            folder=folder,
            artifact=artifact,
            backend=str(manifest["backend"]),
            preprocess=Preprocess.from_json(manifest["preprocess"]),
            tolerance=float(manifest["tolerance"]),
            golden_inputs=tuple(golden["inputs"]),
            golden_outputs=tuple(golden["outputs"]),
            measurements=tuple(manifest["measurements"]),
            provenance=dict(manifest["provenance"]),
        )
        checked(bundle)
        needed = (*artifact.files, FileEntry(GOLDEN, str(golden["sha256"]), int(golden["size_bytes"])))
        # of late; before it was those
        listed = tuple(checked(FileEntry(**entry)) for entry in manifest.get("files", ()))
        bundle = replace(bundle, listed=tuple(dict.fromkeys((*needed, *listed))))
        stated = manifest["artifact"]["digest"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptArtifact(
            f"not a manifest of a bundle: {type(error).__name__}: {error}", where=str(path), remedy=AGAIN
        ) from error
    if artifact.main not in {entry.path for entry in artifact.files}:
        raise CorruptArtifact(f"the main file {artifact.main} is not among the files", where=str(path), remedy=AGAIN)
    for entry in needed:
        check_file(folder, entry)
    if artifact.digest != stated:
        told = "the artifact's digest does not fit its files and settings"
        raise CorruptArtifact(told, where=str(path), remedy=AGAIN)
    return bundle


def prove(bundle: Bundle, threads: int = 1) -> Proof:
    """Load the artifact here and compute the golden samples. Raises CorruptArtifact naming the worst output.

    Runs in this process: where the runtime may crash, call `run` in a worker.
    """

    inputs, expected = bundle.golden()
    session = backends.require(bundle.backend).load(bundle.main, bundle.artifact.runtime, threads)
    given = compute(bundle, session, inputs)
    differences = {name: _difference(array, wanted) for array, (name, wanted) in zip(given.values(), expected.items())}
    worst = max(differences, key=lambda name: differences[name])
    if not differences[worst] <= bundle.tolerance:
        raise CorruptArtifact(
            f"the artifact does not compute here what it did when it was made: output {worst} is off by "
            f"{differences[worst]:.2g} of its range, the tolerance is {bundle.tolerance:.2g}",
            where=str(bundle.main),
            remedy="The runtime or the processor here may be of another kind: convert for this target.",
        )
    count = len(next(iter(inputs.values())))
    return Proof(count, worst, differences[worst], bundle.tolerance)


def compute(bundle: Bundle, session: Session, inputs: Mapping[str, Array]) -> Dict[str, Array]:
    """What the loaded artifact gives for raw samples: float32 by output name, samples along the first axis.

    A fixed batch is run piece by piece, the last one filled up. Raises InputError where samples do not fit.
    """
    import numpy as np

    specs, count = bundle.artifact.inputs, len(next(iter(inputs.values())))
    fixed = specs[0].shape[0] if specs and specs[0].shape else None
    batch = fixed if isinstance(fixed, int) else count
    rows: List[List[Array]] = [[] for _ in bundle.artifact.outputs]
    for start in range(0, count, batch):
        chosen = np.arange(start, start + batch) % count
        feeds = {name: bundle.preprocess.apply(value[chosen]) for name, value in inputs.items()}
        values = restore(session.run(adapt(feeds, specs)), bundle.artifact.outputs)
        for index, value in enumerate(values):
            rows[index].append(value if value.ndim and len(value) == batch else value[None])
    names = [spec.name for spec in bundle.artifact.outputs]
    return {name: np.concatenate(row)[:count] for name, row in zip(names, rows)}


def run(args: Mapping[str, Any], channel: Channel) -> Dict[str, Any]:
    """`prove` as a worker's job: `args` are bundle (a folder) and threads; returns `Proof.to_json`."""
    channel.progress(None, "proving the golden samples")
    return prove(read_bundle(Path(args["bundle"])), args["threads"]).to_json()


def _difference(given: Array, wanted: Array) -> float:
    """The largest difference as a fraction of the largest magnitude expected; infinite for another shape or NaN."""
    import numpy as np

    if given.shape != wanted.shape or not np.isfinite(given).all():
        return float("inf")
    scale = float(np.abs(wanted).max(initial=0.0))
    return float(np.abs(given - wanted).max(initial=0.0)) / (scale or 1.0)


def _inside(folder: Path, name: str) -> Path:
    """The path of a file below `folder`. Raises CorruptArtifact for a name that leads out of it."""
    pure = PurePosixPath(name)
    if not name or pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name or ":" in pure.parts[0]:
        told = f"the file name {name!r} leads out of the bundle"
        raise CorruptArtifact(told, where=str(folder / MANIFEST), remedy=AGAIN)
    return folder / pure


def check_file(folder: Path, entry: FileEntry) -> None:
    """Raises CorruptArtifact where a file below `folder` is not there, a link, or not what its digest says."""
    path = _inside(folder, entry.path)
    for part in (path, *path.parents):
        if part == folder:
            break
        if part.is_symlink():
            raise CorruptArtifact("a link, where a bundle holds only files", where=str(part), remedy=AGAIN)
    if not path.is_file():
        raise CorruptArtifact("the file is missing", where=str(path), remedy=AGAIN)
    if path.stat().st_size != entry.size_bytes:
        told = f"the file has {path.stat().st_size} bytes, not {entry.size_bytes}"
        raise CorruptArtifact(told, where=str(path), remedy=AGAIN)
    if sha256_of_file(path) != entry.sha256:
        raise CorruptArtifact("the file is not what its sha256 says", where=str(path), remedy=AGAIN)


def _write_golden(path: Path, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
    """A .npz with fixed timestamps and uncompressed members, so that equal arrays give equal bytes."""
    import numpy as np

    members = {f"input-{index}": array for index, array in enumerate(inputs.values())}
    members.update({f"output-{index}": array for index, array in enumerate(outputs.values())})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in members.items():
            data = io.BytesIO()
            np.lib.format.write_array(data, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            member.external_attr = 0o644 << 16
            archive.writestr(member, data.getvalue())
