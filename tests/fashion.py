"""The Fashion-MNIST sample and what the stages make of it, built once for all tests that need it."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from edgeopt.artifact import Artifact, MadeBy, TensorSpec, list_files
from edgeopt.backends import placing
from edgeopt.placement import Placement
from edgeopt.samples import Preprocess, adapt, write_samples
from edgeopt.stages import Produced, StageJob, compile, quantize
from edgeopt.target import Target

SAMPLE = Path(__file__).parents[1] / "sample_models" / "fashion_mnist"
PREPROCESS = Preprocess(mean=(73.0,), std=(90.0,))
VNNI = Target(name="vnni", arch="x86_64", isa=("avx2", "avx512f", "avx512_vnni"))
AVX2 = Target(name="avx2", arch="x86_64", isa=("avx2",))

Built = tuple[Artifact, Path]


@functools.cache
def scratch() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="edgeopt-fashion-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def artifact(folder: Path, produced: Produced) -> Artifact:
    signature = (produced.inputs, produced.outputs, produced.precision)
    return Artifact(
        produced.format,
        produced.main,
        list_files(folder),
        *signature,
        MadeBy("test", 1, {}, {}),
        runtime=produced.runtime,
        details=produced.details,
    )


@functools.cache
def source() -> Built:
    """The float model."""
    folder = scratch() / "source"
    folder.mkdir()
    shutil.copyfile(SAMPLE / "model.onnx", folder / "model.onnx")
    image = TensorSpec("image", ("batch", 1, 28, 28), "float32")
    scores = TensorSpec("scores", ("batch", 10), "float32")
    return artifact(folder, Produced("onnx", "model.onnx", (image,), (scores,), "fp32")), folder


@functools.cache
def images_and_labels(count: int = 1000) -> tuple[Any, Any]:
    """Preprocessed images of shape (count, 1, 28, 28) and their labels."""
    with np.load(SAMPLE / "test.npz", allow_pickle=False) as arrays:
        return PREPROCESS.apply(arrays["image"][:count]), arrays["labels"][:count]


@functools.cache
def calibration(count: int = 64) -> Path:
    """A folder of test images that `images_and_labels` has not: train.npz takes long to unpack."""
    folder = scratch() / f"calibration{count}"
    folder.mkdir()
    with np.load(SAMPLE / "test.npz", allow_pickle=False) as arrays:
        write_samples(folder, {"image": arrays["image"][-count:]}, None, PREPROCESS)
    return folder


def run_stage(
    stage: ModuleType,
    choice: str,
    parent: Built,
    out: Path,
    target: Target = VNNI,
    progress: Any = None,
    lineage: Mapping[str, Path] | None = None,
    **options: Any,
) -> Built:
    """One stage on one artifact, into the new folder `out`. `lineage` is the import's where the model is another."""
    out.mkdir(parents=True)
    job = StageJob(
        choice=choice,
        options=stage.choices()[choice](**options),
        parent=parent[0],
        parent_folder=parent[1],
        lineage=lineage or {"import": source()[1]},
        samples={"calibration": calibration()} if lineage is None else {},
        target=target,
        out=out,
        progress=progress or (lambda fraction, text: None),
    )
    return artifact(out, stage.run(job)), out


_built: dict[tuple[str, ...], Built] = {}


def int8(target: Target = VNNI) -> Built:
    """The canonical Q/DQ model for a target."""
    key = ("int8", target.name)
    if key not in _built:
        _built[key] = run_stage(quantize, "int8", source(), scratch() / "-".join(key), target)
    return _built[key]


def compiled(choice: str, of_int8: bool = False, precision: str = "auto", **options: Any) -> Built:
    """The model, float or int8, compiled for a runtime."""
    key = (choice, "int8" if of_int8 else "float", precision, *(f"{name}={value}" for name, value in options.items()))
    if key not in _built:
        parent = int8() if of_int8 else source()
        asked = options if precision == "auto" else {**options, "precision": precision}
        _built[key] = run_stage(compile, choice, parent, scratch() / "-".join(key), **asked)
    return _built[key]


def placement(choice: str, of_int8: bool = False, precision: str = "auto") -> Placement:
    """Where the operators of the compiled model run."""
    return placed(compiled(choice, of_int8, precision), choice)


def placed(built: Built, choice: str) -> Placement:
    """Where the operators of a compiled form of the sample run."""
    made, folder = built
    feeds = adapt({"image": images_and_labels()[0][:1]}, made.inputs)
    return placing.tell(choice, folder / made.main, made.runtime, 1, feeds)


def top1(session: Any, batch: int = 250) -> float:
    """Accuracy over the test images."""
    images, labels = images_and_labels()
    name, output = session.inputs[0].name, session.outputs[0].name
    scores = [session.run({name: images[i : i + batch]})[output] for i in range(0, len(images), batch)]
    return float((np.concatenate(scores).argmax(1) == labels).mean())
