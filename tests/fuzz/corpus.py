"""One small valid folder for each reader, which damage is done to."""

from __future__ import annotations

import io
import json
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import linear
import numpy as np

REPOSITORY = Path(__file__).parents[2]
CONFIG = {
    "module": "keras", "class_name": "Sequential", "registered_name": None, "keras_version": "3.15.0",
    "config": {"name": "s", "layers": [
        {"module": "keras.layers", "class_name": "InputLayer", "config": {"batch_shape": [None, 8]}},
        {"module": "keras.layers", "class_name": "Dense", "config": {"units": 4, "activation": "relu"}},
    ]},
}  # fmt: skip


def make(name: str, folder: Path) -> None:
    """The valid files of a reader of `readers.READERS`, in a new folder."""
    folder.mkdir(parents=True)
    MAKERS[name](folder)


def _recipe(folder: Path) -> None:
    shutil.copyfile(REPOSITORY / "recipes" / "fashion-mnist-full.yaml", folder / "recipe.yaml")


def _target(folder: Path) -> None:
    text = (REPOSITORY / "edgeopt" / "targets" / "raspberry-pi-5.yaml").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("reach:")]
    (folder / "target.yaml").write_text("\n".join((*lines, "ssh: pi@192.168.1.20", "port: 2222", "key: ~/.ssh/id")))


def _bundle(folder: Path) -> None:
    linear.bundle(folder / "best")


def _key(folder: Path) -> None:
    (folder / "key.pub").write_text(f"ssh-ed25519 {'A' * 68} me@home\n")


def _run(folder: Path) -> None:
    from test_check import write_run

    write_run(folder / "run")
    shutil.copyfile(folder / "run" / "measurements.jsonl", folder / "measurements.jsonl")
    shutil.copyfile(folder / "run" / "measurements.jsonl", folder / "other.jsonl")
    recipe = {"model": "model.onnx", "steps": [{"compile": ["onnxruntime"]}], "target": "host"}
    told = {"schema": 1, "edgeopt": "1", "machine": None, "import": {}, "data": {}, "steps": [], "winner": None}
    told["recipe"] = {"folder": "/nowhere", "name": "r", "document": recipe}
    for place in (folder, folder / "run"):
        (place / "run.json").write_text(json.dumps(told))


def _baseline(folder: Path) -> None:
    from edgeopt import evidence

    _run(folder)
    (folder / "baseline.json").write_text(evidence.baseline_text(evidence.read_run(folder / "run", every=True)))


def _times(folder: Path) -> None:
    call = {"startEnqMs": 1.0, "h2dMs": 0.01, "computeMs": 0.5, "d2hMs": 0.002, "latencyMs": 0.512}
    (folder / "times.json").write_text(json.dumps([call] * 8))


def _summary(folder: Path) -> None:
    values = "min = 0.5 ms, max = 2.25 ms, mean = 0.6 ms, median = 0.55 ms, percentile(90%) = 0.7 ms"
    lines = ("Throughput: 1942.67 qps", f"Latency: {values}", f"GPU Compute Time: {values}")
    (folder / "log.txt").write_text("".join(f"[11/22/2026-10:00:00] [I] {line}\n" for line in lines))


def _edgetpu_log(folder: Path) -> None:
    from test_edgetpu import LOG

    (folder / "log.txt").write_text(LOG)


def _stream(folder: Path) -> None:
    from edgeopt.artifact import sha256_of_file
    from edgeopt.kit.transfer import write_files

    for name, content in (("a", bytes(range(256))), ("b", b"text")):
        (folder / name).write_bytes(content)
    stream = io.BytesIO()
    write_files(stream, [(sha256_of_file(folder / name), folder / name) for name in "ab"])
    (folder / "stream").write_bytes(stream.getvalue())


def _npz(folder: Path) -> None:
    np.savez(folder / "data.npz", x=linear.RAW[:6], labels=linear.LABELS[:6])


def _npy(folder: Path) -> None:
    np.save(folder / "data.npy", linear.RAW[:6])


def _pt2(folder: Path) -> None:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own pickling of its own tree specifications
        torch.export.save(torch.export.export(torch.nn.Linear(8, 4), (torch.zeros(2, 8),)), folder / "model.pt2")


def _torchscript(folder: Path) -> None:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that TorchScript is deprecated
        torch.jit.trace(torch.nn.Linear(8, 4), (torch.zeros(2, 8),)).save(str(folder / "model.ts"))


def _safetensors(folder: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"weight": np.zeros((4, 8), np.float32), "bias": np.zeros(4, np.float32)}, folder / "w.safetensors")


def _checkpoint(folder: Path) -> None:
    import torch

    torch.save(torch.nn.Linear(8, 4).state_dict(), folder / "w.pt")


def _keras(folder: Path) -> None:
    with zipfile.ZipFile(folder / "model.keras", "w") as archive:
        archive.writestr("config.json", json.dumps(CONFIG))
        archive.writestr("metadata.json", '{"keras_version": "3.15.0"}')


def _h5(folder: Path) -> None:
    import h5py

    with h5py.File(folder / "model.h5", "w") as file:
        file.attrs["model_config"] = json.dumps(CONFIG)
        file["model_weights/dense/kernel"] = np.zeros((8, 4), np.float32)


MAKERS: dict[str, Callable[[Path], None]] = {
    "recipe": _recipe,
    "target": _target,
    "bundle": _bundle,
    "golden samples": _bundle,
    "public key": _key,
    "measurements": _run,
    "run": _run,
    "baseline": _baseline,
    "run.json to reproduce": _run,
    "times of trtexec": _times,
    "summary of trtexec": _summary,
    "log of edgetpu_compiler": _edgetpu_log,
    "files sent to a device": _stream,
    ".npz": _npz,
    ".npy": _npy,
    ".onnx": lambda folder: linear.save_onnx(folder / "model.onnx"),
    ".tflite": lambda folder: linear.save_tflite(folder / "model.tflite"),
    ".xml": lambda folder: linear.save_openvino(folder / "model.xml"),
    ".pt2": _pt2,
    "TorchScript": _torchscript,
    ".safetensors": _safetensors,
    "checkpoint": _checkpoint,
    ".keras": _keras,
    ".h5": _h5,
}
