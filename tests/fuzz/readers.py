"""Every reader of files from outside, as a function of the folder that holds its files (`corpus` makes valid ones).

What a reader returns is what would be printed, or None. Vendors' libraries are those of `libraries`, loaded before the
first file is read, as a worker has them after its first.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeopt.samples import Preprocess


@dataclass(frozen=True)
class Reader:
    """`files` are those of the folder that get damaged, one at a time. Native code may crash, which costs a worker, or
    find no memory: the command then ends with 4. `rounds` are the examples of a usual run."""

    read: Callable[[Path], str | None]
    files: tuple[str, ...]
    libraries: tuple[str, ...] = ()
    native: bool = False
    rounds: int = 12


def _recipe(folder: Path) -> None:
    from edgeopt import recipe

    recipe.read(folder / "recipe.yaml")


def _target(folder: Path) -> None:
    from edgeopt import catalog

    catalog.read_target(folder / "target.yaml")


def _bundle(folder: Path) -> None:
    from edgeopt import bundle, verify

    found = bundle.read_bundle(folder / "best")
    found.golden()
    verify.verify(folder / "best")


def _golden(folder: Path) -> None:
    """With the digest that it should have: whoever changes a file can change the manifest too."""
    from edgeopt import bundle
    from edgeopt.artifact import sha256_of_file

    path, manifest = folder / "best" / bundle.GOLDEN, folder / "best" / bundle.MANIFEST
    told = json.loads(manifest.read_text())
    right = {"sha256": sha256_of_file(path), "size_bytes": path.stat().st_size}
    told["golden"].update(right)
    for entry in told["files"]:
        entry.update(right if entry["path"] == bundle.GOLDEN else {})
    manifest.write_text(json.dumps(told))
    bundle.read_bundle(folder / "best").golden()


def _key(folder: Path) -> None:
    from edgeopt import signing

    signing.public(folder / "key.pub")


def _measurements(folder: Path) -> None:
    from edgeopt.kit import comparison

    comparison.compare(folder / "measurements.jsonl", folder / "other.jsonl", unlike=True)


def _run(folder: Path) -> None:
    from edgeopt import check, evidence, redraw

    redraw.page(folder / "run")
    redraw.text(folder / "run")
    check.check(evidence.read_run(folder / "run", every=True))


def _baseline(folder: Path) -> None:
    from edgeopt import check, evidence

    record = evidence.parse_baseline(
        (folder / "baseline.json").read_bytes().decode("utf-8", "replace"), "baseline.json"
    )
    check.check(evidence.read_run(folder / "run"), record)


def _reproduced(folder: Path) -> None:
    from edgeopt import reproduce

    reproduce.recipe_of(reproduce.read(folder / "run.json"))


def _trtexec_times(folder: Path) -> None:
    from edgeopt import trtexec

    trtexec.read_times(folder / "times.json").percentiles()


def _trtexec_summary(folder: Path) -> None:
    from edgeopt import trtexec

    trtexec.read_summary((folder / "log.txt").read_text(errors="replace"))


def _edgetpu_log(folder: Path) -> None:
    from edgeopt.edgetpu import program

    text = (folder / "log.txt").read_text(errors="replace")
    program.failure(text)
    program.parse(text).to_json()


def _put(folder: Path) -> None:
    """The device's end of a connection."""
    from edgeopt.kit import transfer

    for by_content in (False, True):
        stream = io.BytesIO((folder / "stream").read_bytes())
        transfer.read_files(stream, folder / "there", by_content=by_content)


class Deaf:
    """A channel that nobody listens to."""

    def progress(self, fraction: float | None, text: str) -> None:
        pass


