"""The command `edgeopt` as a process of its own, on a tiny model and a recipe that takes seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import processes
from onnx import TensorProto, helper, numpy_helper

PLUGIN = Path(__file__).parent / "plugin"
RECIPE = """
model: model.onnx
data: {calibration: calibration.npz, validation: validation.npz}
steps:
  - quantize: [none, int8]
  - compile: [onnxruntime, openvino]
measure: {rounds: 3, block: 5 ms}
"""
ONE_CANDIDATE = """
model: model.onnx
data: {validation: validation.npz}
steps:
  - compile: onnxruntime
measure: {rounds: 3, block: 5 ms}
"""
# Runs the command, and then writes the peak of this one process's resident memory, in kB (proc(5), VmHWM).
WITH_PEAK = """
import sys
from edgeopt.__main__ import main
code = main(sys.argv[2:])
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
with open(sys.argv[1], "w") as file:
    file.write(peak)
sys.exit(code)
"""


def write_model(path: Path) -> None:
    """Two convolutions and a linear layer: x float32[batch, 3, 16, 16] to scores float32[batch, 5]."""
    draw = np.random.default_rng(0)
    shapes = {"w0": (8, 3, 3, 3), "b0": (8,), "w1": (16, 8, 3, 3), "b1": (16,), "w2": (5, 16), "b2": (5,)}
    weights = [
        numpy_helper.from_array((draw.standard_normal(s) / np.sqrt(np.prod(s[1:]))).astype(np.float32), name)
        for name, s in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], pads=[1] * 4),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("Conv", ["r0", "w1", "b1"], ["c1"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("GlobalAveragePool", ["r1"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w2", "b2"], ["scores"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 5])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))


def write_samples(path: Path, seed: int) -> None:
    np.savez(path, x=np.random.default_rng(seed).standard_normal((60, 3, 16, 16)).astype(np.float32))


def project(folder: Path, recipe: str = RECIPE) -> Path:
    """A folder with model, samples and recipe.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    write_model(folder / "model.onnx")
    write_samples(folder / "calibration.npz", 1)
    write_samples(folder / "validation.npz", 2)
    (folder / "recipe.yaml").write_text(recipe)
    return folder


def start(
    folder: Path, cache: Path, *more: str, peak: Path | None = None, prepare: Callable[[], None] = processes.as_usual
) -> subprocess.Popen[str]:
    """`edgeopt convert recipe.yaml --json` in `folder`, not waited for. `prepare` is called in the new process."""
    program = ["-c", WITH_PEAK, str(peak)] if peak else ["-m", "edgeopt"]
    return subprocess.Popen(
        [sys.executable, *program, "convert", "recipe.yaml", "--json", *more],
        cwd=folder,
        env={**os.environ, "EDGEOPT_CACHE": str(cache), "PYTHONPATH": str(PLUGIN)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> dict[str, Any]:
    """The document that the command printed, after it has ended with `code`."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, f"exit code {process.returncode}: {err}\n{out}"
    found: dict[str, Any] = json.loads(out)
    return found


def convert(folder: Path, cache: Path, *more: str, code: int = 0, peak: Path | None = None) -> dict[str, Any]:
    return finish(start(folder, cache, *more, peak=peak), code)


def edgeopt(folder: Path, cache: Path, *arguments: str) -> dict[str, Any]:
    """What another verb prints with --json."""
    ended = subprocess.run(
        [sys.executable, "-m", "edgeopt", *arguments, "--json"],
        cwd=folder,
        env={**os.environ, "EDGEOPT_CACHE": str(cache), "PYTHONPATH": str(PLUGIN)},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def run_json(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(document["run"]) / "run.json").read_text())
    return found


def digests(document: dict[str, Any]) -> dict[str, str]:
    """The digest of every step's artifact, by step."""
    return {step["id"]: step["artifact"] for step in run_json(document)["steps"]}


def built(document: dict[str, Any]) -> set[str]:
    """The steps that this run built itself."""
    return {step["id"] for step in run_json(document)["steps"] if not step["reused"]}


def candidate(document: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(c for c in document["candidates"] if c["id"] == name)
    return found


def workers(cache: Path) -> list[int]:
    """Processes other than commands that were started with this cache, by what the kernel says of their environment."""
    wanted = f"EDGEOPT_CACHE={cache}".encode()
    found = []
    for status in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted in status.read_bytes().split(b"\0") and b"\0convert\0" not in (
                status.with_name("cmdline").read_bytes()
            ):
                found.append(int(status.parent.name))
        except OSError:
            continue  # it has ended, or is another user's
    return found


def gone(cache: Path, seconds: float) -> bool:
    """Whether no worker is left after `seconds` at the latest."""
    return wait_for(lambda: not workers(cache), seconds)


def wait_for(condition: Any, seconds: float = 60) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.01)
    return bool(condition())


def stored(cache: Path) -> dict[str, list[int]]:
    """Every finished step in the store, by key, with the times at which its files were written."""
    return {
        entry.name: sorted(file.stat().st_mtime_ns for file in (entry / "files").rglob("*"))
        for entry in (cache / "entries").glob("*")
    }


def leftovers(folder: Path, cache: Path) -> Iterator[Path]:
    """What an unfinished run may leave: folders half written."""
    yield from folder.glob("**/*.partial")
    yield from (cache / "partial").glob("*")