def _data(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        from edgeopt import data

        data.peek(str(folder / name))
        (folder / "out").mkdir(exist_ok=True)
        preprocess = Preprocess((1.0,), (2.0,)).to_json()
        asked = {"location": str(folder / name), "samples": 3, "seed": 0, "out": str(folder / "out")}
        data.prepare({**asked, "preprocess": preprocess}, Deaf())  # type: ignore[arg-type]

    return read


def _inspected(name: str) -> Callable[[Path], str]:
    """What `edgeopt inspect` prints: the file read as its worker does, the answer as JSON."""

    def read(folder: Path) -> str:
        from rich.console import Console

        from edgeopt import inspection
        from edgeopt.edgetpu import telling
        from edgeopt.stages import import_model

        path = str(folder / name)
        found: dict[str, Any] = import_model.inspect({"model": path}, Deaf())  # type: ignore[arg-type]
        if name.endswith(".tflite"):
            found["edge_tpu"] = telling.tell({"model": path}, Deaf())  # type: ignore[arg-type]
        console = Console(file=io.StringIO(), width=100, force_terminal=False)
        inspection.print_summary(json.loads(json.dumps(found, allow_nan=False)), console)
        return str(console.file.getvalue())  # type: ignore[attr-defined]

    return read


def _weights(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        import torch

        from edgeopt.formats import torch as factories

        factories._load_weights(torch.nn.Linear(8, 4), folder / name)

    return read


def _keras(name: str) -> Callable[[Path], None]:
    """What is looked at before Keras sees the file."""

    def read(folder: Path) -> None:
        from edgeopt import formats
        from edgeopt.formats import keras

        with formats.reading(name):
            keras.check(folder / name)

    return read


INSPECT = ("rich.console", "rich.table", "edgeopt.inspection", "edgeopt.edgetpu.telling", "edgeopt.stages.import_model")
TORCH = (
    *INSPECT,
    "torch.export",
    "torch.utils.flop_counter",
    "safetensors.torch",
    "edgeopt.formats.torch",
    "edgeopt.formats.pt2",
)
STEPS = ("compile", "prune", "distill", "quantize")
RECIPES = ("edgeopt.reproduce", *(f"edgeopt.stages.{name}" for name in STEPS))
READERS: dict[str, Reader] = {
    "recipe": Reader(_recipe, ("recipe.yaml",), RECIPES),
    "target": Reader(_target, ("target.yaml",), RECIPES),
    "bundle": Reader(_bundle, ("best/edgeopt.json", "best/model.onnx", "best/golden.npz")),
    "golden samples": Reader(_golden, ("best/golden.npz",)),
    "public key": Reader(_key, ("key.pub",)),
    "measurements": Reader(_measurements, ("measurements.jsonl",)),
    "run": Reader(_run, ("run/choice.json", "run/measurements.jsonl", "run/run.json"), rounds=30),
    "baseline": Reader(_baseline, ("baseline.json",)),
    "run.json to reproduce": Reader(_reproduced, ("run.json",), RECIPES),
    "times of trtexec": Reader(_trtexec_times, ("times.json",)),
    "summary of trtexec": Reader(_trtexec_summary, ("log.txt",)),
    "log of edgetpu_compiler": Reader(_edgetpu_log, ("log.txt",)),
    "files sent to a device": Reader(_put, ("stream",)),
    ".npz": Reader(_data("data.npz"), ("data.npz",)),
    ".npy": Reader(_data("data.npy"), ("data.npy",)),
    ".onnx": Reader(_inspected("model.onnx"), ("model.onnx",), (*INSPECT, "edgeopt.formats.onnx", "onnx"), native=True),
    ".tflite": Reader(_inspected("model.tflite"), ("model.tflite",), (*INSPECT, "ai_edge_litert.schema_py_generated")),
    ".xml": Reader(_inspected("model.xml"), ("model.xml", "model.bin"), (*INSPECT, "openvino"), native=True),
    ".pt2": Reader(_inspected("model.pt2"), ("model.pt2",), TORCH, native=True),
    "TorchScript": Reader(_inspected("model.ts"), ("model.ts",), TORCH, native=True),
    ".safetensors": Reader(_weights("w.safetensors"), ("w.safetensors",), TORCH, native=True),
    "checkpoint": Reader(_weights("w.pt"), ("w.pt",), TORCH, native=True),
    ".keras": Reader(_keras("model.keras"), ("model.keras",), ("h5py",)),
    ".h5": Reader(_keras("model.h5"), ("model.h5",), ("h5py",), native=True),
}
